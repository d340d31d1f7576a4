"""Figures of the harness itself: what it adds to a time and to memory, and whether its verdicts can be believed."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fer_edge.benchmarks.bench import Plan, bench, only
from fer_edge.benchmarks.compare import compare
from fer_edge.benchmarks.interleave import interleave
from fer_edge.benchmarks.macs import count_macs
from fer_edge.benchmarks.measure import Job
from fer_edge.benchmarks.traffic import Load
from fer_edge.benchmarks.worker import run_isolated
from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit, say

from .random_clip import write_clip

LOAD = Load(1.0, 5.0)
SPIN_MS = 1.0
LAYERS = 10
"""Of the encoder that one more layer is planted in: 10% of its work."""
SHAPE = {"dim": 256, "width": 192, "heads": 6, "patch": 16, "image": 96, "text_width": 64, "text_heads": 2}
"""Of a small CLIP: 37 tokens, some milliseconds on one core."""


@click.command()
@click.option("--times", default=5, show_default=True, help="Fresh processes.")
def harness(times: int) -> None:
    """A runtime that only spins for 1.000 ms, as ``bench`` sees it: its p50, and the memory that is counted as the model's,
    beside that of a real engine."""
    wanted = replace(only(Plan((DEFAULT_BUNDLE,), runtimes=("null",)))[0], device=f"spin:{SPIN_MS:g}", threads=1)
    (real,) = only(Plan((DEFAULT_BUNDLE,), runtimes=("litert",), precisions=("int8",), threads=(1,)))
    spun, counted = [], {"null": [], "litert int8": []}  # type: ignore[var-annotated]
    for _ in range(times):
        for name, configuration in (("null", wanted), ("litert int8", real)):
            part = run_isolated(Job(configuration, LOAD, ("single-stream",), False, False))
            counted[name].append(part.memory_mb["peak"] - part.memory_mb["before"])
            if name == "null":
                spun.append(part.traffic["single-stream"].latency.p50)
    worst = max(spun, key=lambda p50: abs(p50 - SPIN_MS))
    error = round(abs(worst / SPIN_MS - 1), 4)
    memory = {name: [round(v, 1) for v in values] for name, values in counted.items()}
    emit({"figure": "harness", "p50_ms": [round(v, 4) for v in spun], "largest_error": error, "model_mb": memory})


@click.command()
@click.argument("work", type=click.Path(path_type=Path))
@click.option("--times", default=20, show_default=True)
@click.option("--runtime", default="openvino", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Of each run, as of 'bench'.")
def noise(work: Path, times: int, runtime: str, precision: str, rounds: int) -> None:
    """Two runs of one build, and the same with one more layer planted in an encoder of ten (10% more products), judged
    TIMES times by ``compare`` and by ``--interleave``. Keeps both bundles in WORK; takes about two minutes a time."""
    work.mkdir(parents=True, exist_ok=True)
    bundles = [_bundle(work, layers, runtime, precision) for layers in (LAYERS, LAYERS + 1)]
    plan = Plan((bundles[0],), runtimes=(runtime,), precisions=(precision,), scenarios=("single-stream",), rounds=rounds)
    (a,) = only(plan)
    b = replace(a, bundle=str(bundles[1]))
    macs = [count_macs(open_bundle(bundle)) or 0 for bundle in bundles]
    verdicts: dict[str, Counter[str]] = {name: Counter() for name in ("compare_same", "turns_same", "turns_more")}
    ratios: dict[str, list[float]] = {name: [] for name in verdicts}
    for i in range(times):
        say(f"{i + 1} of {times} ...")
        found: dict[str, Any] = {"compare_same": compare(bench(plan), bench(plan))[0]}
        found |= {"turns_same": interleave(a, a, 2 * rounds), "turns_more": interleave(a, b, 2 * rounds)}
        for name, one in found.items():
            verdicts[name][one.verdict] += 1
            ratios[name].append(round(one.ratio, 4))
    more = round(macs[1] / macs[0] - 1, 4)
    what = {"configuration": a.name, "times": times, "more_macs": more}
    emit({"figure": "noise", **what, "verdicts": {k: dict(v) for k, v in verdicts.items()}, "ratios": ratios})


def _bundle(work: Path, layers: int, runtime: str, precision: str) -> Path:
    """A bundle of a small random CLIP with so many layers, made by the converter's command."""
    target = work / f"layers-{layers}-{runtime}-{precision}"
    if not target.exists():
        with tempfile.TemporaryDirectory() as folder:
            write_clip(Path(folder) / "clip", layers=layers, **SHAPE)
            command = [str(Path(sys.executable).with_name("fer-edge")), "convert", str(Path(folder) / "clip")]
            options = ["-o", str(target), "--runtime", runtime, "--precision", precision, "--allow-drift"]
            subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return target
