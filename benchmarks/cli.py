"""``fer-edge evaluate``. Nothing heavy is imported before the command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

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


@click.command(
    cls=Command,
    examples=(
        "fer-edge evaluate faces/",
        "fer-edge evaluate test.npz --truth labels --classes names -b my-bundle/ --json",
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
    as_json: bool,
    **options: Any,
) -> None:
    """WAR, UAR, confusion and recall on labelled faces.

    DATA: a folder with a folder of images per class, or an npz with a member 'images' (uint8) and --truth and --classes.
    An image that cannot be read is named and counts nowhere, and the exit status is 2. Hidden files and other files
    beside the images are named and left out.
    """
    need_extra("rich", extra="bench")
    from fer_edge.classifier import load
    from fer_edge.labelled import read_faces

    from .evaluate import evaluate as run
    from .report.screen import evaluation_text

    faces = read_faces(data, truth, classes, recursive)
    with load(bundle, **options) as clf, fraction(sys.stderr, "evaluating") as progress:
        result = run(clf, faces, skip_unknown, progress)
    for entry in result.unreadable:
        say(f"Left out, unreadable: {entry['error']}")
    emit(result.as_json()) if as_json else show(evaluation_text(result))
    if result.unreadable:
        sys.exit(2)
