"""Work that goes on for minutes: its series, what ends it early, and when a machine throttles."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from measuring import command, wrong_bundle

import fer_edge
from fer_edge.benchmarks import sustained as long
from fer_edge.benchmarks.report.tables import sustained_text
from fer_edge.benchmarks.results import Configuration
from fer_edge.benchmarks.sustained import Point, throttled_after
from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.manifest import digest_of


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points and rankings of some tenths of a second."""
    monkeypatch.setattr(long, "RANKING_SECONDS", 0.2)
    monkeypatch.setattr(long, "POINT_SECONDS", 0.3)


@pytest.mark.usefixtures("short")
def test_sustained_work_on_the_command_line() -> None:
    result = command("--runtime", "litert", "--threads", "1,2", "--sustained", "2s", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["sustained"]
    assert found["configuration"] in {"litert int8, 1 thread", "litert int8, 2 threads"}
    assert len(found["ranking"]) == 2
    assert found["points"][-1]["at"] < 60
    assert all(10 < point["resident_mb"] < 2000 for point in found["points"])
    assert {r["digest"] for r in found["ranking"]} == {digest_of(open_bundle(DEFAULT_BUNDLE).manifest)}
    assert {(r["answers"], r["bundle"]) for r in found["ranking"]} == {("ok", str(DEFAULT_BUNDLE))}


@pytest.mark.usefixtures("short")
def test_a_wrong_model_does_not_win_by_endurance(bundle: Path, tmp_path: Path) -> None:
    """Of a ladder: the right one works, the wrong one is named, and the exit status says so."""
    ladder = tmp_path / "ladder"
    ladder.mkdir()
    shutil.copytree(bundle, ladder / "right")
    wrong_bundle(bundle).rename(ladder / "wrong")
    result = command("--all-bundles", ladder, "--runtime", "litert", "--threads", 1, "--sustained", "1s")
    assert result.exit_code == 1
    assert result.stdout.startswith("right, litert int8, 1 thread worked for 1 s")
    assert "wrong, litert int8, 1 thread GIVES WRONG ANSWERS: centred cosine" in result.output


def test_what_fails_late_does_not_lose_the_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine dies in the third second, and the fastest cannot be ranked again."""
    blocks: list[int] = []

    class Dying:
        def __init__(self, configuration: Configuration) -> None:
            self.runtime, self.ready = configuration.runtime, dict[str, str]()

        def resident_mb(self) -> float:
            return 50.0

        def block(self, count: int, meanwhile: Any = lambda: None) -> list[float]:
            meanwhile()
            blocks.append(count)
            if len(blocks) > 11 and self.runtime == "null":
                raise fer_edge.EngineError("out of memory")
            return [1.0 if self.runtime == "null" else 2.0] * count

        def close(self) -> None:
            pass

    monkeypatch.setattr(long, "Served", Dying)
    pairs = (("null", "fp32"), ("openvino", "int8"), ("litert", "int8"))
    found = long.sustained([Configuration(str(DEFAULT_BUNDLE), *pair, None, 1) for pair in pairs], 60.0)
    assert len(found.points) == 1
    assert found.stopped is not None
    assert "out of memory" in found.stopped
    assert [(r.before_ms, r.after_ms, r.problem) for r in found.ranking] == [
        (1.0, None, "out of memory"),
        (2.0, 2.0, None),
        (2.0, 2.0, None),
    ]
    lines = sustained_text(asdict(found)).splitlines()
    assert "IT STOPPED after" in lines[1]
    assert lines[3].split() == [
        "1",
        "null",
        "fp32,",
        "1",
        "thread:",
        "1",
        "ms",
        "openvino",
        "int8,",
        "1",
        "thread:",
        "2",
        "ms",
    ]
    assert lines[-1] == "not ranked when hot, null fp32, 1 thread: out of memory"


def test_throttling_is_told_from_a_hiccup() -> None:
    def points(*ms: float) -> list[Point]:
        return [Point(float(i), v, v, None, None) for i, v in enumerate(ms)]

    assert throttled_after(points(*[1.0] * 20)) is None
    assert throttled_after(points(*[1.0] * 8, 3.0, 3.0, *[1.0] * 10)) is None, "two points are a hiccup"
    assert throttled_after(points(*[1.0] * 12, *[1.3] * 8)) == 12.0
    assert throttled_after(points(*[1.0] * 60, *[1.5] * 1740)) == 60.0, "half an hour, hot after a minute"
    assert throttled_after(points(*[1.0] * 8, 1.3, 1.3, 1.3, *[1.0] * 10)) is None, "it recovered"
    both = points(*[1.0] * 10, 1.3, 1.3, 1.3, *[1.0] * 600, *[1.3] * 1200)
    assert throttled_after(both) == 613.0, "the hiccup at 10 s was none of it"
    assert throttled_after(points(*[1.0] * 50, *[1.4, 1.4, 1.0] * 100)) == 50.0, "throttled on and off"


class Ending:
    """Works well, until the box is ranked again."""

    opened = 0

    def __init__(self, configuration: Configuration) -> None:
        Ending.opened += 1
        if Ending.opened == 4:
            raise KeyboardInterrupt
        self.ready = dict[str, str]()

    def resident_mb(self) -> float:
        return 50.0

    def block(self, count: int, meanwhile: Any = lambda: None) -> list[float]:
        return [1.0] * count

    def close(self) -> None:
        pass


def test_a_run_ended_while_it_ranks_again_keeps_its_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "Served", Ending)
    monkeypatch.setattr(long, "_series", lambda *_: ([Point(0.0, 1.0, 1.0, None, None)], None, False))
    pairs = (("openvino", "int8"), ("litert", "int8"))
    monkeypatch.setattr(Ending, "opened", 0)
    found = long.sustained([Configuration(str(DEFAULT_BUNDLE), *pair, None, 1) for pair in pairs], 60.0)
    assert found.interrupted
    assert len(found.points) == 1
    assert [r.after_ms for r in found.ranking] == [1.0, None]


def test_start_and_end_of_a_short_series_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve points, throttled after the eighth: the report must not contradict itself."""
    points = [Point(float(i), 1.0 if i < 8 else 2.0, 2.0, None, None) for i in range(12)]
    monkeypatch.setattr(long, "Served", Ending)
    monkeypatch.setattr(Ending, "opened", 10)
    monkeypatch.setattr(long, "_series", lambda *_: (points, None, False))
    found = long.sustained([Configuration(str(DEFAULT_BUNDLE), "litert", "int8", None, 1)], 60.0)
    assert (found.throttled_after_s, found.slowdown) == (8.0, 2.0)
