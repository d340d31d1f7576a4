"""A bundle with less in it: the artefacts of one runtime. It has a digest of its own, and verifies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from fer_edge.bundle import Bundle, all_files, checked_path, open_bundle, write_manifest
from fer_edge.errors import BundleError


def chosen(bundle: Bundle, runtime: str, precision: str | None = None) -> Bundle:
    """The bundle as its manifest says it with the artefacts of ``runtime`` alone; those that were compiled for one device
    are left out. Raises BundleError where none is left."""
    general = [a for a in bundle.manifest.artefacts if a.target is None]
    kept = tuple(a for a in general if a.runtime == runtime and precision in (None, a.precision))
    if not kept:
        has = ", ".join(sorted({f"{a.runtime} {a.precision}" for a in general})) or "none"
        raise BundleError(
            f"{bundle.folder} has no artefact for {runtime}{f' {precision}' if precision else ''}; it has {has}"
        )
    return replace(bundle, manifest=replace(bundle.manifest, artefacts=kept))


def write_slim(bundle: Bundle, folder: Path) -> Bundle:
    """Copy what the manifest of ``bundle`` (see :func:`chosen`) names to the empty ``folder``, and the manifest with its new
    digest last. Every file is checked in the copy: what was hashed is what lies there. Raises BundleError."""
    files = list(all_files(bundle))
    copy = replace(bundle, folder=folder)
    for path, sha256, size in files:
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checked_path(bundle, path, sha256, size), target)
        checked_path(copy, path, sha256, size)
    write_manifest(folder, bundle.manifest)
    return open_bundle(folder)
