"""``evaluate --faces``: photos in class folders, the largest face of each, and a photo without one is a miss."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge import FaceFinder
from fer_edge.accuracy import confusion_matrix, intervals, recall_by_label, uar, war
from fer_edge.cli import main
from fer_edge.errors import UsageError
from fer_edge.labelled import read_faces

pytest.importorskip("rich")
pytest.importorskip("cv2")

from fer_edge.benchmarks.evaluate import evaluate

Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], yunet: Path) -> Run:
    def call(*arguments: object) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *map(str, arguments), "--faces", "--detector", str(yunet)])
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def photos(data: Path, portrait: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of each of three classes, a face in the middle of each; one with two faces, of which the smaller one has
    the wrong expression; one without a face, and one with a face that is too small."""
    folder = tmp_path_factory.mktemp("photos")
    for name in ("happiness", "neutral", "surprise"):
        (folder / name).mkdir()
        for number, source in enumerate(sorted((data / "lfw_expressions" / name).iterdir())[:5]):
            photo = Image.new("RGB", (448, 448), "gray")
            with Image.open(source) as face:
                photo.paste(face.convert("RGB"), (112, 112))
            photo.save(folder / name / f"{number}.png")
    with Image.open(folder / "happiness" / "0.png") as happy, Image.open(folder / "neutral" / "0.png") as neutral:
        two = Image.new("RGB", (700, 448), "gray")
        two.paste(happy.crop((112, 112, 336, 336)).resize((100, 100)), (0, 0))
        two.paste(neutral, (200, 0))
        two.save(folder / "neutral" / "two.png")
        far = Image.new("RGB", (300, 200), "gray")
        with Image.open(portrait) as astronaut:
            far.paste(
                astronaut.convert("RGB").crop((100, 0, 356, 256)).resize((40, 40), Image.Resampling.LANCZOS), (120, 80)
            )
        far.save(folder / "happiness" / "small.png")
    Image.new("RGB", (300, 200), "gray").save(folder / "surprise" / "nobody.png")
    return folder


def test_photos_count_as_their_largest_faces_and_misses_as_wrong(run: Run, photos: Path, yunet: Path) -> None:
    code, out, err = run(photos, "--json", "--threads", 1)
    assert code == 0
    found = json.loads(out)
    labels = found["labels"]
    table = np.zeros((len(labels), len(labels) + 1), int)
    missed = []
    with fer_edge.load(threads=1) as clf, FaceFinder(yunet) as finder:
        for photo in sorted(photos.rglob("*.png")):
            faces = clf.predict_faces(photo, finder)
            answer = max(faces, key=lambda face: face.box[2] * face.box[3]).label if faces else None
            table[labels.index(photo.parent.name), labels.index(answer) if answer else -1] += 1
            if answer is None:
                missed.append(str(photo))
    assert (
        [entry["image"] for entry in found["missed"]]
        == missed
        == [
            str(photos / "happiness" / "small.png"),
            str(photos / "surprise" / "nobody.png"),
        ]
    )
    assert [entry["label"] for entry in found["missed"]] == ["happiness", "surprise"]
    assert "too small to be judged" in found["missed"][0]["why"]
    assert found["missed"][1]["why"] == "no face"
    assert err.count("Counted as wrong: ") == 2
    assert all(image in err for image in missed)
    assert found["n"] == table.sum() == 18
    assert found["confusion"] == table[:, :-1].tolist()
    assert found["not_found"] == dict(zip(labels, table[:, -1].tolist(), strict=True))
    assert found["war"] == pytest.approx(np.trace(table) / 18)
    recall = {label: table[i, i] / table[i].sum() for i, label in enumerate(labels) if table[i].sum()}
    assert {label: r for label, r in found["per_class_recall"].items() if r is not None} == pytest.approx(recall)
    assert found["uar"] == pytest.approx(np.mean(list(recall.values())))
    assert found["per_class_count"] == dict(zip(labels, table.sum(1).tolist(), strict=True))
    assert found["detector"] == yunet.name
    low, high = found["intervals"]["war"]
    assert low <= found["war"] <= high < 1


def test_text_and_page_say_what_was_missed(run: Run, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = run(photos, "--html", tmp_path / "page.html")
    assert code == 0
    assert out.startswith("18 photos: WAR ")
    assert "2 without a face that can be judged count as wrong" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["truth"][-2:] == ["no", "face"]
    assert (rows["surprise"][-1], rows["happiness"][-1], rows["neutral"][-1]) == ("1", "1", "0")
    assert "2 without a face that can be judged" in (tmp_path / "page.html").read_text()


def test_crops_know_nothing_of_it(data: Path, photos: Path) -> None:
    with fer_edge.load(threads=1) as clf:
        found = evaluate(clf, read_faces(photos)).as_json()
    assert {"detector", "not_found", "missed"}.isdisjoint(found)
    assert np.sum(found["confusion"]) == found["n"] == 18


def test_what_does_not_fit(run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], yunet: Path) -> None:
    code, out, err = run(photos, "--robustness")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    (tmp_path / "anger").mkdir()
    Image.new("L", (99, 99)).save(tmp_path / "anger" / "nobody.png")
    code, out, err = run(tmp_path)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "nobody.png has no face" in err
    with pytest.raises(SystemExit):
        main(["evaluate", str(photos), "--detector", str(yunet)])
    assert "--detector goes with --faces" in capsys.readouterr().err
    with fer_edge.load(threads=1) as clf, FaceFinder(yunet) as finder, pytest.raises(UsageError, match="crops"):
        evaluate(clf, read_faces(photos), robustness=True, finder=finder)


def test_a_photo_that_cannot_be_read_still_counts_nowhere(run: Run, photos: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "neutral" / "broken.png").write_bytes(b"no picture")
    code, out, err = run(tmp_path / "photos", "--json")
    assert code == 2
    assert json.loads(out)["n"] == 18
    assert "Left out, unreadable" in err


def test_a_column_of_no_answers_in_the_arithmetic() -> None:
    """Against the same faces with an answer that is always wrong, in a class of its own."""
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 3, 300), rng.integers(0, 4, 300)
    labels = ("a", "b", "c")
    square = confusion_matrix(truth, predicted, 4)
    wide = square[:3]
    assert war(wide) == war(square) == pytest.approx((truth == predicted).mean())
    assert uar(wide) == uar(square)
    assert recall_by_label(wide, labels) == {k: v for k, v in recall_by_label(square, (*labels, "d")).items() if k != "d"}
    one, other = intervals(wide, labels), intervals(square, (*labels, "d"))
    np.testing.assert_allclose(one.war, other.war, atol=0.01)
    np.testing.assert_allclose(one.uar, other.uar, atol=0.01)
