"""Progress of a conversion: drawn by rich on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from fer_edge.console import heartbeat, printable

from .convert import Step


@contextmanager
def steps(screen: TextIO) -> Iterator[Callable[[Step], None]]:
    """Yields a function that takes each step of a conversion."""
    if not screen.isatty():
        with heartbeat(screen, "starting") as take:
            yield lambda step: take(f"{step.text} ({step.done} of {step.total})")
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(file=screen, force_terminal=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda step: progress.update(task, completed=step.done, total=step.total, description=printable(step.text))
