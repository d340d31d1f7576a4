"""What every command of every room shares: groups that reach other rooms, common options, and how to speak."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import click

from .engines import RUNTIMES
from .errors import FerEdgeError, MissingExtraError, importable

F = TypeVar("F", bound=Callable[..., Any])


class Rooms(click.Group):
    """A group whose further commands live in other rooms."""

    def __init__(self, *args: Any, rooms: dict[str, tuple[str, str]] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rooms = rooms or {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *self.rooms])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.rooms:
            return super().get_command(ctx, name)
        module, _, attribute = self.rooms[name][0].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = []
        for name in self.list_commands(ctx):
            local = super().get_command(ctx, name)
            rows.append((name, self.rooms[name][1] if local is None else local.get_short_help_str(120)))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class Figures(click.Group):
    """A group of ``python -m`` commands, which ``fer-edge`` does not run: an error of our tree is one line there too."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FerEdgeError as error:
            raise click.ClickException(str(error)) from error


class Numbers(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """Whole numbers above zero with commas between; a number that comes twice counts twice."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        if not re.fullmatch(r"[1-9]\d{0,3}(,[1-9]\d{0,3})*", value):
            self.fail(f"{value!r} is no whole number above zero, or several as 1,2,4", param, ctx)
        return tuple(int(part) for part in value.split(","))


class Finite(click.FloatRange):
    """A number in a range; nan, which passes every comparison of ``FloatRange``, and inf are none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


def common(command: F) -> F:
    """--json and --debug, which every command has."""
    command = click.option("--debug", is_flag=True, expose_value=False, help="On an error, show the whole traceback.")(
        command
    )
    return click.option(
        "--json", "as_json", is_flag=True, help="JSON on stdout, one object a line, and nothing else there."
    )(command)


def engine_options(command: F, runtime: str = "the first one installed", precision: str = "int8 where there is one") -> F:
    """--runtime, --device, --precision, --threads and --execution-precision. ``runtime`` and ``precision``: what the
    command takes when none is named."""
    options = (
        click.option("--runtime", help=f"{', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}. Default: {runtime}."),
        click.option(
            "--device", help="Where to run, by the engine's own name; 'fer-edge doctor' lists them. Default: its CPU."
        ),
        click.option(
            "--precision", type=click.Choice(["int8", "fp16", "fp32"]), help=f"Which artefact. Default: {precision}."
        ),
        click.option("--threads", type=click.IntRange(min=1), help="For the engine. Default: all processors, at most 4."),
        click.option(
            "--execution-precision",
            help="Arithmetic to ask the engine for: bf16 or fp16 (openvino can). Default: the artefact's own.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


labels_option = click.option(
    "--labels", help="A label set of the bundle; 'fer-edge labels list' shows them. Default: its own."
)
bundle_option = click.option(
    "-b", "--bundle", type=click.Path(path_type=Path), help="A bundle folder. Default: the embedded one."
)
bundle_argument = click.argument("bundle", required=False, type=click.Path(path_type=Path))


def emit(value: object) -> None:
    """One JSON value on one line of stdout, in ASCII: file names need not be UTF-8, JSON must be. Raises ValueError for
    NaN: our JSON has none."""
    click.echo(json.dumps(value, allow_nan=False))


def say(text: str = "") -> None:
    """Text for people, on stderr."""
    click.echo(text, err=True)


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A line of what is going on, on stderr, gone at the end; silent when stderr is not a terminal."""
    live = sys.stderr.isatty()

    def show(text: str) -> None:
        if live:
            click.echo(f"\r\033[K{text} ...", nl=False, err=True)

    try:
        yield show
    finally:
        if live:
            click.echo("\r\033[K", nl=False, err=True)


class Fraction(Protocol):
    """Takes the fraction done, and what is going on."""

    def __call__(self, done: float, text: str = ...) -> None: ...


@contextmanager
def fraction(screen: TextIO, text: str) -> Iterator[Fraction]:
    """Yields a function that takes the fraction done; draws a bar with the time left by rich, which the caller's extra
    installs; silent when the screen is not a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    # All that was seen counts for the time left: steps take up to ten minutes, and rich forgets after 30 seconds.
    console, period = Console(file=screen), 86400.0
    live = screen.isatty()
    with Progress(console=console, transient=True, disable=not live, speed_estimate_period=period) as progress:
        task = progress.add_task(text, total=1.0)

        def show(done: float, text: str = text) -> None:
            progress.update(task, completed=done, description=text)

        yield show


def need_extra(*packages: str, extra: str) -> None:
    """Raise MissingExtraError unless all packages are there."""
    for package in packages:
        if not importable(package):
            raise MissingExtraError(f"the package {package}", extra)


class Box(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """x,y,width,height in pixels."""

    name = "x,y,w,h"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(float(v) for v in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 4:
            self.fail(f"{value!r} is not x,y,width,height in pixels", param, ctx)
        return numbers
