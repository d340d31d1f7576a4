"""A short call that says whether a long one will do: does every step become a graph, and how long does it take?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .course import Course, Material, scores
from .epoch import make_epoch
from .learner import Learner, Say
from .together import Clock, Lane, Maker, learn_together

STEPS = 30


def smoke(
    teachers: Sequence[Course], students: Sequence[Course], material: Material, identity: Path, deadline: float, say: Say
) -> None:
    """Per network: milliseconds of a step without and with a graph, seconds of an epoch's making, memory. Then students
    and teachers side by side, by the clock, in what is left until ``deadline``."""
    phases = [("students", students), ("teachers", teachers)]
    learners: dict[str, list[Learner]] = {name: [] for name, _ in phases}
    said = torch.full((2, len(material.images), 8), 1 / 8, device=material.device)
    for name, courses in phases:
        for course in courses:
            learners[name].append(_tried(course, material, identity, said if course.share else None, say))
    for i, (name, courses) in enumerate(phases):
        seconds = (deadline - time.time()) / (len(phases) - i)
        if seconds < 1.5:
            say("no time", phase=name, left=round(deadline - time.time(), 1))
            continue
        with Maker(material) as maker:
            lanes = {}
            for course, learner in zip(courses, learners[name], strict=True):
                taught = said if course.share else None
                lanes[course.name] = Lane(learner, taught, maker.ask(course, 1, taught))
            say("side by side", phase=name, seconds=round(seconds, 1))
            learn_together(lanes, maker, Clock(time.time() + seconds), say)
        learners[name].clear()
    _leftovers(material, say)


def _tried(course: Course, material: Material, identity: Path, taught: torch.Tensor | None, say: Say) -> Learner:
    """One network alone."""
    report: dict[str, Any] = {"name": course.name}
    learner = Learner(course, material, identity)
    for key in ("first_epoch_s", "epoch_s"):
        began = time.time()
        epoch = make_epoch(course, material, 0, taught)
        _wait()
        report[key] = round(time.time() - began, 3)
    faces = epoch.faces.float()
    report["faces"] = [round(float(x), 3) for x in (faces.mean(), faces.std(), faces.min(), faces.max())]
    report["finite"] = bool(torch.isfinite(faces).all())
    del faces
    learner.take(epoch)
    report["eager_ms"], report["eager_loss"] = _timed(learner)
    if learner.capture(say):
        report["graph_ms"], report["graph_loss"] = _timed(learner)
    for _ in range(2):  # the first looks for cuDNN's ways
        began = time.time()
        scores(learner.mean, course, material.images[:4096, 0], material.device)
        report["score_4096_s"] = round(time.time() - began, 3)
    say("tried", **report, steps=learner.steps, **_memory())
    return learner


def _timed(learner: Learner) -> tuple[float, float]:
    """Milliseconds of a step, and the mean loss of so many."""
    for _ in range(3):
        learner.step(0.1)
    learner.loss()
    _wait()
    began = time.time()
    for _ in range(STEPS):
        learner.step(0.3)
    loss = learner.loss()
    return round(1000 * (time.time() - began) / STEPS, 2), round(loss, 4)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory() -> dict[str, float]:
    """GiB."""
    if not torch.cuda.is_available():
        return {}
    return {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "held_gib": round(torch.cuda.memory_reserved() / 2**30, 2)}  # fmt: skip


def _leftovers(material: Material, say: Say) -> None:
    say("smoke over", device=material.device, **_memory())
