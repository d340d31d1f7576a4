"""The conversion: source and projection in, a checked bundle out, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Literal

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
from fer_edge.golden import BARS, Parity, compare, measure
from fer_edge.manifest import Artefact, GoldenRef, Manifest
from fer_edge.runtime import default_threads, load_runtime, open_model, run, signature

from .crops import augmented, from_folder
from .pruning import WHOLE, Pruning
from .reference import Reference, open_reference, reference_features
from .sources import Encoder
from .text import source_name

GOLDEN_CROPS = 32
DEFAULT_CALIBRATION = 64
COMPARED = 64
"""Faces on which a lighter encoder is compared with the whole one."""
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
    faces or an npz with ``images``; ``pruning``: experimental changes of a CLIP's vision tower."""

    runtimes: Sequence[str] = RUNTIMES
    precisions: Sequence[str] = ("int8",)
    projection: Path | None = None
    labels: str | None = None
    prompts: str | None = None
    calibration: Path | None = None
    calibration_count: int = 300
    normalize: Literal["auto", "none", "clip"] = "auto"
    symmetric: bool = False
    pruning: Pruning = WHOLE
    allow_drift: bool = False
    force: bool = False
    name: str | None = None
    version: str = "1"
    licence: str = "unstated"
    card: str = ""


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
    kept: str = ""


def convert(source: str, target: Path, plan: Plan, report: Callable[[Step], None] = lambda step: None) -> Bundle:
    """Convert ``source`` (a CLIP folder or id, or a student checkpoint) into a bundle at ``target``.

    Every artefact is run on the golden set before the bundle is written. Raises ConversionError, LabelError, UsageError
    or MissingExtraError; then nothing is left at ``target``."""
    for runtime in plan.runtimes:
        if runtime not in RUNTIMES:
            raise UsageError(f"no artefacts are made for the runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
        load_runtime(runtime)
    if plan.symmetric and "onnxruntime" not in plan.runtimes:
        raise UsageError("--symmetric is about onnxruntime's int8 artefact; add --runtime onnxruntime")
    total = 1 + len(plan.runtimes)
    with staged(target, plan.force) as folder:
        report(Step(0, total, f"reading {source}"))
        material = _prepare(source, plan)
        artefacts: list[Artefact] = []
        for i, runtime in enumerate(plan.runtimes):
            report(Step(1 + i, total, f"{runtime}: {', '.join(plan.precisions)}"))
            files = _export(runtime, material, plan, folder)
            artefacts += [_artefact(runtime, p, names, material, plan, folder) for p, names in files.items()]
        _finish(folder, material, plan, target, artefacts)
        _read_back(folder)
        report(Step(total, total, "done"))
    return open_bundle(target)


def _prepare(source: str, plan: Plan) -> _Material:
    asked = (plan.projection, plan.labels, plan.prompts, plan.normalize)
    reference = open_reference(source, *asked, plan.pruning)
    size, color = reference.spec.height, reference.spec.color
    crops = augmented(GOLDEN_CROPS, size, color, seed=7)
    features = np.concatenate([reference_features(reference, crop[None]) for crop in crops])
    if not np.isfinite(features).all():
        raise ConversionError(f"{source} gives NaN or Inf on ordinary faces; its weights are broken")
    calibration, calibrated_with = _calibration(reference.encoder, plan)
    kept = _kept(open_reference(source, *asked), reference, plan) if plan.pruning else ""
    return _Material(reference, Golden(crops, features), calibration, calibrated_with, kept)


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


def _export(runtime: str, material: _Material, plan: Plan, folder: Path) -> dict[str, list[str]]:
    example, precisions, calibration = material.golden.crops[:1], plan.precisions, material.calibration
    architecture = material.reference.encoder.architecture
    try:
        if runtime == "openvino":
            from .to_openvino import export as to_openvino

            return to_openvino(material.reference.graph, example, precisions, calibration, architecture, folder)
        if runtime == "litert":
            from .to_litert import export as to_litert

            return to_litert(material.reference.graph, example, precisions, calibration, architecture, folder)
        from .to_onnx import export as to_onnx

        return to_onnx(material.reference.graph, example, precisions, calibration, architecture, plan.symmetric, folder)
    except FerEdgeError:
        raise
    except Exception as error:  # the converters' own exceptions share no base class
        raise ConversionError(
            f"{runtime}: the converter failed ({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
        ) from error


def _artefact(runtime: str, precision: str, names: Sequence[str], material: _Material, plan: Plan, folder: Path) -> Artefact:
    """Run a written artefact on the golden set; raise ConversionError below its bars unless drift is allowed."""
    spec, labels = material.reference.spec, material.reference.sets[0].labels
    expected = signature(*spec.size, spec.channels, material.golden.features.shape[1], len(labels))
    paths = [folder / name for name in names]
    session = open_model(runtime, paths, precision, None, default_threads(), None, expected)
    try:
        parity = measure(partial(run, session), material.golden, material.reference.sets[0])
    finally:
        session.close()
    misses = parity.misses(BARS[precision])
    outright = parity.misses({})
    if misses and (outright or not plan.allow_drift):
        advice = _advice(parity, precision, outright, runtime == "onnxruntime" and plan.symmetric)
        raise ConversionError(
            f"{runtime} {precision} does not give the float reference's answer: {'; '.join(misses)}{advice}"
        )
    static = precision == "int8" and not (runtime == "litert" and material.reference.encoder.architecture == "vit")
    calibration = material.calibrated_with if static else "none (dynamic range)" if precision == "int8" else None
    refs = tuple(file_ref(folder, name) for name in names)
    return Artefact(runtime, precision, refs, parity.numbers(), calibration, bool(misses))  # type: ignore[arg-type]


def _advice(parity: Parity, precision: str, outright: Sequence[str], symmetric: bool) -> str:
    if outright:
        return ""
    if precision == "int8" and symmetric and saturates(cpu()[1]):
        return (
            "; this processor has no VNNI and cannot check --symmetric, whose weights overflow on it: convert on one that "
            "has, or accept it with --allow-drift and verify on the device"
        )
    more = " (int8 of untrained weights always drifts)" if precision == "int8" and parity.centred_cosine < 0.7 else ""
    return f"{more}; calibrate with --calibration FOLDER, or accept it with --allow-drift"


def _finish(folder: Path, material: _Material, plan: Plan, target: Path, artefacts: Sequence[Artefact]) -> None:
    write_npz(folder / "golden.npz", crops=material.golden.crops, features=material.golden.features)
    write_npy(folder / "text_projection.npy", material.reference.r.astype(np.float32))
    sets = tuple(write_label_set(folder, s) for s in material.reference.sets)
    golden = path_ref(folder, "golden.npz")
    manifest = Manifest(
        name=plan.name or target.name,
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
