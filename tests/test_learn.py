"""A training: the loss, the averaged weights, the fitted text side, the log; and work folders that are refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import LABELS, QUICK, TINY, softmax, unit
from PIL import Image
from torch import Tensor

import fer_edge
from fer_edge.converters.student.language import fit_text_projection
from fer_edge.converters.student.network import StudentCheckpoint, StudentInTraining, load_student, save_student
from fer_edge.converters.student.recipe import EpochReport, TrainingData, TrainingPlan
from fer_edge.converters.student.run import Run, unit_features
from fer_edge.converters.student.train import train_student
from fer_edge.labels import LabelSet
from fer_edge.manifest import TextEncoderRef


@pytest.mark.parametrize(("prior", "taught_too"), [(0.0, False), (0.7, False), (0.7, True)])
def test_the_loss_is_the_formula(few: TrainingData, tmp_path: Path, prior: float, taught_too: bool) -> None:
    """(1 - share) H(votes, softmax(l + prior log p)) + share H(teachers, softmax(l)), one by one in float64; all nine
    descriptions of a class are drawn, undisturbed, so that the constants are known."""
    recipe = replace(QUICK, prior=prior, teacher_share=0.4, sentences_per_class=9, text_noise=0.0)
    run, generator = Run(TrainingPlan(few, TINY, recipe), tmp_path), torch.Generator().manual_seed(3)
    feature = torch.randn(5, 32, generator=generator) * 7
    taught = torch.randn(5, 8, generator=generator).softmax(-1) if taught_too else None
    votes = few.train.targets
    assert votes is not None
    loss = run._loss(feature, torch.from_numpy(votes[20:25]), taught, generator)
    r = run.net.text_projection.detach().double().numpy()
    c = np.stack([unit(few.sentences.lookup(few.descriptions[k]).astype(np.float64) @ r.T).mean(0) for k in LABELS])
    logits = np.exp(2.5) * unit(feature.numpy()) @ c.T
    shares = votes.astype(np.float64).mean(0)
    assert shares.min() > 1e-6  # every expression has a vote, so that nothing is cut off below
    expected = -(votes[20:25] * np.log(softmax(logits + prior * np.log(shares)))).sum(1).mean()
    if taught is not None:
        expected = 0.6 * expected - 0.4 * (taught.double().numpy() * np.log(softmax(logits))).sum(1).mean()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_returned_network_is_the_average_of_the_weights(few: TrainingData, tmp_path: Path) -> None:
    """mean = decay mean + (1 - decay) weights after every step, batch statistics included, with a decay that rises to its
    full size; not the last weights, and not the first."""
    plan = TrainingPlan(few, TINY, QUICK)
    run = Run(plan, tmp_path / "by hand")
    steps: list[dict[str, Tensor]] = []
    run.run_epoch(lambda done: steps.append({k: v.clone() for k, v in run.net.state_dict().items()}))
    assert len(steps) == 10
    mean = steps[0]
    for i, state in enumerate(steps[1:], 1):
        decay = min(QUICK.average, (1 + i) / (10 + i))
        mean = {k: decay * mean[k] + (1 - decay) * v if v.is_floating_point() else v for k, v in state.items()}
    made = train_student(plan, tmp_path / "run", lambda r: None)
    average, last = StudentInTraining(TINY), StudentInTraining(TINY)
    average.load_state_dict(mean)
    last.load_state_dict(steps[-1])
    x = torch.rand(4, 1, 48, 48)
    torch.testing.assert_close(made.student(x), average.deployed()(x), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(made.student(x), last.deployed()(x), atol=1e-3)


def test_the_returned_text_side_is_fitted_to_every_phrase(few: TrainingData, tmp_path: Path) -> None:
    """On the student's features of the faces and their mirror images, from where the network's own R and scale were, with
    the votes and the adjustment of training."""
    recipe = replace(QUICK, prior=0.7)
    made = train_student(TrainingPlan(few, TINY, recipe), tmp_path, lambda r: None)
    before = torch.load(tmp_path / "state.pt", weights_only=True)["mean_net"]
    start = before["module.text_projection"], float(before["module.log_scale"].exp())
    both = np.concatenate([few.train.images, few.train.images[:, :, ::-1]])
    votes = torch.from_numpy(few.train.targets)
    groups, told = (
        [torch.from_numpy(few.sentences.lookup(table[label])) for label in LABELS]
        for table in (few.phrases, few.descriptions)
    )
    adjustment = 0.7 * votes.mean(0).log()
    r, scale = fit_text_projection(
        unit_features(made.student, both), votes.repeat(2, 1), groups, told, start, adjustment, recipe.text, recipe.seed
    )
    torch.testing.assert_close(made.text_projection, r, atol=1e-4, rtol=1e-3)
    assert made.scale == pytest.approx(scale, rel=1e-4)
    assert not torch.allclose(r, start[0], atol=1e-3)


def test_log_and_curve(few: TrainingData, tmp_path: Path) -> None:
    """A line per epoch, written as it ends, and a picture of them; with validation faces, and without."""
    for name, validation in (("with", few.train), ("without", None)):
        work = tmp_path / name
        lines: list[int] = []

        def count(report: EpochReport, work: Path = work, lines: list[int] = lines) -> None:
            lines.append(len((work / "log.csv").read_text().splitlines()) - 1)

        plan = TrainingPlan(replace(few, validation=validation), TINY, replace(QUICK, epochs=2))
        train_student(plan, work, count)
        assert lines == [1, 2]
        with (work / "log.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [(row["epoch"], row["epochs"]) for row in rows] == [("1", "2"), ("2", "2")]
        assert all((row["war"] == row["uar"] == "nan") == (validation is None) for row in rows)
        with Image.open(work / "curve.png") as picture:
            assert picture.format == "PNG"
            picture.load()
            assert len(picture.convert("L").getcolors() or []) > 20
        assert not list(work.glob(".partial-*"))


def test_work_folders_that_are_refused(few: TrainingData, tmp_path: Path) -> None:
    plan = TrainingPlan(few, TINY, QUICK)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "state.pt").write_bytes(b"of another version")
    with pytest.raises(fer_edge.ConversionError, match="another training run"):
        train_student(plan, tmp_path / "old", lambda r: None)
    run = Run(plan, tmp_path / "bent")
    run.resume()
    (tmp_path / "bent" / "state.pt").write_bytes(b"cut off")
    with pytest.raises(fer_edge.ConversionError, match="damaged"):
        Run(plan, tmp_path / "bent").resume()


def test_a_checkpoint_whose_label_sets_do_not_fit(tmp_path: Path) -> None:
    net = StudentInTraining(TINY)
    text = TextEncoderRef("clip", "x", "0" * 64)
    wrong = LabelSet("three", ("a", "b"), np.zeros((3, 32), np.float32), 1.0, 1.0, (("a",), ("b",)))
    save_student(
        tmp_path / "s", StudentCheckpoint(net.eval().deployed(), net.text_projection.detach(), 1.0, text, (wrong,), {})
    )
    with pytest.raises(fer_edge.ConversionError, match="incomplete"):
        load_student(tmp_path / "s")
