"""manifest.json: frozen dataclasses, one canonical byte form, and a digest of itself."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import BundleError, IntegrityError
from .labels import is_one_line

SCHEMA = 1
MANIFEST = "manifest.json"
_MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class FileRef:
    """A file of the bundle: path inside it (POSIX), sha256 in hex, size in bytes."""

    path: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Source:
    """Where weights came from: a name (never a path of somebody's machine) and a sha256 of their values or their file."""

    source: str
    sha256: str


@dataclass(frozen=True)
class InputSpec:
    """What an artefact takes: uint8 (1, height, width, C). ``mean`` and ``std`` are applied inside, after division by
    255."""

    height: int
    width: int
    color: Literal["rgb", "gray"]
    resize: Literal["stretch-bilinear"]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return (self.height, self.width)

    @property
    def channels(self) -> int:
        """3 for rgb, 1 for gray."""
        return 3 if self.color == "rgb" else 1


@dataclass(frozen=True)
class Artefact:
    """One converted model for one runtime at one precision. ``parity`` was measured when the bundle was written;
    ``calibration`` says with what an int8 artefact was calibrated; ``drift_allowed``: it missed its bars and was let
    through."""

    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    files: tuple[FileRef, ...]
    parity: Mapping[str, float]
    calibration: str | None
    drift_allowed: bool


@dataclass(frozen=True)
class LabelSetRef:
    """A label set's file and names."""

    name: str
    path: str
    sha256: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class PathRef:
    """A file with its sha256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class TextEncoderRef:
    """The text encoder that the constants came from; ``sha256`` is over its weights and tokenizer, not over a file."""

    kind: str
    source: str
    sha256: str


@dataclass(frozen=True)
class GoldenRef:
    """The golden set's file, and the bars per precision that every device has to reach (see ``golden.py``)."""

    path: str
    sha256: str
    thresholds: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Manifest:
    """manifest.json. ``card`` is the model card in Markdown; ``tools`` the versions that made the bundle."""

    name: str
    version: str
    licence: str
    card: str
    encoder: Source
    projection: Source | None
    input: InputSpec
    feature_dim: int
    default_labels: str
    artefacts: tuple[Artefact, ...]
    label_sets: tuple[LabelSetRef, ...]
    text_encoder: TextEncoderRef
    text_projection: PathRef
    golden: GoldenRef
    tools: Mapping[str, str]
    schema: int = field(default=SCHEMA)


def canonical(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, one space of indent, UTF-8, a final newline. NaN raises
    ValueError."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def to_bytes(manifest: Manifest) -> bytes:
    """manifest.json of a manifest: canonical, with ``digest`` = sha256 of the same without that field."""
    plain = _plain(manifest)
    return canonical({**plain, "digest": hashlib.sha256(canonical(plain)).hexdigest()})


def digest_of(manifest: Manifest) -> str:
    """The digest that :func:`to_bytes` writes."""
    return hashlib.sha256(canonical(_plain(manifest))).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``. Raises BundleError for a missing, altered, truncated, newer or malformed
    one."""
    path = folder / MANIFEST
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):  # reading a pipe would wait for ever
            raise BundleError(f"{path} is not a file")
        if info.st_size > _MAX_BYTES:
            raise BundleError(f"{path} is larger than any manifest ({_MAX_BYTES:,} bytes)")
        raw = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file" if folder.exists() else "it does not exist"
        raise BundleError(f"{folder} is not a bundle: {what}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
    try:
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise BundleError(f"{path} is not a manifest: it holds no JSON object")
        schema = value.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise BundleError(f"{path} has schema {schema}, this fer-edge reads up to {SCHEMA}: upgrade fer-edge")
        if schema != SCHEMA:
            raise BundleError(f"{path} has no known schema (found {schema!r}, expected {SCHEMA})")
        digest = value.pop("digest", None)
        if digest != hashlib.sha256(canonical(value)).hexdigest() or raw != canonical({**value, "digest": digest}):
            raise IntegrityError(f"{path} was altered: its digest does not match")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is altered or truncated: it is not valid JSON") from error
    manifest = _typed(Manifest, value, str(path))
    _consistent(manifest, path)
    return manifest


def _consistent(manifest: Manifest, path: Path) -> None:
    """What types alone cannot say. Raises BundleError."""
    names = [ref.name for ref in manifest.label_sets]
    keys = [(a.runtime, a.precision) for a in manifest.artefacts]
    spec = manifest.input
    shown = (manifest.name, manifest.version, *names, *(a.runtime for a in manifest.artefacts))
    problems = (
        (len(set(names)) != len(names), "two label sets have one name"),
        (manifest.default_labels not in names, f"its default label set {manifest.default_labels!r} is not in it"),
        (len(set(keys)) != len(keys), "two artefacts have one runtime and precision"),
        (any(not a.files for a in manifest.artefacts), "an artefact has no files"),
        (not 1 <= manifest.feature_dim <= 1 << 16, f"feature_dim {manifest.feature_dim} is out of range"),
        (
            not (1 <= spec.height <= 4096 and 1 <= spec.width <= 4096),
            f"input {spec.height} x {spec.width} is out of range",
        ),
        (
            len(spec.mean) != spec.channels or len(spec.std) != spec.channels or 0.0 in spec.std,
            "mean and std do not fit the input",
        ),
        (
            any(len(set(ref.labels)) != len(ref.labels) or not ref.labels for ref in manifest.label_sets),
            "a label set repeats a label or is empty",
        ),
        (
            not all(map(is_one_line, (*shown, *(label for ref in manifest.label_sets for label in ref.labels)))),
            "a name or label holds a line break or control character",
        ),
    )
    for wrong, text in problems:
        if wrong:
            raise BundleError(f"{path} is malformed: {text}")


T = TypeVar("T")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def _typed(cls: type[T], value: Any, where: str) -> T:
    """A JSON value as the dataclass ``cls``; every field present, none unknown, each of its type."""
    hints = _hints(cls)  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise BundleError(f"{where} is malformed: expected an object")
    if value.keys() != hints.keys():
        odd = sorted(value.keys() ^ hints.keys())[0]
        raise BundleError(f"{where} is malformed: field {odd!r} is {'unknown' if odd in value else 'missing'}")
    return cls(**{name: _field(hints[name], value[name], f"{where}: {name}") for name in hints})


def _field(hint: Any, value: Any, where: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _typed(hint, value, where)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return None if value is None else _field(next(a for a in args if a is not type(None)), value, where)
    if origin is tuple and isinstance(value, list):
        return tuple(_field(args[0], v, f"{where}[{i}]") for i, v in enumerate(value))
    if origin is not None and issubclass_mapping(origin) and isinstance(value, dict):
        return {k: _field(args[1], v, f"{where}[{k!r}]") for k, v in value.items()}
    if origin is Literal and value in args:
        return value
    if hint is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
        return float(value)
    if hint in (int, str, bool) and type(value) is hint:
        return value
    raise BundleError(f"{where} is malformed: {json.dumps(value)[:60]} is not what belongs there")


def issubclass_mapping(origin: Any) -> bool:
    """Whether a generic's origin is a mapping type."""
    return isinstance(origin, type) and issubclass(origin, Mapping)
