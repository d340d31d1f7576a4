"""The feature step on a Ray cluster: the same shards, made by several workers with both models each.

The unit of work is the shard, and how faces are put together in batches and how many threads compute is the same for every
worker, so the cache is the one that a single machine makes. Workers write their shards themselves, each whole or not at all:
a worker that dies loses the shard it was at, and Ray gives that one to another. FACES, CACHE and models in folders must lie
under the same path on every machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
import ray.data
import torch
from ray.exceptions import RayError

from fer_edge.errors import ConversionError, FerEdgeError, UsageError

from .cache import CachePlan, Side, missing_shards, open_cache, read_plan, write_index, write_shard
from .features import Faces, Progress, check_faces, counter, make_shard
from .sources import Wanted, open_sources

MOST_BLOCKS = 4096
"""Ray Data keeps books on every block; a block is one shard until there are more than this."""


@dataclass(frozen=True)
class Cluster:
    """``address``: of a running cluster ("auto": the one this machine belongs to); None starts one here, for this run alone.
    Each of ``workers`` (None: as many as fit) has ``threads`` processors, and a graphics card where the cluster has any and
    ``Wanted.device`` is not "cpu"."""

    address: str | None
    workers: int | None
    threads: int


@dataclass(frozen=True)
class Place:
    """What there is room for: ``workers``, each with ``threads`` processors and ``gpus`` graphics cards."""

    workers: int
    threads: int
    gpus: int


class ShardWorker:
    """One process with both models, that makes the shards it is given."""

    def __init__(self, faces: str, cache: str, wanted: Wanted, threads: int) -> None:
        torch.set_num_threads(threads)
        self._faces, self._cache = Faces(Path(faces)), Path(cache)
        self._plan = read_plan(self._cache)
        image, self._llm = open_sources(wanted)
        self._image = image[0]
        if (self._image.side, self._llm.side) != (self._plan.image, self._plan.llm):
            raise ConversionError("a worker reads other models than the one that began the cache; are all copies the same?")

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[int]]:
        """Shards by number -> how many faces each has. One that is there already, because the worker before died later in
        the same block, is left as it is."""
        counts = []
        for k in map(int, batch["shard"]):
            names = self._plan.names(k)
            if missing_shards(self._cache, self._plan, [k]):
                write_shard(self._cache, self._plan, k, make_shard(self._faces, names, self._image, self._llm))
            counts.append(len(names))
        return {"faces": counts}


def compute_on_ray(
    faces: Path,
    cache: Path,
    wanted: Wanted,
    shape: tuple[int, bool],
    cluster: Cluster,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> CachePlan:
    """As :func:`.features.compute`, on a cluster; ``shape``: faces of a shard, and whether features are stored in fp16. Only
    workers open the models.

    Raises UsageError when there is no such cluster or it has no room, ConversionError when shards are missing at the end,
    and whatever of our errors a worker raises."""
    known, wanted = Faces(faces), _everywhere(wanted)
    names = known.names()
    with _connected(cluster):
        place = room(ray.nodes(), cluster, wanted.device)
        try:
            look = ray.remote(_sides).options(num_cpus=place.threads, num_gpus=place.gpus)
            image, scale, llm = ray.get(look.remote(wanted))
            plan = open_cache(cache, CachePlan(names, image, llm, *shape, scale))
            waiting = missing_shards(cache, plan)
            check_faces(known, cache, plan, waiting)
            count = counter(plan, waiting, on_progress)
            for row in _made(faces, cache, wanted, place, waiting) if waiting else ():
                count(int(row["faces"]))
        except RayError as error:
            raise _plain(error) from error
    still = missing_shards(cache, plan)
    if still:
        raise ConversionError(f"{len(still)} of {plan.shards} shards were not written; do all workers see {cache}?")
    write_index(cache)
    return plan


def room(nodes: Sequence[Mapping[str, Any]], cluster: Cluster, device: str | None) -> Place:
    """Where ``ray.nodes()`` have room for the workers that are asked for. Raises UsageError when they have too little."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus = 0 if device == "cpu" else int(any(node.get("GPU", 0) >= 1 for node in alive))
    fit = int(sum(min(node.get("CPU", 0) // cluster.threads, node.get("GPU", 0) if gpus else 1e9) for node in alive))
    wanted = fit if cluster.workers is None else cluster.workers
    if device == "cuda" and not gpus:
        raise UsageError("no machine of the Ray cluster has a graphics card; leave --device out")
    if not 1 <= wanted <= fit:
        card = " and one graphics card" if gpus else ""
        raise UsageError(
            f"the Ray cluster has room for {fit} workers of {cluster.threads} processors{card} each, not for "
            f"{max(1, wanted)}; see --workers and --threads"
        )
    return Place(wanted, cluster.threads, gpus)


def _sides(wanted: Wanted) -> tuple[Side, float, Side]:
    """Both sides as a worker sees them, and the CLIP's scale: the driver need not hold the models."""
    (image, scale), llm = open_sources(wanted)
    return image.side, scale, llm.side


def _everywhere(wanted: Wanted) -> Wanted:
    """The same with absolute paths: workers stand in other folders."""
    models = {k: getattr(wanted, k) for k in ("encoder", "llm", "text_model")}
    folders: dict[str, Any] = {k: str(Path(v).resolve()) for k, v in models.items() if v is not None and Path(v).exists()}
    files: dict[str, Any] = {
        k: v.resolve() for k in ("llm_features", "descriptions") if (v := getattr(wanted, k)) is not None
    }
    return replace(wanted, **folders, **files)


@contextmanager
def _connected(cluster: Cluster) -> Iterator[None]:
    """To the cluster. One that is started here listens on loopback only."""
    here: dict[str, Any] = {}
    if cluster.address is None:
        count = (cluster.workers or 1) * cluster.threads
        here = {"num_cpus": count, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        with _quiet():
            # None would join a cluster that happens to run here.
            ray.init(address=cluster.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = "could be started" if cluster.address is None else f"at {cluster.address}"
        why = (str(error).splitlines() or [""])[0][:200]
        raise UsageError(f"no Ray cluster {where} ({why}); does it run, and does this shell hold its token?") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray reads these when it starts: it neither reports its use to its makers nor writes its core's log to our stderr. What
    a user has set stays."""
    ours = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
    added = {name: value for name, value in ours.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _made(faces: Path, cache: Path, wanted: Wanted, place: Place, waiting: Sequence[int]) -> Iterator[Mapping[str, Any]]:
    """What the workers report, as it comes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    shards = ray.data.from_items([{"shard": k} for k in waiting], override_num_blocks=min(len(waiting), MOST_BLOCKS))
    made = shards.map_batches(
        ShardWorker,
        fn_constructor_args=(str(faces.resolve()), str(cache.resolve()), wanted, place.threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=place.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=place.threads,
        num_gpus=place.gpus,
    )
    yield from made.iter_rows()


def _plain(error: BaseException) -> FerEdgeError:
    """Ours, where a worker raised one; Ray wraps it, sometimes twice."""
    seen: BaseException | None = error
    while seen is not None:
        inner = getattr(seen, "cause", None) or seen.__cause__
        if isinstance(inner, FerEdgeError):
            return type(inner)(str(inner))
        seen = inner
    return ConversionError(f"the Ray cluster failed: {(str(error).splitlines() or [''])[-1][:300]}")
