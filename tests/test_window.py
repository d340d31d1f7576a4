"""A short window on a GPU, tried on what there is: faces that travel, a training by the clock, networks that come back."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from fer_edge.converters.crops import augmented
from fer_edge.converters.student.network import StudentConfig, StudentInTraining
from lab.gpu.course import Clock, Course, Learner, Material, batches, learn, restore, retilted, scores
from lab.gpu.pack import STEP, Packed, expand, held_out, pack_photos, read_identity, shrink, squeeze, unpack_photos
from lab.gpu.window import join

TINY = Course("tiny", widths=(8, 16, 16), depths=(1, 1, 1), batch=16, lr=0.02)
FACES = augmented(72, 48, "gray", 3)[..., 0]


def packed() -> Packed:
    targets = np.eye(8, dtype=np.float32)[np.arange(72) % 8]
    some = np.arange(72) % 9 == 0
    labels, twin = targets.argmax(1), ~some & (np.arange(72) % 7 == 0)
    return Packed(FACES, targets, labels, some, twin, FACES[:16], labels[:16], FACES[:40])


def trained(
    tmp_path: Path, course: Course, seconds: float = 60, epochs: int | None = 2, **more: Any
) -> tuple[Learner, list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []

    def say(event: str, **values: Any) -> None:
        events.append({"event": event, **values})

    clock = Clock(time.time() + seconds, epochs, 0.01)
    return learn(course, packed(), tmp_path, clock, say, tmp_path / f"{course.name}.safetensors", **more), events


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


def test_an_epoch_is_drawn_from_its_seed_and_number_and_students_see_every_photo_in_turn() -> None:
    course = replace(TINY, photos=4, share=0.5)
    material = Material(packed(), "cpu", photos=True)
    first, again, other = (list(batches(course, material, epoch, 3)) for epoch in (1, 1, 2))
    for (rows, faces, _), (rows2, faces2, _) in zip(first, again, strict=True):
        assert torch.equal(rows, rows2)
        assert torch.equal(faces, faces2)
        assert (rows[:12] < material.labelled).all()
        assert (rows[12:] >= material.labelled).all()
    assert not torch.equal(first[0][1], other[0][1])


def test_what_is_learned_comes_back_and_repeats(tmp_path: Path) -> None:
    """Two epochs, twice: the same weights; the file holds the averaged network, its kernels in fp16; joined files too."""
    learner, events = trained(tmp_path, TINY)
    assert [event["epoch"] for event in events if event["event"] == "epoch"] == [1, 2]
    again, _ = trained(tmp_path, replace(TINY, name="again"))
    net = restore(tmp_path / "tiny.safetensors", TINY, "cpu")
    for name, tensor in learner.mean.state_dict().items():
        assert torch.equal(tensor, again.mean.state_dict()[name]), name
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert np.abs(scores(net, TINY, FACES, "cpu") - scores(learner.mean, TINY, FACES, "cpu")).max() < 0.01
    files = {name: tmp_path / f"{name}.safetensors" for name in ("tiny", "again")}
    join(files, tmp_path / "both.safetensors")
    both = restore(tmp_path / "both.safetensors", TINY, "cpu", "tiny/")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), both.state_dict().values(), strict=True))
    with safe_open(tmp_path / "both.safetensors", framework="pt") as file:
        assert json.loads(json.loads(file.metadata()["again"])["course"])["name"] == "again"
    assert isinstance(both, StudentInTraining)
    assert both.deployed().config == StudentConfig(48, (8, 16, 16), (1, 1, 1))


def test_teachers_answers_teach(tmp_path: Path) -> None:
    """A student that hears its teachers alone, who always say the same, says it too."""
    course = replace(TINY, photos=4, share=1.0, batch=12, lr=0.1, average=0.5)
    rows = len(packed().learnable()) + 40
    said = np.zeros((2, rows, 8), np.float16)
    said[:, :, 5] = 1
    learner, _ = trained(tmp_path, course, epochs=8, answers=said)
    assert (scores(learner.mean, course, FACES, "cpu").argmax(1) == 5).mean() > 0.9


def test_the_clock_ends_a_training_and_its_network_is_written(tmp_path: Path) -> None:
    course = replace(TINY, most=100_000)
    began = time.time()
    _, events = trained(tmp_path, course, seconds=12, epochs=None)
    assert time.time() - began < 30
    plan = next(event for event in events if event["event"] == "plan")
    assert 1 <= plan["epochs"] <= max(1, plan["affordable"])
    assert (tmp_path / "tiny.safetensors").exists()


@pytest.mark.parametrize("prior", [0.25, 0.5])
def test_a_stronger_prior_lifts_what_is_rare(prior: float) -> None:
    said, log_prior = torch.tensor([[0.6, 0.4]]), torch.tensor([0.9, 0.1]).log()
    out = retilted(said, log_prior, prior)
    torch.testing.assert_close(out.sum(1), torch.ones(1))
    assert (float(out[0, 1]) > 0.41) == (prior > 0.25)
