"""What every command of every room shares: groups that reach other rooms, common options, and how to speak."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, TextIO, TypeVar

import click

from .engines import PRECISIONS, RUNTIMES
from .errors import MissingExtraError

F = TypeVar("F", bound=Callable[..., Any])


class Command(click.Command):
    """A command as all of ours are. Its help ends with ``examples`` (lines as they are typed).

    Nothing that was typed is dropped without a word, as click drops it: an option that takes one value refuses a second
    one, an empty text (a shell's variable that is not set) is no value, and an option of ``needs`` (name -> name of another)
    is refused without the other one."""

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), needs: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples, self.needs = tuple(examples), dict(needs or {})

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            if not ctx.resilient_parsing and (args or not self.no_args_is_help):
                values, _, given = self.make_parser(ctx).parse_args(list(args))
                self._check(values, given, ctx)
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx  # whose --help helps
            raise

    def _check(self, values: Mapping[str, Any], given: Sequence[click.Parameter], ctx: click.Context) -> None:
        named = {param.name: " / ".join(param.opts) for param in given if isinstance(param, click.Option)}
        for param in given:
            name = named.get(param.name) or f"argument {param.human_readable_name}"
            value = values.get(str(param.name))
            if "" in (value if isinstance(value, (list, tuple)) else (value,)):
                ctx.fail(f"{name} is empty; a shell's variable may not be set")
            if isinstance(param, click.Option) and given.count(param) > 1 and _takes_one(param):
                ctx.fail(f"{name} is given twice; it takes one value")
            if param.name in named and self.needs.get(str(param.name), param.name) not in named:
                ctx.fail(f"{name} goes with --{self.needs[str(param.name)].replace('_', '-')}")

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{' ' * formatter.current_indent}{line}\n")


def _takes_one(option: click.Option) -> bool:
    """A plain flag says the same twice; one of two that contradict each other does not."""
    return not (option.multiple or option.count or (option.is_flag and not option.secondary_opts))


class Rooms(Command, click.Group):
    """A group whose further commands live in other rooms."""

    command_class = Command

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
        click.option("--precision", type=click.Choice(PRECISIONS), help=f"Which artefact. Default: {precision}."),
        click.option("--threads", type=click.IntRange(min=1), help="For the engine. Default: all processors, at most 4."),
        click.option(
            "--execution-precision",
            help="Arithmetic to ask the engine for: bf16 or fp16 (openvino can). Default: the artefact's own.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


class Cache(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """auto, on, off or a folder, as ``cache`` of ``fer_edge.load`` has it."""

    name = "auto|on|off|FOLDER"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | Path | None:
        named: dict[str, bool | None] = {"auto": None, "on": True, "off": False}
        return named[value] if value in named else Path(value)


cache_option = click.option(
    "--cache",
    type=Cache(),
    help="Keep what the engine builds for the next start: on, off, or in a folder. Default: auto, which is of large models.",
)
labels_option = click.option(
    "--labels", help="A label set of the bundle; 'fer-edge labels list' shows them. Default: its own."
)
bundle_option = click.option(
    "-b", "--bundle", type=click.Path(path_type=Path), help="A bundle folder. Default: the embedded one."
)


def bundle_argument(command: F) -> F:
    """The bundle of a command that is about one: by its place or as -b BUNDLE. Left out, it is None: the embedded one."""
    return _bundle_argument(command, required=False)


def required_bundle(command: F) -> F:
    """As :func:`bundle_argument`, of a command that changes a bundle and so must be told which."""
    return _bundle_argument(command, required=True)


def _bundle_argument(command: F, required: bool) -> F:
    def keep(ctx: click.Context, param: click.Parameter, named: Path | None) -> None:
        ctx.meta[__name__] = named

    def choose(ctx: click.Context, param: click.Parameter, placed: tuple[Path, ...]) -> Path | None:
        named: Path | None = ctx.meta.get(__name__)
        if len(placed) > 1:
            ctx.fail(f"Got unexpected extra argument ({placed[1]})")
        if placed and named is not None and placed[0].absolute() != named.absolute():
            ctx.fail(f"two bundles are named, {placed[0]} and -b {named}; name one")
        bundle = placed[0] if placed else named
        if bundle is None and required and not ctx.resilient_parsing:
            raise click.MissingParameter("Name it first, or with -b", ctx=ctx, param=param)
        return bundle

    path = click.Path(path_type=Path)
    # nargs=-1 leaves the last place to the argument that follows where the bundle is named by -b.
    place = click.argument("bundle", nargs=-1, type=path, metavar="BUNDLE" if required else "[BUNDLE]", callback=choose)
    default = "" if required else " Default: the embedded one."
    option = click.option(
        *("-b", "--bundle", "named"),
        type=path,
        is_eager=True,
        expose_value=False,
        callback=keep,
        help=f"The bundle, instead of by its place.{default}",
    )
    return place(option(command))


def printable(text: str) -> str:
    """A text that others wrote (a picture's name, a bundle, an engine) as one line that does nothing to a terminal: line
    breaks, control and escape characters, invisible and direction characters and what is not Unicode become escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shortened(text: str, length: int | None = None) -> str:
    """A text on one line, of at most ``length`` characters."""
    return " ".join(text.split())[:length]


def _lines(text: str) -> str:
    """Lines of ours, in which something that others wrote may stand."""
    return "\n".join(printable(line.expandtabs(4)) for line in text.split("\n"))


def emit(value: object) -> None:
    """One JSON value on one line of stdout, in ASCII: file names need not be UTF-8, JSON must be. Raises ValueError for
    NaN: our JSON has none."""
    click.echo(json.dumps(value, allow_nan=False))


def show(text: str = "") -> None:
    """Text for people, the answer to a command: on stdout."""
    click.echo(_lines(text))


def say(text: str = "") -> None:
    """Text for people, beside the answer: on stderr."""
    click.echo(_lines(text), err=True)


PERIOD = 20.0
"""Seconds between two lines of progress where stderr is no terminal: a log shows that work goes on, and stays short."""


@contextmanager
def heartbeat(screen: TextIO, text: str = "", period: float | None = None) -> Iterator[Callable[[str], None]]:
    """Yields a function that takes what is going on; the last of it is written every ``period`` seconds (None: PERIOD) with
    the time that has passed. A thread writes it: a single step may take ten minutes."""
    latest, start, over = text, time.monotonic(), threading.Event()

    def take(text: str) -> None:
        nonlocal latest
        latest = text

    def write() -> None:
        while not over.wait(PERIOD if period is None else period):
            passed = timedelta(seconds=round(time.monotonic() - start))
            with suppress(OSError, ValueError):
                screen.write(f"{printable(latest)} ... {passed}\n")
                screen.flush()

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield take
    finally:
        over.set()
        thread.join()


@contextmanager
def status(period: float | None = None) -> Iterator[Callable[[str], None]]:
    """What is going on, on stderr: on a terminal a line that is gone at the end, else as :func:`heartbeat`."""
    if not sys.stderr.isatty():
        with heartbeat(sys.stderr, period=period) as take:
            yield take
        return
    try:
        # A line that wraps could not be cleared.
        wide = shutil.get_terminal_size().columns - 5
        yield lambda text: click.echo(f"\r\033[K{printable(text)[:wide]} ...", nl=False, err=True)
    finally:
        click.echo("\r\033[K", nl=False, err=True)


def wipe() -> None:
    """Clear the line of :func:`status`, so that another one can stand there."""
    if sys.stderr.isatty():
        click.echo("\r\033[K", nl=False, err=True)


class Fraction(Protocol):
    """Takes the fraction done, and what is going on."""

    def __call__(self, done: float, text: str = ...) -> None: ...


@contextmanager
def fraction(screen: TextIO, text: str) -> Iterator[Fraction]:
    """Yields a function that takes the fraction done. On a terminal it draws a bar with the time left by rich, which the
    caller's extra installs; else as :func:`heartbeat`."""
    if not screen.isatty():
        with heartbeat(screen, text) as take:
            yield lambda done, text=text: take(f"{text}: {done:.0%}")
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    # All that was seen counts for the time left: steps take up to ten minutes, and rich forgets after 30 seconds.
    with Progress(console=Console(file=screen), transient=True, speed_estimate_period=86400.0) as progress:
        task = progress.add_task(text, total=1.0)
        yield lambda done, text=text: progress.update(task, completed=done, description=escape(printable(text)))


def need_extra(*distributions: str, extra: str) -> None:
    """Raise MissingExtraError unless these distributions of an extra, or all of it, are there, as ``doctor`` sees it."""
    from .extras import present, requirements

    for name in distributions or requirements(extra):
        if not present(name):
            raise MissingExtraError(f"the package {name}", extra)


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
