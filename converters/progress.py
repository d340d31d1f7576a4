"""Progress of long work, drawn by rich; silent when the screen is not a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .convert import Step


@contextmanager
def steps(screen: TextIO) -> Iterator[Callable[[Step], None]]:
    """Yields a function that takes each step of a conversion."""
    console = Console(file=screen, force_terminal=screen.isatty())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not screen.isatty(), redirect_stdout=False, redirect_stderr=False
    ) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, completed=step.done, total=step.total, description=step.text)
