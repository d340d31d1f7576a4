"""Figures of the embedded default: against another package's model, and its int8 artefacts against float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

import fer_edge
from fer_edge.accuracy import confusion_matrix, intervals, uar, war
from fer_edge.benchmarks.evaluate import evaluate
from fer_edge.benchmarks.report.card import figures_section
from fer_edge.benchmarks.timing import interleaved, medians
from fer_edge.bundle import artefact_files, golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit
from fer_edge.errors import UsageError
from fer_edge.labelled import label_of, read_faces
from fer_edge.runtime import open_model, run


@click.command()
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rounds", default=2000, show_default=True)
def rival(model: Path, rounds: int) -> None:
    """One face through the embedded default (int8, each engine) against another package's MODEL (TFLite), all by their bare
    engines, one thread, one process, in turns; and ``predict`` on a ready crop."""
    from ai_edge_litert.interpreter import Interpreter

    other = Interpreter(str(model), num_threads=1)
    other.allocate_tensors()
    (into,), out = other.get_input_details(), other.get_output_details()[0]["index"]
    picture = np.random.default_rng(0).random([max(1, int(n)) for n in into["shape"]]).astype(into["dtype"])

    def theirs(i: int) -> object:
        other.set_tensor(into["index"], picture)
        other.invoke()
        return other.get_tensor(out)

    opened = open_bundle(DEFAULT_BUNDLE)
    crops = golden_set(opened).crops[:, None]
    calls: dict[str, Callable[[int], object]] = {model.name: theirs}
    for artefact in opened.manifest.artefacts:
        session = open_model(artefact.runtime, artefact_files(opened, artefact), "int8", None, threads=1)
        calls[f"{artefact.runtime} int8"] = lambda i, s=session: run(s, crops[i % len(crops)])  # type: ignore[misc]
    with fer_edge.load(runtime="openvino", threads=1) as clf:
        calls["predict, openvino int8"] = lambda i: clf.predict(crops[i % len(crops)][0])
        ms = medians(interleaved(calls, rounds, warmup=100))
    ratios = {name: round(value / ms[model.name], 3) for name, value in ms.items() if name != model.name}
    emit({"figure": "rival", "median_ms": {name: round(v, 4) for name, v in ms.items()}, "ratio": ratios})


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--truth", metavar="MEMBER")
@click.option("--classes", metavar="MEMBER")
def agreement(bundle: Path, data: Path, truth: str | None, classes: str | None) -> None:
    """Top-1 agreement of int8 with fp32 on every engine of BUNDLE (made with both), and WAR and UAR of each, on DATA."""
    faces = read_faces(data, truth, classes)
    artefacts = open_bundle(bundle).manifest.artefacts
    runtimes = sorted({a.runtime for a in artefacts})
    found = {}
    for runtime in runtimes:
        if {a.precision for a in artefacts if a.runtime == runtime} < {"int8", "fp32"}:
            raise UsageError(f"{bundle} needs int8 and fp32 of {runtime}; convert with --precision int8 --precision fp32")
        answers = {}
        for precision in ("int8", "fp32"):
            with fer_edge.load(bundle, runtime=runtime, precision=precision) as clf:
                labels = clf.labels
                answers[precision] = np.array([labels.index(clf.predict(image).label) for image in faces.images])
        meant = [label_of(name, labels) for name in faces.classes]
        if None in meant:
            raise UsageError(f"the class {faces.classes[meant.index(None)]!r} is no label of {bundle}")
        right = np.array([labels.index(str(label)) for label in meant])
        row: dict[str, object] = {"agreement": round(float((answers["int8"] == answers["fp32"]).mean()), 4)}
        for precision, said in answers.items():
            table = confusion_matrix(right, said, len(labels))
            span = [round(v, 4) for v in intervals(table, labels).uar]
            row[precision] = {"war": round(war(table), 4), "uar": round(uar(table), 4), "uar_interval": span}
        found[runtime] = row
    emit({"figure": "agreement", "faces": len(faces.images), "runtimes": found})


@click.command()
@click.argument("bundle", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("--truth", metavar="MEMBER")
@click.option("--classes", metavar="MEMBER")
def card(bundle: Path, data: Path, truth: str | None, classes: str | None) -> None:
    """The figures section of a model card, in Markdown: every artefact of BUNDLE on DATA, one on spoilt faces too."""
    faces = read_faces(data, truth, classes)
    artefacts = sorted(open_bundle(bundle).manifest.artefacts, key=lambda a: a.precision != "int8")
    results = []
    for i, artefact in enumerate(artefacts):
        with fer_edge.load(bundle, runtime=artefact.runtime, precision=artefact.precision) as clf:
            results.append(evaluate(clf, faces, robustness=i == 0))
    click.echo(figures_section(results))
