"""The bundle folder: where it is read, checked and written. Nothing outside the folder is ever read through its
manifest."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from .arrays import read_npy, read_npz, write_npz
from .errors import BundleError, IntegrityError, LabelError, UsageError
from .files import replaced
from .labels import LabelSet, is_one_line
from .manifest import MANIFEST, Artefact, FileRef, LabelSetRef, Manifest, PathRef, read_manifest, to_bytes

MIN_CROPS = 16
"""A golden set has at least this many crops."""


@dataclass(frozen=True)
class Golden:
    """The golden set: ``crops`` uint8 (N, H, W, C) and the float reference's ``features`` float32 (N, D)."""

    crops: NDArray[np.uint8]
    features: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk: its folder and its checked manifest. Files are checked when they are opened."""

    folder: Path
    manifest: Manifest


def open_bundle(folder: str | os.PathLike[str]) -> Bundle:
    """Open a bundle folder and check its manifest. Raises BundleError."""
    path = Path(folder)
    return Bundle(path, read_manifest(path))


def checked_path(bundle: Bundle, path: str, sha256: str, size: int | None = None) -> Path:
    """The file of the bundle at ``path``, after its hash was checked. Raises BundleError that names the file."""
    file = _inside(bundle.folder, path)
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # reading a pipe would wait for ever
            raise BundleError(f"{file} is not a file")
        digest, length = _digest(file)
    except FileNotFoundError as error:
        raise IntegrityError(f"{file} is missing from the bundle") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    if digest != sha256 or (size is not None and length != size):
        raise IntegrityError(f"{file} was altered or truncated: its sha256 does not match the manifest")
    return file


def _digest(file: Path) -> tuple[str, int]:
    """(sha256, bytes) of a file, read piece by piece: artefacts may be larger than a small box's free memory."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest(), stream.tell()


def artefact_files(bundle: Bundle, artefact: Artefact) -> tuple[Path, ...]:
    """The checked files of an artefact, the one that an engine opens first."""
    return tuple(checked_path(bundle, ref.path, ref.sha256, ref.bytes) for ref in artefact.files)


def label_set(bundle: Bundle, name: str) -> LabelSet:
    """A label set of the bundle, checked. Raises LabelError for a name that it has not, BundleError for a bad file."""
    refs = {ref.name: ref for ref in bundle.manifest.label_sets}
    if name not in refs:
        raise LabelError(f"{bundle.folder} has no label set {name!r}; it has {', '.join(refs)}")
    ref = refs[name]
    file = checked_path(bundle, ref.path, ref.sha256)
    z = read_npz(file, {"names", "constants", "logit_scale", "temperature", "prompts", "prompt_index"})
    count = len(ref.labels)
    names = tuple(map(str, z["names"].tolist())) if z["names"].ndim == 1 else ()
    index = z["prompt_index"]
    fits = (
        names == ref.labels
        and z["constants"].dtype == np.float32
        and z["constants"].shape == (count, bundle.manifest.feature_dim)
        # Means of unit vectors are no longer than 1; NaN fails this too.
        and bool((np.square(z["constants"], dtype=np.float64).sum(1) <= 1.01).all())
        and all(
            # Scores are float32: numbers far from 1 would overflow to NaN there.
            z[k].shape == () and z[k].dtype.kind == "f" and 1e-6 <= z[k] <= 1e6
            for k in ("logit_scale", "temperature")
        )
        and z["prompts"].ndim == 1
        and z["prompts"].dtype.kind == "U"
        and index.shape == z["prompts"].shape
        and index.dtype.kind in "iu"
        and (index.size == 0 or (int(index.min()) >= 0 and int(index.max()) < count))
    )
    if not fits:
        raise BundleError(f"{file} does not hold the label set that the manifest promises")
    prompts = tuple(tuple(str(p) for p, i in zip(z["prompts"], index, strict=True) if i == k) for k in range(count))
    return LabelSet(name, names, z["constants"], float(z["logit_scale"]), float(z["temperature"]), prompts)


def golden_set(bundle: Bundle) -> Golden:
    """The golden set, checked."""
    manifest = bundle.manifest
    file = checked_path(bundle, manifest.golden.path, manifest.golden.sha256)
    z = read_npz(file, {"crops", "features"})
    crops, features = z["crops"], z["features"]
    shape = (len(features) if features.ndim else 0, *manifest.input.size, manifest.input.channels)
    fits = (
        crops.dtype == np.uint8
        and crops.shape == shape
        and features.dtype == np.float32
        and features.shape == (shape[0], manifest.feature_dim)
    )
    if not fits or shape[0] < MIN_CROPS or not np.isfinite(features).all():
        raise BundleError(f"{file} does not hold the golden set that the manifest promises")
    return Golden(crops, features)


def text_projection(bundle: Bundle) -> NDArray[np.float32]:
    """R (D, T) float32: feature-space constants = R times a text encoder's vectors."""
    ref = bundle.manifest.text_projection
    file = checked_path(bundle, ref.path, ref.sha256)
    matrix = read_npy(file, file.read_bytes())
    fits = matrix.dtype == np.float32 and matrix.ndim == 2 and matrix.shape[0] == bundle.manifest.feature_dim
    if not fits or not np.isfinite(matrix).all():
        raise BundleError(f"{file} does not hold the text projection that the manifest promises")
    return matrix


def _inside(folder: Path, path: str) -> Path:
    """``folder / path``, if that stays inside the folder, links followed. Raises BundleError."""
    pure = PurePosixPath(path)
    bad = (
        not path
        or pure.is_absolute()
        or any(c in path for c in "\\:")
        or not path.isprintable()
        or any(part in ("..", ".") for part in path.split("/"))
    )
    if bad:
        raise BundleError(f"{folder / MANIFEST} names the file {path!r}: only plain paths inside the bundle are read")
    file = folder / pure
    try:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise BundleError(f"{file} is a link out of the bundle; it is not read")
    except (OSError, RuntimeError) as error:
        raise BundleError(f"{file} cannot be read: {error}") from error
    return file


def file_ref(folder: Path, path: str) -> FileRef:
    """Reference to an existing file of a bundle under construction."""
    return FileRef(path, *_digest(folder / path))


def path_ref(folder: Path, path: str) -> PathRef:
    """As :func:`file_ref`, without the size."""
    return PathRef(path, file_ref(folder, path).sha256)


@contextmanager
def staged(target: Path, force: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``target`` that becomes ``target`` when the block ends well, and vanishes when it does not.

    Raises UsageError when ``target`` exists and ``force`` is not set, or is anything but a bundle or an empty folder.
    """
    import shutil  # here, because a device never writes a bundle and pays for these at every start
    import tempfile

    if target.exists() and not force:
        raise UsageError(f"{target} exists already; remove it, name another folder, or pass --force")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, and a bundle is a folder; name another")
    if target.exists() and not (target / MANIFEST).exists() and any(target.iterdir()):
        raise UsageError(f"{target} is no bundle, so --force does not replace it; name another folder")
    target = target.resolve()  # a link stays, and what it points to is replaced
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder; create it first")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as error:
        raise UsageError(f"{target.parent} cannot be written: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            old = folder.with_name(folder.name + "-old")
            target.rename(old)
            try:
                folder.rename(target)
            except BaseException:
                old.rename(target)
                raise
            shutil.rmtree(old)
        else:
            folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json in one step: a reader sees the old one or the new one. Raises UsageError."""
    with replaced(folder / MANIFEST) as partial:
        partial.write_bytes(to_bytes(manifest))


def check_name(name: str) -> None:
    """Raise LabelError for what cannot name a label set, and so its file."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise LabelError(f"{name!r} cannot name a label set: use letters, digits, '-', '_' and '.'")


def write_label_set(folder: Path, labels: LabelSet) -> LabelSetRef:
    """Write labels/<name>.npz and return its reference."""
    check_name(labels.name)
    count = len(labels.labels)
    if not count or len(set(labels.labels)) != count or not all(map(is_one_line, labels.labels)):
        raise LabelError(f"label set {labels.name!r} needs labels that differ and hold no line breaks or control characters")
    fits = labels.constants.ndim == 2 and len(labels.constants) == len(labels.prompts) == count
    if not fits or not np.isfinite(labels.constants).all():
        raise LabelError(f"label set {labels.name!r} needs one finite vector and one group of prompts for each label")
    path = f"labels/{labels.name}.npz"
    (folder / "labels").mkdir(exist_ok=True)
    flat = [(prompt, k) for k, group in enumerate(labels.prompts) for prompt in group]
    write_npz(
        folder / path,
        names=np.array(labels.labels),
        constants=labels.constants.astype(np.float32),
        logit_scale=np.array(labels.logit_scale, dtype=np.float64),
        temperature=np.array(labels.temperature, dtype=np.float64),
        prompts=np.array([p for p, _ in flat], dtype=np.str_),
        prompt_index=np.array([k for _, k in flat], dtype=np.int64),
    )
    return LabelSetRef(labels.name, path, file_ref(folder, path).sha256, labels.labels)


def add_label_set(bundle: Bundle, labels: LabelSet) -> Bundle:
    """Add a label set to a bundle on disk: its file first, then the manifest, which is read again, as another process may
    have added one. Raises LabelError when the name is taken."""
    bundle = open_bundle(bundle.folder)
    if labels.name in [ref.name for ref in bundle.manifest.label_sets]:
        raise LabelError(f"{bundle.folder} already has a label set {labels.name!r}; choose another name")
    if labels.constants.shape[1:] != (bundle.manifest.feature_dim,):
        raise LabelError(
            f"label set {labels.name!r} has vectors of shape {labels.constants.shape[1:]}; the features of {bundle.folder} "
            f"have {bundle.manifest.feature_dim} numbers: compile it for this bundle"
        )
    try:
        ref = write_label_set(bundle.folder, labels)
        manifest = replace(bundle.manifest, label_sets=(*bundle.manifest.label_sets, ref))
        write_manifest(bundle.folder, manifest)
    except OSError as error:
        raise BundleError(
            f"{bundle.folder} cannot be written: {error.strerror}; copy the bundle to a folder of yours"
        ) from error
    return Bundle(bundle.folder, manifest)


def all_files(bundle: Bundle) -> Sequence[tuple[str, str, int | None]]:
    """(path, sha256, size or None) of every file that the manifest names."""
    m = bundle.manifest
    files: list[tuple[str, str, int | None]] = [(f.path, f.sha256, f.bytes) for a in m.artefacts for f in a.files]
    files += [(ref.path, ref.sha256, None) for ref in m.label_sets]
    return [*files, (m.text_projection.path, m.text_projection.sha256, None), (m.golden.path, m.golden.sha256, None)]
