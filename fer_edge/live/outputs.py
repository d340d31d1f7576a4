"""Where events go beside the caller of ``watch``: a broker, counters, a page. Each is a module of a line in OUTPUTS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar

from fer_edge.console import say, shortened
from fer_edge.errors import FerEdgeError

from .events import Event, Summary
from .pipeline import Step
from .sources import Gap

F = TypeVar("F", bound=Callable[..., Any])

OUTPUTS: tuple[str, ...] = ("metrics", "mqtt", "show")
"""Modules of ``fer_edge.live`` that offer an output to the command line, by three names:

- ``output_options``: a decorator that adds click's options, as ``console.engine_options`` is one; the first one turns the
  output on;
- ``NEEDS``: its other options -> the option without which they mean nothing, as ``console.Command`` takes it;
- ``open_output(options, setup)``: takes its own options out of the dict, and returns an Output, or None where it is not
  asked for. Raises FerEdgeError where it cannot start: the command then ends with 2 before the first frame.

They are imported with the command: what they stand on (a broker's client, a web server) is imported in ``open_output``."""


@dataclass(frozen=True)
class Setup:
    """What is watched, and with what: for outputs that announce themselves. ``source``: its name, without credentials;
    ``bundle``, ``detector``: their names, ``digest``: of the bundle."""

    source: str
    live: bool
    labels: tuple[str, ...]
    label_set: str
    bundle: str
    digest: str
    runtime: str
    device: str
    precision: str
    detector: str


class Output(Protocol):
    """Takes what ``watch`` sees. ``name`` stands in messages, as "mqtt".

    Every method is called on the thread that iterates ``watch``, one after the other, before the event is given to the
    caller: an output that waits for a network or a disk holds up the frames. Such an output keeps a bounded queue and a
    thread of its own, and documents what it leaves out when the queue is full.

    A method that raises FerEdgeError or OSError has failed for good: one line on stderr says so, the output is closed and
    left out, and ``watch`` goes on. A thread's failure is therefore raised at the next call. Any other exception is a bug,
    and ends ``watch``."""

    name: str

    def event(self, event: Event | Summary) -> None:
        """An event, in the caller's order; the last one is the summary. When ``watch`` is ended early (closed, interrupted,
        an error) the ends of all tracks and the summary come here nevertheless."""
        ...

    def step(self, step: Step) -> None:
        """A frame that was looked at, before its events are given to :meth:`event`. To be kept no longer than needed: it
        holds the picture."""
        ...

    def lost(self, gap: Gap) -> None:
        """A live source was lost or has come back, after the ends of its tracks."""
        ...

    def close(self) -> None:
        """Deliver what is queued, in bounded time (a few seconds), and give everything back. May be called twice."""
        ...


class Fan:
    """Several outputs as one; those that fail are told of by ``tell`` and left out."""

    def __init__(self, outputs: Iterable[Output], tell: Callable[[str], None] = say) -> None:
        self._outputs, self._tell = list(outputs), tell

    def events(self, events: Iterable[Event | Summary]) -> None:
        """All of them to each."""
        for event in events:
            self._each(lambda output, event=event: output.event(event))  # type: ignore[misc]  # a default, not a parameter

    def step(self, step: Step) -> None:
        """To each."""
        self._each(lambda output: output.step(step))

    def lost(self, gap: Gap) -> None:
        """To each."""
        self._each(lambda output: output.lost(gap))

    def close(self) -> None:
        """Each, whatever the others do."""
        self._each(lambda output: output.close())

    def _each(self, give: Callable[[Output], None]) -> None:
        for output in tuple(self._outputs):
            try:
                give(output)
            except (FerEdgeError, OSError) as error:
                self._outputs.remove(output)
                self._tell(f"{output.name} has failed and is left out: {shortened(str(error))}")
                with suppress(FerEdgeError, OSError):  # it has been told of
                    output.close()


def output_options(command: F) -> F:
    """The options of every output."""
    for name in reversed(OUTPUTS):
        command = import_module(f".{name}", __package__).output_options(command)
    return command


def output_needs() -> dict[str, str]:
    """The ``needs`` of every output's options."""
    return {option: other for name in OUTPUTS for option, other in import_module(f".{name}", __package__).NEEDS.items()}


def open_outputs(options: dict[str, Any], setup: Setup) -> list[Output]:
    """The outputs that are asked for; their options are taken out of ``options``. Where one cannot start, those before it
    are closed."""
    outputs: list[Output] = []
    try:
        for name in OUTPUTS:
            output = import_module(f".{name}", __package__).open_output(options, setup)
            if output is not None:
                outputs.append(output)
    except BaseException:
        Fan(outputs).close()
        raise
    return outputs
