"""From data to checkpoint: the epochs, the final fit of the text side, the deployed network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from fer_edge.errors import UsageError

from .augment import mirrored, view, warp
from .curve import draw_curve
from .language import fit_text_projection, sentence_groups
from .network import Student, StudentCheckpoint, StudentInTraining
from .recipe import EpochReport, TrainingPlan
from .run import Run, unit_features

TEXT_SHARE = 0.02
"""What the fit of the text side counts for in the fraction done."""


def train_student(
    plan: TrainingPlan,
    work: Path,
    on_epoch: Callable[[EpochReport], None],
    on_batch: Callable[[float], None] = lambda done: None,
) -> StudentCheckpoint:
    """Train a student, or go on where ``work`` (state.pt, log.csv, curve.png, views of teachers) was left by an
    interruption.

    ``on_batch`` gets the fraction done. Raises ConversionError when ``work`` belongs to another run, or the data and the
    teachers do not go together."""
    data, recipe, teachers = plan.data, plan.recipe, plan.teachers
    run = Run(plan, work)
    run_epochs(run, on_epoch, lambda done: on_batch(done * (1 - TEXT_SHARE)))
    learned = run.learned().cpu()
    if not isinstance(learned, StudentInTraining):
        raise UsageError("only students can be deployed; see run_epochs for other networks")
    student = learned.deployed()
    meta = {
        "recipe": asdict(recipe),
        "labels": list(data.labels),
        "faces": len(data.train.images),
        "twins": data.twins,
        "teachers": [{"name": Path(t.name).name, "sha256": t.sha256} for t in teachers],
    }
    if data.train.targets is None:
        teacher = teachers[0]
        matrix, scale = torch.from_numpy(teacher.r), teacher.sets[0].logit_scale
        return StudentCheckpoint(student, matrix, scale, teacher.text, teacher.sets, meta)
    fitted = fit_text(run, student, lambda done: on_batch(1 - TEXT_SHARE * (1 - done)))
    return StudentCheckpoint(student, *fitted, data.sentences.text, (), meta)


def run_epochs(run: Run, on_epoch: Callable[[EpochReport], None], on_batch: Callable[[float], None]) -> None:
    """Go on where the run was left, to its last epoch."""
    run.resume()
    while run.epoch < run.recipe.epochs:
        report = run.run_epoch(on_batch)
        run.save()
        draw_curve(run.history, run.work / "curve.png")
        on_epoch(report)


def fit_text(run: Run, student: Student, on_step: Callable[[float], None]) -> tuple[torch.Tensor, float]:
    """R and s, fitted to every phrase on the student's features of the training faces and their mirror images."""
    data, recipe = run.data, run.recipe
    features = []
    as_they_are = view(len(run.images), recipe.strength, recipe.seed, 0)
    for maps in (as_they_are, mirrored(as_they_are)):
        seen = warp(run.images.float(), maps).round().to(torch.uint8)[:, 0].numpy()
        features.append(unit_features(student, seen))
    net = run.learned()
    groups, told = (sentence_groups(data.sentences, table, data.labels) for table in (data.phrases, data.descriptions))
    start = (net.text_projection, float(net.log_scale.detach().exp().clamp(max=100.0)))
    return fit_text_projection(
        torch.cat(features), run.votes.repeat(2, 1), groups, told, start, run.adjustment, recipe.text, recipe.seed, on_step
    )
