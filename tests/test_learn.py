"""What a student learns from: views of faces, votes, teachers, sentences; and the whole path from a CLIP to a bundle."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fer_edge.benchmarks.random_clip import write_clip, write_head
from fer_edge.converters.convert import Plan, convert
from fer_edge.converters.crops import augmented
from fer_edge.converters.graph import class_constants, fold
from fer_edge.converters.learn import teachers as teaching
from fer_edge.converters.learn.augment import Strength, disturb, mirrored, mixup, view, warp
from fer_edge.converters.learn.faces import Faces, load_faces, load_pictures
from fer_edge.converters.learn.figures import HELD_OUT
from fer_edge.converters.learn.language import TextRecipe, constants, default_constants, draw, fit_text_projection
from fer_edge.converters.learn.plan import plan_training
from fer_edge.converters.learn.recipe import EpochReport, Recipe, TrainingData, TrainingPlan, war_uar
from fer_edge.converters.learn.run import Run, unit_features
from fer_edge.converters.learn.sentences import TEMPLATES, descriptions, phrases, stored_sentences
from fer_edge.converters.learn.student import StudentCheckpoint, StudentConfig, StudentInTraining, load_student, save_student
from fer_edge.converters.learn.teachers import Teacher, ask, mean_scores, open_teacher
from fer_edge.converters.learn.train import train_student
from fer_edge.converters.sources import load_clip
from fer_edge.converters.text import clip_text_encoder
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import fer_edge
from fer_edge.bundle import label_set, open_bundle, text_projection
from fer_edge.cli import main
from fer_edge.image import to_input
from fer_edge.labels import LABEL_SETS, LabelSet, read_prompt_file
from fer_edge.manifest import TextEncoderRef

LABELS = LABEL_SETS["ferplus8"]
LEARN = Path(fer_edge.__file__).parent.parent / "converters" / "learn"
STUDENT = LEARN / "student48.safetensors"
SMALL = {"dim": 32, "width": 48, "layers": 2, "heads": 4, "patch": 8, "image": 32}
TINY = StudentConfig(size=48, widths=(8, 16, 16), depths=(1, 2, 1), feature_dim=32)
QUICK = Recipe(
    epochs=1,
    batch=16,
    lr=0.02,
    warmup_epochs=0.5,
    average=0.8,
    bf16=False,
    text=TextRecipe(steps=20, batch=64, drawn=(1, 4)),
)
STILL = Strength(rotation=0, scale=0, aspect=0, shift=0, shear=0, light=0, erase=0)
SHAPE: dict[str, Any] = {"widths": (8, 16, 16), "depths": (1, 2, 1)}
FP32_OPENVINO: dict[str, Any] = {"runtimes": ("openvino",), "precisions": ("fp32",)}

Double = NDArray[np.float64]


def unit(rows: NDArray[Any]) -> Double:
    """Rows of length 1, in float64."""
    wide = np.asarray(rows, dtype=np.float64)
    return wide / np.sqrt((wide * wide).sum(-1, keepdims=True))


def softmax(logits: Double) -> Double:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


# Views, light, mixup


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


# Learning from votes


@pytest.fixture(scope="module")
def few(data: Path) -> TrainingData:
    """160 faces with votes."""
    faces = load_faces(data / "fer2013" / "public_test.npz", LABELS)
    assert faces.targets is not None
    assert faces.labels is not None
    part = Faces(faces.images[:160], faces.images[:160], faces.targets[:160], faces.labels[:160])
    return TrainingData(part, None, stored_sentences(), descriptions(), phrases(), LABELS)


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
    assert float(loss) == pytest.approx(expected, rel=1e-5)


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
        assert not list(work.glob("*.partial"))


# Teachers


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP folder, with head.pth beside it."""
    folder = tmp_path_factory.mktemp("clip")
    write_clip(folder / "clip", **SMALL)
    write_head(folder / "head.pth", SMALL["dim"], 20)
    return folder / "clip"


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
            model, _ = load_clip(str(clip))
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
        encoder = clip_text_encoder(*load_clip(str(clip)), str(clip))
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
    assert scale == teacher.sets[0].logit_scale
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
    write_manifest(bundle, replace(manifest, default_labels="rafdb7"))
    after = open_teacher(str(bundle))
    assert (before.sets[0].name, after.sets[0].name) == ("ferplus8", "rafdb7")
    assert {s.name for s in after.sets} == {s.name for s in before.sets}
    assert after.sha256 != before.sha256


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


def test_mean_scores_are_the_formula(bundle: Path, clip: Path) -> None:
    """mean over teachers of softmax(s <t/|t|, c_k>), each with its own scale and constants, in the order asked for."""
    first, second = open_teacher(str(bundle)), open_teacher(str(clip), clip.parent / "head.pth")
    first = replace(first, sets=tuple(replace(s, logit_scale=7.5) for s in first.sets))
    wanted = ("fear", "happiness", "anger")
    answers, expected = [], []
    for known in (first, second):
        said = ask(known, augmented(6, known.size, known.color, 3), view(6, Strength(), 0, 0))
        answers.append((known, said))
        labels = known.sets[0]
        c = np.stack([labels.constants[labels.labels.index(label)] for label in wanted]).astype(np.float64)
        expected.append(softmax(labels.logit_scale * said.astype(np.float64) @ c.T))
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


# Learning a teacher's features


@pytest.fixture(scope="module")
def tables(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """votes.npz (400 faces with votes) and plain.npz (300 other faces without)."""
    folder = tmp_path_factory.mktemp("tables")
    with np.load(data / "fer2013" / "public_test.npz") as z:
        members = ("images", "ferplus_votes_labelcsv", "ferplus_majority_labelcsv")
        table = {name: z[name][:400] for name in members}
        names = {name: z[name] for name in ("ferplus_vote_names", "ferplus_class_names")}
        np.savez(folder / "votes.npz", **table, **names)
        np.savez(folder / "plain.npz", images=z["images"][400:700])
    return folder


def test_a_student_moves_into_its_teachers_space(tables: Path, tmp_path: Path) -> None:
    """Its features come to lie along the teacher's, on faces it has not seen; labels, text encoder, R and scale are the
    teacher's, in the checkpoint and in the bundle made from it."""
    known = open_teacher(str(STUDENT))
    plan = plan_training(
        tables / "plain.npz", (known,), tables / "votes.npz", **SHAPE, epochs=3, batch=16, views=1, bf16=False
    )
    assert (plan.config.feature_dim, plan.config.text_dim) == known.r.shape == (256, 384)
    plan = replace(plan, recipe=replace(plan.recipe, average=0.8, lr=0.05, warmup_epochs=0.5))
    reports: list[EpochReport] = []
    made = train_student(plan, tmp_path / "work", reports.append)
    assert reports[-1].loss < 0.9 * reports[0].loss
    maps = view(300, Strength(), plan.recipe.seed, 1)
    sides = [ask(known, plan.data.train.pictures, side) for side in (maps, mirrored(maps))]
    np.testing.assert_allclose(np.load(tmp_path / "work" / "view-1.npy"), unit(sides[0] + sides[1]), atol=1e-3)
    held = load_pictures(tables / "votes.npz").images[:100]
    wanted = torch.from_numpy(ask(known, held, view(100, Strength(), 0, 0)))

    def fit(student: torch.nn.Module) -> float:
        return float((unit_features(student.eval(), held) * wanted).sum(1).mean())

    torch.manual_seed(0)
    assert fit(made.student) > 0.35 > 0.2 > abs(fit(StudentInTraining(plan.config).deployed()))
    # What the log says of the validation faces is by the network that comes out, and by the teacher's own constants.
    faces = plan.data.validation
    assert faces is not None
    assert faces.labels is not None
    said = (unit_features(made.student, faces.images).numpy() @ known.sets[0].constants.T).argmax(1)
    assert reports[-1].war == pytest.approx(war_uar(said, faces.labels)[0], abs=0.01)
    assert made.text == known.text
    assert made.scale == known.sets[0].logit_scale
    np.testing.assert_array_equal(made.text_projection.numpy(), known.r)
    file = tmp_path / "s.safetensors"
    save_student(file, made)
    converted = convert(str(file), tmp_path / "b", Plan(**FP32_OPENVINO))
    assert converted.manifest.text_encoder == known.text
    assert converted.manifest.default_labels == known.sets[0].name == "ferplus8"
    assert [ref.name for ref in converted.manifest.label_sets] == [s.name for s in known.sets]
    for labels in known.sets:
        again = label_set(converted, labels.name)
        np.testing.assert_array_equal(again.constants, labels.constants)
        assert replace(again, constants=labels.constants) == labels
    np.testing.assert_allclose(text_projection(converted), known.r, atol=1e-3)
    with pytest.raises(fer_edge.UsageError, match="took its label sets"):
        convert(str(file), tmp_path / "p", Plan(prompts="P1", **FP32_OPENVINO))
    with pytest.raises(fer_edge.UsageError, match="took its label sets"):
        convert(str(file), tmp_path / "p", Plan(labels="mafw11", **FP32_OPENVINO))
    assert not (tmp_path / "p").exists()
    chosen = convert(str(file), tmp_path / "c", Plan(labels="rafdb7", **FP32_OPENVINO))
    assert chosen.manifest.default_labels == "rafdb7"
    # It can teach in turn: what it took over, it hands on.
    assert [s.name for s in open_teacher(str(file)).sets] == [s.name for s in known.sets]


def test_faces_without_votes_need_one_teacher(tables: Path, bundle: Path, tmp_path: Path) -> None:
    known = open_teacher(str(bundle))
    for teachers in ((), (known, known)):
        with pytest.raises(fer_edge.UsageError, match=r"plain\.npz has no FER\+ votes: name one --teacher"):
            plan_training(tables / "plain.npz", teachers, **SHAPE)
        faces = load_pictures(tables / "plain.npz")
        data = TrainingData(faces, None, stored_sentences(), descriptions(), phrases(), LABELS)
        config = replace(TINY, feature_dim=256)
        with pytest.raises(fer_edge.ConversionError, match="exactly one teacher"):
            train_student(TrainingPlan(data, config, QUICK, teachers), tmp_path / "w", lambda r: None)
    with pytest.raises(fer_edge.ConversionError, match="256 numbers and text of 384; the student was given 32 and 384"):
        train_student(TrainingPlan(data, TINY, QUICK, (known,)), tmp_path / "w", lambda r: None)
    assert not (tmp_path / "w").exists()


def command(*arguments: object) -> int:
    """Exit status of the command line."""
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    return int(end.value.code or 0)


def test_from_a_clip_to_a_students_bundle_with_new_words(
    clip: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The documented path, on small random weights: CLIP and Exp-CLIP projection, student, bundle, labels add, predict."""
    faces, head = data / "lfw_expressions" / "sadness", clip.parent / "head.pth"
    student, made, work = tmp_path / "s.safetensors", tmp_path / "b", tmp_path / "work"
    train = ["student", "train", faces, "-o", student, "--work", work, "--epochs", 1, "--batch", 16, "--views", 1]
    train += ["--widths", "8,16,16", "--depths", "1,2,1"]
    assert command(*train) == 2
    assert "name one --teacher" in capfd.readouterr().err
    assert command(*train, "--teacher", clip, "--projection", head, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out) == {"checkpoint": str(student), "work": str(work)}
    assert re.search(r"epoch 1/1  loss \d\.\d{4}  \d+ s", err)
    assert command("convert", student, "-o", made, "--runtime", "openvino", "--precision", "fp32", "--json") == 0
    out, _ = capfd.readouterr()
    encoder = clip_text_encoder(*load_clip(str(clip)), str(clip))
    manifest = open_bundle(made).manifest
    assert (manifest.text_encoder.kind, manifest.text_encoder.sha256) == ("clip", encoder.sha256)
    assert {ref.name: ref.labels for ref in manifest.label_sets} == dict(LABEL_SETS)
    assert (manifest.input.size, manifest.input.color, manifest.feature_dim) == ((48, 48), "gray", 20)
    table = {"drowsy": ["a sleepy face.", "heavy eyelids."], "fear": ["a photo of a face with an expression of fear."]}
    (tmp_path / "moods.json").write_text(json.dumps(table))
    assert command("labels", "add", made, tmp_path / "moods.json", "--text-encoder", clip) == 0
    added = label_set(open_bundle(made), "moods")
    r = fold(torch.load(head)["module.projection_head.mlp.weight"].numpy(), SMALL["dim"])
    expected = class_constants(list(table.values()), encoder.encode, r)
    np.testing.assert_allclose(added.constants, expected, atol=2e-3)  # R is kept in fp16
    np.testing.assert_allclose(added.constants[1], label_set(open_bundle(made), "mafw11").constants[6], atol=2e-3)
    capfd.readouterr()
    photo = sorted(faces.iterdir())[0]
    assert command("predict", photo, "-b", made, "--labels", "moods", "--json") == 0
    said = json.loads(capfd.readouterr().out)
    crop = torch.from_numpy(to_input(photo, (48, 48), "gray")).permute(2, 0, 1)[None].float() / 255
    feature = load_student(student).student(crop).detach().numpy()
    scores = softmax(100 * unit(feature) @ added.constants.astype(np.float64).T)[0]
    assert said["scores"] == pytest.approx(dict(zip(table, scores, strict=True)), abs=1e-3)


# The text side


def world(seed: int, noise: float = 0.15) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Five classes: normalised features (400, 12) around centres, their targets, and sentence vectors (30, 20) of each
    class around centres of their own, 20 to learn from and 10 to ask about."""
    generator = torch.Generator().manual_seed(seed)

    def around(centres: Tensor, rows: Tensor) -> Tensor:
        spread = torch.randn(len(rows), centres.shape[1], generator=generator)
        return F.normalize(centres[rows] + noise * spread, dim=-1)

    pictures = F.normalize(torch.randn(5, 12, generator=generator), dim=-1)
    language = F.normalize(torch.randn(5, 20, generator=generator), dim=-1)
    classes = torch.arange(400) % 5
    sentences = [around(language, torch.full((30,), k)) for k in range(5)]
    targets = F.one_hot(classes, 5).float()
    return around(pictures, classes), targets, [s[:20] for s in sentences], [s[20:] for s in sentences]


def test_the_fitted_text_side_knows_sentences_it_has_not_seen() -> None:
    """Classes are recognised by single sentences that took no part in the fit; without the fit they are not."""
    features, targets, known, unseen = world(0)
    recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02)
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    given, done = start[0].clone(), []

    def right(projection: Tensor) -> float:
        hits = [
            (features @ constants(torch.stack([s[j : j + 1] for s in unseen]), projection).T).argmax(1) == targets.argmax(1)
            for j in range(10)
        ]
        return float(torch.stack(hits).float().mean())

    r, scale = fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 1, done.append)
    assert right(start[0]) < 0.6
    assert right(r) > 0.95
    assert torch.equal(start[0], given)
    assert 0 < scale <= 100
    assert len(done) == 150
    assert done == sorted(done)
    assert done[-1] == 1.0
    again = fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 1)
    assert torch.equal(again[0], r)
    assert again[1] == scale
    assert not torch.equal(fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 2)[0], r)


def test_the_fit_discounts_what_is_frequent() -> None:
    """An adjustment that speaks for a class during the fit speaks against it afterwards."""
    features, targets, known, _ = world(3, noise=0.9)
    recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02)
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    shares = []
    for adjustment in (torch.zeros(5), torch.tensor([2.0, 0, 0, 0, 0])):
        r, _ = fit_text_projection(features, targets, known, known, start, adjustment, recipe, 1)
        shares.append(float(((features @ default_constants(known, r).T).argmax(1) == 0).float().mean()))
    assert shares[1] < shares[0] - 0.03


def test_the_label_sets_own_constants_count_most() -> None:
    """Where a label's own sentences mean something else than its other phrases, they win as their weight grows."""
    features, targets, known, _ = world(3, noise=0.9)
    told = [known[(k + 1) % 5] for k in range(5)]
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    right = []
    for weight in (0.0, 0.5, 1.0):
        recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02, told=weight)
        r, _ = fit_text_projection(features, targets, known, told, start, torch.zeros(5), recipe, 1)
        hits = (features @ default_constants(told, r).T).argmax(1) == targets.argmax(1)
        right.append(float(hits.float().mean()))
    assert right[0] < 0.2 < right[1] < right[2]
    assert right[2] > 0.45


def test_strength_scales_every_disturbance(data: Path) -> None:
    faces = data / "fer2013" / "public_test.npz"
    half, none = (plan_training(faces, (), strength=factor).recipe for factor in (0.5, 0.0))
    assert half.strength == Strength(9.0, 0.1, 0.04, 0.04, 0.04, 0.175, 0.25)
    assert half.mixup == Recipe.mixup / 2
    assert none.strength == STILL
    assert plan_training(faces, (), lr=0.05, batch=64).recipe == Recipe(lr=0.05, batch=64)


def test_sentences_are_drawn_without_repeats_where_there_are_enough() -> None:
    groups = [torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3) for n in (10, 3, 5)]
    generator = torch.Generator().manual_seed(0)
    orders = set()
    for _ in range(20):
        drawn = draw(groups, 5, 0.0, generator)
        assert drawn.shape == (3, 5, 3)
        large, small, exact = (row[:, 0].tolist() for row in drawn)
        assert len(set(large)) == 5
        assert set(large) <= set(range(10))
        assert set(small[:3]) == {0, 1, 2}
        assert len(set(small[3:])) == 2
        assert sorted(exact) == [0, 1, 2, 3, 4]
        orders.add((*large, *small, *exact))
    assert len(orders) == 20
    calm, noisy = (draw([torch.zeros(400, 50)], 400, noise, generator) for noise in (0.0, 0.05))
    assert not calm.any()
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    one, two = (draw(groups, 4, 0.1, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


def test_constants_are_means_of_unit_vectors_and_not_unit_themselves() -> None:
    vectors = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[3.0, 4.0], [6.0, 8.0]]])
    torch.testing.assert_close(constants(vectors, torch.eye(2)), torch.tensor([[0.3, 0.9], [0.6, 0.8]]))
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    groups = [vectors[0], torch.tensor([[3.0, 4.0]])]
    torch.testing.assert_close(default_constants(groups, swapped), torch.tensor([[0.9, 0.3], [0.8, 0.6]]))


STEMS = (
    *(
        r"joy",
        r"rejoic",
        r"grie[fv]",
        r"calm",
        r"\brag(e|ing)\b",
        r"enrag",
        r"outrag",
        r"shock",
        r"revul",
        r"revol",
        r"terror",
    ),
    *(r"terrif", r"scorn", r"delight", r"sorr", r"seren", r"fur[iy]", r"astoni", r"loath", r"dread", r"disdain"),
)
"""Every form of the words that the language figures are measured with."""


def test_words_are_many_and_stand_under_one_label_each() -> None:
    words, told = read_prompt_file(LEARN / "words.toml"), descriptions()
    assert tuple(words) == tuple(told) == LABELS
    assert min(map(len, words.values())) >= 25
    every = [word.strip().lower() for group in words.values() for word in group]
    assert sorted(set(every)) == sorted(every)
    # Put into templates, they are still all different, and none is lost.
    sentences = [text for group in phrases().values() for text in group]
    assert len(sentences) == len(set(sentences))
    assert phrases()["fear"] == tuple(
        dict.fromkeys([*told["fear"], *(t.format(word) for word in words["fear"] for t in TEMPLATES)])
    )


def test_the_words_of_the_figures_are_kept_out() -> None:
    """Else the figures would say what the text side was told, and not what it found out."""
    measured = [word for words in HELD_OUT.values() for word in words]
    assert [word for word in measured if not any(re.search(stem, word) for stem in STEMS)] == []
    sentences = [text for group in phrases().values() for text in group]
    assert [text for text in sentences if any(re.search(stem, text.lower()) for stem in STEMS)] == []
    assert {len(words) for words in HELD_OUT.values()} == {len(LABELS)}


# From what a user names to a plan


def test_a_plan_with_votes(tables: Path) -> None:
    plan = plan_training(tables / "votes.npz", (), tables / "votes.npz", size=32, **SHAPE, epochs=4, seed=9)
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
    less = plan_training(tables / "votes.npz", (), tables / "votes.npz", without=("neutral", "fear"), **SHAPE).data
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


def test_plans_that_are_refused(tables: Path, bundle: Path) -> None:
    votes, known = tables / "votes.npz", (open_teacher(str(bundle)),)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("2 widths and 3 depths", lambda: plan_training(votes, (), widths=(8, 16), depths=(1, 2, 1))),
        ("'joy' is no expression", lambda: plan_training(votes, (), without=("fear", "joy"))),
        ("at least two", lambda: plan_training(votes, (), without=LABELS[1:])),
        ("name one --teacher", lambda: plan_training(tables / "plain.npz", ())),
        ("name one --teacher", lambda: plan_training(tables, ())),
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


def test_war_and_uar() -> None:
    truth, predicted = np.array([0, 0, 0, 2, -1]), np.array([0, 0, 1, 1, 0])
    assert war_uar(predicted, truth) == (0.5, pytest.approx(1 / 3))


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


def test_a_teacher_without_an_answer(bundle: Path) -> None:
    """A feature of zeros has no direction: learned from, it would be NaN."""
    known = open_teacher(str(bundle))
    mute = replace(known, features=lambda images: np.zeros((len(images), 256), np.float32))
    with pytest.raises(fer_edge.ConversionError, match="nothing but zeros"):
        ask(mute, augmented(3, 48, "gray", 0), view(3, Strength(), 0, 0))


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


def test_a_head_goes_to_the_clip_only(clip: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head without a CLIP to go with is said so, and no expression is left out of faces without votes."""
    faces, out = data / "fer2013" / "public_test.npz", str(tmp_path / "s")
    head = ["--projection", str(clip.parent / "head.pth")]
    lfw = str(data / "lfw_expressions" / "fear")
    for arguments, reason in (
        ([str(faces), "--teacher", str(STUDENT), *head], "goes with a --teacher that is a CLIP"),
        ([lfw, "--teacher", str(STUDENT), "--without", "fear"], "no expression can be left out"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["student", "train", *arguments, "-o", out, "--work", str(tmp_path / "w")])
        assert end.value.code == 2
        assert reason in capsys.readouterr().err
