"""Teachers: what they answer, what is kept of it, and a student that moves into their space, from a CLIP to a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import LABELS, QUICK, STUDENT, TINY, Double, softmax, unit
from numpy.typing import NDArray
from torch import Tensor

import fer_edge
from fer_edge.bundle import open_bundle
from fer_edge.converters.clip import load_clip
from fer_edge.converters.crops import augmented
from fer_edge.converters.graph import class_constants
from fer_edge.converters.student import teachers as teaching
from fer_edge.converters.student.augment import Strength, mirrored, view
from fer_edge.converters.student.network import load_student
from fer_edge.converters.student.recipe import EpochReport, TrainingData, TrainingPlan
from fer_edge.converters.student.run import Run
from fer_edge.converters.student.sentences import descriptions, stored_sentences
from fer_edge.converters.student.teachers import Teacher, ask, mean_scores, open_teacher
from fer_edge.converters.student.train import train_student
from fer_edge.converters.text import clip_text_encoder
from fer_edge.labels import LabelSet


@pytest.fixture(params=["bundle", "student", "clip"])
def teacher(request: pytest.FixtureRequest, bundle: Path, clip: Path) -> Teacher:
    """Each kind of teacher."""
    if request.param == "clip":
        return open_teacher(str(clip), clip.parent / "head.pth")
    return open_teacher(str(bundle if request.param == "bundle" else STUDENT))


def own_similarities(kind: str, pictures: NDArray[np.uint8], bundle: Path, clip: Path) -> Double:
    """Cosines between a teacher's features of pictures, by its own code and not through the trainer's: the space of a CLIP
    with its head may be turned, its cosines may not."""
    with torch.inference_mode():
        if kind == "clip":
            model = load_clip(str(clip)).model
            head = torch.load(clip.parent / "head.pth")["module.projection_head.mlp.weight"]
            pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
            seen = model.vision_model(pixel_values=pixels).pooler_output
            features = (model.visual_projection(seen) @ head.T).numpy()
        elif kind == "student":
            features = load_student(STUDENT).student(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255).numpy()
        else:
            with fer_edge.load(bundle) as clf:
                features = clf.features(pictures)
    rows = unit(features)
    return rows @ rows.T


def test_a_teacher_answers_with_its_own_features(
    teacher: Teacher, bundle: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Of the pictures as they are, mirrored, and turned, in whatever portions."""
    pictures = augmented(12, teacher.size, teacher.color, 3)
    kind = request.node.callspec.params["teacher"]
    told: list[float] = []
    plain = ask(teacher, pictures, view(12, Strength(), 1, 0), told.append)
    assert told == [1.0]
    assert plain.shape == (12, teacher.r.shape[0])
    np.testing.assert_allclose(np.linalg.norm(plain, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(plain, unit(teacher.features(pictures)), atol=1e-5)
    np.testing.assert_allclose(plain @ plain.T, own_similarities(kind, pictures, bundle, clip), atol=1e-4)
    other = ask(teacher, pictures, mirrored(view(12, Strength(), 1, 0)))
    flipped = np.ascontiguousarray(pictures[:, :, ::-1])
    np.testing.assert_allclose(other, unit(teacher.features(flipped)), atol=1e-5)
    assert np.abs(other - plain).max() > 1e-3
    maps = view(12, Strength(), 1, 2)
    turned = ask(teacher, pictures, maps)
    np.testing.assert_allclose(ask(teacher, pictures[7:8], maps[7:8]), turned[7:8], atol=1e-4)
    monkeypatch.setattr(teaching, "CHUNK", 5)
    told.clear()
    np.testing.assert_allclose(ask(teacher, pictures, maps, told.append), turned, atol=1e-4)
    assert told == [5 / 12, 10 / 12, 1.0]


def test_a_teachers_text_side(teacher: Teacher, bundle: Path, clip: Path, request: pytest.FixtureRequest) -> None:
    """Its R takes its text encoder's vectors to its constants, and its default label set comes first."""
    kind = request.node.callspec.params["teacher"]
    if kind == "clip":
        encoder = clip_text_encoder(load_clip(str(clip)))
        prompts, encode = "a photo of a face with an expression of fear.", encoder.encode
        assert (teacher.text.kind, teacher.text.sha256) == ("clip", encoder.sha256)
        expected = class_constants([[prompts]], encode, teacher.r)[0]
        assert (teacher.sets[0].name, teacher.size, teacher.color) == ("rafdb7", 32, "rgb")
    else:
        table = stored_sentences()
        assert teacher.text == table.text
        expected = class_constants([descriptions()["fear"]], table.lookup, teacher.r)[0]
        assert (teacher.sets[0].name, teacher.size, teacher.color) == ("ferplus8", 48, "gray")
    got, scale = teacher.constants(["anger", "fear"])
    np.testing.assert_allclose(got[1], expected, atol=2e-3)
    assert scale == pytest.approx(teacher.sets[0].logit_scale / teacher.sets[0].temperature)
    assert len(teacher.sha256) >= 64


def test_only_what_a_label_set_holds_can_be_asked_for(bundle: Path) -> None:
    known = open_teacher(str(bundle))
    with pytest.raises(fer_edge.ConversionError, match=r"no label set with anger, boredom"):
        known.constants(["anger", "boredom"])
    spare = LabelSet("spare", ("boredom", "anger"), np.eye(2, 256, dtype=np.float32), 3.0, 1.0, (("x",), ("y",)))
    more = replace(known, sets=(*known.sets, spare))
    got, scale = more.constants(["anger", "boredom"])
    np.testing.assert_array_equal(got, np.eye(2, 256)[::-1])
    assert scale == 3.0
    np.testing.assert_array_equal(more.constants(["anger"])[0], known.sets[0].constants[[3]])
    with pytest.raises(fer_edge.ConversionError, match="no label set"):
        more.constants(["boredom", "fear"])  # each stands in a set, but in none together


def test_the_sets_of_a_bundle_begin_with_its_default(bundle: Path) -> None:
    """Whichever order the manifest has; the digest, and so the run, is another then."""
    from fer_edge.bundle import write_manifest

    manifest = open_bundle(bundle).manifest
    before = open_teacher(str(bundle))
    write_manifest(bundle, replace(manifest, label_sets=manifest.label_sets[::-1]))
    after = open_teacher(str(bundle))
    assert before.sets[0].name == after.sets[0].name == manifest.default_labels == "ferplus8"
    assert {s.name for s in after.sets} == {s.name for s in before.sets}
    assert after.sha256 != before.sha256


def test_a_bundle_teaches_in_its_highest_precision(student_bundle: Path, bundle: Path) -> None:
    """Whatever it would answer with on a device; the embedded one has nothing but int8."""
    pictures = augmented(4, 48, "gray", 3)
    known = open_teacher(str(student_bundle))
    assert known.name.endswith(" fp32)")
    np.testing.assert_allclose(known.features(pictures), open_teacher(str(STUDENT)).features(pictures), rtol=1e-3, atol=1e-3)
    assert open_teacher(str(bundle)).name.endswith(" int8)")


def test_teachers_that_are_refused(bundle: Path, clip: Path, tmp_path: Path) -> None:
    head = clip.parent / "head.pth"
    with pytest.raises(fer_edge.ConversionError, match="leave the projection out"):
        open_teacher(str(bundle), head)
    with pytest.raises(fer_edge.UsageError, match="has its own projection"):
        open_teacher(str(STUDENT), head)
    with pytest.raises(fer_edge.ConversionError, match="does not exist"):
        open_teacher(str(tmp_path / "gone"))
    pictures = augmented(3, 48, "gray", 0)
    known = open_teacher(str(bundle))

    def broken(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        features = known.features(images)
        features[1, 5] = np.nan
        return features

    with pytest.raises(fer_edge.ConversionError, match="NaN, Inf or nothing but zeros"):
        ask(replace(known, features=broken), pictures, view(3, Strength(), 0, 0))


def test_a_teacher_without_an_answer(bundle: Path) -> None:
    """A feature of zeros has no direction: learned from, it would be NaN."""
    known = open_teacher(str(bundle))
    mute = replace(known, features=lambda images: np.zeros((len(images), 256), np.float32))
    with pytest.raises(fer_edge.ConversionError, match="nothing but zeros"):
        ask(mute, augmented(3, 48, "gray", 0), view(3, Strength(), 0, 0))


def test_mean_scores_are_the_formula(bundle: Path, clip: Path) -> None:
    """mean over teachers of softmax(s <t/|t|, c_k> / temperature), each with its own numbers, in the order asked for."""
    first, second = open_teacher(str(bundle)), open_teacher(str(clip), clip.parent / "head.pth")
    first = replace(first, sets=tuple(replace(s, logit_scale=7.5) for s in first.sets))
    wanted = ("fear", "happiness", "anger")
    answers, expected = [], []
    for known in (first, second):
        said = ask(known, augmented(6, known.size, known.color, 3), view(6, Strength(), 0, 0))
        answers.append((known, said))
        labels = known.sets[0]
        c = np.stack([labels.constants[labels.labels.index(label)] for label in wanted]).astype(np.float64)
        expected.append(softmax(labels.logit_scale / labels.temperature * said.astype(np.float64) @ c.T))
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    got = mean_scores(answers, wanted)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, (expected[0] + expected[1]) / 2, atol=1e-4)
    np.testing.assert_allclose(mean_scores(answers[:1], wanted), expected[0], atol=1e-5)


def said_of(known: Teacher, data: TrainingData, number: int) -> NDArray[np.float32]:
    """Scores of a view and of its mirror image, averaged."""
    maps = view(len(data.train.images), Strength(), QUICK.seed, number)
    sides = [(known, ask(known, data.train.pictures, side)) for side in (maps, mirrored(maps))]
    return (mean_scores(sides[:1], LABELS) + mean_scores(sides[1:], LABELS)) / 2


def counting(known: Teacher) -> tuple[Teacher, list[int]]:
    """The same teacher, and how many pictures it was shown at a time."""
    shown: list[int] = []

    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        shown.append(len(images))
        return known.features(images)

    return replace(known, features=features), shown


def test_a_view_is_asked_for_once(few: TrainingData, bundle: Path, tmp_path: Path) -> None:
    """Not again when it comes round, nor after a resume; what is kept is what the teachers say of that very view and of its
    mirror image."""
    known, shown = counting(open_teacher(str(bundle)))
    plan = TrainingPlan(few, TINY, replace(QUICK, epochs=5, views=2), (known,))

    def stop(report: EpochReport) -> None:
        if report.epoch == 3:
            raise KeyboardInterrupt

    fractions: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        train_student(plan, tmp_path, stop, fractions.append)
    assert fractions == sorted(fractions)  # asking counts too: it takes most of the time
    assert fractions[0] < 0.2 < 0.55 < fractions[-1] <= 0.6
    assert sum(shown) == 2 * 2 * len(few.train.images)
    for number in (1, 2):
        kept = np.load(tmp_path / f"view-{number}.npy")
        np.testing.assert_allclose(kept, said_of(known, few, number), atol=1e-3)
    shown.clear()
    fractions.clear()
    made = train_student(plan, tmp_path, lambda r: None, fractions.append)
    assert shown == []
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert sorted(file.name for file in tmp_path.glob("view-*")) == ["view-1.npy", "view-2.npy"]
    assert made.label_sets == ()  # votes were there: a space of its own
    assert made.text == few.sentences.text
    assert [t["sha256"] for t in made.meta["teachers"]] == [known.sha256]
    other = replace(plan, teachers=())
    with pytest.raises(fer_edge.ConversionError, match="another training run"):
        train_student(other, tmp_path, lambda r: None)


def test_teachers_and_student_see_the_same_view(few: TrainingData, bundle: Path, tmp_path: Path) -> None:
    """Every face of a batch comes with its own map of this epoch's view, mirrored or not, and with what the teachers said
    of it there."""
    known = open_teacher(str(bundle))
    run = Run(TrainingPlan(few, TINY, QUICK, (known,)), tmp_path)
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    step = run._step

    def watched(rows: Tensor, maps: Tensor, taught: Tensor, generator: torch.Generator) -> float:
        batches.append((rows, maps, taught))
        return step(rows, maps, taught, generator)

    run._step = watched  # type: ignore[method-assign, assignment]
    run.run_epoch(lambda done: None)
    every = torch.cat([rows for rows, _, _ in batches])
    assert sorted(every.tolist()) == list(range(160)) != every.tolist()
    maps = view(160, Strength(), QUICK.seed, 1)
    said = torch.from_numpy(said_of(known, few, 1))
    turned = 0
    for rows, seen, taught in batches:
        sides = (seen == mirrored(maps[rows])).flatten(1).all(1)
        assert torch.equal(seen, mirrored(maps[rows], sides))
        turned += int(sides.sum())
        torch.testing.assert_close(taught, said[rows], atol=1e-3, rtol=0)  # kept in fp16
    assert 50 < turned < 110
