"""Faces spoilt as cameras spoil them: each way does what it is named after, to the faces it was drawn for, and to no
others."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fer_edge.converters.crops import augmented
from fer_edge.converters.student.augment import warp
from lab.gpu.robustness import WAYS as TEST_WAYS
from lab.gpu.spoil import WAYS, Spoiling, fate, jpeg

COUNT = 64


def faces() -> Tensor:
    return torch.from_numpy(augmented(COUNT, 48, "gray", 3)).permute(0, 3, 1, 2).float() / 255


def spoilt(way: str, **limits: object) -> Tensor:
    luck = fate(COUNT, Spoiling(**limits).limited(way), 5, 2)  # type: ignore[arg-type]
    return luck.spoilt(warp(faces(), luck.moved(torch.eye(2, 3).repeat(COUNT, 1, 1))))


def sharpness(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours, per face."""
    return images.diff(dim=3).abs().mean((1, 2, 3)) + images.diff(dim=2).abs().mean((1, 2, 3))


def test_what_happens_is_drawn_from_seed_and_number_alone() -> None:
    torch.manual_seed(0)
    first = fate(COUNT, Spoiling(), 1, 7)
    torch.manual_seed(1)
    again, other = fate(COUNT, Spoiling(), 1, 7), fate(COUNT, Spoiling(), 1, 8)
    assert torch.equal(first.spoilt(faces()), again.spoilt(faces()))
    assert not torch.equal(first.chosen, other.chosen)
    assert not torch.equal(first.spoilt(faces()), other.spoilt(faces()))


def test_the_shares_of_faces_with_no_one_and_two_ways_are_those_asked_for() -> None:
    luck = fate(20_000, Spoiling(once=0.3, twice=0.2), 1, 1)
    shares = luck.chosen.sum(1).bincount(minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.015, rtol=0)
    assert (luck.chosen.float().mean(0) > 0.03).all(), "a way is never chosen"


def test_faces_that_suffer_nothing_stay_as_they_are_and_the_given_ones_are_not_changed() -> None:
    given, luck = faces(), fate(COUNT, Spoiling(), 1, 1)
    maps = torch.eye(2, 3).repeat(COUNT, 1, 1)
    out, moved = luck.spoilt(given), luck.moved(maps)
    assert torch.equal(given, faces())
    still = ~luck.chosen[:, 2:].any(1)
    assert torch.equal(out[still], given[still])
    assert float((out[~still] != given[~still]).flatten(1).any(1).float().mean()) > 0.5
    unmoved = ~luck.chosen[:, :2].any(1)
    assert torch.equal(moved[unmoved], maps[unmoved])
    assert (moved[~unmoved] != maps[~unmoved]).flatten(1).any(1).all()


@pytest.mark.parametrize("way", WAYS)
def test_every_way_changes_faces_within_their_range(way: str) -> None:
    out = spoilt(way)
    assert out.shape == (COUNT, 1, 48, 48)
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert float((out - faces()).abs().mean((1, 2, 3)).median()) > 0.005


def test_each_way_does_what_it_is_named_after() -> None:
    """A blurred or small face is smoother, a noisy one rougher, a dark one darker; a hidden one is the same outside of
    the place; a turned one is turned as far as asked."""
    sharp = sharpness(faces())
    assert (sharpness(spoilt("blur", blur=(1.5, 2.0))) < 0.8 * sharp).all()
    assert (sharpness(spoilt("small", small=(12, 16))) < 0.8 * sharp).all()
    assert (sharpness(spoilt("noise", noise=(30.0, 40.0))) > 1.2 * sharp).float().mean() > 0.9
    dark = spoilt("light", exposure=(0.1, 0.2)).mean((1, 2, 3))
    assert (dark < faces().mean((1, 2, 3))).float().mean() > 0.8
    same = ((spoilt("hide") - faces()).abs() < 0.003).float().mean((1, 2, 3))
    assert 0.3 < float(same.min()) < float(same.max()) < 0.99
    turned = fate(500, Spoiling(turn=40.0).limited("turn"), 1, 1).moved(torch.eye(2, 3).repeat(500, 1, 1))
    angles = torch.asin(turned[:, 1, 0]).rad2deg()
    assert 35 < float(angles.max()) <= 40.001
    assert -40.001 <= float(angles.min()) < -35


def test_a_turn_comes_after_the_view() -> None:
    """What a teacher sees of a face and what a student sees of it differ by the turn alone."""
    luck = fate(COUNT, Spoiling().limited("turn"), 1, 1)
    maps = torch.tensor([[0.9, 0.05, 0.1], [-0.05, 0.9, -0.1]]).repeat(COUNT, 1, 1)
    alone = luck.moved(torch.eye(2, 3).repeat(COUNT, 1, 1))
    inner = lambda images: images[:, :, 12:36, 12:36]  # noqa: E731
    smooth = torch.nn.functional.avg_pool2d(faces(), 7, 1, 3, count_include_pad=False)
    at_once, in_turn = inner(warp(smooth, luck.moved(maps))), inner(warp(warp(smooth, maps), alone))
    assert float((at_once - in_turn).abs().mean()) < 0.01
    assert float((at_once - inner(warp(smooth, maps))).abs().mean()) > 0.03


@pytest.mark.parametrize("quality", [10, 20, 50, 60])
def test_jpeg_is_pillows(quality: int) -> None:
    given = faces()[:8]
    mine = (jpeg(given, torch.full((8,), float(quality))) * 255).round().to(torch.uint8).numpy()[:, 0]
    for face, out in zip((given * 255).round().to(torch.uint8).numpy()[:, 0], mine, strict=True):
        file = io.BytesIO()
        Image.fromarray(face).save(file, "JPEG", quality=quality)
        theirs = np.asarray(Image.open(file)).astype(int)
        assert np.abs(theirs - out).mean() < 0.5, "another table, scale or transform"
        assert np.abs(theirs - face).mean() > 1


def test_the_ways_of_testing_are_repeatable_and_leave_faces_alone() -> None:
    given = augmented(8, 48, "gray", 3)[..., 0]
    before = given.copy()
    for name, way in TEST_WAYS.items():
        out = way(given)
        assert out.shape == given.shape, name
        assert out.dtype == np.uint8, name
        assert np.array_equal(out, way(given)), name
        assert (out != given).mean() > 0.1, name
    assert np.array_equal(given, before)
    assert len(TEST_WAYS) == 8
