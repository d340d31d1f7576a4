"""Where an artefact runs on this box: its operators and multiplications by compute unit, and the time of each operator, as
the engines and their own profilers tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fer_edge import runtime as rt
from fer_edge.bundle import Bundle, artefact_contents, golden_set, open_bundle
from fer_edge.classifier import choose_artefact
from fer_edge.engines import engine_of
from fer_edge.manifest import Artefact

from .macs import macs_by_operator
from .results import Configuration, OperatorCost, Profile, Unit, units_and_profile

PROFILE_CALLS = 200
"""Inferences with the engine's profiler on."""


@dataclass(frozen=True)
class Where:
    """What :func:`look` found. ``profile``: None without times; ``note``: what the engine does not tell."""

    units: tuple[Unit, ...]
    profile: Profile | None
    note: str

    def as_json(self) -> dict[str, Any]:
        """For a worker's answer."""
        return asdict(self)


def where_of(value: Mapping[str, Any]) -> Where:
    """What :meth:`Where.as_json` gave."""
    return Where(*units_and_profile(value), str(value["note"]))


def look(wanted: Configuration, calls: int = 0) -> Where:
    """Open a configuration once more, by itself, to see where it runs; ``calls`` inferences are profiled. Raises
    FerEdgeError."""
    bundle = open_bundle(wanted.bundle)
    name, artefact = choose_artefact(bundle, wanted.runtime, wanted.precision if wanted.runtime != "null" else None)
    if artefact is None:
        return Where((), None, "no model runs")
    files = [rt.File(bundle.folder / path, content) for path, content in artefact_contents(bundle, artefact).items()]
    crop = golden_set(bundle).crops[:1]
    asked = (artefact.precision, wanted.device, wanted.threads, wanted.execution_precision)
    found = rt.place(engine_of(name).name, files, *asked, crop, calls)
    return Where(_units(bundle, artefact, found), _profile(found), found.note)


def _units(bundle: Bundle, artefact: Artefact, found: rt.Placement) -> tuple[Unit, ...]:
    """By operators, most first."""
    counted = Counter(operator.unit for operator in found.operators)
    shares: Mapping[str, float | None] = dict.fromkeys(counted, 1.0 if len(counted) == 1 else None)
    macs = macs_by_operator(bundle, artefact) if len(counted) > 1 else None
    if macs:
        done: Counter[str] = Counter()
        for source, unit in {source: operator.unit for operator in found.operators for source in operator.sources}.items():
            done[unit] += macs.get(source, 0)
        if sum(done.values()) == sum(macs.values()):  # some of them in no operator: what was fused is not known then
            shares = {unit: done[unit] / sum(macs.values()) for unit in counted}
    return tuple(
        Unit(
            unit,
            count,
            count / len(found.operators),
            shares[unit],
            dict(
                Counter(
                    operator.kernel or operator.kind for operator in found.operators if operator.unit == unit
                ).most_common()
            ),
        )
        for unit, count in counted.most_common()
    )


def _profile(found: rt.Placement) -> Profile | None:
    """The slowest operator first."""
    if not found.times or found.call_ms is None:
        return None
    spent = sum(time.ms for time in found.times)
    ordered = sorted(found.times, key=lambda time: -time.ms)
    costs = tuple(OperatorCost(time.name, time.kind, time.unit, time.ms, time.ms / found.call_ms) for time in ordered)
    return Profile(found.call_ms, spent / found.call_ms, max(0.0, found.call_ms - spent), costs)
