"""From a bundle to an artefact for one device: compiled, judged by the golden set, and only then written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_edge.bundle import Bundle, add_artefact, golden_set, label_set, open_bundle, write_reduced
from fer_edge.errors import UsageError
from fer_edge.golden import Parity, compare
from fer_edge.manifest import Artefact
from fer_edge.verify import bars

from .crops import augmented, from_folder
from .targets.target import Job, family_of

DEFAULT_CALIBRATION = 64


@dataclass(frozen=True)
class Compilation:
    """``bundle``: what was written, None: nothing, and ``misses`` says why; ``report``: the compiler's own figures."""

    target: str
    runtime: str
    precision: str
    compiler: str
    judge: str
    parity: Parity
    misses: tuple[str, ...]
    report: Mapping[str, Any]
    bundle: Bundle | None
    notes: tuple[str, ...] = ()


def compile_bundle(
    folder: Path,
    target: str,
    output: Path | None = None,
    precision: str | None = None,
    calibration: Path | None = None,
    calibration_count: int = 300,
    python: Path | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> Compilation:
    """Compile a bundle for ``target``. What is right goes into a bundle of its own at ``output``, with nothing in it that
    the device does not need; None: into the bundle itself.

    Raises BundleError, UsageError, MissingExtraError, or ConversionError for what the compiler refuses."""
    family = family_of(target)
    precision = precision or family.PRECISIONS[0]
    if precision not in family.PRECISIONS:
        raise UsageError(f"{target} computes in {', '.join(family.PRECISIONS)}; there is no {precision} for it")
    if calibration is not None and not (family.CALIBRATES and precision == "int8"):
        why = (
            "it is made from an artefact that is calibrated already" if not family.CALIBRATES else f"{precision} needs none"
        )
        raise UsageError(f"--calibration is for int8 of a target that measures ranges; for {target} {why}")
    if output is not None and output.exists() and not force:
        raise UsageError(f"{output} exists already; remove it, name another folder, or pass --force")
    bundle = open_bundle(folder)
    spec, notes = bundle.manifest.input, []
    golden, labels = golden_set(bundle), label_set(bundle, bundle.manifest.default_labels)
    if calibration is not None:
        crops = from_folder(calibration, calibration_count, spec.height, spec.color)
        said = f"{len(crops)} faces of {calibration.name}"
    else:
        crops = augmented(min(DEFAULT_CALIBRATION, calibration_count), spec.height, spec.color, seed=11)
        said = f"{len(crops)} augmentations of the one shipped face (no folder of faces was given)"
        if family.CALIBRATES and precision == "int8":
            notes.append("int8 was calibrated with augmentations of one face. Calibrate with your own: --calibration FOLDER")
    report(f"{target}: compiling, and asking about {len(golden.crops)} golden crops")
    with tempfile.TemporaryDirectory() as work:
        job = Job(bundle, golden, labels, target, precision, crops, said, python.absolute() if python else None, Path(work))
        made = family.compile(job)
    parity = compare(made.features, made.logits, golden.features, labels, made.repeatable)
    misses = tuple(parity.misses(bars(bundle, precision)))
    written = None
    if not misses:
        how: Any = precision
        artefact = Artefact(family.RUNTIME, how, (), parity.numbers(), made.calibration, False, target)
        files = {f"{family.RUNTIME}-{target}{suffix}": content for suffix, content in made.files.items()}
        report(f"{target}: writing")
        tools = dict([made.compiler.rsplit(" ", 1)])
        if output is None:
            written = add_artefact(bundle, artefact, files, tools)
        else:
            written = write_reduced(bundle, output, artefact, files, tools, force)
    return Compilation(
        target, family.RUNTIME, precision, made.compiler, made.judge, parity, misses, made.report, written, tuple(notes)
    )
