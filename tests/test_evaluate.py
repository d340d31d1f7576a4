"""``fer-edge evaluate``: its numbers against an independent count, and what it says of data that does not fit."""

from __future__ import annotations

import io
import json
import shutil
import tracemalloc
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge.accuracy import calibration_error
from fer_edge.cli import main
from fer_edge.errors import LabelError, UsageError
from fer_edge.labelled import label_of, read_faces

pytest.importorskip("rich")

from fer_edge.benchmarks.evaluate import evaluate

TRUTH, CLASSES = "ferplus_majority_labelcsv", "ferplus_class_names"
MEMBERS = ("--truth", TRUTH, "--classes", CLASSES)
JSON_KEYS = {"n", "war", "uar", "labels", "confusion", "per_class_recall"}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``fer-edge evaluate ARGUMENTS``: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", *map(str, arguments)])
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def tree(tmp_path: Path, data: Path) -> Path:
    """A folder per class with four real faces each (contempt: two, disgust: none), under the names of other data sets."""
    folders = {
        "happy": "happiness",
        "Sad": "sadness",
        "neutral": "neutral",
        "ANGRY": "anger",
        "surprised": "surprise",
        "fear": "fear",
        "contempt": "contempt",
    }
    for folder, source in folders.items():
        (tmp_path / "tree" / folder).mkdir(parents=True)
        images = sorted((data / "lfw_expressions" / source).iterdir())
        for image in images[: 2 if source == "contempt" else 4]:
            shutil.copy(image, tmp_path / "tree" / folder)
    (tmp_path / "tree" / "disgust").mkdir()
    (tmp_path / "tree" / "notes.txt").write_text("no class")
    (tmp_path / "tree" / "happy" / "notes.txt").write_text("no image")
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def real_arrays(data: Path) -> dict[str, Any]:
    """The first 150 faces of FER2013's public test, with FER+'s majority labels (-1: none)."""
    with np.load(data / "fer2013" / "public_test.npz") as z:
        return {"images": z["images"][:150], TRUTH: z[TRUTH][:150], CLASSES: z[CLASSES]}


@pytest.fixture
def arrays(real_arrays: dict[str, Any]) -> dict[str, Any]:
    """A copy to change."""
    return {name: array.copy() for name, array in real_arrays.items()}


@pytest.fixture
def npz(tmp_path: Path, arrays: dict[str, Any]) -> Path:
    """The same as a file."""
    np.savez(tmp_path / "faces.npz", **arrays)
    return tmp_path / "faces.npz"


def counted(labels: Sequence[str], truth: Sequence[str], predicted: Sequence[str]) -> dict[str, Any]:
    """The same numbers by plain numpy."""
    confusion = np.zeros((len(labels), len(labels)), int)
    for t, p in zip(truth, predicted, strict=True):
        confusion[labels.index(t), labels.index(p)] += 1
    total = confusion.sum(1)
    recall = [confusion[i, i] / total[i] if total[i] else None for i in range(len(labels))]
    present = [r for r in recall if r is not None]
    return {
        "n": int(confusion.sum()),
        "war": float(np.trace(confusion) / confusion.sum()),
        "uar": float(sum(present) / len(present)),
        "labels": list(labels),
        "confusion": confusion.tolist(),
        "per_class_recall": dict(zip(labels, recall, strict=True)),
    }


def assert_numbers(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() >= JSON_KEYS
    for key in ("n", "labels", "confusion"):
        assert found[key] == expected[key]
    for key in ("war", "uar", "per_class_recall"):
        assert found[key] == pytest.approx(expected[key], abs=1e-12)


def assert_one_line(outcome: tuple[int, str, str], *words: str) -> None:
    code, out, err = outcome
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1, err
    assert err.startswith("Error: ")
    assert "Error: unexpected" not in err, err
    for word in words:
        assert word in err


def test_a_folder_per_class(tree: Path, run: Run) -> None:
    code, out, err = run(tree, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    means = {"happy": "happiness", "Sad": "sadness", "ANGRY": "anger", "surprised": "surprise"}
    files = sorted(p for p in tree.rglob("*") if p.suffix != ".txt" and p.is_file())
    with fer_edge.load() as clf:
        expected = counted(
            clf.labels,
            [means.get(p.parent.name, p.parent.name) for p in files],
            [clf.predict(p).label for p in files],
        )
        assert (found["runtime"], found["device"]) == (clf.runtime, clf.device)
        assert (found["precision"], found["label_set"]) == (clf.precision, "ferplus8")
    assert expected["n"] == 26
    assert expected["per_class_recall"]["disgust"] is None, "the case of an absent class has to be in the test"
    assert_numbers(found, expected)
    assert found["unreadable"] == []


def test_an_npz(npz: Path, arrays: dict[str, Any], run: Run) -> None:
    code, out, err = run(npz, *MEMBERS, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    kept = np.flatnonzero(arrays[TRUTH] >= 0)
    assert 0 < len(kept) < 150, "some faces have to have no label"
    with fer_edge.load() as clf:
        predicted = [p.label for p in clf.predict_batch(arrays["images"][kept])]
        truth = [str(arrays[CLASSES][arrays[TRUTH][i]]) for i in kept]
        expected = counted(clf.labels, truth, predicted)
    assert expected["confusion"] != np.transpose(expected["confusion"]).tolist(), "rows and columns have to differ"
    assert_numbers(found, expected)
    assert (found["n"], found["left_out"]) == (len(kept), 150 - len(kept))
    assert found["war"] > 0.6, "the embedded model reads real faces"


def test_colour_images_in_an_npz(tmp_path: Path, arrays: dict[str, Any], run: Run) -> None:
    rgb = np.repeat(arrays["images"][:40, :, :, None], 3, axis=3)
    np.savez(tmp_path / "rgb.npz", images=rgb, truth=arrays[TRUTH][:40], names=arrays[CLASSES])
    np.savez(tmp_path / "gray.npz", images=arrays["images"][:40], truth=arrays[TRUTH][:40], names=arrays[CLASSES])
    members = ("--truth", "truth", "--classes", "names", "--json")
    assert run(tmp_path / "rgb.npz", *members) == run(tmp_path / "gray.npz", *members)


def test_text_for_people(npz: Path, run: Run) -> None:
    code, out, err = run(npz, *MEMBERS)
    found = json.loads(run(npz, *MEMBERS, "--json")[1])
    assert (code, err) == (0, "")
    assert f"{found['n']} faces: WAR {found['war']:.2%}, UAR {found['uar']:.2%}" in out
    assert "95% intervals: WAR {:.1%} to {:.1%}".format(*found["intervals"]["war"]) in out
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("truth"))
    rows = lines[header + 1 :]
    assert [row.split()[0] for row in rows] == found["labels"]
    assert [[int(v) for v in row.split()[2:]] for row in rows] == found["confusion"]
    assert len({len(line) for line in lines[header:]}) == 1, "the columns stand under their heads"


@pytest.mark.parametrize(
    ("name", "label"),
    [("happy", "happiness"), (" Angry ", "anger"), ("FEAR", "fear"), ("surprised", "surprise"), ("bored", None)],
)
def test_synonyms(name: str, label: str | None) -> None:
    assert label_of(name, ("happiness", "anger", "fear", "surprise")) == label


def test_a_label_of_the_set_goes_before_the_table() -> None:
    assert label_of("happy", ("happy", "happiness")) == "happy"
    assert label_of("Bored", ("Bored",)) == "Bored"


def test_an_unknown_class_stops_unless_it_is_skipped(tree: Path, run: Run) -> None:
    shutil.copytree(tree / "happy", tree / "bored")
    assert_one_line(run(tree), "'bored'", "ferplus8", "--skip-unknown")
    code, out, _ = run(tree, "--skip-unknown", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["n"] == 26
    assert found["skipped_classes"] == {"bored": 4}


def test_a_smaller_label_set_leaves_a_class_out(npz: Path, arrays: dict[str, Any], run: Run) -> None:
    contempt = int((arrays[TRUTH] == arrays[CLASSES].tolist().index("contempt")).sum())
    assert contempt > 0
    assert_one_line(run(npz, *MEMBERS, "--labels", "rafdb7"), "'contempt'", "rafdb7")
    found = json.loads(run(npz, *MEMBERS, "--labels", "rafdb7", "--skip-unknown", "--json")[1])
    assert found["skipped_classes"] == {"contempt": contempt}
    assert len(found["labels"]) == len(found["confusion"]) == 7


def test_nothing_but_unknown_classes(tree: Path, run: Run) -> None:
    for folder in tree.iterdir():
        if folder.is_dir() and folder.name != "happy":
            shutil.rmtree(folder)
    (tree / "happy").rename(tree / "bored")
    assert_one_line(run(tree, "--skip-unknown"), "no face could be evaluated")


def test_an_unreadable_image_is_listed_and_the_rest_goes_on(tree: Path, run: Run) -> None:
    whole = next((tree / "happy").glob("*.*[!t]")).read_bytes()
    before = json.loads(run(tree, "--json")[1])
    (tree / "happy" / "cut.jpg").write_bytes(whole[: len(whole) // 3])
    (tree / "happy" / "empty.png").touch()
    code, out, err = run(tree, "--json")
    found = json.loads(out)
    assert code == 2, "as for predict"
    assert [Path(entry["image"]).name for entry in found["unreadable"]] == ["cut.jpg", "empty.png"]
    assert all(entry["error"] for entry in found["unreadable"])
    assert len(err.splitlines()) == 2
    for key in JSON_KEYS:
        assert found[key] == before[key]


def test_only_unreadable_images_say_why(tmp_path: Path, run: Run) -> None:
    (tmp_path / "fear").mkdir()
    (tmp_path / "fear" / "a.jpg").write_text("no picture")
    assert_one_line(run(tmp_path), "no face could be evaluated", "a.jpg is not an image")


def test_files_of_other_programs_are_named_and_no_faces(tree: Path, run: Run) -> None:
    """macOS' doubles, Jupyter's and Windows' files, and folders within class folders."""
    before = json.loads(run(tree, "--json")[1])
    face = sorted((tree / "happy").glob("*.jpg"))[0]
    (tree / "happy" / f"._{face.name}").write_bytes(bytes(120))
    (tree / "happy" / "Thumbs.db").write_bytes(b"x")
    (tree / ".ipynb_checkpoints").mkdir()
    shutil.copy(face, tree / ".ipynb_checkpoints" / "x-checkpoint.jpg")
    (tree / "fear" / ".git").mkdir()
    (tree / "happy" / "person1" / "day2").mkdir(parents=True)
    shutil.copy(face, tree / "happy" / "person1" / "day2" / "A.JPG")
    shutil.copy(face, tree / "happy" / "person1" / ".b.jpg")
    (tree / "happy" / "elsewhere").symlink_to(tree / "fear")
    code, out, err = run(tree, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {key: found[key] for key in JSON_KEYS} == {key: before[key] for key in JSON_KEYS}
    hidden, other, deeper = "hidden, its name begins with a dot", "no image by its ending", "in a folder within a folder"
    expected = {
        f"happy/._{face.name}": hidden,
        "happy/Thumbs.db": other,
        "happy/notes.txt": other,
        "happy/elsewhere/": "a link to a folder, which is not followed",
        "happy/person1/day2/A.JPG": deeper,
        "happy/person1/.b.jpg": hidden,
        ".ipynb_checkpoints/": hidden,
        "fear/.git/": hidden,
        "notes.txt": "not in a class folder",
        "disgust/": "a folder without an image",
    }
    assert {entry["file"]: entry["why"] for entry in found["ignored"]} == expected
    assert found["left_out"] == len(found["ignored"]) == 10
    text = run(tree)[1]
    assert "left out: 0 without a label, 0 of unknown classes, 0 unreadable" in text
    assert f"4 left out, {hidden}: .ipynb_checkpoints/, fear/.git/, happy/._{face.name} and 1 more" in text
    assert f"1 left out, {deeper}: happy/person1/day2/A.JPG" in text
    whole = json.loads(run(tree, "--recursive", "--json")[1])
    assert (whole["n"], whole["per_class_count"]["happiness"]) == (27, 5)
    assert {e["file"] for e in whole["ignored"]} == expected.keys() - {"happy/person1/day2/A.JPG"}


def test_every_ending_that_predict_reads_is_a_face(tree: Path, run: Run) -> None:
    """A browser saves .jfif; .JPE, .jp2 and .tga are pictures as well."""
    first, second, third, fourth = sorted((tree / "happy").glob("*.jpg"))
    for path, name in ((first, "a.jfif"), (second, "b.JPE")):
        path.rename(path.with_name(name))
    for path, name in ((third, "c.jp2"), (fourth, "d.tga")):
        Image.open(path).save(path.with_name(name))
        path.unlink()
    found = json.loads(run(tree, "--json")[1])
    assert found["per_class_count"]["happiness"] == 4


def test_images_that_lie_deeper_are_said_where_there_is_no_other(tree: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "deep" / "fear").mkdir(parents=True)
    (tree / "fear").rename(tmp_path / "deep" / "fear" / "person1")
    assert_one_line(
        run(tmp_path / "deep"), "4 lie deeper: --recursive takes them, or name the folder that holds the classes"
    )
    found = json.loads(run(tmp_path / "deep", "--recursive", "--json")[1])
    assert (found["n"], found["per_class_count"]["fear"]) == (4, 4)


def test_calibration_error_is_that_of_the_answers(tree: Path, run: Run) -> None:
    means = {"happy": "happiness", "Sad": "sadness", "ANGRY": "anger", "surprised": "surprise"}
    files = sorted(p for p in tree.rglob("*") if p.suffix != ".txt" and p.is_file())
    with fer_edge.load() as clf:
        answers = [clf.predict(path) for path in files]
    confidence = np.array([max(answer.scores.values()) for answer in answers])
    right = np.array([a.label == means.get(p.parent.name, p.parent.name) for a, p in zip(answers, files, strict=True)])
    found = json.loads(run(tree, "--json")[1])
    assert found["calibration_error"] == pytest.approx(calibration_error(confidence, right))
    assert f"calibration error {found['calibration_error']:.1%}" in run(tree)[1]


def test_folders_that_do_not_fit(tmp_path: Path, portrait: Path, run: Run) -> None:
    assert_one_line(run(tmp_path), "no images in class folders", "<class>/<image>")
    shutil.copy(portrait, tmp_path)
    assert_one_line(run(tmp_path), "no images in class folders")
    assert_one_line(run(tmp_path / "nowhere"), "nowhere does not exist")


def test_an_npz_needs_its_members_named(npz: Path, run: Run) -> None:
    assert_one_line(run(npz), "--truth MEMBER", "--classes MEMBER")
    assert_one_line(run(npz, "--truth", TRUTH), "--classes MEMBER")
    assert_one_line(run(npz, "--truth", "nope", "--classes", CLASSES), "'nope'", TRUTH, "images")
    assert_one_line(run(npz, "--truth", TRUTH, "--classes", "nope"), "'nope'", CLASSES)
    assert_one_line(run(npz, "--truth", CLASSES, "--classes", CLASSES), "one integer per image")
    assert_one_line(run(npz, "--truth", TRUTH, "--classes", TRUTH), "class names")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda a: a.update({TRUTH: np.where(a[TRUTH] == 0, 8, a[TRUTH])}), "8 names"),
        (lambda a: a.update({TRUTH: a[TRUTH] - 1}), "-1 or a position"),
        (lambda a: a.update({TRUTH: a[TRUTH].astype(float)}), "one integer per image"),
        (lambda a: a.update({TRUTH: a[TRUTH][:-1]}), "one integer per image"),
        (lambda a: a.update({TRUTH: a[TRUTH][0]}), "one integer per image"),
        (lambda a: a.update(images=a["images"] / 255), "uint8"),
        (lambda a: a.update(images=a["images"][0, 0, 0]), "uint8"),
        (lambda a: a.update(images=a["images"].reshape(150, -1)), "(N, H, W)"),
        (lambda a: a.update({CLASSES: np.array("happiness")}), "class names"),
        (lambda a: a.update({CLASSES: np.array([None] * 8, dtype=object)}), "not a readable npz"),
        (lambda a: a.update({TRUTH: np.full(150, -1)}), "no face could be evaluated"),
        (lambda a: a.pop("images"), "'images'"),
    ],
)
def test_members_that_do_not_fit(
    change: Callable[[dict[str, Any]], object], word: str, tmp_path: Path, arrays: dict[str, Any], run: Run
) -> None:
    change(arrays)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert_one_line(run(tmp_path / "bad.npz", *MEMBERS), word)


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int8])
def test_labels_of_any_whole_number(kind: type, tmp_path: Path, npz: Path, arrays: dict[str, Any], run: Run) -> None:
    kept = arrays[TRUTH] >= 0
    arrays |= {"images": arrays["images"][kept], TRUTH: arrays[TRUTH][kept].astype(kind)}
    np.savez(tmp_path / "typed.npz", **arrays)
    found, expected = (json.loads(run(file, *MEMBERS, "--json")[1]) for file in (tmp_path / "typed.npz", npz))
    assert found["confusion"] == expected["confusion"]
    arrays[TRUTH] = np.full(len(arrays["images"]), np.iinfo(kind).max, kind)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert_one_line(run(tmp_path / "bad.npz", *MEMBERS), "8 names")


def test_a_folder_that_may_not_be_read(tree: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = Path.iterdir

    def iterdir(folder: Path) -> Any:
        if folder.name == "happy":  # permissions do not hold the superuser, who runs this test
            raise PermissionError(13, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert_one_line(run(tree), "happy cannot be read: Permission denied")


def test_a_broken_header_in_an_npz(tmp_path: Path, arrays: dict[str, Any], run: Run) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "a.npz") as whole, zipfile.ZipFile(tmp_path / "b.npz", "w") as broken:
        for info in whole.infolist():
            data = whole.read(info)
            broken.writestr(info.filename, data.replace(b"{'descr'", b"{('descr", 1))
    assert_one_line(run(tmp_path / "b.npz", *MEMBERS), "not a readable npz file")


def test_a_small_npz_that_unpacks_to_much_is_refused(tmp_path: Path, arrays: dict[str, Any], run: Run) -> None:
    """600 kB of zeros in small are 600 MB in large: they are not unpacked."""
    head = io.BytesIO()
    shape = ((600 << 20) // 2304, 48, 48)
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    np.savez(tmp_path / "bomb.npz", **{TRUTH: arrays[TRUTH], CLASSES: arrays[CLASSES]})
    with (
        zipfile.ZipFile(tmp_path / "bomb.npz", "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("images.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(head.getvalue())
        for _ in range(150):
            stream.write(bytes(1 << 22))
    tracemalloc.start()
    assert_one_line(run(tmp_path / "bomb.npz", *MEMBERS), "bomb.npz unpacks to 629,1")
    assert tracemalloc.get_traced_memory()[1] < 1 << 27
    tracemalloc.stop()


def test_files_that_are_no_npz(tmp_path: Path, npz: Path, arrays: dict[str, Any], run: Run) -> None:
    whole = npz.read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    flipped = bytearray(whole)
    flipped[len(arrays["images"].tobytes()) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", arrays["images"])
    for name in ("cut.npz", "flipped.npz", "text.npz", "empty.npz", "array.npy"):
        assert_one_line(run(tmp_path / name, *MEMBERS), name, "not a readable npz file")


def test_the_same_from_python(npz: Path, tree: Path) -> None:
    done: list[float] = []
    with fer_edge.load(labels="rafdb7") as clf:
        faces = read_faces(npz, TRUTH, CLASSES)
        with pytest.raises(LabelError):
            evaluate(clf, faces)
        result = evaluate(clf, faces, skip_unknown=True, on_face=done.append)
    assert len(done) == result.n
    assert done == sorted(done)
    assert done[-1] <= 1.0
    assert result.as_json()["n"] == result.n
    with pytest.raises(UsageError):
        read_faces(tree / "nowhere")
