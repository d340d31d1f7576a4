"""The pages: their console blocks run, their lines are short, their site needs nobody else, the card is the shipped one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

import click
import pytest
from PIL import Image

import fer_edge
from fer_edge.bundle import golden_set, open_bundle, write_manifest
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import cli

ROOT = Path(__file__).resolve().parent.parent
TOP = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "weights/README.md")
PAGES = [*(ROOT / name for name in TOP), *sorted((ROOT / "docs").glob("*.md"))]
MARK = re.compile(r"<!-- (not run here|run by): *(.*?) *-->", re.DOTALL)
WIDTH = 120


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. ``mark``: what the comment above it says, as ("not run here", "needs ..."), or None."""

    line: int
    language: str
    text: str
    mark: tuple[str, str] | None


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    found = []
    lines = page.read_text(encoding="utf-8").split("\n")
    starts: list[int] = []
    for number, line in enumerate(lines):
        if not line.lstrip().startswith("```"):
            continue
        starts.append(number)
        if len(starts) % 2:
            continue
        first = starts[-2]
        above = "\n".join(lines[max(0, first - 3) : first]).rstrip()
        mark = next((m for m in MARK.finditer(above) if m.end() == len(above)), None)
        language = lines[first].strip().strip("`").strip()
        text = "\n".join(lines[first + 1 : number])
        found.append(Block(first + 1, language, text, (mark.group(1), mark.group(2)) if mark else None))
    assert len(starts) % 2 == 0, f"{page.name}: a fence is not closed"
    return found


def commands(text: str) -> str:
    """What a reader types: the lines after ``$`` where there are any (the others are output), or all lines."""
    lines = text.split("\n")
    if not any(line.startswith("$ ") for line in lines):
        return text
    kept, continued = [], False
    for line in lines:
        if continued or line.startswith("$ "):
            kept.append(line.removeprefix("$ "))
            continued = line.endswith("\\")
    return "\n".join(kept)


def of_language(page: Path, language: str) -> list[Block]:
    """The page's blocks that somebody could run."""
    return [b for b in blocks(page) if b.language == language]


def unmarked(page: Path) -> list[Block]:
    """The page's blocks that this file runs."""
    return [b for language in ("console", "python") for b in of_language(page, language) if b.mark is None]


def long_lines(text: str) -> Iterator[tuple[int, int]]:
    """(number, length) of the lines over WIDTH; tables and what stands in a fence are no text."""
    fenced = False
    for number, line in enumerate(text.split("\n"), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if len(line) > WIDTH and not fenced and not line.startswith("|"):
            yield number, len(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    assert list(long_lines(page.read_text(encoding="utf-8"))) == []


def test_a_long_line_is_seen() -> None:
    long = "x" * (WIDTH + 1)
    assert list(long_lines(f"{long}\n| {long} |\n```\n{long}\n```\n{long}")) == [(1, WIDTH + 1), (6, WIDTH + 1)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_marks_say_why_and_by_whom(page: Path) -> None:
    for block in blocks(page):
        if block.mark is not None and block.mark[0] == "run by":
            assert (ROOT / block.mark[1]).is_file(), f"{page.name}:{block.line}"
            assert page.name in (ROOT / block.mark[1]).read_text(), (
                f"{page.name}:{block.line} is not read by {block.mark[1]}"
            )
        elif block.mark is not None:
            assert len(block.mark[1].split()) >= 2, f"{page.name}:{block.line}: the reason is missing"
            for name in re.findall(r"tests/\w+\.py", block.mark[1]):
                assert (ROOT / name).is_file(), f"{page.name}:{block.line}: {name}"


@pytest.fixture
def bench_of_a_reader(tmp_path: Path) -> Path:
    """A folder with what the pages speak of: examples/, face.jpg, and faces/ with a folder per expression."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    Image.open(ROOT / "examples" / "astronaut.png").convert("RGB").crop((168, 56, 280, 168)).save(tmp_path / "face.jpg")
    with fer_edge.load(threads=1) as clf:
        for number, crop in enumerate(golden_set(open_bundle(DEFAULT_BUNDLE)).crops):
            face = Image.fromarray(crop.squeeze(-1) if crop.shape[-1] == 1 else crop)
            folder = tmp_path / "faces" / clf.predict(face).label
            folder.mkdir(parents=True, exist_ok=True)
            face.save(folder / f"{number:02}.png")
    return tmp_path


@pytest.mark.parametrize("page", [p for p in PAGES if unmarked(p)], ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_shows_can_be_done(page: Path, bench_of_a_reader: Path) -> None:
    """One shell for the page's console blocks, one Python for its Python blocks, in the page's order."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "HOME": str(bench_of_a_reader)}
    console = [b for b in of_language(page, "console") if b.mark is None]
    python = [b for b in of_language(page, "python") if b.mark is None]
    script = "set -euo pipefail\n" + "\n".join(f": {page.name}:{b.line}\n{commands(b.text)}" for b in console)
    code = "\n".join(b.text for b in python)
    for command in (["bash", "-x", "-c", script], [sys.executable, "-W", "error", "-c", code]):
        done = subprocess.run(command, cwd=bench_of_a_reader, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{page.name}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        for line in (line for b in console for line in b.text.split("\n") if re.match(r"\S+\.png: \w+ \d", line)):
            assert command[0] != "bash" or line.split(" ")[:2] == done.stdout.split(" ")[:2], "the label that the page shows"


def test_the_runtime_of_the_page_gives_the_right_answer(tmp_path: Path) -> None:
    """The 20 lines of CONTRIBUTING.md, offered by another package, on a bundle that was made for it."""
    pytest.importorskip("onnxruntime")
    (block,) = of_language(ROOT / "CONTRIBUTING.md", "python")
    (tmp_path / "twenty_lines.py").write_text(block.text)
    (tmp_path / "twenty-1.dist-info").mkdir()
    (tmp_path / "twenty-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: twenty\nVersion: 1\n")
    (tmp_path / "twenty-1.dist-info" / "entry_points.txt").write_text("[fer_edge.runtimes]\ntwenty = twenty_lines\n")
    folder = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))
    manifest = open_bundle(folder).manifest
    artefacts = tuple(replace(a, runtime="twenty") if a.runtime == "onnxruntime" else a for a in manifest.artefacts)
    write_manifest(folder, replace(manifest, artefacts=artefacts))
    command = [sys.executable, "-m", "fer_edge", "verify", str(folder), "--runtime", "twenty", "--json"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)["artefacts"]
    assert [(r["runtime"], r["status"]) for r in rows] == [("twenty", "ok")]


def test_only_what_is_typed_is_run() -> None:
    assert commands("$ a \\\n  b\nout\n$ c\nout") == "a \\\n  b\nc"
    assert commands("a\nb") == "a\nb"


class Fetched(HTMLParser):
    """Addresses that a browser loads by itself: not those of links that somebody clicks."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = ("href",) if tag == "link" else () if tag == "a" else ("src", "srcset", "data", "poster")
        self.addresses += [value for name, value in attrs if name in names and value]


def from_elsewhere(html: str) -> list[str]:
    """What a page would fetch from another host."""
    parser = Fetched()
    parser.feed(html)
    return [a for a in parser.addresses if re.match(r"(\w+:)?//", a)]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built pages; a warning of the builder is an error."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={"NO_MKDOCS_2_WARNING": "1", "PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_is_built_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert {p.stem for p in pages} >= {p.stem for p in (ROOT / "docs").glob("*.md")}
    assert {p.name: found for p in pages if (found := from_elsewhere(p.read_text(encoding="utf-8")))} == {}
    for style in site.rglob("*.css"):
        assert re.findall(r"(?:url\(|@import) *[\"']?(?:https?:)?//", style.read_text(encoding="utf-8")) == []


def test_the_reference_has_every_public_name(site: Path) -> None:
    page = (site / "api.html").read_text(encoding="utf-8")
    for name in fer_edge.__all__:
        where = "fer_edge.errors" if name.endswith("Error") else "fer_edge"
        assert name.startswith("__") or f'id="{where}.{name}"' in page, name
    assert ":func:" not in page
    assert ":class:" not in page


def test_something_from_elsewhere_is_seen() -> None:
    html = '<script src="https://a.example/x.js"></script><link href="//b.example/y.css"><a href="https://c.example">c</a>'
    assert from_elsewhere(html) == ["https://a.example/x.js", "//b.example/y.css"]


def test_the_card_is_the_shipped_one() -> None:
    assert (ROOT / "docs" / "card.md").read_text(encoding="utf-8") == open_bundle(DEFAULT_BUNDLE).manifest.card


def spans(page: Path) -> list[str]:
    """Code of a page: what stands between backticks, and the lines of its console blocks, continued ones joined."""
    text = page.read_text(encoding="utf-8")
    inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line for b in of_language(page, "console") for line in commands(b.text).replace("\\\n", " ").split("\n")]
    return [" ".join(span.split()) for span in [*inline, *lines]]


def missing_paths(span: str) -> list[str]:
    """Files and modules of this repository that a span names and that are not there."""
    rooms = "fer_edge|runtimes|converters|benchmarks|lab|tests|docs|examples|weights"
    paths = re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w/.-]*\w)", span)
    modules = re.findall(r"python -m ((?:lab|fer_edge)[\w.]*)", span)
    files = [m.removeprefix("fer_edge.").replace(".", "/") for m in modules if m != "fer_edge"]
    there = [*paths, *(f"{f}.py" for f in files)]
    return [p for p in there if not (ROOT / p).exists()]


def unknown_options(span: str) -> list[str]:
    """Commands and long options that a ``fer-edge`` line names and that the command line has not."""
    words = span.split(" #")[0].split()
    if words[:1] != ["fer-edge"]:
        return []
    command: click.Command = cli
    context = click.Context(cli)
    for word in words[1:]:
        inner = command.get_command(context, word) if isinstance(command, click.Group) else None
        if inner is None:
            break
        command = inner
    known = {option for p in command.params for option in (*p.opts, *p.secondary_opts)} | {"--help", "--version", "--debug"}
    wrong = [w.split("=")[0] for w in words if w.startswith("--") and w.split("=")[0].rstrip(";,") not in known]
    if isinstance(command, click.Group) and command is not cli and len(words) > 2 and not words[2].startswith("-"):
        wrong.append(words[2])
    return wrong + [words[1] for _ in [0] if command is cli and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1])]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path) -> None:
    wrong = {span: found for span in spans(page) if (found := missing_paths(span) + unknown_options(span))}
    assert wrong == {}


def test_a_name_that_does_not_exist_is_seen() -> None:
    assert missing_paths("see tests/no_such.py and python -m lab.nothing") == ["tests/no_such.py", "lab/nothing.py"]
    assert unknown_options("fer-edge predict x.png --boxes 1") == ["--boxes"]
    assert unknown_options("fer-edge preddict x.png") == ["preddict"]
    assert unknown_options("fer-edge labels ad b") == ["ad"]
    assert unknown_options("fer-edge labels add b x.toml --text-encoder e  # --no comment") == []
