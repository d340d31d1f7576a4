"""What ``fer-edge bench`` can be asked for: an ordinary run, two in turns, a long one; and accuracy beside any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fer_edge.classifier import load
from fer_edge.console import Fraction
from fer_edge.errors import UsageError
from fer_edge.labelled import read_faces
from fer_edge.manifest import MANIFEST

from . import sustained as long
from .bench import Plan, bench, configurations, only
from .environment import environment
from .interleave import interleave
from .results import Configuration, Results


def ordinary(plan: Plan, progress: Fraction) -> Results:
    """Every configuration of the plan."""
    return bench(plan, progress)


def in_turns(plan: Plan, other: Path, progress: Fraction) -> Results:
    """The plan's bundle (A) and ``other`` (B) in turns: a bundle of the same engines, or the python of an environment with
    another build of fer-edge. Raises UsageError when ``other`` is neither."""
    if (other / MANIFEST).is_file():
        python = None
    elif other.is_file() and os.access(other, os.X_OK):
        python = str(other.absolute())  # not resolved: an environment's python is a link that must keep its place
    else:
        raise UsageError(f"{other} is neither a bundle nor a python to run; --interleave takes one of them")
    found = []
    ours = only(plan)
    for i, a in enumerate(ours):
        b = a if python else replace(a, bundle=str(other))
        turns = max(10, round(plan.load.seconds * 40))

        def show(done: float, i: int = i, name: str = a.name) -> None:
            progress((i + done) / len(ours), f"in turns: {name}")

        result = interleave(a, b, rounds=2 * plan.rounds, turns=turns, python=python, on_progress=show)
        found.append({"configuration": asdict(a), "name": a.name, "other": str(other), **asdict(result)})
    return Results(environment().as_json(), (), (), {"interleaved": found})


def sustained(plan: Plan, seconds: float, progress: Fraction) -> Results:
    """The fastest of the plan's configurations at work for ``seconds``, all of them ranked before and after."""
    from fer_edge.bundle import open_bundle

    wanted = [c for path in plan.bundles for c in configurations(open_bundle(path), plan)]
    surroundings = environment().as_json()
    found = long.sustained(wanted, seconds, lambda done: progress(done, "sustained work"))
    return Results(surroundings, (), (), {"sustained": asdict(found)})


def accuracy(results: Results, plan: Plan, data: Sequence[Any], progress: Fraction) -> Results:
    """The results with ``accuracy``: n, WAR and UAR with intervals of every configuration, threads aside.

    Raises UsageError for data that is no labelled faces."""
    from .evaluate import evaluate

    faces = read_faces(*data)
    distinct: dict[tuple[Any, ...], Configuration] = {}
    for row in results.rows:
        c = row.configuration
        distinct.setdefault((c.bundle, c.runtime, c.precision, c.device, c.execution_precision), c)
    found = []
    for i, c in enumerate(distinct.values()):
        progress(i / len(distinct), f"accuracy: {c.name}")
        asked = {"device": c.device, "execution_precision": c.execution_precision}
        precision = None if c.runtime == "null" else c.precision
        with load(c.bundle, runtime=c.runtime, precision=precision, threads=c.threads, **asked) as clf:
            result = evaluate(clf, faces)
        named = {**asdict(c), "n": result.n, "war": result.war, "uar": result.uar}
        found.append({**named, "war_interval": list(result.intervals.war), "uar_interval": list(result.intervals.uar)})
    return replace(results, extras={**results.extras, "accuracy": {"data": Path(data[0]).name, "of": found}})
