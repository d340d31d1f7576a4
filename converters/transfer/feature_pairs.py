"""Reading a finished cache: which faces it holds, and the features of both sides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from fer_edge.errors import ConversionError

from .cache import CachePlan, LeftOut, Row, missing_shards, read_plan, shard_file, shard_header


@dataclass(frozen=True)
class CacheContents:
    """Which faces a cache holds. ``repeated``: faces whose bytes were there already; they are not among the ``rows``;
    ``kept``: of each shard, the places of its rows that are."""

    plan: CachePlan
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    repeated: tuple[Row, ...]
    kept: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class FeaturePairs:
    """Everything in a cache, half or float as stored: ``image`` (N, D), ``llm`` (N, P). ``repeated``: faces whose bytes were
    there already; they are not among the rows."""

    plan: CachePlan
    rows: tuple[Row, ...]
    left_out: tuple[LeftOut, ...]
    repeated: tuple[Row, ...]
    image: Tensor
    llm: Tensor


def read_contents(cache: Path) -> CacheContents:
    """Which faces are in the cache, without their features. Raises ConversionError when shards are missing or damaged, or no
    face is left."""
    plan = read_plan(cache)
    missing = missing_shards(cache, plan)
    if missing:
        raise ConversionError(
            f"{cache} is not complete: {len(missing)} of {plan.shards} shards are missing or damaged; "
            "run the same 'fer-edge transfer features' again, it goes on where it stopped"
        )
    rows: list[Row] = []
    left_out: list[LeftOut] = []
    repeated: list[Row] = []
    kept: list[tuple[int, ...]] = []
    seen: set[str] = set()
    for k in range(plan.shards):
        header = shard_header(cache, k)
        fresh = []
        for i, row in enumerate(Row(**entry) for entry in header["rows"]):
            if row.sha256 in seen:
                repeated.append(row)
            else:
                rows.append(row)
                fresh.append(i)
            seen.add(row.sha256)
        kept.append(tuple(fresh))
        left_out += [LeftOut(**row) for row in header["left_out"]]
    if not rows:
        why = f", the first because {left_out[0].problem}" if left_out else ""
        raise ConversionError(f"{cache} holds no face: all {len(left_out)} were left out{why}")
    return CacheContents(plan, tuple(rows), tuple(left_out), tuple(repeated), tuple(kept))


def read_pairs(cache: Path) -> FeaturePairs:
    """The whole cache. Raises ConversionError as :func:`read_contents`."""
    found = read_contents(cache)
    plan, total = found.plan, len(found.rows)
    kind = torch.float16 if plan.half else torch.float32
    # Room for every face, filled as the shards come: putting them together at the end would need all of it twice.
    image, llm = (torch.empty(total, side.dim, dtype=kind) for side in (plan.image, plan.llm))
    start = 0
    for k, fresh in enumerate(found.kept):
        place, start = slice(start, start + len(fresh)), start + len(fresh)
        with safe_open(shard_file(cache, k), framework="pt") as opened:
            image[place], llm[place] = (opened.get_tensor(name)[list(fresh)] for name in ("image", "llm"))
    return FeaturePairs(plan, found.rows, found.left_out, found.repeated, image, llm)
