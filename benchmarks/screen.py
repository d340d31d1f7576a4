"""Progress and tables of the benchmarks room, drawn by rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import Progress

from .evaluate import Evaluation


@contextmanager
def fraction(screen: TextIO, text: str) -> Iterator[Callable[[float], None]]:
    """Yields a function that takes the fraction done; silent when the screen is not a terminal."""
    with Progress(console=Console(file=screen), transient=True, disable=not screen.isatty()) as progress:
        task = progress.add_task(text, total=1.0)
        yield lambda done: progress.update(task, completed=done)


def evaluation_text(result: Evaluation) -> str:
    """What ``evaluate`` prints for people."""
    corner = "truth (rows)"
    width = max(map(len, (corner, *result.labels)))
    ran = f"{result.runtime} {result.precision} on {result.device}"
    skipped = sum(result.skipped_classes.values())
    lines = [
        f"{result.n} faces: WAR {result.war:.2%}, UAR {result.uar:.2%} ({ran}, labels {result.label_set})",
        f"left out: {result.left_out} without a label, {skipped} of unknown classes, {len(result.unreadable)} unreadable",
        "",
        f"{corner:<{width}}  recall  " + " ".join(f"{label[:6]:>6}" for label in result.labels),
    ]
    for label, row in zip(result.labels, result.confusion, strict=True):
        recall = result.per_class_recall[label]
        shown = f"{recall:6.1%}" if recall is not None else "     -"
        lines.append(f"{label:<{width}}  {shown}  " + " ".join(f"{count:>6}" for count in row))
    return "\n".join(lines)
