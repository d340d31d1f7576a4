"""``fer-edge transfer``: features of unlabelled faces, and the projection that they teach."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import Rooms, common, emit, fraction, need_extra, say
from fer_edge.errors import UsageError
from fer_edge.runtime import usable_processors

from ...cli import hushed

if TYPE_CHECKING:
    from .features import Progress
    from .fit import FitEpoch

file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Rooms)
def transfer() -> None:
    """Learn a projection from unlabelled faces and what an LLM says of them."""


@transfer.command()
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
    help="Of both models: value / 255 alone, as the paper; or with CLIP's mean and std.",
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
    type=click.FloatRange(min=0, min_open=True),
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
        from .cache import read_contents
        from .features import Faces, compute, new_faces, plan_cache
        from .sources import Wanted, open_sources

        wanted, known = Wanted(**options), Faces(faces)
        known.names()  # before anything dear: whether there is any
    with fraction(sys.stderr, "features") as progress:
        if engine == "ray":
            from .on_ray import Cluster, compute_on_ray

            most = usable_processors() if address is None else 4
            cluster = Cluster(address, workers, threads or min(4, most), worker_memory)
            compute_on_ray(faces, output, wanted, (shard, not whole), cluster, _shown(progress))
        else:
            if threads:
                torch.set_num_threads(threads)
            with hushed():
                image, llm = open_sources(wanted)
            plan = plan_cache(known, image, llm, shard, half=not whole)
            compute(known, output, plan, image[0], llm, _shown(progress))
    found, fresh = read_contents(output), new_faces(known, output)
    for row in found.left_out:
        say(f"Left out: {row.problem}")
    if fresh:
        say(f"Note: {fresh} faces have come since this cache was begun; they are not in it. Begin another with -o")
    counts = {"faces": len(found.rows), "left_out": len(found.left_out), "repeated": len(found.repeated), "new": fresh}
    shapes = {"image_dim": found.plan.image.dim, "llm_dim": found.plan.llm.dim}
    if as_json:
        emit({"cache": str(output), **counts, **shapes, "left_out_faces": [asdict(row) for row in found.left_out]})
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


def fit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a projection is fitted, the same for the fit and for its verdict."""
    positive, some = click.FloatRange(min=0, min_open=True), click.IntRange(min=1)
    for option in (
        click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same projection."),
        click.option(
            "--ridge",
            type=positive,
            default=1e-2,
            show_default=True,
            help="Of the closed forms: share of the mean variance.",
        ),
        click.option("--rank", type=some, help="Directions that cca and warm keep. Default: all."),
        click.option("--lr", type=positive, default=1e-3, show_default=True, help="Learning rate of infonce and warm."),
        click.option(
            "--batch", type=click.IntRange(min=2), default=512, show_default=True, help="Faces told apart at a time."
        ),
        click.option("--epochs", type=some, default=5, show_default=True, help="Of infonce and warm."),
        click.option(
            "--method",
            type=click.Choice(["infonce", "ridge", "cca", "warm"]),
            default="infonce",
            show_default=True,
            help="infonce: as published; ridge: the linear map, closed form; cca: canonical directions; warm: infonce from "
            "those.",
        ),
    ):
        command = option(command)
    return command


BELONG = {
    "epochs": ("infonce", "warm"),
    "lr": ("infonce", "warm"),
    "patience": ("infonce", "warm"),
    "rank": ("cca", "warm"),
    "ridge": ("ridge", "cca", "warm"),
}
"""Methods that an option says something to."""


def _check_belonging(method: str) -> None:
    """An option that the method never looks at is a mistake of the user's. Raises UsageError."""
    context = click.get_current_context()
    for name, methods in BELONG.items():
        given = context.get_parameter_source(name) not in (None, click.core.ParameterSource.DEFAULT)
        if given and method not in methods:
            raise UsageError(f"--{name} is for --method {', '.join(methods)}; {method} does not use it")


@transfer.command()
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The projection to write (safetensors)."
)
@fit_options
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    help="Share of faces only looked at.",
)
@click.option("--patience", type=click.IntRange(min=1), help="Stop after so many epochs without a smaller held-out loss.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: torch's own.")
@common
def fit(cache: Path, output: Path, threads: int | None, as_json: bool, **options: Any) -> None:
    """Fit a projection to the features in CACHE; 'fer-edge convert --projection' takes it.

    The defaults are the published recipe.
    """
    _check_belonging(options["method"])
    need_extra("torch", "safetensors", "rich", extra="convert")
    import torch

    if threads:
        torch.set_num_threads(threads)
    from .cache import read_pairs
    from .fit import FitRecipe
    from .fit import fit as run
    from .projection import write_projection

    pairs = read_pairs(cache)
    recipe = FitRecipe(scale=pairs.plan.scale, **options)
    held = min(round(recipe.held_out * len(pairs.rows)), recipe.batch)
    with fraction(sys.stderr, "fitting") as progress:

        def show(epoch: FitEpoch) -> None:
            progress(epoch.epoch / recipe.epochs, "fitting")
            say(_epoch_text(epoch, recipe.epochs, held))

        fitted = run(pairs.image, pairs.llm, recipe, show)
    write_projection(output, fitted, recipe, pairs)
    if as_json:
        emit(
            {
                "projection": str(output),
                "faces": len(pairs.rows),
                "kept_epoch": fitted.kept,
                "held_out_among": held,
                "epochs": [_plain(e) for e in fitted.epochs],
            }
        )
    else:
        say(f"Written: {output}; now: fer-edge convert {pairs.plan.image.source} --projection {output} -o BUNDLE")


@transfer.command()
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--faces", required=True, type=click.Path(exists=True, path_type=Path), help="The faces of the cache, to show some."
)
@click.option("--encoder", required=True, help="The CLIP of the cache: its text side is needed.")
@click.option("--labels", help="Label set as of convert. Default: rafdb7.")
@click.option("--prompts", help="Prompts as of convert. Default: P3.")
@click.option(
    "--labelled", type=click.Path(exists=True, path_type=Path), help="A few labelled faces, as evaluate takes them."
)
@click.option("--truth", metavar="MEMBER", help="Of an npz for --labelled.")
@click.option("--classes", metavar="MEMBER", help="Of an npz for --labelled.")
@fit_options
@click.option(
    "--held-out",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.1,
    show_default=True,
    help="Share of faces to judge by.",
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The HTML file to write.")
@common
def report(
    cache: Path,
    faces: Path,
    encoder: str,
    labels: str | None,
    prompts: str | None,
    labelled: Path | None,
    truth: str | None,
    classes: str | None,
    held_out: float,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """The pilot's verdict on CACHE: what the projection learns and changes, and whether more faces would help.

    The HTML file shows faces of the cache: treat it as you treat them.
    """
    _check_belonging(options["method"])
    need_extra("torch", "transformers", "safetensors", "matplotlib", "rich", extra="convert")
    from fer_edge.labelled import read_faces

    with hushed():
        from .cache import read_pairs
        from .features import Faces
        from .fit import FitRecipe
        from .pilot import Asked, pilot
        from .pilot_page import report as page
        from .pilot_page import verdict

    pairs, known = read_pairs(cache), Faces(faces)
    some = read_faces(labelled, truth, classes) if labelled else None
    recipe = FitRecipe(scale=pairs.plan.scale, **options)
    with fraction(sys.stderr, "the pilot") as progress:
        found = pilot(pairs, Asked(encoder, labels, prompts, held_out, some), recipe, progress)
    if output is not None:
        partial = output.with_name(output.name + ".partial")
        partial.write_text(page(found, known), encoding="utf-8")
        partial.replace(output)
    if as_json:
        emit(found.as_json())
    else:
        say("\n".join(verdict(found)) + (f"\nWritten: {output}" if output else ""))


def _epoch_text(epoch: FitEpoch, epochs: int, among: int) -> str:
    held = (
        ""
        if math.isnan(epoch.held_out_loss)
        else (f"; held out: loss {epoch.held_out_loss:.3f}, retrieval {epoch.held_out_retrieval:.1%} among {among}")
    )
    name = f"epoch {epoch.epoch}/{epochs}" if epoch.epoch else "closed form"
    return f"{name}: loss {epoch.loss:.3f}, retrieval {epoch.retrieval:.1%}{held} ({epoch.seconds:.1f} s)"


def _plain(epoch: FitEpoch) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(epoch).items()}
