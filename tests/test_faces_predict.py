"""Photos in, faces with their expressions out: ``predict_faces``, ``predict --faces`` and what ``--draw`` draws."""

from __future__ import annotations

import io
import json
import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageChops

import fer_edge
from fer_edge import Classifier, FaceFinder, FacePrediction
from fer_edge.bundle import change_label_sets, label_set, open_bundle
from fer_edge.classifier import Prediction
from fer_edge.cli import main
from fer_edge.errors import ImageError, UsageError
from fer_edge.image import to_inputs

pytest.importorskip("cv2")

from fer_edge.live.draw import draw_faces
from fer_edge.live.faces import LEAST_EYES, LONGEST
from fer_edge.live.predictions import eye_angle

Run = Callable[..., tuple[object, str, str]]


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(threads=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def finder(yunet: Path) -> Iterator[FaceFinder]:
    with FaceFinder(yunet) as opened:
        yield opened


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], yunet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``fer-edge predict ARGUMENTS`` with the detector in the user's cache: exit status, stdout, stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "cache" / "fer-edge" / "detectors" / yunet.name
    place.parent.mkdir(parents=True)
    shutil.copy(yunet, place)

    def call(*arguments: object) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(["predict", *map(str, arguments)])
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def pair(portrait: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of two faces, the left one larger, and one that is too small to be judged."""
    with Image.open(portrait) as opened:
        face = opened.convert("RGB").crop((100, 0, 356, 256))
    scene = Image.new("RGB", (600, 320), "gray")
    for x, side in ((10, 256), (300, 200), (540, 40)):
        scene.paste(face.resize((side, side), Image.Resampling.LANCZOS), (x, 20))
    file = tmp_path_factory.mktemp("pair") / "pair.png"
    scene.save(file)
    return file


# In Python.


def test_answers_are_those_of_predict_boxes(clf: Classifier, finder: FaceFinder, pair: Path) -> None:
    faces = clf.predict_faces(pair, finder)
    assert [(f.box, f.score, f.landmarks) for f in faces] == [(f.box, f.score, f.landmarks) for f in finder.find(pair)]
    assert len(faces) == 3
    large, small = faces[:2], faces[2]
    assert [face.prediction for face in large] == clf.predict_boxes(pair, [face.box for face in large])
    assert [face.label for face in large] == ["happiness"] * 2
    for face in large:
        assert face.eye_distance >= LEAST_EYES
        assert face.prediction is not None
        assert (face.scores, face.certain) == (face.prediction.scores, face.prediction.certain)
    assert small.eye_distance < LEAST_EYES
    assert (small.prediction, small.label, small.scores, small.certain) == (None, None, {}, False)
    assert len(set(faces)) == 3
    assert json.loads(json.dumps([face.to_dict() for face in faces]))[2]["scores"] == {}
    every = clf.predict_faces(pair, finder, least_eyes=0)
    assert every[:2] == faces[:2]
    assert every[2].prediction == clf.predict(pair, box=small.box)
    assert all(face.prediction is None for face in clf.predict_faces(pair, finder, least_eyes=1000))


def test_every_form_of_a_photo_gives_the_same(clf: Classifier, finder: FaceFinder, portrait: Path) -> None:
    expected = clf.predict_faces(portrait, finder)
    with Image.open(portrait) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    for form in (pixels, portrait.read_bytes(), io.BytesIO(portrait.read_bytes()), Image.fromarray(pixels)):
        assert clf.predict_faces(form, finder) == expected
    assert clf.predict_faces(np.zeros((40, 30, 3), np.uint8), finder) == []


def test_a_photo_that_is_decoded_smaller_is_told_in_its_own_pixels(
    clf: Classifier, finder: FaceFinder, portrait: Path, tmp_path: Path
) -> None:
    with Image.open(portrait) as opened:
        opened.convert("RGB").resize((2048, 2048)).save(tmp_path / "large.jpg", quality=95)
    (whole,) = clf.predict_faces(tmp_path / "large.jpg", finder)
    (less,) = clf.predict_faces(tmp_path / "large.jpg", finder, max_pixels=600_000)
    assert np.abs(np.subtract(whole.box, less.box)).max() < 24
    assert less.prediction == clf.predict(tmp_path / "large.jpg", box=less.box, max_pixels=600_000)
    assert less.label == whole.label == "happiness"


def test_a_finder_of_its_own_is_made_once_and_closed_with_it(
    yunet: Path, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with fer_edge.load(threads=1) as clf:
        with pytest.raises(UsageError, match="fer-edge faces fetch"):
            clf.predict_faces(portrait)
        place = tmp_path / "fer-edge" / "detectors" / yunet.name
        place.parent.mkdir(parents=True)
        shutil.copy(yunet, place)
        answers: list[list[FacePrediction]] = []
        threads = [threading.Thread(target=lambda: answers.append(clf.predict_faces(portrait))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        own = clf._finder
        assert clf.predict_faces(portrait) == answers[0]
        assert answers == [answers[0]] * 4
        assert clf._finder is own is not None
    with pytest.raises(UsageError, match="closed"):
        own.find(portrait)
    with pytest.raises(UsageError, match="closed"):
        clf.predict_faces(portrait)


def test_wrong_uses(clf: Classifier, finder: FaceFinder, portrait: Path, tmp_path: Path) -> None:
    uses: list[dict[str, Any]] = [{"align": "nose"}, {"least_eyes": -1}, {"least_eyes": math.nan}, {"max_pixels": "many"}]
    for use in uses:
        with pytest.raises(UsageError):
            clf.predict_faces(portrait, finder, **use)
    with pytest.raises(UsageError, match="finder must be"):
        clf.predict_faces(portrait, "yunet")  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="does not exist"):
        clf.predict_faces(tmp_path / "no.jpg", finder)


# Turned by the eyes.


@pytest.fixture(scope="module")
def upright(portrait: Path) -> NDArray[np.uint8]:
    with Image.open(portrait) as opened:
        return np.asarray(opened.convert("RGB"))


def test_no_turn_is_the_square_itself_and_a_quarter_is_a_quarter(upright: NDArray[np.uint8]) -> None:
    for box in ((170, 60, 100, 100), (-30, -20, 90, 91), (440, 300, 120, 100)):
        size = (max(box[2:]),) * 2
        (plain,) = to_inputs(upright, size, "rgb", [box])
        np.testing.assert_array_equal(to_inputs(upright, size, "rgb", [box], angles=[0.0])[0], plain)
        for quarters in (1, 2, 3):
            (turned,) = to_inputs(upright, size, "rgb", [box], angles=[90.0 * quarters])
            assert np.abs(turned.astype(int) - np.rot90(plain, quarters)).max() <= 1


@pytest.mark.parametrize("angle", [-170, -45, -20, 7, 30, 60])
def test_a_turn_is_pillows_rotation_about_the_boxs_centre(upright: NDArray[np.uint8], angle: int) -> None:
    box = (180, 70, 88, 100)
    (got,) = to_inputs(upright, (100, 100), "rgb", [box], angles=[float(angle)])
    # Pillow turns anticlockwise: a face that leans clockwise stands upright again.
    whole = Image.fromarray(upright).rotate(angle, Image.Resampling.BICUBIC, center=(224, 120))
    expected = np.asarray(whole.crop((174, 70, 274, 170)))
    assert np.abs(got.astype(int) - expected).max() <= 1


class Leaning:
    """A detector that knows where the portrait's face is, and that it leans so many degrees clockwise about (224, 120)."""

    def __init__(self, angle: float) -> None:
        self.angle = math.radians(angle)

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        cos, sin = math.cos(self.angle), math.sin(self.angle)
        marks = [(-24, -18), (23, -17.5), (-4, 4), (-25, 22), (16, 23)]
        turned = [(224 + x * cos - y * sin, 120 + x * sin + y * cos) for x, y in marks]
        return np.array([[179, 63, 90, 114, *(v for mark in turned for v in mark), 0.9]])

    def close(self) -> None:
        """Nothing is held."""


def test_a_face_that_leans_is_set_upright(clf: Classifier, upright: NDArray[np.uint8]) -> None:
    (straight,) = clf.predict_faces(upright, FaceFinder(Leaning(0)), align="eyes")
    for angle in (-40, 25):
        leaning = np.asarray(Image.fromarray(upright).rotate(-angle, Image.Resampling.BICUBIC, center=(224, 120)))
        (face,) = clf.predict_faces(leaning, FaceFinder(Leaning(angle)), align="eyes")
        assert eye_angle(face) == pytest.approx(eye_angle(straight) + angle, abs=0.1)
        (crop,) = to_inputs(leaning, (96, 96), "rgb", [face.box], angles=[eye_angle(face)])
        (expected,) = to_inputs(upright, (96, 96), "rgb", [face.box], angles=[eye_angle(straight)])
        assert np.abs(crop.astype(int) - expected).mean() < 3
        (unturned,) = to_inputs(leaning, (96, 96), "rgb", [face.box])
        assert np.abs(unturned.astype(int) - expected).mean() > 20
        assert face.label == straight.label == "happiness"
        assert face.scores["happiness"] == pytest.approx(straight.scores["happiness"], abs=0.05)
        features = clf.box_features(leaning, [face.box], angles=[eye_angle(face)])
        assert clf.predict_features(features) == [face.prediction]
        assert face.prediction != clf.predict(leaning, box=face.box)


def test_only_squares_are_turned_and_each_has_an_angle(upright: NDArray[np.uint8]) -> None:
    for use in ({"shape": "box", "angles": [1.0]}, {"angles": []}, {"angles": [1.0, 2.0]}):
        with pytest.raises(UsageError, match="angles"):
            to_inputs(upright, (48, 48), "rgb", [(10, 10, 50, 50)], **use)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="max_pixels"):
        to_inputs(upright, (48, 48), "rgb", [(10, 10, 50, 50)], angles=[45.0], max_pixels=3000)


# The command.


def test_json_is_the_contracts(run: Run, clf: Classifier, finder: FaceFinder, pair: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "nobody.png")
    code, out, err = run(pair, tmp_path / "nobody.png", tmp_path / "no.png", "--faces", "--json", "--threads", 1)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (2, "")
    assert set(rows[0]) == {"image", "faces", "runtime", "device", "precision"}
    assert (rows[0]["image"], rows[0]["runtime"]) == (str(pair), clf.runtime)
    assert rows[0]["faces"] == [json.loads(json.dumps(face.to_dict())) for face in clf.predict_faces(pair, finder)]
    for face in rows[0]["faces"]:
        assert set(face) == {"box", "score", "landmarks", "label", "scores", "certain"}
        assert (len(face["box"]), np.shape(face["landmarks"])) == (4, (5, 2))
    assert (rows[0]["faces"][2]["label"], rows[0]["faces"][2]["certain"]) == (None, False)
    assert rows[1] == {**rows[0], "image": str(tmp_path / "nobody.png"), "faces": []}
    assert set(rows[2]) == {"image", "error"}
    assert run(tmp_path / "nobody.png", "--faces", "--json")[0] == 0


def test_text_has_a_line_for_each_face(run: Run, pair: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "nobody.png")
    code, out, err = run(pair, tmp_path / "nobody.png", "--faces")
    lines = out.splitlines()
    assert code == 0
    assert len(lines) == 4
    assert all(line.startswith(f"{pair} [") and "]: happiness" in line for line in lines[:2])
    assert lines[2].endswith("]: too small to be judged")
    assert lines[3] == f"{tmp_path / 'nobody.png'}: no face"
    assert len(err.splitlines()) == 1
    assert "too small" not in run(pair, "--faces", "--least-eyes", 0)[1]
    assert len(run(pair, "--faces", "--longest", 100)[1].splitlines()) < 3
    assert run(pair, "--faces", "--align", "eyes")[0] == 0


def test_the_defaults_that_help_states_are_those_of_the_code(run: Run) -> None:
    code, out, _ = run("--help")
    text = " ".join(out.split())
    assert code == 0
    assert f"in pixels. Default: {LONGEST}." in text
    assert f"not judged. Default: {LEAST_EYES:g}." in text


def test_uncertain_answers_say_so(run: Run, bundle: Path, portrait: Path) -> None:
    assert "uncertain" not in run(portrait, "--faces", "-b", bundle)[1]
    opened = open_bundle(bundle)
    default = label_set(opened, opened.manifest.default_labels)
    change_label_sets(opened, [replace(default, threshold=1.0)])
    assert run(portrait, "--faces", "-b", bundle)[1].endswith("% (uncertain)\n")
    assert json.loads(run(portrait, "--faces", "-b", bundle, "--json")[1])["faces"][0]["certain"] is False


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--faces", "--box", "1,1,9,9"), "choose one"),
        (("--detector", "x.onnx"), "--detector goes with --faces"),
        (("--align", "eyes"), "--align goes with --faces"),
        (("--longest", "320"), "--longest goes with --faces"),
        (("--least-eyes", "9"), "--least-eyes goes with --faces"),
        (("--draw", "x.png"), "--draw goes with --faces or --box"),
        (("--faces", "--detector", "no-such"), "neither a file nor the name of a detector"),
        (("--faces", "--detector", "{portrait}"), "no face detector"),
        (("--faces", "--draw", "x.bmp"), ".png"),
        (("--faces", "--draw", "x"), ".png"),
        (("--faces", "--draw", "{portrait}"), "write over"),
        (("--faces", "--draw", "/proc/no/x.png"), "cannot be written"),
        (("--faces", "--margin", "0.1"), "--margin goes with --box"),
    ],
)
def test_what_does_not_fit_is_one_line(run: Run, arguments: tuple[str, ...], says: str, portrait: Path) -> None:
    before = portrait.read_bytes()
    code, out, err = run(portrait, *(argument.format(portrait=portrait) for argument in arguments))
    assert (code, out) == (2, "")
    assert says in err
    assert len(err.splitlines()) == 1
    assert portrait.read_bytes() == before


def test_nothing_reaches_stderr_but_what_engine_answered(yunet: Path, portrait: Path, root: Path) -> None:
    """As a process, whose stderr OpenCV writes to by itself."""
    command = [sys.executable, "-m", "fer_edge", "predict", portrait, "--faces", "--detector", yunet]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.startswith("(")
    assert len(done.stderr.splitlines()) == 1


# Drawings.


def changed(file: Path, photo: Path) -> tuple[int, int, int, int] | None:
    """Where a drawing differs from its photo: (left, top, right, bottom)."""
    with Image.open(file) as drawn, Image.open(photo) as plain:
        return ImageChops.difference(drawn.convert("RGB"), plain.convert("RGB")).getbbox()


def test_one_photo_is_drawn_into_a_file(run: Run, pair: Path, tmp_path: Path, finder: FaceFinder) -> None:
    for suffix in ("png", "jpg", "webp"):
        code, out, _ = run(pair, "--faces", "--draw", tmp_path / "new" / f"drawn.{suffix}", "--json")
        assert code == 0
        assert len(json.loads(out)["faces"]) == 3
        with Image.open(tmp_path / "new" / f"drawn.{suffix}") as drawn:
            assert (drawn.size, drawn.format) == ((600, 320), {"jpg": "JPEG"}.get(suffix, suffix.upper()))
    area = changed(tmp_path / "new" / "drawn.png", pair)
    assert area is not None
    x, _, w, _ = finder.find(pair)[0].box
    assert area[0] <= x <= x + w <= area[2]


def test_several_photos_are_drawn_into_a_folder(run: Run, pair: Path, portrait: Path, tmp_path: Path) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "nobody.jpg")
    folder = tmp_path / "drawn"
    assert run(pair, portrait, tmp_path / "nobody.jpg", "--faces", "--draw", f"{folder}/")[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == ["astronaut.png", "nobody.png", "pair.png"]
    code, _, err = run(pair, portrait, "--faces", "--draw", tmp_path / "x.png")
    assert code == 2
    assert "folder" in err
    shutil.copy(portrait, tmp_path / "pair.png")
    code, _, err = run(pair, tmp_path / "pair.png", "--faces", "--draw", folder)
    assert code == 2
    assert "both" in err
    assert run(pair, pair, "--faces", "--draw", folder)[0] == 0


def test_boxes_and_standard_input_are_drawn_too(
    run: Run, portrait: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, _ = run(portrait, "--box", "168,56,112,112", "--box", "300,300,90,90", "--draw", tmp_path / "boxes.png")
    assert code == 0
    area = changed(tmp_path / "boxes.png", portrait)
    assert area is not None
    assert area[0] <= 168
    assert area[3] >= 390
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(portrait.read_bytes())))
    code, out, _ = run("-", "--faces", "--draw", tmp_path / "stdin.png", "--json")
    assert code == 0
    assert json.loads(out)["image"] == "-"
    assert changed(tmp_path / "stdin.png", portrait) is not None


SURE = Prediction("happiness", {"happiness": 0.9, "disgust": 0.1})
UNSURE = Prediction("happiness", {"happiness": 0.4, "disgust": 0.6}, certain=False)


def test_what_is_certain_and_what_is_judged_can_be_told_without_colours() -> None:
    """In gray, too: an unbroken line, a broken one, a thin one."""
    photo = Image.new("RGB", (700, 260), "gray")
    boxes = [(20, 80, 150, 150), (270, 80, 150, 150), (500, 80, 150, 150)]
    drawn = draw_faces(photo, list(zip(boxes, (SURE, UNSURE, None), strict=True))).convert("L")
    bottoms = [np.asarray(drawn.crop((x, y + h - 4, x + w, y + h + 1)))[-2] for x, y, w, h in boxes]
    light = [float((row > 150).mean()) for row in bottoms]
    assert light[0] > 0.9
    assert 0.3 < light[1] < 0.8
    above = [np.asarray(drawn.crop((x, 0, x + w, y - 8))).astype(int).std() for x, y, w, h in boxes]
    assert above[0] > 10
    assert above[1] > 10
    assert above[2] == 0, "a face that is not judged has no word"


@pytest.mark.parametrize("background", [0, 90, 255])
@pytest.mark.parametrize("size", [(40, 30), (300, 200), (4000, 3000)])
def test_letters_stand_out_on_every_background_and_fit(background: int, size: tuple[int, int]) -> None:
    box = (size[0] * 0.3, size[1] * 0.4, size[0] * 0.4, size[1] * 0.5)
    photo = Image.new("RGB", size, (background,) * 3)
    drawn = np.asarray(draw_faces(photo, [(box, SURE)]).convert("L")).astype(int)
    plate = drawn > 150 if background < 100 else drawn < 60
    assert plate.any()
    assert drawn.max() - drawn.min() > 120


def test_boxes_that_leave_the_picture_and_hundreds_of_them_are_drawn() -> None:
    photo = Image.new("RGB", (200, 100))
    for box in ((-50, -50, 300, 300), (190, 90, 50, 50), (0, 0, 1, 1), (199, 99, 3, 3)):
        assert draw_faces(photo, [(box, SURE)]).size == (200, 100)
    grid = [((x * 20.0, y * 20.0, 15.0, 15.0), SURE) for x in range(20) for y in range(15)]
    assert draw_faces(Image.new("RGB", (400, 300)), grid).size == (400, 300)
    assert draw_faces(photo, []).tobytes() == photo.tobytes()
