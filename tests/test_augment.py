"""What happens to faces while a student learns: views, mirrored or not, light, erased patches, mixup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import LABELS, QUICK, STILL, TINY
from torch import Tensor

from fer_edge.converters.crops import augmented
from fer_edge.converters.student.augment import Strength, disturb, mirrored, mixup, view, warp
from fer_edge.converters.student.faces import Faces
from fer_edge.converters.student.plan import plan_training
from fer_edge.converters.student.recipe import Recipe, TrainingData, TrainingPlan
from fer_edge.converters.student.run import Run
from fer_edge.converters.student.sentences import descriptions, phrases, stored_sentences


def test_the_first_view_is_the_face_and_mirrored_it_is_its_mirror_image() -> None:
    """To the bit after rounding: teachers are asked about these pictures, and students deployed on them."""
    faces = torch.from_numpy(augmented(6, 48, "rgb", 3)).permute(0, 3, 1, 2).float()
    plain = view(6, Strength(), 5, 0)
    for maps, expected in ((plain, faces), (mirrored(plain), faces.flip(-1))):
        assert torch.equal(warp(faces, maps).round(), expected)


def test_a_mirrored_view_is_the_mirror_image_of_the_view() -> None:
    """Whatever the view, and for the chosen faces alone."""
    faces = torch.from_numpy(augmented(6, 48, "gray", 3)).permute(0, 3, 1, 2).float()
    maps = view(6, Strength(), 5, 3)
    given, which = maps.clone(), torch.tensor([True, False, True, True, False, False])
    seen = warp(faces, maps)
    assert not torch.allclose(seen, seen.flip(-1), atol=5)
    torch.testing.assert_close(warp(faces, mirrored(maps)), seen.flip(-1), atol=0.01, rtol=0)
    some = torch.where(which[:, None, None, None], seen.flip(-1), seen)
    torch.testing.assert_close(warp(faces, mirrored(maps, which)), some, atol=0.01, rtol=0)
    assert torch.equal(maps, given)


def test_a_view_is_drawn_from_seed_and_number_alone() -> None:
    torch.manual_seed(0)
    maps = view(50, Strength(), 1, 7)
    torch.manual_seed(1)
    assert maps.shape == (50, 2, 3)
    assert torch.equal(view(50, Strength(), 1, 7), maps)
    assert not torch.allclose(view(50, Strength(), 1, 8), maps, atol=1e-2)
    assert not torch.allclose(view(50, Strength(), 2, 7), maps, atol=1e-2)
    assert len({row.numpy().tobytes() for row in maps}) == 50


def test_views_go_as_far_as_they_are_told() -> None:
    """Without strength a view is the face as it is; each strength alone does what it is named after; none mirrors."""
    torch.testing.assert_close(view(40, STILL, 1, 2), view(40, STILL, 0, 0))
    assert (torch.linalg.det(view(200, Strength(), 1, 2)[:, :, :2]) > 0.5).all()
    turned = view(200, replace(STILL, rotation=20), 1, 2)
    square = turned[:, :, :2]
    torch.testing.assert_close(square @ square.mT, torch.eye(2).expand(200, 2, 2), atol=1e-6, rtol=0)
    angles = torch.asin(square[:, 0, 1]).rad2deg().abs()
    assert 15 < float(angles.max()) <= 20.001
    areas = torch.linalg.det(view(200, replace(STILL, scale=0.2), 1, 2)[:, :, :2]).abs().sqrt()
    assert 1 / 1.2 - 1e-5 <= float(areas.min()) < 0.9 < 1.1 < float(areas.max()) <= 1.2 + 1e-5
    shapes = view(200, replace(STILL, aspect=0.1), 1, 2)[:, :, :2]
    torch.testing.assert_close(torch.linalg.det(shapes).abs(), torch.ones(200))
    assert 1.05 < float(shapes[:, 1, 1].max()) <= 1.1 + 1e-5
    moved = view(200, replace(STILL, shift=0.1), 1, 2)[:, :, 2].abs()
    assert 0.15 < float(moved.max()) <= 0.2  # a picture is 2 wide here
    assert 0.04 < float(view(200, replace(STILL, shear=0.08), 1, 2)[:, 0, 1].abs().max()) <= 0.08 + 1e-6


def test_light_keeps_shape_and_range_and_depends_on_the_generator_alone() -> None:
    faces = torch.rand(32, 1, 48, 48, generator=torch.Generator().manual_seed(9))
    given = faces.clone()

    def lit(strength: Strength, seed: int) -> Tensor:
        torch.rand(3)  # whatever goes on elsewhere
        return disturb(faces, strength, torch.Generator().manual_seed(seed))

    out = lit(Strength(), 0)
    assert out.shape == faces.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert torch.equal(out, lit(Strength(), 0))
    assert not torch.allclose(out, lit(Strength(), 1), atol=0.1)
    assert torch.equal(faces, given)
    torch.testing.assert_close(lit(STILL, 0), faces, atol=1e-5, rtol=1e-5)
    changed = ((lit(replace(STILL, erase=1.0), 0) - faces).abs() > 1e-3).float().mean((1, 2, 3))
    assert 0.01 < float(changed.min()) <= float(changed.max()) < 0.4  # two patches of at most 0.4 x 0.4
    half = ((lit(replace(STILL, erase=0.5), 0) - faces).abs() > 1e-3).flatten(1).any(1).float().mean()
    assert 0.3 < float(half) < 0.95


def test_mixup_shares() -> None:
    partner, share = mixup(500, 0.3, torch.Generator().manual_seed(0))
    assert sorted(partner.tolist()) == list(range(500))
    assert 0.5 <= float(share.min()) < 0.55
    assert 0.99 < float(share.max()) <= 1
    again = mixup(500, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], partner)
    assert torch.equal(again[1], share)
    assert not torch.equal(mixup(500, 0.3, torch.Generator().manual_seed(1))[1], share)
    assert torch.equal(mixup(7, 0, torch.Generator().manual_seed(0))[1], torch.ones(7))


def test_faces_and_their_targets_are_mixed_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A face of brightness v has the votes (v, 1 - v), and so has a mixture of such faces."""
    v = np.linspace(0, 255, 64).astype(np.uint8)
    images = np.broadcast_to(v[:, None, None], (64, 48, 48)).copy()
    targets = np.stack([v / 255, 1 - v / 255], 1).astype(np.float32)
    faces = Faces(images, images, targets, targets.argmax(1))
    data = TrainingData(faces, None, stored_sentences(), descriptions(), phrases(), LABELS[:2])
    run = Run(TrainingPlan(data, TINY, replace(QUICK, mixup=1.0, strength=STILL)), tmp_path)
    seen: list[Tensor] = []
    run.net.register_forward_pre_hook(lambda net, given: seen.append(given[0].mean((1, 2, 3))))
    loss = run._loss

    def watched(feature: Tensor, votes: Tensor, taught: Tensor, generator: torch.Generator) -> Tensor:
        seen.extend([votes, taught])
        return loss(feature, votes, taught, generator)

    monkeypatch.setattr(run, "_loss", watched)
    rows = torch.arange(0, 64, 4)
    said = torch.from_numpy(targets[rows]).flip(-1)
    run._step(rows, view(16, STILL, 0, 0), said, torch.Generator().manual_seed(0))
    brightness, votes, taught = seen
    assert not torch.allclose(brightness, torch.from_numpy(v[rows] / 255).float(), atol=0.05)
    torch.testing.assert_close(votes, torch.stack([brightness, 1 - brightness], 1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(taught, votes.flip(-1), atol=1e-6, rtol=1e-6)


def test_strength_scales_every_disturbance(data: Path) -> None:
    faces = data / "fer2013" / "public_test.npz"
    half, none = (plan_training(faces, (), strength=factor).recipe for factor in (0.5, 0.0))
    assert half.strength == Strength(9.0, 0.1, 0.04, 0.04, 0.04, 0.175, 0.25)
    assert half.mixup == Recipe.mixup / 2
    assert none.strength == STILL
    assert plan_training(faces, (), bf16=True, lr=0.05, batch=64).recipe == Recipe(lr=0.05, batch=64)
