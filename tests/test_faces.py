"""Faces found: against OpenCV without our code, on real photos, whatever is given as a photo or as a detector."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge import Face, FaceFinder
from fer_edge.errors import EngineError, ImageError, MissingExtraError, UsageError
from fer_edge.image import face_corners, rgb_array

cv2 = pytest.importorskip("cv2")

from fer_edge.live import detectors  # noqa: E402
from fer_edge.live.faces import LEAST_BOX, faces_of  # noqa: E402

FUZZ = settings(max_examples=200, deadline=None)


@pytest.fixture(scope="module")
def finder(yunet: Path) -> Iterator[FaceFinder]:
    with FaceFinder(yunet) as opened:
        yield opened


@pytest.fixture(scope="module")
def full(yunet: Path) -> Iterator[FaceFinder]:
    """One that shrinks nothing."""
    with FaceFinder(yunet, longest=100_000) as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(data: Path) -> Path:
    folder = data / "scenes"
    if not (folder / "SOURCES.csv").is_file():
        pytest.skip("no photos of scenes")
    return folder


def plain(yunet: Path, pixels: NDArray[np.uint8], score: float = 0.6) -> NDArray[np.float32]:
    """YuNet by OpenCV alone: rows (N, 15), the largest first."""
    net = cv2.FaceDetectorYN.create(str(yunet), "", (320, 320), score_threshold=score)
    net.setInputSize((pixels.shape[1], pixels.shape[0]))
    rows = net.detect(np.ascontiguousarray(pixels[:, :, ::-1]))[1]
    return np.empty((0, 15), np.float32) if rows is None else rows[np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")]


def flat(faces: list[Face]) -> NDArray[np.float64]:
    """Faces as rows (N, 15)."""
    rows = [[*face.box, *(v for point in face.landmarks for v in point), face.score] for face in faces]
    return np.array(rows).reshape(-1, 15)


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


# Real photos.


def test_faces_are_those_that_opencv_finds_alone(full: FaceFinder, yunet: Path, photos: Path) -> None:
    """And as many as others have counted."""
    with (photos / "SOURCES.csv").open(newline="") as file:
        counts = {row["file"]: int(row["yunet_faces"]) for row in csv.DictReader(file)}
    assert len(counts) == 21
    for name, count in counts.items():
        photo = photos / "images" / name
        faces, expected = full.find(photo), plain(yunet, pixels_of(photo))
        assert len(faces) == count, name
        np.testing.assert_allclose(flat(faces), expected, atol=0.0051, err_msg=name)


def test_no_face_where_there_is_none(finder: FaceFinder, photos: Path) -> None:
    pytest.importorskip("av")
    frames = fer_edge.sample_frames(photos / "videos" / "no_face.mp4", 6)
    assert [finder.find(frame) for frame in frames] == [[]] * 6


def test_a_face_has_its_parts_in_place(finder: FaceFinder, portrait: Path) -> None:
    (face,) = finder.find(portrait)
    x, y, w, h = face.box
    right_eye, left_eye, nose, right_mouth, left_mouth = face.landmarks
    assert all(x < px < x + w and y < py < y + h for px, py in face.landmarks)
    assert right_eye[0] < nose[0] < left_eye[0], "her right eye is on our left"
    assert right_eye[1] < nose[1] < right_mouth[1]
    assert left_eye[1] < nose[1] < left_mouth[1]
    assert face.eye_distance == math.dist(right_eye, left_eye)
    assert 0.6 < face.score <= 1
    assert json.loads(json.dumps(face.to_dict())) == {
        "box": list(face.box),
        "score": face.score,
        "landmarks": [list(point) for point in face.landmarks],
    }
    assert len({face, face}) == 1
    with pytest.raises(FrozenInstanceError):
        face.score = 1.0  # type: ignore[misc]


def test_the_largest_comes_first(finder: FaceFinder, portrait: Path) -> None:
    with Image.open(portrait) as opened:
        large = opened.convert("RGB").crop((100, 0, 356, 256))
    scene = Image.new("RGB", (640, 300), "gray")
    for x, side in ((0, 130), (140, 256), (400, 180)):
        scene.paste(large.resize((side, side)), (x, 0))
    faces = finder.find(scene)
    assert [round(face.box[0], -2) for face in faces] == [200, 500, 0]


def test_a_large_photo_is_looked_at_smaller_and_told_in_its_own_pixels(yunet: Path, portrait: Path, tmp_path: Path) -> None:
    with Image.open(portrait) as opened:
        small = opened.convert("RGB")
    (there,) = FaceFinder(yunet).find(small)
    small.resize((4096, 4096), Image.Resampling.BICUBIC).save(tmp_path / "large.jpg", quality=90)
    for longest in (320, 640, 1024):
        with FaceFinder(yunet, longest=longest) as finder:
            (face,) = finder.find(tmp_path / "large.jpg")
            assert np.abs(flat([face])[0, :14] / 8 - flat([there])[0, :14]).max() < 6
            # So many pixels only that Pillow decodes it at a quarter: still the file's own pixels.
            (less,) = finder.find(tmp_path / "large.jpg", max_pixels=2_000_000)
            assert np.abs(flat([face]) - flat([less])).max() < 48


def test_a_photo_is_upright_by_its_tag(finder: FaceFinder, portrait: Path, tmp_path: Path) -> None:
    with Image.open(portrait) as opened:
        upright = opened.convert("RGB")
    expected = finder.find(upright)
    turns = {3: 180, 6: 90, 8: 270}
    for tag, degrees in turns.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        upright.rotate(degrees, expand=True).save(tmp_path / f"{tag}.png", exif=exif)
        assert finder.find(tmp_path / f"{tag}.png") == expected


def test_a_photo_may_be_anything_that_predict_takes(finder: FaceFinder, portrait: Path, tmp_path: Path) -> None:
    with Image.open(portrait) as opened:
        rgb = opened.convert("RGB")
    pixels = np.asarray(rgb)
    expected = finder.find(portrait)
    forms: list[Any] = [str(portrait), portrait.read_bytes(), io.BytesIO(portrait.read_bytes()), rgb, pixels]
    forms += [pixels[:, ::-1][:, ::-1], np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])]
    for form in forms:
        assert finder.find(form) == expected
    assert finder.find_rgb(pixels) == expected
    gray = rgb.convert("L")
    (of_gray,) = finder.find(gray)
    assert finder.find(np.asarray(gray)) == finder.find(np.asarray(gray)[:, :, None]) == [of_gray]
    gray.save(tmp_path / "gray.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    assert finder.find(tmp_path / "gray.png") == finder.find(tmp_path / "gray16.png") == [of_gray]
    assert np.abs(flat([of_gray]) - flat(expected)).max() < 5
    clear = rgb.convert("RGBA")
    clear.putalpha(0)
    assert finder.find(clear) == [], "transparent pixels lie on white"


@pytest.mark.parametrize("size", [(1, 1), (20_000, 20), (20, 20_000), (1, 700), (700, 1), (32, 640), (2, 2), (64, 64)])
@pytest.mark.parametrize("fill", [0, 255])
def test_pictures_of_any_size_have_no_face_where_there_is_none(
    finder: FaceFinder, full: FaceFinder, size: tuple[int, int], fill: int
) -> None:
    pixels = np.full((size[1], size[0], 3), fill, np.uint8)
    assert finder.find(pixels) == []
    assert max(size) > 1000 or full.find(Image.fromarray(pixels)) == []


def test_hundreds_of_faces(full: FaceFinder, portrait: Path) -> None:
    with Image.open(portrait) as opened:
        one = opened.convert("RGB").crop((140, 30, 300, 190)).resize((64, 64))
    mosaic = Image.new("RGB", (64 * 20, 64 * 15))
    for place in range(300):
        mosaic.paste(one, (place % 20 * 64, place // 20 * 64))
    faces = full.find(mosaic)
    assert {(int(x + w / 2) // 64, int(y + h / 2) // 64) for x, y, w, h in (face.box for face in faces)} == {
        (x, y) for x in range(20) for y in range(15)
    }
    assert len(faces) == 300


def test_what_is_no_photo(finder: FaceFinder, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    wrong: list[Any] = [tmp_path / "text.jpg", tmp_path / "no.jpg", b"", np.zeros((0, 5, 3), np.uint8), None, 5]
    wrong += [np.zeros((4, 4, 3)), np.zeros((4, 4, 5), np.uint8), np.zeros((3,), np.uint8)]
    for photo in wrong:
        with pytest.raises(ImageError) as caught:
            finder.find(photo)
        assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match="limit"):
        finder.find(Image.new("L", (100, 100)), max_pixels=99)


# The same answer.


def test_neither_threads_nor_what_was_seen_before_change_an_answer(yunet: Path, photos: Path) -> None:
    names = sorted((photos / "images").iterdir())[:6]
    before = cv2.getNumThreads()
    try:
        answers = []
        for threads in (1, 2, 4):
            cv2.setNumThreads(threads)
            with FaceFinder(yunet) as finder:
                order = names if threads == 1 else names[::-1]
                found = {name: finder.find(name) for name in order}
                answers.append([found[name] for name in names])
    finally:
        cv2.setNumThreads(before)
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            np.testing.assert_allclose(flat(one), flat(two), atol=1e-4)


def test_narrow_pictures_answer_the_same_each_time(yunet: Path, photos: Path) -> None:
    """OpenCV 4 reads memory that was never written where a side has at most 32 pixels."""
    pixels = pixels_of(photos / "images" / "vm_solvay1927.jpg")
    for high, wide in ((20, 200), (32, 320), (400, 15)):
        part = pixels[100 : 100 + high, 300 : 300 + wide]
        first = FaceFinder(yunet).find(part)
        assert all(FaceFinder(yunet).find(part) == first for _ in range(3))


def test_threads_may_share_a_finder(finder: FaceFinder, photos: Path) -> None:
    names = sorted((photos / "images").iterdir())[:4]
    expected = [finder.find(name) for name in names]
    answers: dict[int, list[list[Face]]] = {}

    def look(number: int) -> None:
        answers[number] = [finder.find(name) for name in names]

    threads = [threading.Thread(target=look, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(answers.values()) == [expected] * 3


# The arithmetic of boxes.

PLACE, SPAN = st.floats(-120, 900, width=32), st.floats(-1, 200, width=32)
ROW = st.tuples(PLACE, PLACE, SPAN, SPAN, *[PLACE] * 10, st.floats(0, 1, width=32))
SIDE = st.integers(1, 5000)


@FUZZ
@given(rows=st.lists(ROW, max_size=5), picture=st.tuples(SIDE, SIDE), longest=st.integers(1, 800), shrunk=st.integers(1, 8))
def test_every_face_can_be_cut(rows: list[tuple[float, ...]], picture: tuple[int, int], longest: int, shrunk: int) -> None:
    """Of any rows that a detector gives, in any picture: a face is a box that ``face_corners`` takes."""
    wide, high = picture
    shrink = max(1.0, max(picture) / longest)
    seen = (max(1, round(wide / shrink)), max(1, round(high / shrink)))
    faces = faces_of(np.array(rows, np.float64).reshape(-1, 15), seen, picture)
    assert len(faces) <= len(rows)
    areas = [face.box[2] * face.box[3] for face in faces]
    assert areas == sorted(areas, reverse=True)
    for face in faces:
        x, y, w, h = face.box
        assert 0 <= x + w / 2 < wide
        assert 0 <= y + h / 2 < high
        assert min(w, h) >= LEAST_BOX
        for scale in (0.5, 1.0, 1.3):
            left, top, right, bottom = face_corners(face.times(shrunk).box, picture, scale=scale, shrunk=shrunk)
            assert left < wide
            assert top < high
            assert right > 0
            assert bottom > 0
        assert any(math.isclose(x, row[0] * wide / seen[0], abs_tol=0.0051) for row in rows)


@pytest.mark.parametrize(
    ("box", "count"),
    [
        ((-10, 40, 20, 20), 1),
        ((-11, 40, 20, 20), 0),
        ((40, -11, 20, 20), 0),
        ((89, 40, 20, 20), 1),
        ((90, 40, 20, 20), 0),
        ((40, 70, 20, 20), 0),
        ((40, 40, 1.9, 20), 0),
        ((40, 40, 20, -20), 0),
    ],
)
def test_a_face_has_its_centre_in_the_picture(box: tuple[float, ...], count: int) -> None:
    row = np.array([[*box, *[1.0] * 10, 0.9]])
    assert len(faces_of(row, (100, 80), (100, 80))) == count


@given(rows=st.lists(ROW, min_size=1, max_size=3), factor=st.integers(2, 8))
def test_a_face_of_a_larger_picture_is_that_much_larger(rows: list[tuple[float, ...]], factor: int) -> None:
    for face in faces_of(np.array(rows, np.float64).reshape(-1, 15), (700, 700), (700, 700)):
        large = flat([face.times(factor)])[0]
        np.testing.assert_allclose(large[:14], flat([face])[0, :14] * factor)
        assert large[14] == face.score
        assert face.times(1) is face


def test_a_whole_picture_as_an_array_keeps_its_memory_and_its_pixels(portrait: Path, tmp_path: Path) -> None:
    pixels = pixels_of(portrait)
    assert rgb_array(pixels)[0] is pixels
    tall = np.tile(pixels, (4, 2, 1))  # in strips
    Image.fromarray(tall).save(tmp_path / "tall.png")
    got, shrunk = rgb_array(tmp_path / "tall.png")
    assert shrunk == 1
    np.testing.assert_array_equal(got, tall)
    Image.fromarray(tall).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    got, shrunk = rgb_array(tmp_path / "cmyk.jpg", 600_000)
    assert (got.shape, shrunk) == ((1024, 512, 3), 2)


# Detectors.


def test_after_close(yunet: Path, portrait: Path) -> None:
    finder = FaceFinder(yunet)
    with finder:
        finder.find(portrait)
    finder.close()
    for use in (lambda: finder.find(portrait), lambda: finder.find_rgb(pixels_of(portrait)), finder.__enter__):
        with pytest.raises(UsageError, match="closed"):
            use()


def test_wrong_uses(yunet: Path) -> None:
    uses: list[dict[str, Any]] = [{"longest": 0}, {"longest": "640"}, {"least_score": 2}, {"least_score": math.nan}]
    for use in uses:
        with pytest.raises(UsageError):
            FaceFinder(yunet, **use)
    with pytest.raises(UsageError, match="detector must be"):
        FaceFinder(5)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def impostors(tmp_path_factory: pytest.TempPathFactory, yunet: Path, root: Path) -> dict[str, Path]:
    """Files that are no YuNet."""
    folder = tmp_path_factory.mktemp("impostors")
    content = yunet.read_bytes()
    files = {
        "empty": b"",
        "text": b"hello" * 100,
        "picture": (root / "examples" / "astronaut.png").read_bytes(),
        "truncated": content[:100_000],
        "nearly whole": content[:-10],
        "a bundle's model": next((root / "fer_edge" / "default").glob("*.onnx")).read_bytes(),
    }
    for name, data in files.items():
        (folder / f"{name}.onnx").write_bytes(data)
    return {name: folder / f"{name}.onnx" for name in files}


def of_another_shape(file: Path, target: Path) -> None:
    """YuNet whose outputs of one name have too few numbers: what OpenCV would read beyond their end."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load(file)
    graph = model.graph
    for node in graph.node:
        for i, name in enumerate(node.output):
            if name == "kps_8":
                node.output[i] = "kps_whole"
    bounds = {"starts": [0, 0, 0], "ends": [9, 99_999, 4]}
    graph.initializer.extend([onnx.numpy_helper.from_array(np.array(v), name) for name, v in bounds.items()])
    graph.node.append(onnx.helper.make_node("Slice", ["kps_whole", *bounds], ["kps_8"]))
    onnx.save(model, target)


@pytest.mark.parametrize("name", ["empty", "text", "picture", "truncated", "nearly whole", "a bundle's model"])
def test_a_file_that_is_no_detector_is_one_line(
    name: str, impostors: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EngineError) as caught:
        FaceFinder(impostors[name])
    assert str(impostors[name]) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_network_with_other_outputs_is_refused_before_it_runs(yunet: Path, tmp_path: Path) -> None:
    of_another_shape(yunet, tmp_path / "short.onnx")
    with pytest.raises(EngineError, match="kps_8"):
        FaceFinder(tmp_path / "short.onnx")


def test_other_weights_of_its_kind_are_taken_when_they_are_named(yunet: Path, tmp_path: Path, portrait: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(yunet)
    model.doc_string = "the same with a word more"
    onnx.save(model, tmp_path / "mine.onnx")
    with FaceFinder(tmp_path / "mine.onnx") as mine, FaceFinder(yunet) as published:
        assert mine.find(portrait) == published.find(portrait)
        assert (mine.name, published.name) == ("mine.onnx", yunet.name)


def test_what_is_neither_a_file_nor_a_name(tmp_path: Path) -> None:
    for which in ("no-such", tmp_path, tmp_path / "no.onnx", "", "a\0b"):
        with pytest.raises(UsageError, match=r"neither a file nor the name of a detector \(yunet") as caught:
            FaceFinder(which)
        assert "\n" not in str(caught.value)


def test_opening_says_nothing_and_leaves_opencvs_level(yunet: Path) -> None:
    """OpenCV 5 warns at each opening, on the process's own stderr."""
    code = f"""
import cv2, fer_edge
log = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging
threads = cv2.getNumThreads()
for level in (3, 1, log.getLogLevel()):
    log.setLogLevel(level)
    fer_edge.FaceFinder({str(yunet)!r}).find("examples/astronaut.png")
    assert log.getLogLevel() == level
    assert cv2.getNumThreads() == threads
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class Corner:
    """A detector of a test's own: a face in the upper left quarter of whatever it sees."""

    def __init__(self, least_score: float = 0.6) -> None:
        self.least_score, self.closed = least_score, 0

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating]:
        assert pixels.flags.c_contiguous
        high, wide = pixels.shape[:2]
        return np.array([[0, 0, wide / 2, high / 2, *[wide / 8, high / 8] * 5, 0.9]])

    def close(self) -> None:
        self.closed += 1


def test_a_detector_of_somebodys_own(portrait: Path) -> None:
    corner = Corner()
    with FaceFinder(corner, longest=100) as finder:
        assert [face.box for face in finder.find(portrait)] == [(0.0, 0.0, 256.0, 256.0)]
        assert finder.name == "Corner"
    finder.close()
    assert corner.closed == 1


@pytest.mark.parametrize(
    "rows", [np.full((1, 15), np.nan), np.full((1, 15), np.inf), np.zeros((1, 14)), np.zeros((15,)), np.zeros((2, 3, 15))]
)
def test_a_detector_that_answers_with_something_else(rows: NDArray[np.float64], portrait: Path) -> None:
    corner = Corner()
    corner.detect = lambda pixels: rows  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="detector"):
        FaceFinder(corner).find(portrait)


def test_another_package_offers_a_detector(tmp_path: Path, portrait: Path) -> None:
    """By an entry point, as a runtime is; one that does not open is one line."""
    (tmp_path / "corners.py").write_text(
        "import numpy as np\n"
        "class Corner:\n"
        "    def detect(self, pixels):\n"
        "        return np.array([[0, 0, 9, 9, *[1] * 10, 0.9]])\n"
        "    def close(self): pass\n"
        "def open(file, least_score):\n"
        "    assert file is None and least_score == 0.6\n"
        "    return Corner()\n"
    )
    (tmp_path / "sick.py").write_text("raise OSError('no driver\\nhere')\n")
    info = tmp_path / "corners-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corners\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{detectors.GROUP}]\ncorner = corners\nsick = sick\nyunet = sick\n")
    code = f"""
import fer_edge
print([face.box for face in fer_edge.FaceFinder("corner").find({str(portrait)!r})])
for name in ("sick", "other"):
    try:
        fer_edge.FaceFinder(name)
    except fer_edge.FerEdgeError as error:
        print(type(error).__name__, error)
print(fer_edge.live.detectors.open_detector.__name__)
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(__file__).resolve().parent.parent}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.splitlines()[:3] == [
        "[(0.0, 0.0, 9.0, 9.0)]",
        "EngineError the face detector 'sick' does not open: here",
        "UsageError other is neither a file nor the name of a detector (corner, sick, yunet)",
    ]


# What is not installed.


def test_without_opencv(monkeypatch: pytest.MonkeyPatch, yunet: Path) -> None:
    monkeypatch.setattr("fer_edge.extras.present", lambda name: name != "opencv-python-headless")
    with pytest.raises(MissingExtraError, match=r"pip install 'fer-edge\[live\]'"):
        FaceFinder(yunet)


def test_with_an_opencv_that_does_not_serve(monkeypatch: pytest.MonkeyPatch, yunet: Path) -> None:
    """Too old, or without a screen's libraries."""
    monkeypatch.delattr(cv2, "FaceDetectorYN")
    with pytest.raises(EngineError, match="FaceDetectorYN"):
        FaceFinder(yunet)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(EngineError, match="does not import"):
        FaceFinder(yunet)


def test_opencv_of_another_distribution_counts(tmp_path: Path) -> None:
    """A Jetson's own build has no metadata at all, opencv-python has other metadata."""
    code = """
import sys
from importlib import metadata
real = metadata.distribution
def distribution(name):
    if name.startswith("opencv"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.distribution = distribution
from fer_edge import extras
from fer_edge.console import need_extra
from fer_edge.doctor import missing_extras
extras.requirements = lambda extra: ("opencv-python-headless",) if extra == "live" else ()
need_extra("opencv-python-headless", extra="live")
assert extras.present("opencv-python-headless") and "live" not in missing_extras()
extras.IMPORT_NAMES["opencv-python-headless"] = "no_such_cv2"
assert not extras.present("opencv-python-headless") and "live" in missing_extras()
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
