"""The table of boxes in docs/devices.md, and the files in docs/devices/ that it is made of: ``python -m lab.devices``.

A file has one box, seen in one way. It is made of what ``fer-edge`` prints there:

    fer-edge verify --json > verify.json
    fer-edge bench --scenario single-stream --json > bench.json
    python -m lab.devices add --device "Raspberry Pi 5" --seen hardware --verify verify.json --bench bench.json \\
        -o docs/devices/raspberry-pi-5.json
    python -m lab.devices table

A result without a verify that passed is refused, and so is one of another bundle than was verified. What ``fer-edge compile
--json`` prints has its verdict in it."""

from __future__ import annotations

import hashlib
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

import fer_edge
from fer_edge.benchmarks.results import Results, read_results
from fer_edge.bundle import golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit, say
from fer_edge.engines import installed
from fer_edge.errors import UsageError
from fer_edge.files import check_target, write_text
from fer_edge.manifest import digest_of

from .commands import Figures

SCHEMA = 1
SEEN = ("hardware", "simulator", "emulator", "compiler's estimate", "nobody")
"""How a box was seen, the strongest way first. Only on hardware is time measured, and only a compiler estimates it."""
TIMED = ("hardware", "compiler's estimate")
GOOD = ("ok", "drift allowed")
ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "devices"
PAGE = ROOT / "docs" / "devices.md"
MARKS = ("<!-- boxes: python -m lab.devices table -->", "<!-- end of boxes -->")
HEAD = ("device", "runtime", "precision", "seen", "ms", "MB", "parity", "labels", "answers", "bundle")


@dataclass(frozen=True)
class DeviceRow:
    """One artefact on one box. ``unit``: the engine's device; ``ms``: the median of an inference; ``mb``: of the artefact's
    files; ``centred_cosine`` and ``top1_agreement``: of ``fer-edge verify`` there; ``answers``: SHA-256 of the golden crops'
    features, equal on two boxes that compute the same to the bit. None: not known."""

    runtime: str
    engine: str
    precision: str
    unit: str
    threads: int | None = None
    ms: float | None = None
    mb: float | None = None
    centred_cosine: float | None = None
    top1_agreement: float | None = None
    answers: str | None = None


@dataclass(frozen=True)
class Box:
    """A file of docs/devices/. ``how``: the commands, or what was looked at; ``digest``: of the bundle; ``verify``: status
    by "runtime precision"; ``again``: why its times shall be measured again, "" where they need not."""

    device: str
    seen: str
    how: str
    digest: str | None
    verify: Mapping[str, str]
    rows: tuple[DeviceRow, ...]
    again: str = ""
    schema: int = field(default=SCHEMA)


def read_box(file: Path) -> Box:
    """Read and check a file. Raises UsageError, in one line that names it."""
    value = _json(file)
    try:
        rows = tuple(DeviceRow(**row) for row in value.pop("rows"))
        box = Box(**value, rows=rows)
    except (TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{file} is no file of a box: {error}") from error
    if problem := _problem(box):
        raise UsageError(f"{file}: {problem}")
    return box


def _problem(box: Box) -> str:
    """What is wrong with a box, in words; "" when nothing is."""
    if type(box.schema) is not int or box.schema != SCHEMA:
        return f"schema {box.schema}, and this fer-edge reads {SCHEMA}"
    if not isinstance(box.verify, dict) or not isinstance(box.again, str) or not isinstance(box.digest, (str, type(None))):
        return "verify, again or digest is not what it should be"
    texts = [box.device, box.seen, box.how]
    texts += [text for row in box.rows for text in (row.runtime, row.engine, row.precision, row.unit)]
    if not all(isinstance(text, str) and not re.search(r"[|\n<]", text) and len(text) < 300 for text in (*texts, box.again)):
        return "a name or text is missing, has a line break, '|' or '<', or is too long"
    if box.seen not in SEEN:
        return f"seen {box.seen!r}; there are {', '.join(SEEN)}"
    if not box.rows or not box.device:
        return "it has no device, or no rows"
    for row in box.rows:
        name = f"{row.runtime} {row.precision}"
        numbers = (row.ms, row.mb, row.centred_cosine, row.top1_agreement)
        if not all(n is None or (type(n) in (int, float) and 0 <= n < math.inf) for n in numbers):
            return f"{name}: ms, MB or parity is no number"
        if type(row.threads) not in (int, type(None)) or not re.fullmatch(r"[0-9a-f]{64}", row.answers or "0" * 64):
            return f"{name}: threads or answers is not what it should be"
        if row.ms is not None and box.seen not in TIMED:
            return f"{name}: it has a time, and {box.seen} tells none"
        if box.seen == "nobody":
            if any(n is not None for n in numbers):
                return f"{name}: it has figures that nobody saw"
        elif box.verify.get(name) not in GOOD:
            return f"{name} has not passed fer-edge verify ({box.verify.get(name, 'it was not verified')})"
        elif row.centred_cosine is None:
            return f"{name}: its parity is missing"
    return ""


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file} holds no JSON object")
    return value


def of_verify(device: str, seen: str, verify: Path, bench: Path | None, answers: Path | None, again: str, how: str) -> Box:
    """A box from what ``fer-edge verify --json`` and ``bench --json`` printed there, and :func:`answers_of`. Raises
    UsageError where the verify did not pass, or is of another bundle."""
    verdict = _json(verify)
    told = {f"{r['runtime']} {r['precision']}": r for r in verdict.get("artefacts", ())}
    if not verdict.get("ok"):
        bad = [f"{name}: {r['status']}" for name, r in told.items() if r["status"] not in (*GOOD, "no engine")]
        why = "; ".join(bad or verdict.get("files") or ["no verdict"])
        raise UsageError(f"{verify}: fer-edge verify did not pass ({why})")
    digest, checked = verdict.get("digest"), {name: r for name, r in told.items() if r["status"] in GOOD}
    run = None if bench is None else read_results(bench)
    if run is not None and {row.digest for row in run.rows} != {digest}:
        raise UsageError(f"{bench} measured another bundle than {verify} checked: run both with the same fer-edge")
    hashes: Mapping[str, str] = {} if answers is None else _json(answers)
    measured = () if run is None else _measured(run)
    rows = []
    for name, r in checked.items():
        sizes, parity = _sizes(str(digest)), r["parity"]
        base = DeviceRow(
            r["runtime"],
            r["engine"],
            r["precision"],
            r["device"],
            mb=sizes.get(name),
            centred_cosine=round(parity["centred_cosine"], 6),
            top1_agreement=round(parity["top1_agreement"], 4),
            answers=hashes.get(name),
        )
        timed = [(threads, ms, mb) for n, threads, ms, mb in measured if n == name]
        rows += [DeviceRow(**{**asdict(base), "threads": t, "ms": ms, "mb": mb}) for t, ms, mb in timed] or [base]
    return Box(device, seen, how, digest, {name: r["status"] for name, r in checked.items()}, tuple(rows), again)


def _measured(run: Results) -> list[tuple[str, int, float, float]]:
    """(artefact, threads, p50 ms, MB) of the single streams."""
    return [
        (
            f"{row.configuration.runtime} {row.configuration.precision}",
            row.configuration.threads,
            float(f"{row.latency_ms.p50:.3g}"),
            row.artefact_mb,
        )
        for row in run.rows
        if row.scenario == "single-stream"
    ]


def _sizes(digest: str) -> dict[str, float]:
    """MB of the embedded default's artefacts, where it is the bundle of this digest."""
    bundle = open_bundle(DEFAULT_BUNDLE)
    if digest_of(bundle.manifest) != digest:
        return {}
    return {f"{a.runtime} {a.precision}": sum(f.bytes for f in a.files) / 1e6 for a in bundle.manifest.artefacts}


def of_compile(device: str, file: Path, how: str) -> Box:
    """A box from what ``fer-edge compile --json`` printed. Raises UsageError where the artefact missed its bars."""
    told = _json(file)
    try:
        name, report, parity = f"{told['runtime']} {told['precision']}", told["report"], told["parity"]
        if told["misses"]:
            raise UsageError(f"{file}: {told['target']} missed its bars ({'; '.join(told['misses'])})")
        rate = report.get("inferences_per_s")
        row = DeviceRow(
            told["runtime"],
            told["compiler"],
            told["precision"],
            told["target"],
            ms=None if rate is None else float(f"{1000 / rate:.3g}"),
            mb=report.get("mb"),
            centred_cosine=round(parity["centred_cosine"], 6),
            top1_agreement=round(parity["top1_agreement"], 4),
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file} does not hold what 'fer-edge compile --json' prints ({error!r})") from error
    return Box(device, "simulator" if rate is None else "compiler's estimate", how, None, {name: "ok"}, (row,))


def table(boxes: Sequence[Box]) -> str:
    """All boxes under HEAD, those seen best first, and below it what is to be measured again."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for box in sorted(boxes, key=lambda box: (SEEN.index(box.seen), box.device)):
        for row in sorted(box.rows, key=lambda row: (row.runtime, row.precision, row.unit, row.threads or 0)):
            lines.append(f"| {' | '.join(_cells(box, row))} |")
    again = [f"- {box.device}: {box.again}" for box in sorted(boxes, key=lambda box: box.device) if box.again]
    notes = [textwrap.fill(note, 118, subsequent_indent="  ", break_long_words=False) for note in again]
    return "\n".join([*lines, *(["", "\\* To be measured again:", "", *notes] if notes else [])])


def _cells(box: Box, row: DeviceRow) -> list[str]:
    threads = f" ({row.threads} thread{'s' if row.threads != 1 else ''})" if row.threads else ""
    estimate = "about " if box.seen == "compiler's estimate" else ""
    ms = "-" if row.ms is None else f"{estimate}{row.ms:.3g}{threads}" + (r" \*" if box.again else "")
    return [
        box.device,
        f"{row.engine} on {row.unit}",
        row.precision,
        "untested" if box.seen == "nobody" else box.seen,
        ms,
        "-" if row.mb is None else f"{row.mb:.2f}",
        "-" if row.centred_cosine is None else f"{row.centred_cosine:.4f}",
        "-" if row.top1_agreement is None else f"{row.top1_agreement:.0%}",
        "-" if row.answers is None else f"`{row.answers[:8]}`",
        "-" if box.digest is None else f"`{box.digest[:8]}`",
    ]


def page_with(page: str, text: str) -> str:
    """The page with the table between its marks. Raises UsageError where it has no marks."""
    before, first, rest = page.partition(MARKS[0])
    _, second, after = rest.partition(MARKS[1])
    if not first or not second:
        raise UsageError(f"{PAGE} has no place for the table: {MARKS[0]} and {MARKS[1]}")
    return f"{before}{MARKS[0]}\n\n{text}\n\n{MARKS[1]}{after}"


def read_boxes(folder: Path = FOLDER) -> list[Box]:
    """Every box of a folder, each checked."""
    return [read_box(file) for file in sorted(folder.glob("*.json"))]


def answers_of(bundle: Path) -> dict[str, str]:
    """SHA-256 of the golden crops' features (float32, little-endian, in order), by artefact, on every engine that is here,
    one thread."""
    opened = open_bundle(bundle)
    crops, found = golden_set(opened).crops, {}
    for artefact in opened.manifest.general_artefacts:
        if installed(artefact.runtime):
            with fer_edge.load(bundle, runtime=artefact.runtime, precision=artefact.precision, threads=1) as clf:
                features = clf.features([crop[:, :, 0] if crop.shape[2] == 1 else crop for crop in crops])
            found[f"{artefact.runtime} {artefact.precision}"] = hashlib.sha256(
                np.asarray(features, "<f4").tobytes()
            ).hexdigest()
    return found


@click.group(cls=Figures)
def devices() -> None:
    """The table of boxes in docs/devices.md, and the files it is made of."""


_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@devices.command("add")
@click.option("--device", required=True, help="The box, as people know it.")
@click.option("--seen", type=click.Choice(SEEN[:3]), help="How. With --compile the compiler says so.")
@click.option("--verify", type=_file, help="What 'fer-edge verify --json' printed there.")
@click.option("--bench", type=_file, help="What 'fer-edge bench --json' printed there.")
@click.option("--answers", type=_file, help="What 'python -m lab.devices answers' printed there.")
@click.option("--compile", "compiled", type=_file, help="What 'fer-edge compile --json' printed.")
@click.option(
    "--how", default="fer-edge verify; fer-edge bench", show_default=True, help="The commands, for those who repeat it."
)
@click.option("--again", default="", help="Why the times shall be measured again, and how.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), required=True)
def add(
    device: str,
    seen: str | None,
    verify: Path | None,
    bench: Path | None,
    answers: Path | None,
    compiled: Path | None,
    how: str,
    again: str,
    output: Path,
) -> None:
    """Make a box's file of what fer-edge printed there."""
    if (compiled is None) == (verify is None):
        raise UsageError("a box needs --verify, or --compile: nothing is taken on trust")
    check_target(output)
    if compiled is not None:
        box = of_compile(device, compiled, how)
    else:
        assert verify is not None
        box = of_verify(device, seen or "hardware", verify, bench, answers, again, how)
    if problem := _problem(box):
        raise UsageError(f"{device}: {problem}")
    write_text(output, json.dumps(asdict(box), indent=1, ensure_ascii=False) + "\n")
    say(f"Written: {output}. Now: python -m lab.devices table")


@devices.command("table")
def write_table() -> None:
    """Write the table into docs/devices.md."""
    write_text(PAGE, page_with(PAGE.read_text(encoding="utf-8"), table(read_boxes())))


@devices.command("answers")
@click.argument("bundle", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
def answers_command(bundle: Path) -> None:
    """Hashes of the features that this box computes of the golden crops."""
    emit(answers_of(bundle))


if __name__ == "__main__":
    devices()
