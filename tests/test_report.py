"""The HTML report, in a real browser: the plots are there, and nothing is fetched."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_edge.benchmarks.bench import Plan, bench
from fer_edge.benchmarks.report.page import report
from fer_edge.benchmarks.report.plots import ACCENT, COLORS
from fer_edge.benchmarks.results import Results
from fer_edge.benchmarks.traffic import Load
from fer_edge.classifier import DEFAULT_BUNDLE

QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]


@pytest.fixture(scope="module")
def page() -> str:
    """A report of all engines, with a long run and two in turns put in."""
    plan = Plan(
        (DEFAULT_BUNDLE,), threads=(1,), scenarios=("single-stream", "camera"), load=Load(0.05, 1.0, fps=200.0), rounds=2
    )
    found = bench(plan)
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
    return report(Results(found.environment, found.rows, (), {"sustained": long, "interleaved": [turns]}))


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
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no Chromium on this machine to open the report in")
    return found


def picture(browser: str, page: str, folder: Path, width: int) -> np.ndarray:
    """The page as the browser draws it: (H, W, 3) uint8."""
    (folder / "page.html").write_text(page)
    options = [*QUIET, f"--user-data-dir={folder / 'profile'}", f"--window-size={width},6000"]
    shot = folder / "shot.png"
    target = [f"--screenshot={shot}", (folder / "page.html").as_uri()]
    subprocess.run([browser, *options, *target], check=True, capture_output=True, timeout=120)
    return np.asarray(Image.open(shot).convert("RGB"))


def near(shot: np.ndarray, colour: str) -> np.ndarray:
    """Rows in which the colour is seen, whatever lies under it at three quarters."""
    rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    faded = np.array([rgb, 0.75 * rgb + 0.25 * 255, 0.6 * rgb + 0.4 * 255])
    distance = np.abs(shot[:, :, None, :].astype(int) - faded).max(-1).min(-1)
    return np.flatnonzero((distance < 6).sum(1) >= 3)


@pytest.mark.parametrize("width", [390, 1000])
def test_the_plots_are_in_the_picture(browser: str, page: str, tmp_path: Path, width: int) -> None:
    shot = picture(browser, page, tmp_path, width)
    colours = (*COLORS[:3], ACCENT, "#748ffc")
    for colour in colours:
        assert len(near(shot, colour)) > 10, f"{colour} is not in the picture"
    assert len(re.findall("<figure", page)) == 7
    drawn = np.flatnonzero((shot < 250).any((1, 2)))
    assert drawn.max() < 5990, "the page ends before the window does"
    margin = shot[:, -4:].min()
    assert margin > 240, "nothing runs out of a phone's screen"


def test_the_picture_test_can_fail(browser: str, page: str, tmp_path: Path) -> None:
    bare = re.sub(r"<svg.*?</svg>", "", page, flags=re.S)
    shot = picture(browser, bare, tmp_path, 1000)
    assert all(len(near(shot, colour)) <= 10 for colour in COLORS[:3])
