"""The conversion: source and projection in, a checked bundle out. Artefacts that fail their checks are never in it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import fer_edge
from fer_edge.arrays import write_npy, write_npz
from fer_edge.bundle import (
    Bundle,
    Golden,
    file_ref,
    golden_set,
    label_set,
    open_bundle,
    path_ref,
    staged,
    text_projection,
    write_label_set,
    write_manifest,
)
from fer_edge.doctor import cpu, saturates
from fer_edge.engines import RUNTIMES
from fer_edge.errors import ConversionError, FerEdgeError, UsageError
from fer_edge.files import check_room
from fer_edge.golden import BARS, Answers, Parity, answers, compare, same_bytes
from fer_edge.manifest import FOR_COMPILERS, Artefact, GoldenRef, Manifest
from fer_edge.runtime import default_threads, load_runtime, open_model, run, signature

from .about import About
from .crops import augmented, from_folder
from .exporter import Export, Exporter, load_exporter
from .pixels import Normalize
from .pruning import WHOLE, Pruning
from .reference import Reference, open_reference, reference_features
from .sources import Encoder
from .text import source_name

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Errors that are the disk's (or a limit of the process), whoever meets them."""
GOLDEN_CROPS = 32
DEFAULT_CALIBRATION = 64
COMPARED = 64
"""Faces on which a pruned encoder is compared with the whole one."""
SESSIONS = 3
"""How often an artefact is opened anew for the golden set: an engine that reads memory it never wrote answers right in one
session and wrong in the next."""
TOOLS = (
    "fer-edge",
    "torch",
    "transformers",
    "openvino",
    "nncf",
    "onnx",
    "onnxruntime",
    "litert-torch",
    "ai-edge-litert",
    "ai-edge-quantizer",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Plan:
    """What to make of a source. ``labels``: the default label set, a built-in name or a file; ``prompts``: a built-in
    type or a file, None for P3 (CLIP) or the descriptions a student was trained with; ``calibration``: a folder of
    faces or an npz with ``images``; ``normalize``: see :data:`.pixels.Normalize`; ``pruning``:
    experimental changes of a CLIP's vision tower; ``for_targets``: keep a float graph for ``fer-edge compile``;
    ``require_all``: one artefact that fails fails the conversion, else what passed is written and the rest is in
    :attr:`Conversion.failed`."""

    runtimes: Sequence[str] = RUNTIMES
    precisions: Sequence[str] = ("int8",)
    projection: Path | None = None
    labels: str | None = None
    prompts: str | None = None
    calibration: Path | None = None
    calibration_count: int = 300
    normalize: Normalize = "auto"
    symmetric: bool = False
    pruning: Pruning = WHOLE
    for_targets: bool = False
    allow_drift: bool = False
    require_all: bool = True
    force: bool = False
    name: str | None = None
    version: str = "1"
    licence: str = "unstated"
    card: str = ""


@dataclass(frozen=True)
class Failure:
    """An artefact that was asked for and is not in the bundle. ``reason``: one line; ``parity``: where it ran."""

    runtime: str
    precision: str
    reason: str
    parity: Parity | None = None


@dataclass(frozen=True)
class Conversion:
    """``notes``: what of the source was used, changed or left out, in words."""

    bundle: Bundle
    failed: tuple[Failure, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """Progress: ``done`` of ``total`` steps, and what comes now."""

    done: int
    total: int
    text: str


@dataclass(frozen=True)
class _Material:
    """Everything the exporters need."""

    reference: Reference
    golden: Golden
    calibration: NDArray[np.uint8]
    calibrated_with: str
    about: About
    kept: str = ""


def convert(source: str, target: Path, plan: Plan, report: Callable[[Step], None] = lambda step: None) -> Conversion:
    """Convert ``source`` (a CLIP folder or id, or a student checkpoint) into a bundle at ``target``.

    Every artefact is run on the golden set, in several sessions, before the bundle is written. Raises ConversionError where
    no artefact passes, or one fails and all are required, LabelError, UsageError or MissingExtraError; then nothing is left
    at ``target``."""
    exporters = {}
    for runtime in plan.runtimes:
        exporters[runtime] = load_exporter(runtime)
        load_runtime(runtime)
    if plan.symmetric and "onnxruntime" not in plan.runtimes:
        raise UsageError("--symmetric is about onnxruntime's int8 artefact; add --runtime onnxruntime")
    total = 1 + len(plan.runtimes)
    with staged(target, plan.force) as folder:
        report(Step(0, total, f"reading {source}"))
        material = _prepare(source, plan, plan.name or target.name)
        made: list[Artefact | Failure] = []
        for i, (runtime, exporter) in enumerate(exporters.items()):
            report(Step(1 + i, total, f"{runtime}: {', '.join(plan.precisions)}"))
            made += _artefacts(runtime, exporter, material, plan, folder)
        if plan.for_targets:
            report(Step(total, total, "a float graph for compilers"))
            made.append(_float_graph(material, folder))
        artefacts = [item for item in made if isinstance(item, Artefact)]
        failed = tuple(item for item in made if isinstance(item, Failure))
        if failed and (plan.require_all or not artefacts):
            raise ConversionError("; ".join(f"{f.runtime} {f.precision} {f.reason}" for f in failed))
        _finish(folder, material, plan, artefacts)
        _read_back(folder)
        report(Step(total, total, "done"))
    return Conversion(open_bundle(target), failed, material.reference.notes)


def _prepare(source: str, plan: Plan, name: str = "") -> _Material:
    asked = (plan.projection, plan.labels, plan.prompts, plan.normalize)
    reference = open_reference(source, *asked, plan.pruning)
    size, color = reference.spec.height, reference.spec.color
    crops = augmented(GOLDEN_CROPS, size, color, seed=7)
    features = np.concatenate([reference_features(reference, crop[None]) for crop in crops])
    if not np.isfinite(features).all():
        raise ConversionError(f"{source} gives NaN or Inf on ordinary faces; its weights are broken")
    calibration, calibrated_with = _calibration(reference.encoder, plan)
    kept = _kept(open_reference(source, *asked), reference, plan) if plan.pruning else ""
    labels = reference.sets[0]
    about = About(name, plan.version, plan.licence, labels.name, labels.labels, reference.spec)
    return _Material(reference, Golden(crops, features), calibration, calibrated_with, about, kept)


def _calibration(encoder: Encoder, plan: Plan) -> tuple[NDArray[np.uint8], str]:
    if plan.calibration is not None:
        crops = from_folder(plan.calibration, plan.calibration_count, encoder.size, encoder.color)
        return crops, f"{len(crops)} faces of {source_name(str(plan.calibration))}"
    crops = augmented(min(DEFAULT_CALIBRATION, plan.calibration_count), encoder.size, encoder.color, seed=11)
    return crops, f"{len(crops)} augmentations of the one shipped face (no folder of faces was given)"


def _kept(full: Reference, pruned: Reference, plan: Plan) -> str:
    """A sentence for the card: what a pruned encoder keeps of the whole one's answers, both in float."""
    few = replace(plan, calibration_count=min(plan.calibration_count, COMPARED))
    (whole, said), (smaller, _) = (_calibration(r.encoder, few) for r in (full, pruned))
    expected, got = (
        np.concatenate([reference_features(r, crop[None]) for crop in crops])
        for r, crops in ((full, whole), (pruned, smaller))
    )
    parity = compare(got, None, expected, full.sets[0])
    return (
        f"Experimental: a lighter encoder ({plan.pruning}). Against the whole one, both in float, on {said}: centred cosine "
        f"{parity.centred_cosine:.3f}, the same label for {parity.top1_agreement:.0%}."
    )


def _artefacts(
    runtime: str, exporter: Exporter, material: _Material, plan: Plan, folder: Path
) -> Iterator[Artefact | Failure]:
    """Export and check every precision for one runtime. What fails leaves no file."""
    architecture = material.reference.encoder.architecture
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        export = Export(
            material.reference.graph, material.calibration, architecture, plan.symmetric, Path(scratch), material.about
        )
        try:
            traced = exporter.trace(export)
        except Exception as error:  # the converters' own exceptions share no base class
            _check_disk(error, folder)
            yield from (Failure(runtime, precision, _broken(error)) for precision in plan.precisions)
            return
        for precision in plan.precisions:
            before = set(folder.iterdir())
            try:
                names = exporter.write(traced, precision, export, folder)
                made = _checked(runtime, precision, names, material, plan, folder, exporter.calibrated(export))
            except Exception as error:
                _check_disk(error, folder)
                made = Failure(runtime, precision, _broken(error))
            if isinstance(made, Failure):
                for file in set(folder.iterdir()) - before:
                    file.unlink()
            yield made


def _float_graph(material: _Material, folder: Path) -> Artefact | Failure:
    """What compilers of NPUs go out from, and the command's words for the faces that they are to be calibrated with: faces
    themselves are not kept."""
    from .for_targets import FILE, write_float_graph

    golden, reference = material.golden, material.reference
    try:
        features = write_float_graph(reference.graph, golden.crops, folder, material.about)
    except Exception as error:  # torch's exporter raises what it likes
        _check_disk(error, folder)
        return Failure("onnxruntime", "fp32", f"for targets {_broken(error)}")
    parity = compare(features, None, golden.features, reference.sets[0])
    if misses := parity.misses(BARS["fp32"]):
        return Failure("onnxruntime", "fp32", f"for targets does not give the float reference's answer: {'; '.join(misses)}")
    said = f"to be calibrated with {material.calibrated_with}"
    return Artefact("onnxruntime", "fp32", (file_ref(folder, FILE),), parity.numbers(), said, False, FOR_COMPILERS)


def _check_disk(error: Exception, folder: Path) -> None:
    """Raise the disk's own error: a full one is no artefact's fault."""
    if isinstance(error, OSError) and error.errno in _DISK:
        raise error
    check_room(folder)


def _broken(error: Exception) -> str:
    if isinstance(error, FerEdgeError):
        return f"fails: {error}"
    return f"fails: the converter says {(str(error).splitlines() or [type(error).__name__])[0][:200]!r}"


def _checked(
    runtime: str, precision: str, names: Sequence[str], material: _Material, plan: Plan, folder: Path, calibrated: bool
) -> Artefact | Failure:
    """Run a written artefact on the golden set, in several sessions; a Failure below its bars, unless drift is allowed, and
    wherever an answer is not finite or not repeatable."""
    parity, engine = _parity(runtime, precision, [folder / name for name in names], material)
    misses = parity.misses(BARS[precision])
    if misses and (parity.misses({}) or not plan.allow_drift):
        if not parity.repeatable:
            reason = (
                f"answers differently from run to run: a fault of {engine} on this processor ({cpu()[0]}), not of the "
                "model; leave this one out, or convert on another processor"
            )
        else:
            advice = _advice(parity, runtime, precision, material, plan, calibrated)
            reason = f"does not give the float reference's answer: {'; '.join(misses)}; {advice}"
        return Failure(runtime, precision, reason, parity)
    calibration = material.calibrated_with if calibrated else "none (dynamic range)"
    refs = tuple(file_ref(folder, name) for name in names)
    how = calibration if precision == "int8" else None
    return Artefact(runtime, precision, refs, parity.numbers(), how, bool(misses))  # type: ignore[arg-type]


def _parity(runtime: str, precision: str, files: Sequence[Path], material: _Material) -> tuple[Parity, str]:
    """(parity of the first answers, with ``repeatable`` over all of them; engine and version). Raises EngineError."""
    golden, spec, labels = material.golden, material.reference.spec, material.reference.sets[0]
    expected = signature(*spec.size, spec.channels, golden.features.shape[1], len(labels.labels))
    runs: list[Answers] = []
    for _ in range(SESSIONS):
        session = open_model(runtime, files, precision, None, default_threads(), None, expected)
        try:
            runs += [answers(partial(run, session), golden, backwards) for backwards in (False, True)]
        finally:
            session.close()
    repeatable = all(same_bytes(runs[0], other) for other in runs[1:])
    return compare(*runs[0], golden.features, labels, repeatable), session.engine


def _advice(parity: Parity, runtime: str, precision: str, material: _Material, plan: Plan, calibrated: bool) -> str:
    """What to do about an artefact that misses its bars."""
    accept = "accept it with --allow-drift"
    if not parity.finite:
        return "its numbers leave the range of this precision; use another one"
    if precision != "int8":
        return f"no calibration plays a part in {precision}: use another precision or runtime, or {accept}"
    if runtime == "onnxruntime" and plan.symmetric and saturates(cpu()[1]):
        return (
            "this processor has no VNNI and cannot check --symmetric, whose weights overflow on it: convert on one that "
            f"has, or {accept} and verify on the device"
        )
    if not calibrated:
        way = "its ranges are taken at run time, so no calibration changes them: use --precision fp16 here"
    elif plan.calibration is None:
        way = "calibrate with faces of your own, --calibration FOLDER"
    else:
        way = f"calibrated with {material.calibrated_with}: try other or more faces, or --precision fp16 here"
    untrained = "int8 of untrained weights always drifts; " if parity.centred_cosine < 0.7 else ""
    return f"{untrained}{way}, or {accept}"


def _finish(folder: Path, material: _Material, plan: Plan, artefacts: Sequence[Artefact]) -> None:
    write_npz(folder / "golden.npz", crops=material.golden.crops, features=material.golden.features)
    write_npy(folder / "text_projection.npy", material.reference.r.astype(np.float32))
    sets = tuple(write_label_set(folder, s) for s in material.reference.sets)
    golden = path_ref(folder, "golden.npz")
    manifest = Manifest(
        name=material.about.name,
        version=plan.version,
        licence=plan.licence,
        card="\n\n".join(filter(None, (plan.card or _card(material), material.kept))),
        encoder=material.reference.encoder.source,
        projection=material.reference.projection,
        input=material.reference.spec,
        feature_dim=material.golden.features.shape[1],
        default_labels=material.reference.sets[0].name,
        artefacts=tuple(artefacts),
        label_sets=sets,
        text_encoder=material.reference.text,
        text_projection=path_ref(folder, "text_projection.npy"),
        golden=GoldenRef(golden.path, golden.sha256, BARS),
        tools=_versions(),
    )
    write_manifest(folder, manifest)


def _read_back(folder: Path) -> None:
    """What readers refuse must not be written. Raises BundleError."""
    bundle = open_bundle(folder)
    for ref in bundle.manifest.label_sets:
        label_set(bundle, ref.name)
    golden_set(bundle)
    text_projection(bundle)


def _card(material: _Material) -> str:
    origin = material.reference.projection
    projection = f", projection {origin.source}" if origin and material.reference.encoder.architecture == "vit" else ""
    made = f"Converted from {material.reference.encoder.source.source}{projection} by fer-edge {fer_edge.__version__}."
    return f"{made} No model card was given (--card FILE)."


def _versions() -> dict[str, str]:
    found = {}
    for tool in TOOLS:
        try:
            found[tool] = metadata.version(tool)
        except metadata.PackageNotFoundError:
            continue
    return found
