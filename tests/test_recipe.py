"""One command from data to bundle: it makes what it says, makes nothing twice, and stops with one line. The real commands
run on few faces; what a training so short knows is nothing, and only its way is looked at."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip("torch")

import fer_edge
from fer_edge.benchmarks.evaluate import evaluate
from fer_edge.bundle import label_set, open_bundle
from fer_edge.converters.student.language import TextRecipe
from fer_edge.converters.student.network import load_student
from fer_edge.converters.student.recipe import Recipe
from fer_edge.engines import RUNTIMES
from fer_edge.labelled import read_faces
from fer_edge.manifest import digest_of
from lab.gpu import finish as finishing
from lab.gpu.identity import installed_identity
from lab.recipe import MEMBERS, STEPS, Step, recipe

CHECKPOINT = "converters/student/student48.safetensors"


def part_of(data: Path, target: Path, train: int, test: int) -> Path:
    """The first faces of both splits."""
    target.mkdir()
    for name, count in (("train", train), ("public_test", test)):
        with np.load(data / "fer2013" / f"{name}.npz") as z:
            rows = ("images", "ferplus_votes_labelcsv", "ferplus_majority_labelcsv")
            some = {key: z[key][:count] for key in rows} | {key: z[key] for key in ("ferplus_vote_names", MEMBERS[3])}
        if name == "public_test":
            with np.load(target / "train.npz") as z:
                some["images"][3] = z["images"][7][:, ::-1]
        np.savez(target / f"{name}.npz", **some)
    return target


def called(*words: str | Path) -> Result:
    """The recipe."""
    return CliRunner().invoke(recipe, [str(word) for word in words], catch_exceptions=False)


def test_from_a_checkpoint_to_figures_and_nothing_twice(data: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    pytest.importorskip("ai_edge_litert")
    faces, out = part_of(data, tmp_path / "data", 1200, 90), tmp_path / "out"
    words = (faces, out, "--checkpoint", root / CHECKPOINT, "--runtime", "litert", "--no-robustness")
    done = called(*words)
    assert done.exit_code == 0, done.output
    bundle = open_bundle(out / "bundle")
    for name in ("ferplus8", "rafdb7"):
        labels = label_set(bundle, name)
        assert labels.temperature != 1
        assert labels.least_length > 0
    with fer_edge.load(out / "bundle", runtime="litert") as clf:
        every = evaluate(clf, read_faces(faces / "public_test.npz", MEMBERS[1], MEMBERS[3]))
    row = json.loads((out / "figures.json").read_text())["engines"][0]
    assert row["all"]["war"] == every.war
    assert row["without_twins"]["n"] < every.n
    assert "3" in (out / "twins.txt").read_text().split()
    assert f"| WAR (95% interval) | {every.war:.1%} (" in done.stdout
    assert digest_of(bundle.manifest)[:19] in done.stdout
    assert "By class, litert int8" in (out / "figures.md").read_text()

    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = called(*words)
    assert again.stdout == done.stdout
    assert again.stderr.count("there already") == 5
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

    (out / "twins.txt").write_text("")  # as if the search had been cut off
    assert called(*words, "--until", "twins").stderr.count("there already") == 4
    (out / "steps" / "4-twins.json").unlink()
    later = called(*words)
    assert "twins:" in later.stderr
    assert later.stdout == done.stdout

    manifest = out / "converted" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": "6"', '"version": "7"'))  # as large as before
    assert "fer_edge calibrate ended with" in called(*words, "--until", "calibrate").stderr  # it is looked at, and altered


@dataclass(frozen=True)
class QuickRecipe(Recipe):
    """A recipe whose text side is fitted in a moment."""

    text: TextRecipe = field(default_factory=lambda: TextRecipe(steps=20, batch=64, drawn=(1, 4)))


def test_from_a_training_to_a_checkpoint(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if installed_identity() is None:
        pytest.skip("face-recognition-models is not installed")
    faces, out = part_of(data, tmp_path / "data", 120, 40), tmp_path / "out"
    photos = data / "lfw_expressions" / "fear"
    few = ("--few", "32", "--epochs", "1", "--teachers", "stack", "--until", "window")
    done = called(faces, out, "--train", "--photos", photos, *few)
    assert done.exit_code == 0, done.output
    assert json.loads((out / "window-1" / "summary.json").read_text())["asked"] == ["stack"]
    assert sorted(path.name for path in (out / "steps").iterdir()) == ["1-pack.json", "2-window.json"]
    monkeypatch.setattr(finishing, "Recipe", QuickRecipe)
    students, checkpoint = out / "window-1" / "students.safetensors", tmp_path / "student.safetensors"
    finishing.finish(students, "s66b", faces, checkpoint, tmp_path / "work", prior=0.5)
    meta = load_student(checkpoint).meta
    assert meta["recipe"]["prior"] == 0.5
    assert meta["recipe"]["course"]["prior"] == 0.25


def test_the_words_of_the_page(root: Path, tmp_path: Path) -> None:
    """What is run for the published default, as docs/default-model.md has it."""
    words = {}

    def keep(steps: list[Step], output: Path, until: str | None) -> None:
        for number, step in enumerate(steps):
            words[f"{number} {step.name}"] = " ".join(step.words).replace(f"{tmp_path}/", "")

    data = tmp_path / "DATA"
    data.mkdir()
    for name in ("train", "public_test"):
        (data / f"{name}.npz").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lab.recipe.carry_out", keep)
        patch.setattr("torch.cuda.is_available", lambda: True)
        patch.setattr("lab.gpu.identity.installed_identity", lambda: data)
        called(data, tmp_path / "OUT", "--train", "--photos", tmp_path, "--until", "window")
    assert words["1 window"].endswith("--output OUT/window-1 --work OUT/window-1.work --minutes 9.4 --students s66b")
    assert words["2 window"].endswith(
        "--minutes 4.3 --students s66b --answers OUT/window-1.work/answers.npy --start OUT/window-1/students.safetensors "
        "--rate 0.5"
    )
    assert words["3 finish"] == "lab.gpu.finish OUT/window-2/students.safetensors s66b DATA OUT/student.safetensors"
    assert list(words) == [f"{i} {name}" for i, name in enumerate(("pack", "window", *STEPS[1:]))]
    assert all(runtime in words["8 figures"] for runtime in RUNTIMES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "train.npz is not there; build it with"),
        (("DATA",), "where the student comes from"),
        (("DATA", "--train"), "--photos FOLDER"),
        (("DATA", "--epochs", "2", "--checkpoint"), "add --train"),
        (("DATA", "--prior", "0.5", "--checkpoint"), "--prior is for"),
        (("DATA", "--train", "--photos", "."), "there is no GPU here"),
        (("DATA", "--card", "none.md"), "none.md is not there"),
        (("DATA", "--until", "window", "--checkpoint"), "there are convert, held-out,"),
    ],
)
def test_what_is_missing_is_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("lab.gpu.identity.installed_identity", lambda: tmp_path)
    Path("DATA").mkdir()
    for name in ("train.npz", "public_test.npz") if words else ():
        Path("DATA", name).touch()
    Path("student.safetensors").touch()
    given = " ".join(words).replace("--checkpoint", "--checkpoint student.safetensors").split()
    done = called("DATA", "out", *[word for word in given if word != "DATA"])
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("Error: ")
    assert said in lines[-1]
    assert len(lines) == 1
    assert not Path("out").exists()
