"""A short window on a GPU, tried on what there is: faces that travel, a training by the clock, networks that come back."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fer_edge.converters.crops import augmented
from fer_edge.converters.student.augment import Strength
from fer_edge.converters.student.network import StudentConfig, StudentInTraining
from lab.gpu.course import COURSES, Course, Material, keep, read_course, restore, retilted, save, scores
from lab.gpu.epoch import make_epoch, rows_of
from lab.gpu.learner import Learner
from lab.gpu.pack import STEP, Packed, expand, held_out, pack_photos, read_identity, shrink, squeeze, unpack_photos
from lab.gpu.smoke import smoke
from lab.gpu.together import Clock, Lane, Maker, lanes_of, learn_together
from lab.gpu.window import join

TINY = Course("tiny", widths=(8, 16, 16), depths=(1, 1, 1), batch=16, dropout=0.0)  # its random numbers would be shared
FACES = augmented(72, 48, "gray", 3)[..., 0]


def packed() -> Packed:
    targets = np.eye(8, dtype=np.float32)[np.arange(72) % 8]
    some = np.arange(72) % 9 == 0
    labels, twin = targets.argmax(1), ~some & (np.arange(72) % 7 == 0)
    return Packed(FACES, targets, labels, some, twin, FACES[:16], labels[:16], FACES[:40])


def trained(
    tmp_path: Path,
    *courses: Course,
    seconds: float = 600,
    epochs: int | None = 2,
    answers: Tensor | None = None,
    start: tuple[Path, str] | None = None,
    **more: Any,
) -> tuple[dict[str, Lane], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def say(event: str, **values: Any) -> None:
        events.append({"event": event, **values})

    material = Material(packed(), "cpu", photos=True)
    learners = [Learner(course, material, tmp_path, start) for course in courses]
    taught = {course.name: answers for course in courses if answers is not None}
    with Maker(material, 1) as maker:
        lanes = lanes_of(learners, taught, maker, True, say)
        learn_together(lanes, maker, Clock(time.time() + seconds, epochs), say, **more)
    for lane in lanes.values():
        save(lane.learner.mean, lane.learner.course, tmp_path / f"{lane.name}.safetensors", {"epochs": lane.epoch})
    return lanes, events


def test_faces_travel_and_come_back_nearly_as_they_were() -> None:
    images = np.concatenate([FACES, np.random.default_rng(0).integers(0, 256, (4, 48, 48), dtype=np.uint8)])
    data = squeeze(images, STEP)
    back = expand(data, len(images), 48, STEP)
    assert np.abs(back.astype(int) - images).max() <= STEP // 2
    assert np.array_equal(expand(squeeze(images, 1), len(images), 48, 1), images)
    assert len(data) < 0.6 * images.nbytes
    photos = unpack_photos(pack_photos(FACES), len(FACES))
    assert photos.shape == FACES.shape
    assert np.abs(photos.astype(int) - FACES).mean() < 4


def test_the_same_faces_are_held_out_whatever_stands_beside_them() -> None:
    many = np.random.default_rng(1).integers(0, 256, (2000, 4, 4), dtype=np.uint8)
    chosen = held_out(many)
    assert 0.04 < chosen.mean() < 0.085
    order = np.random.default_rng(2).permutation(2000)[:900]
    assert np.array_equal(held_out(many[order]), chosen[order])


def test_filters_in_8_bits_are_nearly_the_filters(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    tensors = {"filters.0": random.normal(0, 0.01, (8, 4, 3, 3)).astype(np.float32), "bias.0": np.ones(8, np.float32)}
    save_file(shrink(tensors), tmp_path / "x.safetensors")
    back = read_identity(tmp_path / "x.safetensors")
    assert set(back) == set(tensors)
    assert np.abs(back["filters.0"] - tensors["filters.0"]).max() < 0.01 * np.abs(tensors["filters.0"]).max()


def test_no_training_sees_a_face_that_is_held_out_or_has_a_twin() -> None:
    material = Material(packed(), "cpu", photos=False)
    kept = {image.tobytes() for image in material.images[:, 0].numpy()}
    data = packed()
    for i in range(72):
        assert (data.images[i].tobytes() in kept) == (not data.held_out[i] and not data.twin[i])


def test_an_epoch_is_drawn_from_its_seed_and_number() -> None:
    material = Material(packed(), "cpu", photos=True)
    course = replace(TINY, photos=4, share=0.5)
    said = torch.rand(3, len(material.images), 8, generator=torch.Generator().manual_seed(0))
    first, again, other = (make_epoch(course, material, number, said) for number in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.faces, other.faces)
    assert len(first.tensors()) == 4


def test_every_face_comes_with_its_own_votes_and_answers_and_photos_come_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unspoilt and not moved, so that a face can be told: itself, or its mirror image, some levels dithered."""
    monkeypatch.setattr("lab.gpu.epoch.CHUNK", 24)
    monkeypatch.setattr("lab.gpu.epoch.view_strength", lambda: Strength().times(0))
    material = Material(packed(), "cpu", photos=True)
    course = replace(TINY, photos=4, share=0.5, mixup=0.0, light=0.0, once=0.0, twice=0.0)
    said = torch.rand(3, len(material.images), 8, generator=torch.Generator().manual_seed(0))
    epoch = make_epoch(course, material, 5, said)
    rows = rows_of(course, material, torch.Generator().manual_seed(course.seed * 100_003 + 5))
    assert rows.shape == epoch.faces.shape[:2] == (len(packed().learnable()) // 12, 16)
    assert (rows[:, :12] < material.labelled).all()
    assert (rows[:, 12:] >= material.labelled).all()
    assert len(rows[:, 12:].unique()) == min(40, rows[:, 12:].numel())
    plain = material.images[rows].float() / 255
    off = torch.minimum((epoch.faces - plain).abs().amax((2, 3, 4)), (epoch.faces - plain.flip(4)).abs().amax((2, 3, 4)))
    assert off.max() < 0.5 * STEP / 255 + 0.002
    assert torch.equal(epoch.votes, material.votes[rows[:, :12]])
    assert epoch.taught is not None
    assert torch.equal(epoch.taught, said[5 % 3][rows])
    mixed = make_epoch(replace(course, mixup=0.4), material, 5, said)
    own = (mixed.faces.float() - epoch.faces.float()).abs().amax((2, 3, 4)) < 0.001  # mixed with itself, or hardly
    assert not own.all()
    assert mixed.taught is not None
    assert torch.allclose(mixed.taught[own], epoch.taught[own], atol=0.01)
    torch.testing.assert_close(mixed.votes.sum(2), torch.ones(rows.shape[0], 12))


def test_what_is_learned_comes_back_and_repeats(tmp_path: Path) -> None:
    """Two networks side by side learn what each learns alone; the file holds the averaged network, its kernels in fp16;
    joined files too; a third goes on from there."""
    wide = replace(TINY, name="wide", widths=(8, 16, 24))
    lanes, events = trained(tmp_path, TINY, wide)
    assert [event["tiny"]["epoch"] for event in events if event["event"] == "learned"] == [2]
    learned = lanes["tiny"].learner.mean
    alone, _ = trained(tmp_path, replace(TINY, name="again"))
    net = restore(tmp_path / "tiny.safetensors", TINY, "cpu")
    for name, tensor in learned.state_dict().items():
        assert torch.equal(tensor, alone["again"].learner.mean.state_dict()[name]), name
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert np.abs(scores(net, TINY, FACES, "cpu") - scores(learned, TINY, FACES, "cpu", 50)).max() < 0.01
    files = {name: tmp_path / f"{name}.safetensors" for name in ("tiny", "wide")}
    join(files, tmp_path / "both.safetensors")
    both = restore(tmp_path / "both.safetensors", TINY, "cpu", "tiny/")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), both.state_dict().values(), strict=True))
    assert read_course(tmp_path / "both.safetensors", "wide") == (wide, {"epochs": 2})
    assert isinstance(both, StudentInTraining)
    assert both.deployed().config == StudentConfig(48, (8, 16, 16), (1, 1, 1))
    further, _ = trained(tmp_path, TINY, start=(tmp_path / "both.safetensors", "tiny/"), rate=1e-6)
    for name, tensor in further["tiny"].learner.net.named_parameters():
        torch.testing.assert_close(tensor, net.get_parameter(name), rtol=1e-3, atol=1e-4)


def test_teachers_answers_teach(tmp_path: Path) -> None:
    """A student that hears its teachers alone, who always say the same, says it too."""
    course = replace(TINY, photos=4, share=1.0, batch=12, lr=0.01, average=0.5)
    said = torch.zeros(2, len(packed().learnable()) + 40, 8)
    said[:, :, 5] = 1
    lanes, _ = trained(tmp_path, course, epochs=8, answers=said)
    assert (scores(lanes["tiny"].learner.mean, course, FACES, "cpu").argmax(1) == 5).mean() > 0.9


def test_a_face_recognition_network_learns_too(tmp_path: Path) -> None:
    """Its stages at their paces: the first ones hardly move."""
    from lab.gpu.identity import BLOCKS, IdentityBody

    course = Course("small", "identity", size=112, batch=16, by_depth=0.1, drop=0.1)
    material = Material(packed(), "cpu", photos=False)
    learner = Learner(course, material, tmp_path / "no file", start=_saved(course, tmp_path))
    before = {name: tensor.detach().clone() for name, tensor in learner.net.named_parameters()}
    learner.take(make_epoch(course, material, 0))
    learner.step(1.0)
    assert isinstance(learner.net.body, IdentityBody)
    assert len(learner.net.body.depths()) == len(BLOCKS) + 1
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in learner.net.named_parameters()}
    assert 0 < moved["body.stem.conv.weight"] < 1e-4 < moved["head.weight"] < 1e-2


def _saved(course: Course, tmp_path: Path) -> tuple[Path, str]:
    torch.manual_seed(0)
    save(course.network(), course, tmp_path / "start.safetensors", {})
    return tmp_path / "start.safetensors", ""


def test_the_clock_ends_a_training(tmp_path: Path) -> None:
    rates = []
    lanes, events = trained(tmp_path, TINY, seconds=3, epochs=None, every=lambda lanes, done: rates.append(done))
    assert rates[0] < 0.5 < rates[-1] < 1
    assert rates == sorted(rates)
    assert lanes["tiny"].learner.updates == len(rates) == events[-1]["rounds"]
    assert [event["reason"] for event in events if event["event"] == "no graph"] == ["no GPU"]


def test_a_network_that_diverges_is_left_behind(tmp_path: Path) -> None:
    said = torch.full((1, len(packed().learnable()) + 40, 8), torch.nan)
    course = replace(TINY, share=0.5, photos=4)
    lanes, events = trained(tmp_path, course, answers=said)
    assert lanes["tiny"].broken
    assert [event["epoch"] for event in events if event["event"] == "diverged"] == [1]


def test_a_short_call_tries_every_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.gpu.smoke.STEPS", 2)
    events: list[dict[str, Any]] = []
    student = replace(TINY, name="student", photos=4, share=0.5)
    material = Material(packed(), "cpu", photos=True)
    smoke([TINY], [student], material, tmp_path, time.time() + 5, lambda event, **values: events.append(values))
    tried = {event["name"]: event for event in events if "eager_ms" in event}
    assert set(tried) == {"tiny", "student"}
    assert all(np.isfinite(event["eager_loss"]) for event in tried.values())


def test_kept_in_8_bits_a_network_says_nearly_the_same(tmp_path: Path) -> None:
    course = replace(TINY, widths=(16, 32, 64))
    _saved(course, tmp_path)
    keep(tmp_path / "start.safetensors", tmp_path / "kept.safetensors")
    before, after = (restore(tmp_path / f"{name}.safetensors", course, "cpu") for name in ("start", "kept"))
    ours, theirs = (scores(net, course, FACES, "cpu") for net in (before, after))
    assert 0 < np.abs(ours - theirs).max() < 0.02
    assert (tmp_path / "kept.safetensors").stat().st_size < 0.7 * (tmp_path / "start.safetensors").stat().st_size
    assert read_course(tmp_path / "kept.safetensors") == (course, {})


def test_files_of_earlier_runs_can_be_read() -> None:
    root = Path(__file__).parents[1] / "weights"
    course, _ = read_course(root / "window-students.safetensors", "s66b")
    assert course.widths == COURSES["s66b"].widths
    teacher, _ = read_course(root / "teacher-id131.safetensors")
    assert teacher.body == "identity"
    assert restore(root / "teacher-id131.safetensors", teacher, "cpu").head.weight.std() > 0


@pytest.mark.parametrize("prior", [0.25, 0.5])
def test_a_stronger_prior_lifts_what_is_rare(prior: float) -> None:
    said, log_prior = torch.tensor([[0.6, 0.4]]), torch.tensor([0.9, 0.1]).log()
    out = retilted(said, log_prior, prior)
    torch.testing.assert_close(out.sum(1), torch.ones(1))
    assert (float(out[0, 1]) > 0.41) == (prior > 0.25)
