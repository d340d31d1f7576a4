"""The bundle folder: where it is read, checked and written. Nothing outside the folder is ever read through its
manifest."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arrays import MAX_BYTES, read_npy, read_npz, write_npz
from .errors import BundleError, IntegrityError, LabelError, UsageError
from .files import (
    clear_partials,
    copy_tree,
    disk_errors,
    exchange,
    locked,
    open_file,
    partial_folder,
    sync_folder,
    sync_tree,
    write_bytes,
)
from .formats import check_model_file
from .labels import LabelSet, check_labels
from .manifest import (
    MANIFEST,
    MAX_LABEL_SETS,
    MAX_LABELS,
    Artefact,
    FileRef,
    LabelSetRef,
    Manifest,
    PathRef,
    digest_of,
    read_manifest,
    to_bytes,
    upgraded,
)

MIN_CROPS, MAX_CROPS = 16, 1024
"""How many crops a golden set has: fewer prove little, and every one of them runs twice at each check."""
MAX_PROMPTS = 1 << 17
"""Of one label set."""
MAX_LENGTH = 1e30
"""Of a feature: float32 reaches 1e38."""
_READINGS = 5
"""How often a bundle that is replaced while it is read is read anew."""

T = TypeVar("T")


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


def open_bundle(folder: str | os.PathLike[str], digest: str | None = None) -> Bundle:
    """Open a bundle folder and check its manifest. ``digest``: the only one that is taken (``info --json`` shows it). Raises
    BundleError."""
    path = Path(folder)
    manifest = read_manifest(path)
    if digest is not None and digest_of(manifest) != digest.lower():
        raise IntegrityError(f"{path / MANIFEST} has the digest {digest_of(manifest)}, and {digest} was asked for")
    return Bundle(path, manifest)


def read_settled(folder: str | os.PathLike[str], read: Callable[[Bundle], T], digest: str | None = None) -> T:
    """What ``read`` makes of a bundle, read again from its manifest on where a writer replaced that meanwhile. Raises what
    ``read`` raises of a bundle that nobody is writing."""
    for left in range(_READINGS, 0, -1):
        bundle = open_bundle(folder, digest)
        try:
            return read(bundle)
        except BundleError:
            if left == 1 or read_manifest(bundle.folder) == bundle.manifest:
                raise
    raise AssertionError("the last reading returns or raises")


def checked_path(bundle: Bundle, path: str, sha256: str, size: int | None = None) -> Path:
    """The file of the bundle at ``path``, after its hash was checked. Raises BundleError that names the file."""
    with _checked(bundle, path, sha256, size):
        return bundle.folder / path


def checked_bytes(bundle: Bundle, path: str, sha256: str, size: int | None = None) -> bytes:
    """The content of a file of the bundle. It is read once: what was hashed is what is returned, whatever is written to the
    file meanwhile. Raises BundleError that names the file."""
    with _opened(bundle, path, sha256, size) as (stream, length):
        content = stream.read(length)
        _check_hash(bundle, path, hashlib.sha256(content).hexdigest(), sha256, size, length)
        return content


@contextmanager
def _checked(bundle: Bundle, path: str, sha256: str, size: int | None) -> Iterator[BinaryIO]:
    """A file of the bundle, open at its beginning, after its hash was checked."""
    with _opened(bundle, path, sha256, size) as (stream, length):
        _check_hash(bundle, path, _digest(stream), sha256, size, length)
        stream.seek(0)
        yield stream


@contextmanager
def _opened(bundle: Bundle, path: str, sha256: str, size: int | None) -> Iterator[tuple[BinaryIO, int]]:
    """A file of the bundle and its length, ``size`` where that is known. An OSError of the block is a BundleError."""
    file = _inside(bundle.folder, path)
    try:
        with open_file(file.resolve()) as stream:
            length = os.fstat(stream.fileno()).st_size
            if size is None and length > MAX_BYTES:
                raise BundleError(f"{file} has {length:,} bytes; at most {MAX_BYTES:,} are read")
            if size not in (None, length):
                _check_hash(bundle, path, "", sha256, size, length)
            yield stream, length
    except FileNotFoundError as error:
        raise IntegrityError(f"{file} is missing from the bundle; expected {_wanted(sha256, size)}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check_hash(bundle: Bundle, path: str, digest: str, sha256: str, size: int | None, length: int) -> None:
    """Raise IntegrityError unless a file of ``length`` bytes has the hash that was promised. ``digest``: "" where it was not
    read, because the length is another."""
    if digest != sha256:
        there = f"{length:,} bytes" + (f" with the sha256 {digest[:12]}..." if digest else "")
        file = bundle.folder / path
        raise IntegrityError(f"{file} was altered or truncated: expected {_wanted(sha256, size)}, found {there}")


def _wanted(sha256: str, size: int | None) -> str:
    return ("a file" if size is None else f"{size:,} bytes") + f" with the sha256 {sha256[:12]}..."


def _digest(stream: BinaryIO) -> str:
    """sha256 of an open file, read piece by piece: artefacts may be larger than a small box's free memory."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def artefact_files(bundle: Bundle, artefact: Artefact) -> tuple[Path, ...]:
    """The files of an artefact, the one that an engine opens first: hashes, formats, and that no data beyond them is wanted
    are checked. Raises BundleError that names the file."""
    for ref in artefact.files:
        folder = PurePosixPath(ref.path).parent
        beside = [PurePosixPath(other.path).name for other in artefact.files if PurePosixPath(other.path).parent == folder]
        with _checked(bundle, ref.path, ref.sha256, ref.bytes) as stream:
            check_model_file(bundle.folder / ref.path, stream, beside)
    return tuple(bundle.folder / ref.path for ref in artefact.files)


def artefact_contents(bundle: Bundle, artefact: Artefact) -> dict[str, bytes]:
    """Path in the bundle -> content of an artefact's files, the one that an engine opens first: what was hashed is what an
    engine is given. What they say of themselves is checked where they are opened. Raises BundleError that names the file."""
    return {ref.path: checked_bytes(bundle, ref.path, ref.sha256, ref.bytes) for ref in artefact.files}


def check_label_sets(bundle: Bundle) -> None:
    """The hash of every label set's file. Raises BundleError that names the first one that differs."""
    for ref in bundle.manifest.label_sets:
        checked_path(bundle, ref.path, ref.sha256)


def label_set(bundle: Bundle, name: str) -> LabelSet:
    """A label set of the bundle, checked, in time linear in its size. Raises LabelError for a name that it has not,
    BundleError for a bad file."""
    refs = {ref.name: ref for ref in bundle.manifest.label_sets}
    if name not in refs:
        raise LabelError(f"{bundle.folder} has no label set {name!r}; it has {', '.join(refs)}")
    ref = refs[name]
    file = bundle.folder / ref.path
    members = {"names", "constants", "logit_scale", "temperature", "prompts", "prompt_index"}
    bars = {"threshold": 1.0, "least_length": MAX_LENGTH}  # fer-edge 0.1 wrote no threshold
    z = read_npz(file, members, bars, checked_bytes(bundle, ref.path, ref.sha256))
    z = {**dict.fromkeys(bars, np.array(0.0)), **z}
    count, index, constants = len(ref.labels), z["prompt_index"], z["constants"]
    fits = (
        z["names"].shape == (count,)
        and tuple(map(str, z["names"].tolist())) == ref.labels
        and constants.dtype == np.float32
        and constants.shape == (count, bundle.manifest.feature_dim)
        # Means of unit vectors are no longer than 1; NaN fails this too.
        and bool((np.einsum("kd,kd->k", constants, constants, dtype=np.float64) <= 1.01).all())
        and all(
            # Scores are float32: numbers far from 1 would overflow to NaN there.
            z[k].shape == () and z[k].dtype.kind == "f" and 1e-6 <= z[k] <= 1e6
            for k in ("logit_scale", "temperature")
        )
        and all(z[k].shape == () and z[k].dtype.kind == "f" and 0 <= z[k] <= most for k, most in bars.items())
        and z["prompts"].ndim == 1
        and z["prompts"].dtype.kind == "U"
        and len(z["prompts"]) <= MAX_PROMPTS
        and index.shape == z["prompts"].shape
        and index.dtype.kind in "iu"
        and (index.size == 0 or (int(index.min()) >= 0 and int(index.max()) < count))
    )
    if not fits:
        raise BundleError(f"{file} does not hold the label set that the manifest promises")
    prompts: list[list[str]] = [[] for _ in range(count)]
    for prompt, k in zip(z["prompts"].tolist(), index.tolist(), strict=True):
        prompts[k].append(prompt)
    scale, temperature, threshold, length = (float(z[k]) for k in ("logit_scale", "temperature", *bars))
    return LabelSet(name, ref.labels, constants, scale, temperature, tuple(map(tuple, prompts)), threshold, length)


def golden_set(bundle: Bundle) -> Golden:
    """The golden set, checked: at least MIN_CROPS and at most MAX_CROPS crops."""
    manifest = bundle.manifest
    file = bundle.folder / manifest.golden.path
    z = read_npz(file, {"crops", "features"}, data=checked_bytes(bundle, manifest.golden.path, manifest.golden.sha256))
    crops, features = z["crops"], z["features"]
    shape = (len(features) if features.ndim else 0, *manifest.input.size, manifest.input.channels)
    if shape[0] > MAX_CROPS:
        raise BundleError(f"{file} holds {shape[0]:,} crops; at most {MAX_CROPS:,} are read")
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
    file = bundle.folder / ref.path
    matrix = read_npy(file, checked_bytes(bundle, ref.path, ref.sha256))
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
    with (folder / path).open("rb") as stream:
        return FileRef(path, _digest(stream), stream.tell())


def path_ref(folder: Path, path: str) -> PathRef:
    """As :func:`file_ref`, without the size."""
    return PathRef(path, file_ref(folder, path).sha256)


@contextmanager
def staged(target: Path, force: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``target`` that becomes ``target`` when the block ends well, and vanishes when it does not.

    Its files and names are on the disk before that; a bundle that was there is exchanged for it in one step (see
    :func:`fer_edge.files.exchange`), while no other writer holds it, and goes last. Raises UsageError when ``target``
    exists and ``force`` is not set, is anything but a bundle or an empty folder, or cannot be written."""
    import shutil  # here, because a device never writes a bundle and pays for this at every start

    _check_replaceable(target, force)
    target = target.resolve()  # a link stays, and what it points to is replaced
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder; create it first")
    folder = partial_folder(target)
    try:
        with disk_errors(target):
            folder.mkdir()
            yield folder
            sync_tree(folder)
            _put(folder, target, force)
            sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what was not finished, or the bundle that was there before


def _check_replaceable(target: Path, force: bool) -> None:
    if target.exists() and not force:
        raise UsageError(f"{target} exists already; remove it, name another folder, or pass --force")
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file, and a bundle is a folder; name another")
    if target.exists() and not (target / MANIFEST).exists() and any(target.iterdir()):
        raise UsageError(f"{target} is no bundle, so --force does not replace it; name another folder")


def _put(folder: Path, target: Path, force: bool) -> None:
    """``folder`` under the name ``target``, which may have come to be since it was looked at."""
    try:
        folder.rename(target)  # onto nothing, or an empty folder
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        _check_replaceable(target, force)
        with locked(target):  # a label set that another process is adding belongs to the bundle that goes
            exchange(folder, target)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, in today's schema, in one step: a reader sees the old one or the new one. Raises UsageError."""
    write_bytes(folder / MANIFEST, to_bytes(upgraded(manifest)))


def check_name(name: str) -> None:
    """Raise LabelError for what cannot name a label set, and so its file."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise LabelError(f"{name!r} cannot name a label set: use letters, digits, '-', '_' and '.'")


def write_label_set(folder: Path, labels: LabelSet) -> LabelSetRef:
    """Write labels/<name>.npz and return its reference. Raises LabelError for what readers would refuse."""
    check_name(labels.name)
    check_labels(labels.labels, f"label set {labels.name!r}")
    count = len(labels.labels)
    fits = labels.constants.ndim == 2 and len(labels.constants) == len(labels.prompts) == count
    if not fits or not np.isfinite(labels.constants).all():
        raise LabelError(f"label set {labels.name!r} needs one finite vector and one group of prompts for each label")
    flat = [(prompt, k) for k, group in enumerate(labels.prompts) for prompt in group]
    if count > MAX_LABELS or len(flat) > MAX_PROMPTS:
        raise LabelError(
            f"label set {labels.name!r} has {count:,} labels and {len(flat):,} prompts; "
            f"at most {MAX_LABELS:,} and {MAX_PROMPTS:,} are read"
        )
    if not 0 <= labels.threshold <= 1:
        raise LabelError(f"label set {labels.name!r} has the threshold {labels.threshold:g}; a score is 0 to 1")
    if not 0 <= labels.least_length <= MAX_LENGTH:
        raise LabelError(f"label set {labels.name!r} has the least length {labels.least_length:g}; no feature has that")
    path = f"labels/{labels.name}.npz"
    (folder / "labels").mkdir(exist_ok=True)
    write_npz(
        folder / path,
        names=np.array(labels.labels),
        constants=labels.constants.astype(np.float32),
        logit_scale=np.array(labels.logit_scale, dtype=np.float64),
        temperature=np.array(labels.temperature, dtype=np.float64),
        threshold=np.array(labels.threshold, dtype=np.float64),
        # Only where it says something: fer-edge 0.2 refuses members that it does not know.
        **({"least_length": np.array(labels.least_length, dtype=np.float64)} if labels.least_length else {}),
        prompts=np.array([p for p, _ in flat], dtype=np.str_),
        prompt_index=np.array([k for _, k in flat], dtype=np.int64),
    )
    return LabelSetRef(labels.name, path, file_ref(folder, path).sha256, labels.labels)


def add_label_set(bundle: Bundle, labels: LabelSet) -> Bundle:
    """Add a label set to a bundle on disk: its file first, then the manifest, which is read again under a lock, as another
    process may have written one. Raises LabelError when the name is taken, BundleError when nothing can be written."""
    with _writing(bundle.folder) as bundle:
        manifest = bundle.manifest
        if labels.name in [ref.name for ref in manifest.label_sets]:
            raise LabelError(f"{bundle.folder} already has a label set {labels.name!r}; choose another name")
        if len(manifest.label_sets) >= MAX_LABEL_SETS:
            raise LabelError(f"{bundle.folder} has {MAX_LABEL_SETS} label sets, and no more are read; remove one")
        if labels.constants.shape[1:] != (manifest.feature_dim,):
            raise LabelError(
                f"label set {labels.name!r} has vectors of shape {labels.constants.shape[1:]}; the features of "
                f"{bundle.folder} have {manifest.feature_dim} numbers: compile it for this bundle"
            )
        if f"labels/{labels.name}.npz" in [ref.path for ref in manifest.label_sets]:
            raise LabelError(f"{bundle.folder} keeps another label set in labels/{labels.name}.npz; choose another name")
        ref = write_label_set(bundle.folder, labels)
        try:
            return _with_label_sets(bundle, (*manifest.label_sets, ref))
        except BaseException:
            (bundle.folder / ref.path).unlink(missing_ok=True)
            raise


def remove_label_set(bundle: Bundle, name: str) -> Bundle:
    """Remove a label set from a bundle on disk: from the manifest first, then its file. Raises LabelError for the default
    one and for a name that the bundle has not, BundleError when nothing can be written."""
    with _writing(bundle.folder) as bundle:
        refs = {ref.name: ref for ref in bundle.manifest.label_sets}
        if name not in refs:
            raise LabelError(f"{bundle.folder} has no label set {name!r}; it has {', '.join(refs)}")
        if name == bundle.manifest.default_labels:
            raise LabelError(f"{name!r} is the default label set of {bundle.folder} and baked into its models; it stays")
        file = _inside(bundle.folder, refs[name].path)
        left = _with_label_sets(bundle, tuple(ref for ref in refs.values() if ref.name != name))
        file.unlink(missing_ok=True)
        sync_folder(file.parent)
        return left


def change_label_sets(bundle: Bundle, changed: Sequence[LabelSet]) -> Bundle:
    """Put label sets in the place of those of their names, all in one step: readers, and whoever looks after a power cut,
    find the bundle as it was or as it is to be. Raises LabelError for a name that it has not and for other labels than it
    has under that name, BundleError when it is another bundle by now, or when nothing can be written."""
    import shutil

    with _writing(bundle.folder) as there:
        if there.manifest != bundle.manifest:
            raise BundleError(f"{bundle.folder} was written by another process meanwhile; run this again")
        refs = {ref.name: ref for ref in there.manifest.label_sets}
        for labels in changed:
            if labels.name not in refs:
                raise LabelError(f"{bundle.folder} has no label set {labels.name!r}; it has {', '.join(refs)}")
            if labels.labels != refs[labels.name].labels:
                raise LabelError(
                    f"the label set {labels.name!r} of {bundle.folder} has other labels; add a new one for these"
                )
            if any(ref.path == f"labels/{labels.name}.npz" and ref.name != labels.name for ref in refs.values()):
                raise LabelError(f"{bundle.folder} keeps another label set in labels/{labels.name}.npz")
        target = there.folder.resolve()
        folder = partial_folder(target)
        try:
            copy_tree(target, folder)
            refs |= {labels.name: write_label_set(folder, labels) for labels in changed}
            write_manifest(folder, replace(there.manifest, label_sets=tuple(refs.values())))
            exchange(folder, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # what was not finished, or the bundle that was there before
    return open_bundle(bundle.folder)


def add_artefact(bundle: Bundle, artefact: Artefact, files: Mapping[str, bytes], tools: Mapping[str, str]) -> Bundle:
    """Put an artefact (its ``files`` are those of ``files``, name -> content) into a bundle on disk, in the place of one for
    the same runtime and target, in one step. Raises BundleError when it is another bundle by now, or when nothing can be
    written."""
    import shutil

    with _writing(bundle.folder) as there:
        if there.manifest != bundle.manifest:
            raise BundleError(f"{bundle.folder} was written by another process meanwhile; run this again")
        target = there.folder.resolve()
        folder = partial_folder(target)
        try:
            copy_tree(target, folder)
            others = [a for a in there.manifest.artefacts if (a.runtime, a.target) != (artefact.runtime, artefact.target)]
            _with_artefacts(folder, there.manifest, others, artefact, files, tools)
            exchange(folder, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return open_bundle(bundle.folder)


def write_reduced(
    bundle: Bundle, target: Path, artefact: Artefact, files: Mapping[str, bytes], tools: Mapping[str, str], force: bool
) -> Bundle:
    """A bundle at ``target`` with this artefact alone, and the label sets, golden set and text projection of another. Raises
    UsageError and BundleError."""
    manifest = bundle.manifest
    with staged(target, force) as folder:
        wanted = [(ref.path, ref.sha256) for ref in manifest.label_sets]
        wanted += [(ref.path, ref.sha256) for ref in (manifest.text_projection, manifest.golden)]
        for path, sha256 in wanted:
            content = checked_bytes(bundle, path, sha256)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / path, content)
        _with_artefacts(folder, manifest, (), artefact, files, tools)
    return open_bundle(target)


def _with_artefacts(
    folder: Path,
    manifest: Manifest,
    others: Sequence[Artefact],
    artefact: Artefact,
    files: Mapping[str, bytes],
    tools: Mapping[str, str],
) -> None:
    for name, content in files.items():
        write_bytes(folder / name, content)
    added = replace(artefact, files=tuple(file_ref(folder, name) for name in files))
    write_manifest(folder, replace(manifest, artefacts=(*others, added), tools={**manifest.tools, **tools}))


@contextmanager
def _writing(folder: Path) -> Iterator[Bundle]:
    """The bundle as it is on disk, held against other writers; what killed ones left is cleared away."""
    with locked(folder):
        try:
            with disk_errors(folder):
                bundle = open_bundle(folder)
                for place in (folder, folder / "labels"):
                    clear_partials(place)
                yield bundle
        except UsageError as error:
            raise BundleError(f"{error}; is the folder yours, and is there room on its disk?") from error


def _with_label_sets(bundle: Bundle, refs: tuple[LabelSetRef, ...]) -> Bundle:
    """The bundle on disk with other label sets."""
    write_manifest(bundle.folder, replace(bundle.manifest, label_sets=refs))
    return open_bundle(bundle.folder)


def all_files(bundle: Bundle) -> Sequence[tuple[str, str, int | None]]:
    """(path, sha256, size or None) of every file that the manifest names."""
    m = bundle.manifest
    files: list[tuple[str, str, int | None]] = [(f.path, f.sha256, f.bytes) for a in m.artefacts for f in a.files]
    files += [(ref.path, ref.sha256, None) for ref in m.label_sets]
    return [*files, (m.text_projection.path, m.text_projection.sha256, None), (m.golden.path, m.golden.sha256, None)]
