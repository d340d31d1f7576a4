"""What ``fer-edge bench`` can be asked for: an ordinary run, two in turns, a long one; and accuracy beside any of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fer_edge.bundle import label_set, open_bundle
from fer_edge.console import Fraction
from fer_edge.errors import FerEdgeError, LabelError, UsageError
from fer_edge.labelled import label_of, read_faces
from fer_edge.manifest import MANIFEST

from . import sustained as long
from .bench import Plan, bench, marked, only, wanted_of
from .environment import environment
from .interleave import interleave
from .results import Configuration, Failure, Results, named
from .worker import isolated_accuracy


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
    found: list[dict[str, Any]] = []
    failures: list[Failure] = []
    interrupted = False
    ours = only(plan)
    for i, a in enumerate(ours):
        b = a if python else replace(a, bundle=str(other))
        turns = max(10, round(plan.load.seconds * 40))

        def show(done: float, i: int = i, name: str = a.name) -> None:
            progress((i + done) / len(ours), f"in turns: {name}")

        try:
            result = interleave(a, b, rounds=2 * plan.rounds, turns=turns, python=python, on_progress=show)
        except FerEdgeError as error:
            failures.append(Failure(a, str(error)))
        except KeyboardInterrupt:
            if not found:
                raise
            interrupted = True
            break
        else:
            found.append({"configuration": asdict(a), "name": a.name, "other": str(other), **asdict(result)})
            if result.interrupted:
                interrupted = True
                break
    return Results(environment().as_json(), (), tuple(failures), {"interleaved": found, **marked(interrupted)})


def sustained(plan: Plan, seconds: float, progress: Fraction) -> Results:
    """The fastest of the plan's configurations at work for ``seconds``, all of them ranked before and after."""
    wanted, nothing = wanted_of({str(path): open_bundle(path) for path in plan.bundles}, plan)
    surroundings = environment().as_json()
    found = long.sustained(wanted, seconds, lambda done: progress(done, "sustained work"))
    extras = {"sustained": asdict(found), **({"skipped": nothing} if nothing else {})}
    return Results(surroundings, (), (), {**extras, **marked(found.interrupted)})


def wrong(results: Results) -> list[str]:
    """Configurations whose answers are not the reference's, each with what is off."""
    rows = {row.configuration: row for row in results.rows if row.parity.get("status") == "miss"}
    found = [f"{named(c, results)}: {row.parity.get('problem')}" for c, row in rows.items()]
    ranking = results.extras.get("sustained", {}).get("ranking", ())
    found += [f"{r['configuration']} of {r['bundle']}: {r['wrong']}" for r in ranking if r.get("answers") == "miss"]
    for entry in results.extras.get("interleaved", ()):
        sides = ((key.upper(), entry[key]) for key in ("a", "b"))
        found += [f"{name} of {entry['name']}: {side['problem']}" for name, side in sides if side.get("answers") == "miss"]
    return found


def check_faces(plan: Plan, data: Sequence[Any]) -> None:
    """Look at the labelled faces before anything is measured. Raises UsageError for what is none, LabelError for a class
    that is no label of a bundle's own set."""
    faces = read_faces(*data)
    for path in plan.bundles:
        bundle = open_bundle(path)
        names = label_set(bundle, bundle.manifest.default_labels).labels
        unknown = [name for name in dict.fromkeys(faces.classes) if label_of(name, names) is None]
        if unknown:
            raise LabelError(f"the class {unknown[0]!r} is no label of {path} ({', '.join(names)})")


def accuracy(results: Results, data: Sequence[Any], progress: Fraction) -> Results:
    """The results with ``accuracy``: n, WAR and UAR with intervals of every configuration, threads aside, each in a process
    of its own. ``data`` as :func:`check_faces` takes it. One that fails has a ``problem`` instead; what was measured before
    stays."""
    distinct: dict[tuple[Any, ...], Configuration] = {}
    for row in results.rows:
        c = row.configuration
        distinct.setdefault((c.bundle, c.runtime, c.precision, c.device, c.execution_precision), c)
    found: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for i, c in enumerate(distinct.values()):
        progress(i / len(distinct), f"accuracy: {c.name}")
        try:
            found.append({**asdict(c), **isolated_accuracy(c, data)})
        except FerEdgeError as error:
            failed.append({**asdict(c), "problem": str(error)})
        except KeyboardInterrupt:
            results = replace(results, extras={**results.extras, **marked(True)})
            break
    measured = {"data": Path(data[0]).name, "of": found, "failed": failed}
    return replace(results, extras={**results.extras, "accuracy": measured})
