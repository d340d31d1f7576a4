"""Pictures of one photo are found however they were cut, lit, marked and compressed; two people in the same light are no
twins; and what is found is left out where somebody learns or counts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from fer_edge.cli import main
from fer_edge.errors import ImageError, UsageError
from fer_edge.labelled import picture_names, read_faces, read_pictures
from fer_edge.twins import LEAST, SIDE, near_duplicates, squares

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def people(data: Path) -> list[Image.Image]:
    """Photos of 120 people, 112 x 112."""
    photos: dict[str, Path] = {}
    for path in sorted((data / "lfw_expressions").glob("[hn]*/*.jpg")):
        photos.setdefault(path.stem.rsplit("_", 1)[0], path)
    return [Image.open(path).convert("L").resize((112, 112)) for path in list(photos.values())[::20][:120]]


def compressed(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=25)
    return Image.open(file)


def marked(photo: Image.Image) -> Image.Image:
    out = photo.copy()
    ImageDraw.Draw(out).text((8, 60), "photo agency", fill=255)
    return out


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "the same": lambda photo: photo,
    "mirrored": lambda photo: photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "cut": lambda photo: photo.crop((6, 3, 112, 109)),
    "cut and mirrored": lambda photo: photo.crop((0, 0, 107, 107)).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "darker": lambda photo: ImageEnhance.Brightness(photo).enhance(0.4),
    "flatter": lambda photo: ImageEnhance.Contrast(photo).enhance(0.5),
    "small": lambda photo: photo.resize((40, 40), Image.Resampling.BILINEAR),
    "larger and in colour": lambda photo: photo.resize((300, 280)).convert("RGB"),
    "compressed": compressed,
    "marked": marked,
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_same_photo_is_found_and_no_other(change: str, people: list[Image.Image]) -> None:
    first, second = squares(people), squares([CHANGES[change](photo) for photo in people])
    found = near_duplicates(first, second)
    pairs = set(zip(found.first.tolist(), found.second.tolist(), strict=True))
    own = {(i, i) for i in range(len(people))}
    assert pairs <= own, "two people are taken for one photo"
    assert len(pairs) >= 0.95 * len(own)
    assert (found.correlation >= LEAST).all()
    assert found.mirrored.mean() == ("mirrored" in change)
    assert found.rows() == sorted(i for i, _ in pairs)


def test_within_one_set_the_earlier_one_stays(people: list[Image.Image]) -> None:
    photos = [*people[:5], marked(people[3]), people[5], compressed(people[3]), CHANGES["mirrored"](people[0])]
    found = near_duplicates(squares(photos))
    assert set(zip(found.first.tolist(), found.second.tolist(), strict=True)) == {(0, 8), (3, 5), (3, 7), (5, 7)}
    assert found.rows(within=True) == [5, 7, 8]


def test_what_has_no_detail_has_no_twin() -> None:
    flat = np.full((3, SIDE, SIDE), 90, np.uint8)
    assert len(near_duplicates(flat, flat).first) == len(near_duplicates(flat).first) == 0
    nothing = near_duplicates(flat[:0], flat)
    assert (len(nothing.first), nothing.rows()) == (0, [])
    assert squares([]).shape == (0, SIDE, SIDE)


def test_correlations_are_those_of_the_definition(people: list[Image.Image]) -> None:
    """Against scipy's filters and every shift in turn."""
    ndimage = pytest.importorskip("scipy.ndimage")
    pixels = squares([people[0], CHANGES["cut"](people[0]), marked(people[0])])

    def detail(face: NDArray[np.uint8]) -> NDArray[np.float64]:
        wide = face.astype(np.float64)
        fine = wide - ndimage.gaussian_filter(wide, 3.0, mode="nearest")
        fine /= np.sqrt(ndimage.gaussian_filter(fine**2, 5.0, mode="nearest")) + 4
        fine *= np.sqrt(np.outer(np.hanning(50)[1:-1], np.hanning(50)[1:-1]))
        fine -= fine.mean()
        return fine / np.linalg.norm(fine)

    found = near_duplicates(pixels[:1], pixels[1:])
    for row, value in zip(found.second, found.correlation, strict=True):
        a, b = detail(pixels[0]), detail(pixels[1 + row])
        shifts = [(a * np.roll(b, (dy, dx), (0, 1))).sum() for dy in range(-8, 9) for dx in range(-8, 9)]
        assert value == pytest.approx(max(shifts), abs=2e-3)
    assert found.second.tolist() == [0, 1]


def test_parts_do_not_matter(people: list[Image.Image], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = squares(people), squares([marked(photo) for photo in people])
    whole = near_duplicates(first, second)
    monkeypatch.setattr("fer_edge.twins.CHUNK", 7)
    done: list[float] = []
    parts = near_duplicates(first, second, on_part=done.append)
    assert np.array_equal(whole.first, parts.first)
    assert np.array_equal(whole.second, parts.second)
    np.testing.assert_allclose(whole.correlation, parts.correlation, atol=1e-5)
    assert done == sorted(done)
    assert done[-1] == 1
    assert len(done) == -(-len(people) // 7)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``fer-edge ARGUMENTS``: exit status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(map(str, arguments)))
        captured = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return stop.value.code, captured.out, captured.err

    return call


@pytest.fixture
def folders(tmp_path: Path, people: list[Image.Image]) -> tuple[Path, Path]:
    """test/ with faces in two classes, and train/ with twins of two of them."""
    for i, photo in enumerate(people[:8]):
        folder = tmp_path / "test" / ("happy" if i % 2 else "sad")
        folder.mkdir(parents=True, exist_ok=True)
        photo.save(folder / f"{i}.png")
    (tmp_path / "train").mkdir()
    for i, photo in enumerate([people[20], marked(people[3]), people[21], CHANGES["mirrored"](people[6])]):
        photo.save(tmp_path / "train" / f"{i}.png")
    return tmp_path / "test", tmp_path / "train"


def test_a_list_of_twins_is_left_out(folders: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    pytest.importorskip("rich")
    test, train = folders
    code, out, err = run("twins", test, train, "-o", tmp_path / "list.txt")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["happy/3.png", "1.png"], ["sad/6.png", "3.png"]]
    assert out.splitlines()[1].endswith("mirrored")
    assert "2 of 8 pictures" in err
    assert (tmp_path / "list.txt").read_text() == "happy/3.png\nsad/6.png\n"
    found = json.loads(run("twins", test, train, "--json")[1])
    assert (found["pictures"], found["with_twin"]) == ([8, 4], 2)
    assert [(p["a"], p["b"], p["mirrored"]) for p in found["twins"]] == [
        ("happy/3.png", "1.png", False),
        ("sad/6.png", "3.png", True),
    ]
    code, out, _ = run("evaluate", test, "--leave-out", tmp_path / "list.txt", "--json")
    counted = json.loads(out)
    assert (code, counted["n"], counted["named_out"], counted["left_out"]) == (0, 6, 2, 0)
    assert counted["per_class_count"]["happiness"] == 3
    assert "2 by the list" in run("evaluate", test, "--leave-out", tmp_path / "list.txt")[1]
    kept = read_faces(test, leave_out=tmp_path / "list.txt").images
    assert picture_names(test, kept) == ["happy/1.png", "happy/5.png", "happy/7.png", "sad/0.png", "sad/2.png", "sad/4.png"]


def test_rows_of_an_npz(people: list[Image.Image], run: Run, tmp_path: Path) -> None:
    pixels = np.stack([np.asarray(photo) for photo in people[:10]])
    truth = np.array([0, 1, -1, 0, 1, 0, 1, -1, 0, 1])
    np.savez(tmp_path / "test.npz", images=pixels, t=truth, c=np.array(["happiness", "sadness"]))
    np.savez(tmp_path / "train.npz", images=pixels[[2, 4, 9], :, ::-1])
    code, out, _ = run("twins", tmp_path / "test.npz", tmp_path / "train.npz", "-o", tmp_path / "rows.txt")
    assert code == 0
    assert (tmp_path / "rows.txt").read_text() == "2\n4\n9\n"
    assert [line.split()[:2] for line in out.splitlines()] == [["2", "0"], ["4", "1"], ["9", "2"]]
    faces = read_faces(tmp_path / "test.npz", "t", "c", leave_out=tmp_path / "rows.txt")
    assert (len(faces.images), faces.left_out, faces.named_out) == (6, 1, 3)
    assert all(np.array_equal(a, pixels[i]) for a, i in zip(faces.images, (0, 1, 3, 5, 6, 8), strict=True))
    assert list(faces.classes) == ["happiness", "sadness", "happiness", "happiness", "sadness", "happiness"]
    (tmp_path / "rows.txt").write_text("2\n10\n")
    with pytest.raises(UsageError, match="10 pictures and no row '10'"):
        read_faces(tmp_path / "test.npz", "t", "c", leave_out=tmp_path / "rows.txt")


def test_wrong_lists_and_sets(folders: tuple[Path, Path], run: Run, tmp_path: Path) -> None:
    test, train = folders
    (tmp_path / "list.txt").write_text("happy/99.png\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    for name, words in (("list.txt", "happy/99.png"), ("binary.txt", "no text"), ("none.txt", "No such file")):
        with pytest.raises(UsageError, match=words):
            read_faces(test, leave_out=tmp_path / name)
    with pytest.raises(UsageError, match="no images"):
        read_pictures(tmp_path / "empty")
    (train / "broken.png").write_bytes(b"nothing")
    for arguments, word in (((test, test), "named twice"), ((test, train), "broken.png"), ((test, tmp_path / "x"), "exist")):
        code, out, err = run("twins", *arguments)
        assert (code, out, len(err.splitlines())) == (2, "", 1), err
        assert word in err


def test_a_student_does_not_learn_twins(tables: Path, tmp_path: Path, data: Path) -> None:
    """Of a validation file by default, of other faces by name."""
    pytest.importorskip("torch")
    from fer_edge.converters.student.faces import load_faces
    from fer_edge.converters.student.plan import plan_training
    from fer_edge.errors import ConversionError
    from fer_edge.labels import LABEL_SETS

    with np.load(tables / "votes.npz") as z:
        table = dict(z)
    parts = {"train": np.arange(0, 300), "validation": np.arange(300, 400)}
    arrays = {name: {k: v[rows] if len(v) == 400 else v for k, v in table.items()} for name, rows in parts.items()}
    before = len(near_duplicates(table["images"][:300], table["images"][300:]).rows())
    arrays["validation"]["images"] = arrays["validation"]["images"].copy()
    usable = load_faces(tables / "votes.npz", LABEL_SETS["ferplus8"]).images
    twin_of = [i for i in range(300) if any(np.array_equal(table["images"][i], face) for face in usable)][:3]
    for place, i in zip((0, 1, 2), twin_of, strict=True):
        arrays["validation"]["images"][place] = table["images"][i, :, ::-1]
    for name, members in arrays.items():
        np.savez(tmp_path / f"{name}.npz", **members)
    paths = tmp_path / "train.npz", (), tmp_path / "validation.npz"
    whole = plan_training(*paths, keep_twins=True).data
    less = plan_training(*paths).data
    assert whole.twins == 0
    assert less.twins == len(whole.train.images) - len(less.train.images)
    assert less.twins <= before + 3
    kept = {face.tobytes() for face in less.train.images}
    seen = load_faces(paths[2], LABEL_SETS["ferplus8"]).images
    for i in twin_of:
        if any(np.array_equal(table["images"][i, :, ::-1], face) for face in seen):
            assert table["images"][i].tobytes() not in kept
    assert less.twins > 0
    assert less.train.targets is not None
    assert less.train.labels is not None
    assert len(less.train.targets) == len(less.train.labels) == len(less.train.images) == len(less.train.pictures)
    np.savez(tmp_path / "more.npz", images=table["images"][twin_of])
    named = plan_training(tmp_path / "train.npz", (), apart=(tmp_path / "more.npz",)).data
    assert named.twins >= len(twin_of)
    with pytest.raises(ConversionError, match="every face"):
        plan_training(tmp_path / "train.npz", (), tmp_path / "train.npz")
    with pytest.raises(ImageError, match="not an image"):
        squares([b"nothing"])
