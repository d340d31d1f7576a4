"""Several networks that learn side by side on one device, by the clock.

Every network has a stream of its own, and one step of each is queued in turn, a few rounds ahead of the device. Threads
make the next epochs meanwhile."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .course import Course, Material
from .epoch import Epoch, make_epoch
from .learner import Learner, Say

AHEAD = 4
"""Rounds that may be queued."""
MAKERS = 4


@dataclass(frozen=True)
class Clock:
    """``deadline`` in seconds of time.time(); ``epochs``, when given, decides instead of the clock."""

    deadline: float
    epochs: int | None = None

    def left(self) -> float:
        """Seconds."""
        return self.deadline - time.time()


class Maker:
    """Threads that make epochs, each on a stream of its own."""

    def __init__(self, material: Material, threads: int = MAKERS) -> None:
        self.material = material
        self._own = threading.local()
        self._threads = ThreadPoolExecutor(threads)

    def __enter__(self) -> Maker:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def ask(self, course: Course, number: int, taught: Tensor | None) -> Future[Epoch]:
        """The epoch, once it is all there."""
        return self._threads.submit(self._make, course, number, taught)

    def _make(self, course: Course, number: int, taught: Tensor | None) -> Epoch:
        if self.material.device != "cuda":
            return make_epoch(course, self.material, number, taught)
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._own.stream):
            epoch = make_epoch(course, self.material, number, taught)
            self._own.stream.synchronize()
        return epoch


@dataclass
class Lane:
    """A network, what it hears from teachers, and how far it is. ``coming`` is its next epoch."""

    learner: Learner
    taught: Tensor | None
    coming: Future[Epoch]
    epoch: int = 0
    step: int = 0
    last_loss: float | None = None
    broken: bool = False

    @property
    def name(self) -> str:
        """The course's."""
        return self.learner.course.name

    def report(self) -> dict[str, Any]:
        """How far it is; the loss is the mean of the latest epoch."""
        loss = self.last_loss
        return {"epoch": self.epoch, "loss": round(loss, 4) if loss is not None and math.isfinite(loss) else None}


def lanes_of(
    learners: Sequence[Learner], taught: Mapping[str, Tensor], maker: Maker, graphs: bool, say: Say
) -> dict[str, Lane]:
    """Everything ready to go: first epochs made, graphs captured, second epochs under way."""
    lanes = {}
    for learner in learners:
        name = learner.course.name
        said = taught.get(name)
        lanes[name] = Lane(learner, said, maker.ask(learner.course, 0, said))
    for lane in lanes.values():
        lane.learner.take(lane.coming.result())
    if graphs:  # no thread may use the device while a graph is captured
        for lane in lanes.values():
            lane.learner.capture(say)
    for lane in lanes.values():
        lane.learner.loss()
        lane.coming = maker.ask(lane.learner.course, 1, lane.taught)
    return lanes


def learn_together(
    lanes: Mapping[str, Lane],
    maker: Maker,
    clock: Clock,
    say: Say,
    every: Callable[[Mapping[str, Lane], float], None] = lambda lanes, done: None,
    rate: float = 1.0,
    warmup: float | None = None,
) -> int:
    """Learn until the clock says stop; how many rounds there were. ``every`` is called after each round with what has
    been done, from 0 to 1. ``rate`` is a factor of all learning rates; ``warmup`` stands for the courses' own. A network
    that diverges, or whose epoch cannot be made, is left behind."""
    began, budget, rounds = time.time(), clock.left(), 0
    queued: deque[list[torch.cuda.Event]] = deque()
    while True:
        running = [lane for lane in lanes.values() if not lane.broken]
        if clock.epochs is None:
            done = (time.time() - began) / max(budget, 1e-3)
        else:
            done = min((lane.epoch + lane.step / lane.learner.steps) / clock.epochs for lane in running) if running else 1.0
        if done >= 1 or not running:
            break
        for lane in running:
            own = done if clock.epochs is None else (lane.epoch + lane.step / lane.learner.steps) / clock.epochs
            if own >= 1:
                continue
            start = lane.learner.course.warmup if warmup is None else warmup
            lane.learner.step(rate * min(1.0, (own + 1e-4) / start) * 0.5 * (1 + math.cos(math.pi * own)))
            lane.step += 1
            if lane.step == lane.learner.steps:
                last = clock.epochs is not None and lane.epoch + 1 == clock.epochs
                _turn(lane, maker, last, say)
        rounds += 1
        _keep_pace(queued, running)
        every(lanes, done)
    for lane in lanes.values():
        if not lane.broken and lane.step:
            lane.last_loss = lane.learner.loss()
        lane.coming.cancel()
    say("learned", seconds=round(time.time() - began, 1), rounds=rounds,
        round_ms=round(1000 * (time.time() - began) / max(1, rounds), 2),
        **{lane.name: lane.report() for lane in lanes.values()})  # fmt: skip
    return rounds


def _keep_pace(queued: deque[list[torch.cuda.Event]], running: Sequence[Lane]) -> None:
    """Wait until the device is no more than a few rounds behind: what is queued sees the clock of when it was queued."""
    events = []
    for lane in running:
        if lane.learner.stream is not None:
            event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            event.record(lane.learner.stream)
            events.append(event)
    queued.append(events)
    if len(queued) > AHEAD:
        for event in queued.popleft():
            event.synchronize()


def _turn(lane: Lane, maker: Maker, last: bool, say: Say) -> None:
    """From one epoch to the next."""
    lane.epoch += 1
    lane.step = 0
    lane.last_loss = lane.learner.loss()
    if not math.isfinite(lane.last_loss):
        lane.broken = True
        say("diverged", name=lane.name, **lane.report())
        return
    if last:
        return
    try:
        lane.learner.take(lane.coming.result())
    except Exception as error:  # the others go on
        lane.broken = True
        say("no epoch", name=lane.name, epoch=lane.epoch, reason=f"{type(error).__name__}: {error}"[:600])
        return
    lane.coming = maker.ask(lane.learner.course, lane.epoch + 1, lane.taught)
