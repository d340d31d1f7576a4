"""``fer-edge transfer fit`` and ``report``: the projection that features teach, and whether it helps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import Command, Finite, common, emit, fraction, need_extra, say
from fer_edge.errors import UsageError
from fer_edge.files import check_target, write_text

from ..cli import hushed

if TYPE_CHECKING:
    from .fit import FitEpoch


def fit_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a projection is fitted, the same for the fit and for its verdict."""
    positive, some = Finite(min=0, min_open=True), click.IntRange(min=1)
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


@click.command(cls=Command, examples=("fer-edge transfer fit cache/ -o projection.safetensors --held-out 0.1",))
@click.argument("cache", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The projection to write (safetensors)."
)
@fit_options
@click.option(
    "--held-out",
    type=Finite(0, 1, max_open=True),
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
    from .feature_pairs import read_pairs
    from .fit import FitRecipe
    from .fit import fit as run
    from .projection import check_projection, write_projection

    check_projection(output)
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


@click.command(
    cls=Command,
    examples=(
        "fer-edge transfer report cache/ --faces faces/ -o pilot.html \\",
        "  --encoder openai/clip-vit-base-patch32 --labelled labelled/",
    ),
    needs=dict.fromkeys(("truth", "classes", "recursive"), "labelled"),
)
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
@click.option("--recursive", is_flag=True, help="Of a folder for --labelled: see evaluate.")
@fit_options
@click.option(
    "--held-out",
    type=Finite(0, 1, min_open=True, max_open=True),
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
    recursive: bool,
    held_out: float,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """A trial of CACHE: what the projection learns and changes, and whether more faces would help.

    The HTML file shows faces of the cache: treat it as you treat them.
    """
    _check_belonging(options["method"])
    need_extra("torch", "transformers", "safetensors", "matplotlib", "rich", extra="convert")
    from fer_edge.labelled import read_faces

    with hushed():
        from .feature_pairs import read_pairs
        from .features import Faces
        from .fit import FitRecipe
        from .trial import TrialRequest, run_trial
        from .trial_page import report as page
        from .trial_page import verdict

    if output is not None:
        check_target(output)
    pairs, known = read_pairs(cache), Faces(faces)
    some = read_faces(labelled, truth, classes, recursive) if labelled else None
    recipe = FitRecipe(scale=pairs.plan.scale, **options)
    with fraction(sys.stderr, "the trial") as progress:
        found = run_trial(pairs, TrialRequest(encoder, labels, prompts, held_out, some), recipe, progress)
    emit(found.as_json()) if as_json else say("\n".join(verdict(found)))
    if output is not None:
        write_text(output, page(found, known, {row.path: row.sha256 for row in pairs.rows}))
        if not as_json:
            say(f"Written: {output}")


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
