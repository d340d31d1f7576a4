"""From what a user names to a training plan: faces with votes and without, shapes, expressions left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import LABELS, QUICK, SHAPE, TINY

import fer_edge
from fer_edge.converters.student import device
from fer_edge.converters.student.faces import load_faces, load_pictures
from fer_edge.converters.student.network import StudentConfig
from fer_edge.converters.student.plan import plan_training
from fer_edge.converters.student.recipe import Recipe, TrainingPlan
from fer_edge.converters.student.run import Run
from fer_edge.converters.student.teachers import open_teacher


def test_a_plan_with_votes(tables: Path) -> None:
    same = (tables / "votes.npz", (), tables / "votes.npz")
    plan = plan_training(*same, size=32, **SHAPE, keep_twins=True, epochs=4, seed=9)
    assert plan.config == StudentConfig(32, (8, 16, 16), (1, 2, 1))
    assert (plan.recipe.epochs, plan.recipe.seed, plan.recipe.batch) == (4, 9, Recipe().batch)
    faces = plan.data.train
    assert faces.images.shape == (len(faces.images), 32, 32)
    assert len(faces.pictures) == len(faces.images) > 350
    assert np.asarray(faces.pictures).shape[1:] == (48, 48)
    assert faces.targets is not None
    np.testing.assert_allclose(faces.targets.sum(1), 1, atol=1e-6)
    assert plan.data.validation is not None


def test_an_expression_that_is_left_out(tables: Path, tmp_path: Path) -> None:
    """Its faces and its sentences are gone, and its votes count nowhere."""
    whole = plan_training(tables / "votes.npz", (), **SHAPE).data
    same = (tables / "votes.npz", (), tables / "votes.npz")
    less = plan_training(*same, without=("neutral", "fear"), keep_twins=True, **SHAPE).data
    left = ("happiness", "sadness", "anger", "surprise", "disgust", "contempt")
    assert tuple(less.labels) == left
    assert less.train.labels is not None
    assert less.train.targets is not None
    assert whole.train.labels is not None
    assert less.train.targets.shape == (len(less.train.images), 6)
    # Faces that were certainly of one of the two are away, all others keep their label.
    old = {image.tobytes(): k for image, k in zip(whole.train.images, whole.train.labels, strict=True)}
    kept = {image.tobytes(): k for image, k in zip(less.train.images, less.train.labels, strict=True)}
    gone = {LABELS.index("neutral"), LABELS.index("fear")}
    assert not [k for image, k in old.items() if k in gone and image in kept]
    assert all(image in kept and LABELS[k] == left[kept[image]] for image, k in old.items() if k >= 0 and k not in gone)
    assert 50 < len(kept) < len(old) - 100
    assert less.validation is not None
    assert len(less.validation.images) == len(less.train.images)
    run = Run(TrainingPlan(less, TINY, QUICK), tmp_path)
    assert len(run.groups) == 6
    np.testing.assert_array_equal(run.groups[2].numpy(), less.sentences.lookup(less.descriptions["anger"]))


@pytest.mark.parametrize(
    ("features", "native"), [(("AVX2",), False), (("AVX2", "AVX-512", "AVX-512 BF16"), True), ((), False)]
)
def test_bf16_where_the_processor_multiplies_it(
    features: tuple[str, ...], native: bool, tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitated, it takes eleven times as long as float32. What a run was begun in, it goes on in."""
    monkeypatch.setattr(device, "cpu", lambda: ("some processor", features))
    plan = plan_training(tables / "votes.npz", (), **SHAPE)
    assert plan.recipe.bf16 == native
    assert plan_training(tables / "votes.npz", (), **SHAPE, bf16=not native).recipe.bf16 != native
    run = Run(plan, tmp_path)
    assert run.layout == (torch.channels_last if native else torch.contiguous_format)
    run.resume()
    other = TrainingPlan(plan.data, plan.config, replace(plan.recipe, bf16=not native))
    with pytest.raises(fer_edge.ConversionError, match="--bf16"):
        Run(other, tmp_path).resume()


def test_plans_that_are_refused(tables: Path, bundle: Path) -> None:
    votes, known = tables / "votes.npz", (open_teacher(str(bundle)),)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("2 widths and 3 depths", lambda: plan_training(votes, (), widths=(8, 16), depths=(1, 2, 1))),
        ("'joy' is no expression", lambda: plan_training(votes, (), without=("fear", "joy"))),
        ("at least two", lambda: plan_training(votes, (), without=LABELS[1:])),
        ("name one --teacher", lambda: plan_training(tables / "plain.npz", ())),
        ("name one --teacher", lambda: plan_training(tables, ())),
        ("neither a folder of faces nor an npz", lambda: plan_training(Path(__file__), ())),
        ("does not exist", lambda: plan_training(tables / "nowhere.npz", ())),
    ]
    for message, make in cases:
        with pytest.raises(fer_edge.UsageError, match=message) as caught:
            make()
        assert "\n" not in str(caught.value)
    with pytest.raises(fer_edge.ConversionError, match="holds no images"):
        plan_training(tables, known)
    with pytest.raises(fer_edge.ConversionError, match="not a FER"):
        plan_training(votes, (), tables / "plain.npz")


def test_a_folder_of_faces(data: Path, tmp_path: Path) -> None:
    """Pictures of any size and colour, sub-folders too; what is no picture is one error that names it."""
    source = sorted((data / "lfw_expressions" / "fear").iterdir())[:3]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for i, photo in enumerate(source):
        (tmp_path / "in" / ("deep" if i else ".") / photo.name).write_bytes(photo.read_bytes())
    (tmp_path / "in" / "deep" / f"._{source[0].name}").write_bytes(bytes(120))  # macOS' double is no picture
    faces = load_pictures(tmp_path / "in")
    assert faces.images.shape == (3, 48, 48)
    assert (faces.targets, faces.labels) == (None, None)
    assert {Path(str(p)).name for p in faces.pictures} == {p.name for p in source}
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(fer_edge.ConversionError, match=r"broken\.jpg"):
        load_pictures(tmp_path / "in")
    (tmp_path / "notes.txt").write_text("hello")
    for name in ("notes.txt", "gone"):
        with pytest.raises(fer_edge.ConversionError, match=name):
            load_pictures(tmp_path / name)


def test_a_damaged_npz_is_one_clear_error(data: Path, tmp_path: Path) -> None:
    """Cut at many places, it is never an exception of zipfile or of a decompressor."""
    raw = (data / "fer2013" / "public_test.npz").read_bytes()
    for share in (0.0, 0.3, 0.999):
        (tmp_path / "cut.npz").write_bytes(raw[: int(share * len(raw))])
        for load in (lambda file: load_faces(file, LABELS), load_pictures):
            with pytest.raises(fer_edge.ConversionError, match=r"cut\.npz"):
                load(tmp_path / "cut.npz")
    (tmp_path / "bent.npz").write_bytes(raw[:5000] + bytes(200) + raw[5200:])
    with pytest.raises(fer_edge.ConversionError, match=r"bent\.npz"):
        load_pictures(tmp_path / "bent.npz")
    np.savez(tmp_path / "scalar.npz", images=np.uint8(3))
    with pytest.raises(fer_edge.ConversionError, match="images must be"):
        load_pictures(tmp_path / "scalar.npz")


def test_faces_of_another_type_are_not_taken_for_ready(tmp_path: Path) -> None:
    np.savez(tmp_path / "floats.npz", images=np.random.default_rng(0).random((3, 48, 48)))
    with pytest.raises(fer_edge.ConversionError, match="cannot be read"):
        load_pictures(tmp_path / "floats.npz")
