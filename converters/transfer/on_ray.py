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
from ray.data.exceptions import SystemException
from ray.exceptions import RayError

from fer_edge import errors
from fer_edge.errors import ConversionError, FerEdgeError, UsageError
from fer_edge.runtime import one_line, usable_processors

from .cache import CachePlan, Side, common_names, missing_shards, open_cache, read_plan, write_index, write_shard
from .features import Faces, Progress, check_faces, counter, forget_mended, make_shard
from .sources import Wanted, open_sources

MOST_BLOCKS = 4096
"""Ray Data keeps books on every block; a block is one shard until there are more than this."""
RESTARTS = 5
"""Of one worker, and of one shard: machines go, but what dies five times will always die."""


@dataclass(frozen=True)
class Cluster:
    """``address``: of a running cluster ("auto": the one this machine belongs to); None starts one here, for this run alone.
    Each of ``workers`` (None: as many as fit) has ``threads`` processors, ``memory_gb`` if it is given, and a graphics card
    where the cluster has any and ``Wanted.device`` is not "cpu"."""

    address: str | None
    workers: int | None
    threads: int
    memory_gb: float | None = None


@dataclass(frozen=True)
class Place:
    """What there is room for: ``workers``, each with ``threads`` processors and ``gpus`` graphics cards."""

    workers: int
    threads: int
    gpus: int


class ShardWorker:
    """One process with both models, that makes the shards it is given. Our own errors travel as data: Ray would wrap them,
    and lose what they say on the way."""

    def __init__(self, faces: str, cache: str, wanted: Wanted, threads: int) -> None:
        torch.set_num_threads(threads)
        self._broken: FerEdgeError | None = None
        try:
            self._faces, self._cache = Faces(Path(faces)), Path(cache)
            self._plan = read_plan(self._cache)
            (self._image, _), self._llm = open_sources(wanted)
            if replace(self._plan, image=self._image.side, llm=self._llm.side).identity != self._plan.identity:
                raise ConversionError("a worker reads other models than the cache was begun with; are all copies the same?")
        except FerEdgeError as error:
            self._broken = error

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Shards by number -> how many faces each has, and the kind and text of what went wrong."""
        made = [self._made(int(k)) for k in batch["shard"]]
        return {name: [row[i] for row in made] for i, name in enumerate(("faces", "kind", "problem"))}

    def _made(self, shard: int) -> tuple[int, str, str]:
        """One that is there already, because the worker before died later in the same block, is left as it is."""
        try:
            if self._broken is not None:
                raise self._broken
            names = self._plan.names(shard)
            if missing_shards(self._cache, self._plan, [shard]):
                write_shard(self._cache, self._plan, shard, make_shard(self._faces, names, self._image, self._llm))
            return len(names), "", ""
        except FerEdgeError as error:
            return 0, type(error).__name__, str(error)
        except OSError as error:
            return 0, ConversionError.__name__, f"a face cannot be read: {error}"


def compute_on_ray(
    faces: Path,
    cache: Path,
    wanted: Wanted,
    shape: tuple[int, bool],
    cluster: Cluster,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> CachePlan:
    """As :func:`.features.compute`, on a cluster; ``shape``: faces of a shard, and whether features are stored in fp16. Only
    workers open the models; ``on_note`` gets what of their files they leave out.

    Raises UsageError when there is no such cluster or it has no room, ConversionError when it fails or shards are missing at
    the end, and whatever of our errors a worker raises."""
    known, wanted = Faces(faces), _everywhere(wanted)
    names = known.names()
    with _connected(cluster):
        try:
            place = room(ray.nodes(), cluster, wanted.device)
            _check_free(place, cluster)
            look = ray.remote(_sides).options(num_cpus=place.threads, num_gpus=place.gpus, memory=_bytes(cluster))
            image, scale, llm, notes = ray.get(look.remote(wanted, names))
            for note in notes:
                on_note(note)
            plan = open_cache(cache, CachePlan(names, image, llm, *shape, scale))
            forget_mended(known, cache, plan)
            waiting = missing_shards(cache, plan)
            check_faces(known, cache, plan, waiting)
            count = counter(plan, waiting, on_progress)
            for row in _rows(faces, cache, wanted, place, cluster, waiting) if waiting else ():
                if row["problem"]:
                    raise getattr(errors, str(row["kind"]), ConversionError)(str(row["problem"]))
                count(int(row["faces"]))
        except (RayError, SystemException) as error:
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
    needs = {"CPU": float(cluster.threads), "GPU": float(gpus), "memory": float(_bytes(cluster) or 0)}
    fit = sum(int(min(node.get(name, 0) // need for name, need in needs.items() if need)) for node in alive)
    wanted = fit if cluster.workers is None else cluster.workers
    if device == "cuda" and not gpus:
        raise UsageError("no machine of the Ray cluster has a graphics card; leave --device out")
    if not 1 <= wanted <= fit:
        card = " and one graphics card" if gpus else ""
        memory = f", {cluster.memory_gb:g} GB" if cluster.memory_gb else ""
        raise UsageError(
            f"the Ray cluster has room for {fit} workers of {cluster.threads} processors{memory}{card} each, not for "
            f"{max(1, wanted)}; see --workers, --threads and --worker-memory"
        )
    return Place(wanted, cluster.threads, gpus)


def _check_free(place: Place, cluster: Cluster) -> None:
    """Ray would wait for a busy cluster without a word. Raises UsageError."""
    free, whole = ray.available_resources(), ray.cluster_resources()
    needs = {"CPU": place.threads, "GPU": place.gpus, "memory": _bytes(cluster) or 0}
    short = next((name for name, need in needs.items() if free.get(name, 0) < need), None)
    if short is not None:
        raise UsageError(
            f"the Ray cluster is busy: of {short} {free.get(short, 0):g} of {whole.get(short, 0):g} are free, and a worker "
            f"needs {needs[short]:g}; try again when its other work is done"
        )


def _bytes(cluster: Cluster) -> int | None:
    return None if cluster.memory_gb is None else round(cluster.memory_gb * 1e9)


def _sides(wanted: Wanted, names: tuple[str, ...]) -> tuple[Side, float, Side, tuple[str, ...]]:
    """Both sides as a worker sees them, with the CLIP's scale before the second, and notes: the driver need not hold the
    models. A file of LLM features must have all of the faces."""
    (image, scale), llm = open_sources(wanted)
    if llm.names is not None:
        common_names(names, llm.names)
    return image.side, scale, llm.side, (*image.notes, *llm.notes)


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
    """To the cluster. One that is started here listens on all interfaces, as Ray's servers always do, and asks
    for a token."""
    here: dict[str, Any] = {}
    if cluster.address is None:
        here = {"num_cpus": usable_processors(), "include_dashboard": False}
    try:
        with _quiet():
            # None would join a cluster that happens to run here.
            ray.init(address=cluster.address or "local", log_to_driver=False, logging_level=logging.ERROR, **here)
    except (ConnectionError, ValueError, RuntimeError, RayError) as error:
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


def _rows(
    faces: Path, cache: Path, wanted: Wanted, place: Place, cluster: Cluster, waiting: Sequence[int]
) -> Iterator[Mapping[str, Any]]:
    """What the workers report, as it comes."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    # A shard takes an hour on a small processor, and counts as progress only when it is done.
    context.execution_no_progress_timeout_s = -1
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    shards = ray.data.from_items([{"shard": k} for k in waiting], override_num_blocks=min(len(waiting), MOST_BLOCKS))
    made = shards.map_batches(
        ShardWorker,
        fn_constructor_args=(str(faces.resolve()), str(cache.resolve()), wanted, place.threads),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=place.workers, max_tasks_in_flight_per_actor=1),
        num_cpus=place.threads,
        num_gpus=place.gpus,
        memory=_bytes(cluster),
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    yield from made.iter_rows()


def _plain(error: BaseException) -> FerEdgeError:
    """Ours, where a worker raised one before there were shards; anything else in one line."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, FerEdgeError):
        return type(cause)(str(cause))
    return ConversionError(f"the Ray cluster failed: {one_line(error)}")
