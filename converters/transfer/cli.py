"""``fer-edge transfer``: features of unlabelled faces, and the projection that they teach."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import Finite, Rooms, common, emit, fraction, need_extra, printable, say
from fer_edge.errors import UsageError
from fer_edge.folders import ignored_lines
from fer_edge.runtime import usable_processors

from ..cli import hushed
from .cli_fit import fit, report

if TYPE_CHECKING:
    from .features import Progress

file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Rooms, examples=("fer-edge transfer fit cache/ -o projection.safetensors",))
def transfer() -> None:
    """Learn a projection from unlabelled faces and what an LLM says of them."""


@transfer.command(
    examples=(
        "fer-edge transfer features faces/ --encoder openai/clip-vit-base-patch32 \\",
        "  --llm Salesforce/blip2-flan-t5-xxl -o cache/",
    )
)
@click.argument("faces", type=click.Path(exists=True, path_type=Path))
@click.option("--encoder", required=True, help="The CLIP: a folder or a Hugging Face id.")
@click.option("--llm", help="A BLIP-2 or InstructBLIP with a T5 inside: a folder or a Hugging Face id.")
@click.option("--llm-features", type=file, help="Instead of --llm: vectors made elsewhere (safetensors).")
@click.option("--descriptions", type=file, help='Instead of --llm: what was written of each face, {"path", "text"} a line.')
@click.option("--text-model", help="What embeds the descriptions: a sentence encoder's folder or id.")
@click.option("--instruction", help="What the LLM is asked. Default: the paper's instruction.")
@click.option(
    "--pixels",
    type=click.Choice(["plain", "clip"]),
    default="plain",
    show_default=True,
    help="Of both models: value / 255 alone, as the paper; or with the mean and std of its own processor.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The cache to begin, or to go on with.")
@click.option("--shard", type=click.IntRange(min=1), default=512, show_default=True, help="Faces of a file of the cache.")
@click.option("--float", "whole", is_flag=True, help="Store float32. Default: fp16, half the disk.")
@click.option(
    "--batch", type=click.IntRange(min=1), default=16, show_default=True, help="Faces at once, halved when too many."
)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="Default: cuda where torch sees one.")
@click.option("--threads", type=click.IntRange(min=1), help="Processors, of each worker. Default: all; on Ray at most 4.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="ray: on a Ray cluster that sees FACES and the cache under the same paths.",
)
@click.option("--address", help="Of the Ray cluster; auto: the one of this machine. Default: start one here.")
@click.option("--workers", type=click.IntRange(min=1), help="On Ray, each with both models. Default: as many as fit.")
@click.option(
    "--worker-memory",
    type=Finite(min=0, min_open=True),
    metavar="GB",
    help="On Ray: what a worker needs, so that no machine gets too many. Default: not counted.",
)
@common
def features(
    faces: Path,
    output: Path,
    shard: int,
    whole: bool,
    threads: int | None,
    engine: str,
    address: str | None,
    workers: int | None,
    worker_memory: float | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Image features and LLM features of FACES (a folder, or an npz with 'images'), once and for all.

    Can be interrupted at any time; the same command goes on. Faces that cannot be read are left out and listed.
    """
    need_extra("torch", "transformers", "safetensors", "rich", extra="convert")
    if engine == "local" and any(v is not None for v in (address, workers, worker_memory)):
        raise UsageError("--address, --workers and --worker-memory are for --engine ray")
    if engine == "ray":
        need_extra("ray", extra="ray")
    import torch

    with hushed():
        from .feature_pairs import read_contents
        from .features import Faces, compute, new_faces, plan_cache
        from .sources import Wanted, open_sources

        notes: list[str] = []
        wanted, known = Wanted(**options), Faces(faces)
        known.names()  # before anything dear: whether there is any
    with fraction(sys.stderr, "features") as progress:
        if engine == "ray":
            from .on_ray import Cluster, compute_on_ray

            most = usable_processors() if address is None else 4
            cluster = Cluster(address, workers, threads or min(4, most), worker_memory)
            compute_on_ray(faces, output, wanted, (shard, not whole), cluster, _shown(progress), notes.append)
        else:
            if threads:
                torch.set_num_threads(threads)
            with hushed():
                image, llm = open_sources(wanted)
            notes += [*image[0].notes, *llm.notes]
            plan = plan_cache(known, image, llm, shard, half=not whole)
            compute(known, output, plan, image[0], llm, _shown(progress))
    found, fresh = read_contents(output), new_faces(known, output)
    for note in notes:
        say(printable(f"Note: {note}"))
    for row in found.left_out:
        say(f"Left out: {row.problem}")
    ignored = known.ignored()
    for line in ignored_lines(ignored):
        say(printable(line))
    if fresh:
        say(f"Note: {fresh} faces have come since this cache was begun; they are not in it. Begin another with -o")
    counts = {"faces": len(found.rows), "left_out": len(found.left_out), "repeated": len(found.repeated), "new": fresh}
    shapes = {"image_dim": found.plan.image.dim, "llm_dim": found.plan.llm.dim}
    if as_json:
        named = {"left_out_faces": [asdict(row) for row in found.left_out], "ignored": [asdict(e) for e in ignored]}
        emit({"cache": str(output), **counts, **shapes, **named, "notes": notes})
    else:
        say(
            f"{counts['faces']} faces in {output}, {counts['left_out']} left out, {counts['repeated']} repeated; "
            f"now: fer-edge transfer fit {output} -o projection.safetensors"
        )


def _shown(progress: Callable[..., None]) -> Callable[[Progress], None]:
    def show(now: Progress) -> None:
        left = "" if now.seconds_left is None else f", {timedelta(seconds=round(now.seconds_left))} left"
        progress(now.done / max(1, now.total), f"features: {now.done} of {now.total} faces{left}")

    return show


transfer.add_command(fit)
transfer.add_command(report)
