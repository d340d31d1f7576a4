"""How long a start takes, from a fresh process to its first answer: the bare engine, without the cache, the first and the
second start with it. ``python -m lab.start_figures [BUNDLE]``"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.report import table

_BARE = """
import numpy, openvino
begin()
config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
config["INFERENCE_NUM_THREADS"] = threads
core = openvino.Core()
request = core.compile_model(core.read_model(file), "CPU", config).create_infer_request()
request.infer()
"""
_OURS = """
import numpy
from fer_edge.classifier import load
from fer_edge.runtime import load_runtime
load_runtime("openvino")
begin()
clf = load(bundle, runtime="openvino", precision=precision, threads=threads, cache=cache)
clf.features([numpy.zeros(clf.bundle.manifest.input.size, numpy.uint8)])
"""
_FRAME = """
import json, sys, time
bundle, file, precision, threads, cache = json.loads(sys.argv[1])
times = [0.0, time.perf_counter(), 0.0, 0.0]
def begin():
    times[2:] = time.perf_counter(), time.process_time()
{}
end = time.perf_counter()
print(json.dumps([end - times[1], end - times[2], time.process_time() - times[3]]))
"""


def start(code: str, *task: object) -> list[float]:
    """Milliseconds: the whole process by the clock, opening and the first answer by the clock, and of processor time."""
    command = [sys.executable, "-c", _FRAME.format(code), json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [1e3 * float(value) for value in json.loads(done.stdout)]


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--precision", default="int8", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--rounds", default=7, show_default=True)
def figures(bundle: Path, precision: str, threads: int, rounds: int) -> None:
    """Medians over ROUNDS rounds, in which the kinds of start take turns."""
    artefacts = open_bundle(bundle).manifest.general_artefacts
    (artefact,) = (a for a in artefacts if (a.runtime, a.precision) == ("openvino", precision))
    file = bundle / artefact.files[0].path
    seen: dict[str, list[list[float]]] = {}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache = str(Path(folder) / "cache")
            for name, code, kept in (
                ("the bare engine", _BARE, False),
                ("without the cache", _OURS, False),
                ("first, with the cache", _OURS, cache),
                ("second, with the cache", _OURS, cache),
            ):
                seen.setdefault(name, []).append(start(code, str(bundle), str(file), precision, threads, kept))
    rows = [["start", "process ms", "opening and first answer ms", "processor time of it ms"]]
    for name, times in seen.items():
        rows.append([name, *(f"{statistics.median(column):.0f}" for column in zip(*times, strict=True))])
    click.echo(table(rows))


if __name__ == "__main__":
    figures()
