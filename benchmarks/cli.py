"""``fer-edge evaluate``. Nothing heavy is imported before the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import (
    Command,
    bundle_option,
    common,
    emit,
    engine_options,
    fraction,
    labels_option,
    need_extra,
    say,
    show,
)
from fer_edge.errors import UsageError
from fer_edge.files import check_target

if TYPE_CHECKING:
    from .evaluate import Evaluation


@click.command(
    cls=Command,
    examples=(
        "fer-edge evaluate faces/",
        "fer-edge evaluate test.npz --truth labels --classes names -b my-bundle/ --json",
        "fer-edge evaluate faces/ --robustness --html report.html",
    ),
)
@click.argument("data", type=click.Path(path_type=Path))
@bundle_option
@click.option(
    "--truth", metavar="MEMBER", help="npz: the member with one integer per image: a position in --classes, -1: left out."
)
@click.option("--classes", metavar="MEMBER", help="npz: the member with the class names, in the order of the integers.")
@click.option("--skip-unknown", is_flag=True, help="Leave out classes that are no label of the set, instead of stopping.")
@click.option("--recursive", is_flag=True, help="Also take the images in folders within a class folder.")
@click.option(
    "--robustness",
    is_flag=True,
    help="Also spoil every face as cameras do: turned, dark, blurred, noisy, small, compressed, half hidden; more and less.",
)
@click.option("--html", "html_file", type=click.Path(path_type=Path), help="Write the figures as a page with plots.")
@labels_option
@engine_options
@common
def evaluate(
    data: Path,
    bundle: Path | None,
    truth: str | None,
    classes: str | None,
    skip_unknown: bool,
    recursive: bool,
    robustness: bool,
    html_file: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """WAR, UAR, confusion and recall on labelled faces.

    DATA: a folder with a folder of images per class, or an npz with a member 'images' (uint8) and --truth and --classes.
    An image that cannot be read is named and counts nowhere, and the exit status is 2. Hidden files and other files
    beside the images are named and left out.

    --robustness counts the same faces spoilt in seven ways. Eight of their strengths, marked in the table, are what
    figures of different models are compared by. It takes more than twenty times as long.
    """
    need_extra("rich", *(["matplotlib"] if html_file else []), extra="bench")
    from fer_edge.classifier import load
    from fer_edge.labelled import read_faces

    from .evaluate import evaluate as run
    from .report.files import try_write
    from .report.screen import evaluation_text

    if html_file is not None:
        check_target(html_file)
    faces = read_faces(data, truth, classes, recursive)
    with load(bundle, **options) as clf, fraction(sys.stderr, "evaluating") as progress:
        result = run(clf, faces, skip_unknown, progress, robustness)
    for entry in result.unreadable:
        say(f"Left out, unreadable: {entry['error']}")
    problem = None if html_file is None else try_write(html_file, _page(result))  # first, as 'bench' does
    emit(result.as_json()) if as_json else show(evaluation_text(result))
    if problem is not None:
        raise UsageError(problem)
    if result.unreadable:
        sys.exit(2)


def _page(result: Evaluation) -> str:
    from .report.evaluation import evaluation_page  # and with it the plotting library

    return evaluation_page(result)
