"""Beyond the engines: what fewer operations, two streams and pinned threads give a B/32 (random weights: speed only)."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import numpy as np

from fer_edge import runtime as rt
from fer_edge.benchmarks.macs import count_macs
from fer_edge.benchmarks.timing import interleaved, medians
from fer_edge.bundle import Bundle, artefact_files, golden_set, open_bundle
from fer_edge.console import emit, say
from fer_edge.engines import RUNTIMES

from .random_clip import SHAPES, write_clip

VARIANTS: dict[str, tuple[str, ...]] = {
    "whole": (),
    "input 192": ("--input-size", "192"),
    "input 160": ("--input-size", "160"),
    "input 128": ("--input-size", "128"),
    "merge 2": ("--merge-tokens", "2"),
    "merge 4": ("--merge-tokens", "4"),
    "merge 8": ("--merge-tokens", "8"),
    "input 160, merge 2": ("--input-size", "160", "--merge-tokens", "2"),
}
PAUSE = 0.02
"""Seconds before each call: engines' threads spin for a while after their work."""


def _variant(work: Path, name: str) -> Bundle:
    """The int8 bundle of a variant, made by the converter's command when it is not in ``work`` yet."""
    clip, target = work / "clip-b32", work / name.replace(", ", "-").replace(" ", "")
    if not clip.exists():
        write_clip(clip, **SHAPES["B/32"])
    if not target.exists():
        say(f"converting {name} ...")
        command = [str(Path(sys.executable).with_name("fer-edge")), "convert", str(clip), "-o", str(target)]
        subprocess.run(
            [*command, "--allow-drift", "--calibration-count", "16", *VARIANTS[name]], check=True, stdout=subprocess.DEVNULL
        )
    return open_bundle(target)


def _session(bundle: Bundle, runtime: str, threads: int) -> rt.Session:
    (artefact,) = (a for a in bundle.manifest.artefacts if a.runtime == runtime)
    return rt.open_model(runtime, artefact_files(bundle, artefact), "int8", None, threads)


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--rounds", default=60, show_default=True)
@click.option("--threads", default=2, show_default=True)
def lighter(work: Path, rounds: int, threads: int) -> None:
    """A B/32 of random weights, whole and with fewer operations, int8 on every engine, in turns: ms, MACs and the ratio to
    the whole. Keeps the bundles in WORK (9 minutes the first time)."""
    work.mkdir(parents=True, exist_ok=True)
    bundles = {name: _variant(work, name) for name in VARIANTS}
    macs = {name: round((count_macs(bundle) or 0) / 1e9, 2) for name, bundle in bundles.items()}
    found: dict[str, Any] = {}
    for runtime in RUNTIMES:
        sessions = {name: _session(bundle, runtime, threads) for name, bundle in bundles.items()}
        calls: dict[str, Callable[[int], object]] = {}
        for name, bundle in bundles.items():
            crops = golden_set(bundle).crops[:, None]
            calls[name] = lambda i, s=sessions[name], c=crops: rt.run(s, c[i % len(c)])  # type: ignore[misc]
        ms = medians(interleaved(calls, rounds, warmup=5, pause=PAUSE))
        found[runtime] = {name: {"ms": round(v, 2), "ratio": round(v / ms["whole"], 3)} for name, v in ms.items()}
        for session in sessions.values():
            session.close()
    emit({"figure": "lighter", "threads": threads, "gmacs": macs, "runtimes": found})


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--rounds", default=30, show_default=True)
def streams(work: Path, rounds: int) -> None:
    """Faces a second of a B/32 of random weights, int8: one stream on every processor; one for each processor, free and
    pinned to it. In turns, on every engine."""
    work.mkdir(parents=True, exist_ok=True)
    bundle, count = _variant(work, "whole"), rt.usable_processors()
    crops = golden_set(bundle).crops[:, None]
    found = {}
    for runtime in RUNTIMES:
        every = sorted(os.sched_getaffinity(0))
        ways = {
            "one stream": _Streams([_session(bundle, runtime, count)], crops, None),
            "a stream each": _Streams([_session(bundle, runtime, 1) for _ in every], crops, None),
            "pinned": _Streams([_pinned_session(bundle, runtime, which) for which in every], crops, every),
        }
        samples: dict[str, list[float]] = {name: [] for name in ways}
        for i in range(rounds):
            for k in range(len(ways)):
                name = list(ways)[(i + k) % len(ways)]
                time.sleep(PAUSE)
                samples[name].append(ways[name].faces_per_s(8))
        middle = {name: float(np.median(values)) for name, values in samples.items()}
        found[runtime] = {
            name: {"faces_per_s": round(v, 1), "ratio": round(v / middle["one stream"], 3)} for name, v in middle.items()
        }
    emit({"figure": "streams", "streams": count, "runtimes": found})


def _pinned_session(bundle: Bundle, runtime: str, processor: int) -> rt.Session:
    """A session of one thread, opened while this thread is bound: threads that the engine starts inherit that (sched(7))."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processor})
    try:
        return _session(bundle, runtime, 1)
    finally:
        os.sched_setaffinity(0, before)


class _Streams:
    """Sessions at work side by side, a thread of Python each; ``processors``: the one that each thread is bound to."""

    def __init__(self, sessions: Sequence[rt.Session], crops: Any, processors: Sequence[int] | None) -> None:
        self._sessions, self._crops, self._processors = sessions, crops, processors

    def faces_per_s(self, each: int) -> float:
        """``each`` faces of every stream, over the time that all of them take."""
        ready = threading.Barrier(len(self._sessions) + 1)
        with ThreadPoolExecutor(len(self._sessions)) as pool:
            done = [pool.submit(self._work, i, each, ready) for i in range(len(self._sessions))]
            with suppress(threading.BrokenBarrierError):
                ready.wait()
            began = time.perf_counter()
            for stream in done:
                stream.result()
            return each * len(done) / (time.perf_counter() - began)

    def _work(self, which: int, each: int, ready: threading.Barrier) -> None:
        if self._processors is not None:
            os.sched_setaffinity(0, {self._processors[which]})
        session = self._sessions[which]
        try:
            rt.run(session, self._crops[0])
        except BaseException:
            ready.abort()  # nobody shall wait for this stream
            raise
        with suppress(threading.BrokenBarrierError):
            ready.wait()
        for i in range(each):
            rt.run(session, self._crops[i % len(self._crops)])
