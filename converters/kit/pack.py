"""A kit: a slim bundle, wheels, detector weights, checksums, an installer, a service and a bill of materials."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fer_edge import __version__
from fer_edge.bundle import Bundle, staged
from fer_edge.console import need_extra
from fer_edge.engines import ENGINES
from fer_edge.errors import UsageError
from fer_edge.manifest import digest_of

from . import wheels as wheel_files
from .folder import ABOUT, new_kit, sums
from .sbom import bill
from .slim import chosen, write_slim
from .target import Target, least_glibc
from .wheels import Wheel

OPTIONS = ("live", "bench")
"""Extras that a kit may have beside its engine's."""
TEMPLATES = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Plan:
    """What goes into a kit. ``extras``: of OPTIONS; ``precision``: None for every one that the bundle has; ``detector``:
    YuNet's weights, None for those in the user's cache if there are any; ``wheels``: a folder of wheels instead of the
    registry; ``constraint``: a file of versions, pip's -c."""

    target: Target
    runtime: str
    extras: tuple[str, ...] = ()
    precision: str | None = None
    detector: Path | None = None
    wheels: Path | None = None
    constraint: Path | None = None


@dataclass(frozen=True)
class Kit:
    """A kit that was written. ``digest``: of its bundle; ``wheels``: file names; ``detector``: its file's name or ""."""

    path: Path
    digest: str
    wheels: tuple[str, ...]
    detector: str
    bytes: int


def pack_bundle(bundle: Bundle, output: Path, runtime: str, precision: str | None = None, force: bool = False) -> Bundle:
    """Write a bundle with the artefacts of one runtime alone. Raises BundleError, UsageError."""
    slim = chosen(bundle, runtime, precision)
    with staged(output, force) as folder:
        write_slim(slim, folder)
    return Bundle(output, slim.manifest)


def pack(
    bundle: Bundle, output: Path, plan: Plan, force: bool = False, on_step: Callable[[str], object] = lambda text: None
) -> Kit:
    """Write a kit to ``output``: a folder, or a tar file where its name ends in ``.tar``. The same bundle, versions and plan
    make the same bytes. ``on_step`` gets what is going on. Raises FerEdgeError; then nothing is there that was not."""
    need_extra(extra="pack")
    engine = ENGINES.get(plan.runtime)
    if engine is None or not engine.suffixes:
        raise UsageError(f"a kit has an engine of ours, and {plan.runtime!r} is none")
    slim = chosen(bundle, plan.runtime, plan.precision)
    detector = _detector(plan)
    with new_kit(output, force) as folder:
        on_step("copying the bundle")
        (folder / "bundle").mkdir()
        written = write_slim(slim, folder / "bundle")
        work = folder.parent / "work"
        work.mkdir()
        on_step("making fer-edge's own wheel")
        own = wheel_files.own_wheel(work)
        on_step(f"wheels for {plan.target.name}, Python {plan.target.python}")
        extras = (engine.extra, *plan.extras)
        wheels = wheel_files.collect(own, extras, plan.target, folder / "wheels", plan.wheels, plan.constraint)
        wheel_files.download(["pip"], plan.target, folder / "tools", plan.wheels, plan.constraint)
        (pip,) = map(wheel_files.read_wheel, (folder / "tools").glob("*.whl"))
        if detector is not None:
            (folder / "detector").mkdir()
            (folder / "detector" / detector[0]).write_bytes(detector[1])
        on_step("writing the installer and the bill of materials")
        name = "" if detector is None else detector[0]
        _write_texts(folder, plan, wheels, pip, name, written)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        kit = Kit(output, digest_of(written.manifest), tuple(w.file.name for w in wheels), name, size)
    return kit


def _detector(plan: Plan) -> tuple[str, bytes] | None:
    """(file name, content) of the weights of the face detector; None where a kit needs none, or the user has none."""
    if "live" not in plan.extras:
        if plan.detector is not None:
            raise UsageError("a detector is of use with the extra live alone: --with live")
        return None
    from fer_edge.live import weights

    yunet = weights.WEIGHTS["yunet"]
    if plan.detector is None:
        return (yunet.file, weights.read_installed(yunet)[1]) if weights.is_installed(yunet) else None
    try:
        content = plan.detector.read_bytes()
    except OSError as error:
        raise UsageError(f"{plan.detector} cannot be read: {error.strerror}") from error
    if not weights.is_right(content, yunet):
        raise UsageError(f"{plan.detector} is not {yunet.file} as it was published: its SHA-256 is another one")
    return yunet.file, content


def _write_texts(folder: Path, plan: Plan, wheels: list[Wheel], pip: Wheel, detector: str, bundle: Bundle) -> None:
    """All but bundle, wheels and weights."""
    manifest, target = bundle.manifest, plan.target
    lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels]
    (folder / "requirements.txt").write_text("".join(lines), encoding="ascii")
    glibc = least_glibc(wheel.file.name for wheel in wheels)
    about = {
        "schema": 1,
        "fer_edge": __version__,
        "target": target.name,
        "python": target.python,
        "glibc": glibc,
        "runtime": plan.runtime,
        "extras": list(plan.extras),
        "bundle": {"name": manifest.name, "version": manifest.version, "digest": digest_of(manifest)},
        "detector": detector or None,
        "wheels": [wheel.file.name for wheel in wheels],
    }
    (folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n", encoding="ascii")
    values = {
        "PYTHON": target.python,
        "MACHINE": target.machine,
        "BITS": "32" if target.machine == "armv7l" else "64",
        "GLIBC": glibc,
        "RUNTIME": plan.runtime,
        "PIP": pip.file.name,
        "DETECTOR": detector or "BRING-ONE.onnx",
    }
    names = ["install.sh", *(["fer-edge-watch.service"] if "live" in plan.extras else [])]
    for name in names:
        text = (TEMPLATES / name).read_text(encoding="ascii")
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (folder / name).write_text(text, encoding="ascii")
    models = [
        {
            "name": manifest.name,
            "version": str(manifest.version),
            "sha256": digest_of(manifest),
            "licence": manifest.licence,
            "file": "bundle/manifest.json",
        }
    ]
    if detector:
        from fer_edge.live.weights import WEIGHTS

        yunet = WEIGHTS["yunet"]
        models.append(
            {
                "name": yunet.name,
                "version": "",
                "sha256": yunet.sha256,
                "licence": yunet.licence,
                "file": f"detector/{detector}",
            }
        )
    kit = {"name": f"fer-edge-kit-{manifest.name}", "version": __version__, "target": target.name, "python": target.python}
    depends = wheel_files.edges(wheels, (ENGINES[plan.runtime].extra, *plan.extras), target)
    content = sums(folder)
    (folder / "sbom.cdx.json").write_text(
        bill({**kit, "runtime": plan.runtime}, [*wheels, pip], depends, models, content), encoding="utf-8"
    )
