"""Learning a teacher's features from faces without votes, and the whole path from a CLIP to a bundle with new words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from learning import FP32_OPENVINO, LABELS, QUICK, SHAPE, SMALL, STUDENT, TINY, softmax, unit

import fer_edge
from fer_edge.accuracy import war_uar
from fer_edge.bundle import label_set, open_bundle, text_projection
from fer_edge.cli import main
from fer_edge.converters.clip import load_clip
from fer_edge.converters.convert import Plan, convert
from fer_edge.converters.graph import class_constants, fold
from fer_edge.converters.student.augment import Strength, mirrored, view
from fer_edge.converters.student.device import native_bf16
from fer_edge.converters.student.faces import load_pictures
from fer_edge.converters.student.network import StudentInTraining, load_student, save_student
from fer_edge.converters.student.plan import plan_training
from fer_edge.converters.student.recipe import EpochReport, TrainingData, TrainingPlan
from fer_edge.converters.student.run import unit_features
from fer_edge.converters.student.sentences import descriptions, phrases, stored_sentences
from fer_edge.converters.student.teachers import ask, open_teacher
from fer_edge.converters.student.train import train_student
from fer_edge.converters.text import clip_text_encoder
from fer_edge.image import to_input
from fer_edge.labels import LABEL_SETS


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
    maps = view(len(plan.data.train.images), Strength(), plan.recipe.seed, 1)
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
    converted = convert(str(file), tmp_path / "b", Plan(**FP32_OPENVINO)).bundle
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
    chosen = convert(str(file), tmp_path / "c", Plan(labels="rafdb7", **FP32_OPENVINO)).bundle
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
    said = json.loads(out)
    arithmetic = {True: "bf16", False: "fp32"}[native_bf16("cpu")]
    assert said == {"checkpoint": str(student), "work": str(work), "device": "cpu", "arithmetic": arithmetic}
    assert f"1 teacher, on cpu in {arithmetic}" in err
    assert re.search(r"epoch 1/1  loss \d\.\d{4}  \d+ s", err)
    assert command("convert", student, "-o", made, "--runtime", "openvino", "--precision", "fp32", "--json") == 0
    out, _ = capfd.readouterr()
    encoder = clip_text_encoder(load_clip(str(clip)))
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
