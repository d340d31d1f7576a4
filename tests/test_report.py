"""The HTML report, in a real browser: the plots are there, and nothing is fetched."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import QUIET, chromium
from PIL import Image

from fer_edge.benchmarks.report.page import report
from fer_edge.benchmarks.report.plots import ACCENT, COLORS
from fer_edge.benchmarks.report.tables import rows_of
from fer_edge.benchmarks.results import Results

HEIGHT = 9000
"""Pixels of the window: more than the page has on a phone."""


@pytest.fixture(scope="module")
def page(run: Results) -> str:
    """A report of all engines, with a long run and two in turns put in."""
    points = [
        {"at": float(i), "p50_ms": 1 + i / 50, "p90_ms": 2.0, "mhz": 2000.0 - i, "celsius": 40.0 + i} for i in range(30)
    ]
    ranking = [{"configuration": "a", "before_ms": 1.0, "after_ms": 1.2}]
    long = {
        "configuration": "a",
        "seconds": 30.0,
        "points": points,
        "throttled_after_s": 12.0,
        "slowdown": 1.4,
        "ranking": ranking,
    }
    side = {"engine": "x", "device": "CPU", "fer_edge": "0"}
    turns = {
        "name": "n",
        "other": "o",
        "a": side,
        "b": side,
        "a_ms": 1.0,
        "b_ms": 1.1,
        "ratio": 1.1,
        "interval": [1.05, 1.15],
    }
    turns |= {"floor": 0.02, "verdict": "slower", "rounds": [1.1, 1.09], "noise": [1.0, 1.01]}
    return report(Results(run.environment, run.rows, (), {"sustained": long, "interleaved": [turns]}))


class Links(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            own = value is not None and value.startswith("#")
            if tag in ("script", "link", "img", "iframe") or (name in ("src", "href", "xlink:href") and not own):
                self.found.append((tag, f"{name}={value}"))


def test_the_page_fetches_nothing(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.found == []
    assert not re.search(r"url\((?!#)", page)
    assert "@import" not in page
    assert len(page) < 3e6


def test_what_strangers_wrote_is_escaped() -> None:
    found = report(Results({"cpu": "<script>alert(1)</script>", "notes": ["<b>"]}, ()))
    assert "<script>" not in found
    assert "&lt;b&gt;" in found


@pytest.fixture(scope="module")
def browser() -> str:
    return chromium()


def opened(browser: str, page: str, folder: Path, width: int, *options: str) -> str:
    """Open the page in a window of that width; what the browser prints."""
    (folder / "page.html").write_text(page)
    window = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{HEIGHT}"]
    command = [browser, *QUIET, *window, *options, (folder / "page.html").as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


def picture(browser: str, page: str, folder: Path, width: int) -> np.ndarray:
    """The page as the browser draws it: (H, W, 3) uint8."""
    opened(browser, page, folder, width, f"--screenshot={folder / 'shot.png'}")
    return np.asarray(Image.open(folder / "shot.png").convert("RGB"))


def near(shot: np.ndarray, colour: str) -> np.ndarray:
    """Rows in which the colour is seen, whatever lies under it at three quarters."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    faded = (rgb, 0.75 * rgb + 0.25 * 255, 0.6 * rgb + 0.4 * 255)
    pixels = shot.astype(np.int16)
    seen = np.zeros(shot.shape[:2], bool)
    for tone in faded:
        seen |= (abs(pixels - np.round(tone).astype(np.int16)) < 6).all(-1)
    return np.flatnonzero(seen.sum(1) >= 3)


@pytest.mark.parametrize("width", [390, 1000])
def test_the_plots_are_in_the_picture(browser: str, page: str, tmp_path: Path, width: int) -> None:
    shot = picture(browser, page, tmp_path, width)
    drawn = np.flatnonzero((shot < 250).any((1, 2)))
    shot = shot[: drawn.max() + 1]
    colours = (*COLORS[:3], ACCENT, "#748ffc")
    for colour in colours:
        assert len(near(shot, colour)) > 10, f"{colour} is not in the picture"
    assert len(re.findall("<figure", page)) == 8
    assert drawn.max() < HEIGHT - 10, "the page ends before the window does"
    margin = shot[:, -4:].min()
    assert margin > 240, "nothing runs out of a phone's screen"


def test_the_picture_test_can_fail(browser: str, page: str, tmp_path: Path) -> None:
    bare = re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    shot = picture(browser, bare, tmp_path, 1000)
    assert all(len(near(shot, colour)) <= 10 for colour in COLORS[:3])


MEASURING = """
<script>
addEventListener("load", () => {
  const cells = [...document.querySelectorAll("td")].map(cell => {
    const box = cell.getBoundingClientRect(), head = getComputedStyle(cell, "::before").content;
    return {text: cell.innerText, head: head, left: box.left, right: box.right, height: box.height,
            cut: cell.scrollWidth > cell.clientWidth + 1};
  });
  const heads = [...document.querySelectorAll("th")].map(cell => [cell.innerText, cell.getBoundingClientRect().right]);
  const measured = {screen: innerWidth, page: document.documentElement.scrollWidth, cells: cells, heads: heads};
  parent.document.body.dataset.measured = JSON.stringify(measured);
});
</script>
"""


def measured(browser: str, page: str, folder: Path, width: int) -> dict[str, Any]:
    """Where a browser puts the cells of the page's tables."""
    inside = escape(page.replace("</body>", f"{MEASURING}</body>"))  # a window is never narrower than 500 pixels, a frame is
    frame = f'<!doctype html><body><iframe srcdoc="{inside}" style="width: {width}px; border: 0"></iframe></body>'
    text = opened(browser, frame, folder, 1400, "--dump-dom")
    told = re.search('data-measured="([^"]*)"', text)
    assert told is not None
    found: dict[str, Any] = json.loads(unescape(told[1]))
    assert found["screen"] == width
    return found


@pytest.fixture(scope="module")
def full_table(run: Results) -> Results:
    """As wide as it comes: two bundles, long names of devices, accuracy."""
    rows = [
        replace(
            row,
            configuration=replace(row.configuration, bundle=f"/b/{bundle}", execution_precision="bf16"),
            device="NVIDIA GeForce RTX 4090 Laptop GPU",
        )
        for row in run.rows[:8]
        for bundle in ("clip-vit-large-patch14-expclip", "student48")
    ]
    of = [{**vars(row.configuration), "war": 0.8667, "uar": 0.7, "n": 9, "war_interval": (0.8, 0.9)} for row in rows]
    return replace(run, rows=tuple(rows), extras={"accuracy": {"of": of}})


@pytest.mark.parametrize("width", [390, 768, 1200])
@pytest.mark.parametrize("kind", ["plain", "full"])
def test_the_table_is_whole(browser: str, run: Results, full_table: Results, kind: str, width: int, tmp_path: Path) -> None:
    """On a phone, a tablet and a desk: every cell is on the screen, uncut, and says what it is of."""
    results = run if kind == "plain" else full_table
    found = measured(browser, report(results), tmp_path, width)
    assert found["page"] <= width, "nobody has to scroll sideways"
    assert [cell for cell in found["cells"] if cell["cut"] or cell["right"] > width or cell["left"] < 0] == []
    assert all(cell["height"] > 0 for cell in found["cells"])
    head, rows = rows_of(results)
    shown = found["cells"][: len(head) * len(rows)]
    assert [cell["text"] for cell in shown] == [text for row in rows for text in row]
    if width == 1200:
        assert [name for name, right in found["heads"] if 0 < right <= width] == head
    else:
        assert [cell["head"] for cell in shown] == [f'"{name}"' for _ in rows for name in head]


def test_the_width_test_can_fail(browser: str, full_table: Results, tmp_path: Path) -> None:
    """As the report was once: one line for each row, whatever the screen."""
    stiff = report(full_table).replace("table.many", "table.none").replace("td.long", "td.none")
    found = measured(browser, stiff, tmp_path, 390)
    assert found["page"] > 390
    assert any(cell["right"] > 390 for cell in found["cells"])
