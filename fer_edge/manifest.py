"""manifest.json: frozen dataclasses, one canonical byte form, and a digest of itself."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from .errors import BundleError, IntegrityError
from .files import read_file
from .labels import hidden_character

SCHEMA = 2
"""What is written. Schema 1 (fer-edge 0.1) is read as well: what it lacks has a default, and it becomes schema 2 when
something is written to the bundle. Schema 2 added ``input.crop``, ``artefacts[].target`` and a label set's ``threshold``."""
MANIFEST = "manifest.json"
FOR_COMPILERS = "compilers"
"""The target of an artefact that no device opens: a float graph from which compilers of NPUs go out."""

_MAX_BYTES = 1 << 22
MAX_ARTEFACTS = 64
MAX_FILES = 16
"""Of one artefact."""
MAX_ARTEFACT_BYTES = 1 << 35
"""Of one artefact's file: 32 GiB."""
MAX_LABEL_SETS = 1024
MAX_LABELS = 1 << 16
"""Of one label set."""


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


_SINCE_2 = {"since": 2}
"""Marks a field that came with schema 2; a manifest of schema 1 is read with its default."""


@dataclass(frozen=True)
class Crop:
    """From a detector's box to the face crop: a square round the box's centre, ``scale`` times the box's longer side."""

    scale: float = 1.0


@dataclass(frozen=True)
class InputSpec:
    """What an artefact takes: uint8 (1, height, width, C). ``mean`` and ``std`` are applied inside, after division by
    255; ``crop`` says how a detector's box becomes the face crop."""

    height: int
    width: int
    color: Literal["rgb", "gray"]
    resize: Literal["stretch-bilinear"]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Crop = field(default=Crop(), metadata=_SINCE_2)

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
    through; ``target``: the device that it was compiled for, None: a general model file that the runtime takes anywhere."""

    runtime: str
    precision: Literal["fp32", "fp16", "int8"]
    files: tuple[FileRef, ...]
    parity: Mapping[str, float]
    calibration: str | None
    drift_allowed: bool
    target: str | None = field(default=None, metadata=_SINCE_2)


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

    @property
    def general_artefacts(self) -> tuple[Artefact, ...]:
        """Those that their runtime takes on any box; the others were compiled for one device."""
        return tuple(artefact for artefact in self.artefacts if artefact.target is None)


def canonical(value: object) -> bytes:
    """The one byte form of a JSON value: sorted keys, one space of indent, UTF-8, a final newline. NaN raises
    ValueError."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def to_bytes(manifest: Manifest) -> bytes:
    """manifest.json of a manifest: canonical, in the form of its own schema, with ``digest`` = sha256 of the same without
    that field."""
    plain = _plain(manifest, manifest.schema)
    return canonical({**plain, "digest": hashlib.sha256(canonical(plain)).hexdigest()})


def digest_of(manifest: Manifest) -> str:
    """The digest that :func:`to_bytes` writes."""
    return hashlib.sha256(canonical(_plain(manifest, manifest.schema))).hexdigest()


def upgraded(manifest: Manifest) -> Manifest:
    """The same manifest in today's schema."""
    return replace(manifest, schema=SCHEMA)


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``folder/manifest.json``. Raises BundleError for a missing, altered, truncated, newer or malformed
    one."""
    path = folder / MANIFEST
    try:
        if path.is_symlink():
            raise BundleError(f"{path} is a link, and a bundle's manifest is a file of its own")
        raw = read_file(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = f"it has no {MANIFEST}" if folder.is_dir() else "it is a file" if folder.exists() else "it does not exist"
        raise BundleError(f"{folder} is not a bundle: {what}") from error
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        value = json.loads(raw)
        if not isinstance(value, dict):
            raise BundleError(f"{path} is not a manifest: it holds no JSON object")
        schema = value.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise BundleError(f"{path} has schema {schema}, this fer-edge reads up to {SCHEMA}: upgrade fer-edge")
        if type(schema) is not int or schema < 1:
            raise BundleError(f"{path} has no known schema (found {schema!r}, expected 1 to {SCHEMA})")
        digest = value.pop("digest", None)
        if digest != hashlib.sha256(canonical(value)).hexdigest() or raw != canonical({**value, "digest": digest}):
            raise IntegrityError(f"{path} was altered: its digest does not match")
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is altered or truncated: it is not valid JSON") from error
    manifest = _typed(Manifest, value, str(path), schema)
    _consistent(manifest, path)
    return manifest


def _consistent(manifest: Manifest, path: Path) -> None:
    """What types alone cannot say. Raises BundleError."""
    names = [ref.name for ref in manifest.label_sets]
    keys = [(a.runtime, a.precision, a.target) for a in manifest.artefacts]
    spec = manifest.input
    shown = [manifest.name, manifest.version, *names, *(a.runtime for a in manifest.artefacts)]
    shown += [a.target for a in manifest.artefacts if a.target is not None]
    shown += [label for ref in manifest.label_sets for label in ref.labels]
    models = [[ref.path for ref in a.files] for a in manifest.artefacts]
    others = [*(ref.path for ref in manifest.label_sets), manifest.text_projection.path, manifest.golden.path]
    listed = {path for paths in models for path in paths}
    problems = (
        (len(set(names)) != len(names), "two label sets have one name"),
        (manifest.default_labels not in names, f"its default label set {manifest.default_labels!r} is not in it"),
        (len(set(keys)) != len(keys), "two artefacts have one runtime, precision and target"),
        (len(models) > MAX_ARTEFACTS, f"it has {len(models)} artefacts, and no more than {MAX_ARTEFACTS} are read"),
        (not all(models), "an artefact has no files"),
        (any(len(paths) > MAX_FILES for paths in models), f"an artefact has more than {MAX_FILES} files"),
        (
            any(len(set(paths)) != len(paths) for paths in (*models, others)) or not listed.isdisjoint(others),
            "a file is listed twice",
        ),
        (
            not all(0 <= ref.bytes <= MAX_ARTEFACT_BYTES for a in manifest.artefacts for ref in a.files),
            f"an artefact's file has a size out of range (at most {MAX_ARTEFACT_BYTES:,} bytes)",
        ),
        (len(names) > MAX_LABEL_SETS, f"it has {len(names)} label sets, and no more than {MAX_LABEL_SETS} are read"),
        (
            any(len(ref.labels) > MAX_LABELS for ref in manifest.label_sets),
            f"a label set has more than {MAX_LABELS:,} labels",
        ),
        (not 1 <= manifest.feature_dim <= 1 << 16, f"feature_dim {manifest.feature_dim} is out of range"),
        (
            not (1 <= spec.height <= 4096 and 1 <= spec.width <= 4096),
            f"input {spec.height} x {spec.width} is out of range",
        ),
        (
            len(spec.mean) != spec.channels or len(spec.std) != spec.channels or 0.0 in spec.std,
            "mean and std do not fit the input",
        ),
        (not 0.1 <= spec.crop.scale <= 10, f"crop scale {spec.crop.scale:g} is out of range (0.1 to 10)"),
        (
            any(len(set(ref.labels)) != len(ref.labels) or not ref.labels for ref in manifest.label_sets),
            "a label set repeats a label or is empty",
        ),
        (any(map(hidden_character, shown)), "a name or label holds a character that nobody sees or that breaks the line"),
    )
    for wrong, text in problems:
        if wrong:
            raise BundleError(f"{path} is malformed: {text}")


T = TypeVar("T")


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


def _plain(value: Any, schema: int) -> Any:
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), schema) for f in fields(value) if _is_in(f, schema)}
    if isinstance(value, (tuple, list)):
        return [_plain(v, schema) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, schema) for k, v in value.items()}
    return value


def _is_in(f: Field[Any], schema: int) -> bool:
    return bool(f.metadata.get("since", 1) <= schema)


def _typed(cls: type[T], value: Any, where: str, schema: int) -> T:
    """A JSON value as the dataclass ``cls``; every field of the schema present, none unknown, each of its type."""
    hints = _hints(cls)  # type: ignore[arg-type]
    names = {f.name for f in fields(cls) if _is_in(f, schema)}  # type: ignore[arg-type]
    if not isinstance(value, dict):
        raise BundleError(f"{where} is malformed: expected an object")
    if value.keys() != names:
        odd = sorted(value.keys() ^ names)[0]
        raise BundleError(f"{where} is malformed: field {odd!r} is {'unknown' if odd in value else 'missing'}")
    return cls(**{name: _field(hints[name], value[name], f"{where}: {name}", schema) for name in names})


def _field(hint: Any, value: Any, where: str, schema: int) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _typed(hint, value, where, schema)  # type: ignore[arg-type]
    if origin in (Union, types.UnionType):
        return None if value is None else _field(next(a for a in args if a is not type(None)), value, where, schema)
    if origin is tuple and isinstance(value, list):
        return tuple(_field(args[0], v, f"{where}[{i}]", schema) for i, v in enumerate(value))
    if origin is not None and issubclass_mapping(origin) and isinstance(value, dict):
        return {k: _field(args[1], v, f"{where}[{k!r}]", schema) for k, v in value.items()}
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
