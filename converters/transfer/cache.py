"""The cache of features: a folder of shards, each one file that says whose features it holds.

    CACHE/plan.json                 the faces, in order, and what both sides are computed with
    CACHE/shards/00000.safetensors  image (n, D), llm (n, P); header: rows [{path, sha256}], left_out [{path, problem}]
    CACHE/index.jsonl               shard, row, path and sha256 of every face: for people, made from the shards

A shard appears whole or not at all, and is the unit of work: a run that is killed loses the shards it was at, no more, and
repeats none that is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fer_edge.errors import ConversionError
from fer_edge.files import PARTIAL, clear_partials, write_bytes, write_text
from fer_edge.image import ImageLike

SCHEMA = 1
FORMAT = "fer-edge-transfer"
PLAN, INDEX, SHARDS = "plan.json", "index.jsonl", "shards"


@dataclass(frozen=True)
class Side:
    """One side of the pairs. ``source`` names the model or file (never a path of somebody's machine), ``sha256`` is of its
    weights or content; ``dim`` numbers a face; ``settings`` what else decides the features (instruction, pixels ...)."""

    source: str
    sha256: str
    dim: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Source:
    """``features`` maps the pictures of some faces, and their names, to (n, dim) float32; ``batch``: how many at once;
    ``names``: name -> row of the faces that a file has features of, None: it computes them for any; ``notes``: what of a
    model's files is left out, in words."""

    side: Side
    features: Callable[[Sequence[ImageLike], Sequence[str]], NDArray[np.float32]]
    batch: int = 32
    names: Mapping[str, int] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CachePlan:
    """What a cache holds: ``faces``, their names in the order of the work; ``shard``: faces of a shard; ``half``: features
    are stored in fp16; ``scale``: the CLIP's logit scale."""

    faces: tuple[str, ...]
    image: Side
    llm: Side
    shard: int
    half: bool
    scale: float

    @property
    def shards(self) -> int:
        """How many."""
        return -(-len(self.faces) // self.shard)

    def names(self, shard: int) -> tuple[str, ...]:
        """Of the faces of one shard."""
        return self.faces[shard * self.shard : (shard + 1) * self.shard]

    @property
    def identity(self) -> str:
        """sha256 of everything but the faces."""
        sides = ({"sha256": s.sha256, "dim": s.dim, **s.settings} for s in (self.image, self.llm))
        plain = {**dict(zip(("image", "llm"), sides, strict=True)), "half": self.half}
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Row:
    """A face of the cache: its name, and the sha256 of its bytes."""

    path: str
    sha256: str


@dataclass(frozen=True)
class LeftOut:
    """A face that could not be used, and why."""

    path: str
    problem: str


@dataclass(frozen=True)
class Shard:
    """Features of some faces, float32, and those that were left out."""

    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    image: NDArray[np.float32]
    llm: NDArray[np.float32]


def shard_file(cache: Path, shard: int) -> Path:
    """Where a shard lies."""
    return cache / SHARDS / f"{shard:05d}.safetensors"


def open_cache(cache: Path, plan: CachePlan) -> CachePlan:
    """Begin a cache, or go on with one; returns the plan in force, whose faces are those that the cache began with.

    Raises ConversionError when the cache was made with other models or settings, or is no cache."""
    if not (cache / PLAN).exists():
        # What a run leaves that was killed before its plan was written is ours.
        if cache.exists() and any(e.name != SHARDS and not e.name.startswith(PARTIAL) for e in cache.iterdir()):
            raise ConversionError(f"{cache} is no feature cache and not empty; name another folder")
        (cache / SHARDS).mkdir(parents=True, exist_ok=True)
        written = {"schema": SCHEMA, "format": FORMAT, **asdict(plan)}
        write_text(cache / PLAN, json.dumps(written, indent=1, sort_keys=True) + "\n")
        return plan
    known = read_plan(cache)
    if known.identity != plan.identity:
        raise ConversionError(f"{cache} was made with {_difference(known, plan)}; name another folder, or remove it")
    return known


def _difference(known: CachePlan, plan: CachePlan) -> str:
    """What differs, in words: the first setting, with what the cache has and what is asked for."""
    if known.half != plan.half:
        return f"{'fp16' if known.half else 'float32'} features (--float)"
    for name in ("image", "llm"):
        ours, theirs = (
            {"weights": s.sha256[:12], "dim": str(s.dim), **s.settings} for s in (getattr(known, name), getattr(plan, name))
        )
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return f"another {name} side: {key} was {ours.get(key)!r} and is {theirs.get(key)!r} now"
    return "other settings"


def read_plan(cache: Path) -> CachePlan:
    """Raises ConversionError when there is none, or it cannot be read."""
    try:
        value = json.loads((cache / PLAN).read_text())
        if value["format"] != FORMAT:
            raise ValueError("not ours")
        if value["schema"] > SCHEMA:
            raise ConversionError(f"{cache} was made by a newer fer-edge (schema {value['schema']}); upgrade fer-edge")
        image, llm = (Side(**value[name]) for name in ("image", "llm"))
        faces, shard = tuple(map(str, value["faces"])), int(value["shard"])
        return CachePlan(faces, image, llm, shard, bool(value["half"]), float(value["scale"]))
    except FileNotFoundError as error:
        raise ConversionError(
            f"{cache} is no feature cache (it has no {PLAN}); make one: fer-edge transfer features"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConversionError(
            f"{cache / PLAN} is damaged ({type(error).__name__}); remove the cache to start anew"
        ) from error


def write_shard(cache: Path, plan: CachePlan, shard: int, found: Shard) -> None:
    """Write one shard in one step: on a cluster, a worker that was given up may still be writing it."""
    kind = torch.float16 if plan.half else torch.float32
    tensors = {"image": torch.from_numpy(found.image).to(kind), "llm": torch.from_numpy(found.llm).to(kind)}
    for name, tensor in tensors.items():
        bad = (~torch.isfinite(tensor)).any(1).nonzero().flatten().tolist()
        if bad:
            large = " as fp16; --float may hold it" if plan.half and np.isfinite(getattr(found, name)).all() else ""
            first = found.rows[bad[0]].path
            raise ConversionError(f"the {name} side gives NaN or Inf{large} for {len(bad)} faces, the first is {first}")
    header = {
        "identity": plan.identity,
        "rows": [asdict(row) for row in found.rows],
        "left_out": [asdict(row) for row in found.left_out],
    }
    write_bytes(shard_file(cache, shard), save(tensors, metadata={FORMAT: json.dumps(header)}))


def shard_rows(cache: Path, shard: int) -> list[Row]:
    """The faces in a shard that is there."""
    return [Row(**row) for row in shard_header(cache, shard)["rows"]]


def missing_shards(cache: Path, plan: CachePlan, shards: Sequence[int] | None = None) -> list[int]:
    """Those of ``shards`` (None: of all) that are still to be made: not there, or damaged, or of other models."""
    return [k for k in (range(plan.shards) if shards is None else shards) if not _complete(shard_file(cache, k), plan, k)]


def _complete(file: Path, plan: CachePlan, shard: int) -> bool:
    if not file.exists():
        return False
    try:
        with safe_open(file, framework="pt") as opened:
            header = json.loads((opened.metadata() or {})[FORMAT])
            count = opened.get_slice("image").get_shape()[0]
            whole = opened.get_slice("llm").get_shape()[0] == count == len(header["rows"])
        names = sorted(r["path"] for part in ("rows", "left_out") for r in header[part])
        return whole and header["identity"] == plan.identity and names == sorted(plan.names(shard))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return False


def shard_header(cache: Path, shard: int) -> Mapping[str, Any]:
    """What a shard that is there says of its rows."""
    with safe_open(shard_file(cache, shard), framework="pt") as opened:
        header: Mapping[str, Any] = json.loads(opened.metadata()[FORMAT])
    return header


def write_index(cache: Path) -> None:
    """index.jsonl, from the shards' own headers; what killed writers left is cleared away."""
    clear_partials(cache / SHARDS)
    write_text(cache / INDEX, "".join(json.dumps(line) + "\n" for line in _lines(cache, read_plan(cache))))


def _lines(cache: Path, plan: CachePlan) -> Iterator[dict[str, Any]]:
    for k in range(plan.shards):
        header = shard_header(cache, k)
        yield from ({"shard": k, "row": i, **row} for i, row in enumerate(header["rows"]))
        yield from ({"shard": k, "row": None, **row} for row in header["left_out"])


def common_names(names: Sequence[str], known: Mapping[str, int]) -> list[int]:
    """Places of names in a table. Raises ConversionError for the first one that is not there."""
    missing = [name for name in names if name not in known]
    if missing:
        raise ConversionError(f"{len(missing)} faces have no LLM features in the file, the first is {missing[0]}")
    return [known[name] for name in names]
