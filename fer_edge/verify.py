"""Does this box compute the right answer? Every file against its hash, every artefact against the golden set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, TypeVar

from . import runtime as rt
from .bundle import Bundle, Golden, all_files, artefact_files, checked_path, golden_set, label_set, text_projection
from .classifier import artefact_name, artefact_names, open_session
from .engines import ENGINES, RUNTIMES, installed, installed_engine
from .errors import BundleError, EngineError, IntegrityError, MissingExtraError
from .golden import Parity, measure, with_floors
from .isolated import crash_of
from .labels import LabelSet
from .manifest import FOR_COMPILERS, Artefact

_SLACK = 0.1
"""How much below the parity at conversion an artefact that was allowed to drift may lie on another box."""

Status = Literal["ok", "drift allowed", "miss", "refused", "altered", "not checked", "no engine"]

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One artefact on this box. ``status``: "ok"; "drift allowed" (misses its bars, but was let through at conversion);
    "miss"; "refused" by the engine, or as no model of its kind; "altered" file; "not checked" for want of the answers to
    compare with; "no engine" installed, or compiled for another device. ``problem`` says it in words."""

    runtime: str
    precision: str
    status: Status
    problem: str
    engine: str = ""
    device: str = ""
    execution_precision: str = ""
    parity: Parity | None = None


@dataclass(frozen=True)
class Report:
    """``files``: problems of files, in words; ``bars``: precision -> what it was held to; ``ok``: no file problem, at least
    one artefact checked, and none fell short."""

    rows: tuple[Row, ...]
    files: tuple[str, ...]
    bars: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether the bundle may be used on this box."""
        checked = [row for row in self.rows if row.status != "no engine"]
        return not self.files and bool(checked) and all(row.status in ("ok", "drift allowed") for row in checked)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "ok": self.ok,
            "files": list(self.files),
            "artefacts": [asdict(row) for row in self.rows],
            "bars": {k: dict(v) for k, v in self.bars.items()},
        }


def verify(
    bundle: Bundle,
    runtimes: Sequence[str] | None = None,
    precision: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    execution_precision: str | None = None,
    on_row: Callable[[str], None] = lambda name: None,
) -> Report:
    """Check every file of a bundle, then every artefact that this box has an engine for (or only those named).

    ``on_row`` is told what is checked next. Raises BundleError only when the bundle has no artefact of those named."""
    chosen = [
        a for a in bundle.manifest.artefacts if (not runtimes or a.runtime in runtimes) and precision in (None, a.precision)
    ]
    if not chosen and (runtimes or precision):
        wanted = " ".join(filter(None, (precision, "artefact", f"for {', '.join(runtimes)}" if runtimes else "")))
        raise BundleError(f"{bundle.folder} has no {wanted}; it has {artefact_names(bundle)}")
    problems: list[str] = []

    def read(what: str, reader: Callable[[], T]) -> T | None:
        """What ``reader`` returns; its problem is noted, once, and the next file's turn comes."""
        on_row(what)
        try:
            return reader()
        except BundleError as error:
            if str(error) not in problems:
                problems.append(str(error))
            return None

    for path, sha256, size in all_files(bundle):
        read(path, partial(checked_path, bundle, path, sha256, size))
    golden = read("golden set", partial(golden_set, bundle))
    sets = {
        ref.name: read(f"label set {ref.name}", partial(label_set, bundle, ref.name)) for ref in bundle.manifest.label_sets
    }
    read("text projection", partial(text_projection, bundle))
    labels = sets[bundle.manifest.default_labels]
    rows = []
    for artefact in chosen:
        on_row(artefact_name(artefact))
        if golden is None or labels is None:
            rows.append(_unmeasured(bundle, artefact))
            continue
        rows.append(_row(bundle, artefact, golden, labels, device, threads or rt.default_threads(), execution_precision))
    return Report(tuple(rows), tuple(problems), {row.precision: bars(bundle, row.precision) for row in rows if row.parity})


def _unmeasured(bundle: Bundle, artefact: Artefact) -> Row:
    """An artefact of a bundle without answers to compare with: its files are looked at all the same."""
    missing = "the golden set or the default label set cannot be used"
    try:
        artefact_files(bundle, artefact)
    except BundleError as error:
        return Row(artefact.runtime, artefact.precision, _fault(error), str(error))
    return Row(artefact.runtime, artefact.precision, "not checked", f"there is nothing to compare with: {missing}")


def _fault(error: BundleError) -> Status:
    return "altered" if isinstance(error, IntegrityError) else "refused"


def _row(
    bundle: Bundle,
    artefact: Artefact,
    golden: Golden,
    labels: LabelSet,
    device: str | None,
    threads: int,
    execution_precision: str | None,
) -> Row:
    runtime, precision = artefact.runtime, artefact.precision
    if runtime not in ENGINES and not installed(runtime):
        return Row(runtime, precision, "no engine", f"nothing that is installed here offers the runtime {runtime!r}")
    if artefact.target == FOR_COMPILERS:
        return Row(runtime, precision, "no engine", "compilers of NPUs go out from it, and judge what they make of it")
    if artefact.target is not None and runtime in RUNTIMES and device in (None, "CPU"):
        return Row(runtime, precision, "no engine", f"it was compiled for {artefact.target}; check it there")
    try:
        if installed_engine(runtime).adapter not in sys.modules:
            asked = {"precision": precision, "device": device, "execution_precision": execution_precision}
            if end := crash_of(str(bundle.folder), runtime, **asked):
                return Row(runtime, precision, "refused", f"{runtime} is installed but fails: {end}; see: fer-edge doctor")
        # From the cache, as load does it: what is checked is what runs.
        session = open_session(bundle, runtime, artefact, device, threads, execution_precision, cache=None)
    except MissingExtraError as error:
        return Row(runtime, precision, "no engine", str(error))
    except BundleError as error:
        return Row(runtime, precision, _fault(error), str(error))
    except EngineError as error:
        return Row(runtime, precision, "refused", str(error))
    try:
        parity = measure(partial(rt.run, session), golden, labels)
    except EngineError as error:
        return Row(runtime, precision, "refused", str(error), session.engine, session.device, session.execution_precision)
    finally:
        session.close()
    status, misses = judge(bundle, artefact, parity)
    return Row(
        runtime,
        precision,
        status,
        "; ".join(misses),
        session.engine,
        session.device,
        session.execution_precision,
        parity,
    )


def bars(bundle: Bundle, precision: str) -> Mapping[str, float]:
    """What the bundle's manifest asks of a precision, where that is more than the floors: it is no free pass."""
    return with_floors(bundle.manifest.golden.thresholds.get(precision, {}), precision)


def judge(bundle: Bundle, artefact: Artefact, parity: Parity) -> tuple[Status, list[str]]:
    """("ok", "drift allowed" or "miss", what falls short in words) of a parity measured on this box."""
    misses = parity.misses(bars(bundle, artefact.precision))
    if not misses or not artefact.drift_allowed:
        return ("miss" if misses else "ok"), misses
    # Allowed was the drift that the conversion saw, not whatever this box makes of the artefact.
    seen = {name: artefact.parity.get(name, 1.0) - _SLACK for name in ("centred_cosine", "self_retrieval", "top1_agreement")}
    worse = parity.misses(seen)
    return ("miss", worse) if worse else ("drift allowed", misses)
