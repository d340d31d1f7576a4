"""``fer-edge twins``."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from .console import Command, Finite, common, emit, say, show, status
from .errors import UsageError
from .files import check_target, write_text
from .labelled import picture_names, read_pictures
from .twins import LEAST, near_duplicates, squares


@click.command(
    cls=Command,
    examples=("fer-edge twins test/ train/", "fer-edge twins test.npz train.npz -o twins.txt", "fer-edge twins train/"),
)
@click.argument("first", type=click.Path(path_type=Path), metavar="A")
@click.argument("second", type=click.Path(path_type=Path), metavar="[B]", required=False)
@click.option(
    "--least", type=Finite(0, 1), default=LEAST, show_default=True, help="How alike details must be; 1: the same picture."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Write which of A have a twin, for 'evaluate --leave-out': a line each, a row of an npz or a file of a folder.",
)
@common
def twins(first: Path, second: Path | None, least: float, output: Path | None, as_json: bool) -> None:
    """Which pictures of A show the same photo as one of B: cut, mirrored, relit or compressed differently.

    A and B: folders of images, or npz files with a member 'images'. Without B: within A, where all but the first of a
    kind are named. What a model learned from a photo says nothing about its twin: leave twins out of one of the two.
    """
    if second is not None and second.absolute() == first.absolute():
        raise UsageError(f"{first} is named twice; name it once to look within it")
    if output is not None:
        check_target(output)
    sources = [(path, read_pictures(path).images) for path in (first, second) if path is not None]
    with status() as progress:

        def tell(what: str, done: float) -> None:
            progress(f"{what}: {done:.0%}")

        pixels = [squares(pictures, partial(tell, f"reading {path}")) for path, pictures in sources]
        found = near_duplicates(*pixels, least=least, on_part=partial(tell, "comparing"))
    rows = found.rows(within=second is None)
    names = [picture_names(path, pictures) for path, pictures in sources]
    if output is not None:
        write_text(output, "".join(f"{names[0][row]}\n" for row in rows))
    pairs = [
        {"a": names[0][a], "b": names[-1][b], "correlation": round(c, 4), "mirrored": m}
        for a, b, c, m in zip(*(part.tolist() for part in vars(found).values()), strict=True)
    ]
    if as_json:
        counts = [len(pictures) for _, pictures in sources]
        named = {"a": str(first), "b": None if second is None else str(second), "pictures": counts}
        emit({**named, "with_twin": len(rows), "twins": pairs})
        return
    for pair in pairs:
        show(f"{pair['a']}  {pair['b']}  {pair['correlation']:.3f}{'  mirrored' if pair['mirrored'] else ''}")
    where = "an earlier twin" if second is None else f"a twin in {second}"
    say(f"{len(rows)} of {len(names[0])} pictures of {first} have {where}")
