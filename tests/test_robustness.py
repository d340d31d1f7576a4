"""Faces spoilt for ``evaluate --robustness``: each way against a reference of its own, and its figures against an
independent count."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge.accuracy import calibration_error
from fer_edge.benchmarks.robustness import LARGEST, WAYS, Way, pixels_of
from fer_edge.bundle import label_set, open_bundle, write_label_set, write_manifest
from fer_edge.cli import main
from fer_edge.labelled import read_faces

pytest.importorskip("rich")

from fer_edge.benchmarks.evaluate import Evaluation, evaluate
from fer_edge.benchmarks.report.card import figures_section

Pixels = NDArray[np.uint8]
MEMBERS = ("--truth", "t", "--classes", "c")


@pytest.fixture(scope="module")
def gray(portrait: Path) -> Pixels:
    """A face of 112 x 112."""
    return np.asarray(Image.open(portrait).convert("L").crop((168, 56, 280, 168)))


@pytest.fixture(scope="module")
def rgb(portrait: Path) -> Pixels:
    """The same in colour, higher than wide: 112 x 80."""
    return np.asarray(Image.open(portrait).convert("RGB").crop((184, 56, 264, 168)))


def way(text: str) -> Way:
    return next(way for way in WAYS if way.text == text)


def spoilt(text: str, picture: Pixels) -> NDArray[np.float64]:
    return next(iter(way(text).spoil([picture]))).astype(np.float64)


def test_eight_ways_are_the_standard() -> None:
    """Published figures rest on them."""
    assert [way.text for way in WAYS if way.standard] == [
        "turned 30 degrees",
        "dark, x 0.2",
        "blur, sigma 1.5",
        "noise, sigma 25",
        "24 pixels",
        "16 pixels",
        "JPEG, quality 20",
        "lower third hidden",
    ]
    assert len({(way.name, way.strength) for way in WAYS}) == len({way.text for way in WAYS}) == len(WAYS)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.text)
def test_a_way_keeps_the_shape_leaves_what_it_was_given_and_does_the_same_again(way: Way, gray: Pixels, rgb: Pixels) -> None:
    for picture in (gray, rgb, rgb.transpose(1, 0, 2).copy(), gray[:48, :47]):
        before = picture.copy()
        first, second = (next(iter(way.spoil([picture]))) for _ in range(2))
        assert np.array_equal(picture, before)
        assert first.shape == picture.shape
        assert first.dtype == np.uint8
        assert np.array_equal(first, second)
        assert (first != picture).mean() > 0.1


@pytest.mark.parametrize("name", ["turn", "dark", "small", "mask", "jpeg", "noise"])
def test_a_stronger_way_takes_more_away(name: str, gray: Pixels) -> None:
    gaps = [np.abs(spoilt(way.text, gray) - gray).mean() for way in WAYS if way.name == name]
    assert gaps == sorted(gaps)
    assert len(set(gaps)) == len(gaps) >= 3


@pytest.mark.parametrize("degrees", [15, 30, 45])
def test_a_turn_is_that_of_scipy(degrees: int, gray: Pixels, rgb: Pixels) -> None:
    """With edges repeated far enough. Pillow places the pixels' centres as scipy does; both are bilinear."""
    ndimage = pytest.importorskip("scipy.ndimage")
    for picture in (gray, rgb):
        wide = np.pad(picture, [(200, 200), (200, 200), (0, 0)][: picture.ndim], mode="edge").astype(np.float64)
        turned = ndimage.rotate(wide, degrees, reshape=False, order=1)[200:-200, 200:-200]
        found = spoilt(f"turned {degrees} degrees", picture)
        assert np.abs(found - turned).max() < 1.5
        assert np.abs(found - picture).mean() > 10


@pytest.mark.parametrize("factor", ["0.4", "0.2", "0.1"])
def test_dark_is_a_product(factor: str, rgb: Pixels) -> None:
    found = spoilt(f"dark, x {factor}", rgb)
    assert np.abs(found - rgb * float(factor)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize("sigma", ["1", "1.5", "2.5"])
def test_a_blur_is_about_gaussian(sigma: str, gray: Pixels, rgb: Pixels) -> None:
    """Three boxes are not quite a Gaussian; the width is what counts, and is told for faces of 48 pixels."""
    ndimage = pytest.importorskip("scipy.ndimage")
    for picture in (gray, rgb):
        wide = float(sigma) * picture.shape[1] / 48
        blurred = ndimage.gaussian_filter(picture.astype(np.float64), (wide, wide, 0)[: picture.ndim], mode="nearest")
        found = spoilt(f"blur, sigma {sigma}", picture)
        assert np.abs(found - blurred).mean() < 0.9
        for other in (0.8, 1.25):
            off = ndimage.gaussian_filter(picture.astype(np.float64), (wide * other,) * 2 + (0,) * (picture.ndim - 2))
            assert np.abs(found - off).mean() > np.abs(found - blurred).mean() * 1.5


@pytest.mark.parametrize("sigma", ["10", "25", "40"])
def test_noise_is_gaussian_and_one_stream_over_the_pictures(sigma: str) -> None:
    plain = np.full((3, 48, 48), 128, np.uint8)
    found = np.stack(list(way(f"noise, sigma {sigma}").spoil(plain))).astype(np.float64)
    inside = np.random.default_rng(7).normal(0, float(sigma), plain.shape)
    assert np.array_equal(found, np.clip(np.round(plain + inside), 0, 255))
    assert not np.array_equal(found[0], found[1])
    grain = spoilt(f"noise, sigma {sigma}", np.full((64, 64, 3), 128, np.uint8)) - 128
    assert grain.std() == pytest.approx(float(sigma), rel=0.03)
    pairs = np.corrcoef(grain.reshape(-1, 3).T)
    assert np.abs(pairs[~np.eye(3, dtype=bool)]).max() < 0.1, "each channel has a grain of its own"


def triangle(size: int, to: int) -> NDArray[np.float64]:
    """Weights (to, size) of a bilinear filter with antialiasing, by its formula."""
    scale = max(1.0, size / to)
    centres = (np.arange(to) + 0.5) * size / to
    weights = np.maximum(0, 1 - np.abs(np.arange(size) + 0.5 - centres[:, None]) / scale)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("pixels", [32, 24, 16, 12])
def test_small_is_two_bilinear_steps(pixels: int, gray: Pixels, rgb: Pixels) -> None:
    for picture in (gray, rgb):
        high, wide = picture.shape[:2]
        few = (pixels, round(wide * pixels / high))
        down = [triangle(side, to) for side, to in zip((high, wide), few, strict=True)]
        up = [triangle(to, side) for side, to in zip((high, wide), few, strict=True)]
        less = np.einsum("ab,cd,bd...->ac...", down[0], down[1], picture.astype(np.float64))
        more = np.einsum("ab,cd,bd...->ac...", up[0], up[1], less)
        found = spoilt(f"{pixels} pixels", picture)
        assert np.abs(found - more).max() < 2.5
        assert np.abs(found - more).mean() < 0.5


def test_small_makes_no_picture_larger(gray: Pixels) -> None:
    assert np.array_equal(spoilt("32 pixels", gray[:20, :20]), gray[:20, :20])


QUANTISATION = np.array(
    [
        *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56),
        *(14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92),
        *(49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
    ]
).reshape(8, 8)
"""ITU-T T.81, table K.1."""


@pytest.mark.parametrize("quality", [40, 20, 10])
def test_jpeg_is_that_of_the_standard(quality: int, gray: Pixels) -> None:
    fft = pytest.importorskip("scipy.fft")
    steps = np.clip((QUANTISATION * (5000 // quality) + 50) // 100, 1, 255)
    blocks = (gray.astype(np.float64) - 128).reshape(14, 8, 14, 8).transpose(0, 2, 1, 3)
    coded = np.round(fft.dctn(blocks, axes=(2, 3), norm="ortho") / steps) * steps
    back = fft.idctn(coded, axes=(2, 3), norm="ortho").transpose(0, 2, 1, 3).reshape(112, 112) + 128
    found = spoilt(f"JPEG, quality {quality}", gray)
    assert np.abs(found - np.clip(back, 0, 255)).mean() < 0.6
    assert np.abs(found - gray).mean() > 2


@pytest.mark.parametrize(("text", "first"), [("quarter", 84), ("third", 74), ("half", 56)])
def test_a_mask_is_black_below_and_nothing_above(text: str, first: int, rgb: Pixels) -> None:
    found = spoilt(f"lower {text} hidden", rgb)
    assert np.array_equal(found[:first], rgb[:first])
    assert not found[first:].any()


def test_a_large_picture_is_made_smaller_and_a_strange_one_rgb(portrait: Path) -> None:
    photo = Image.open(portrait).convert("RGB")
    assert pixels_of(photo).shape == (LARGEST, LARGEST, 3)
    assert pixels_of(photo.crop((0, 0, 500, 100))).shape == (45, LARGEST, 3)
    assert pixels_of(photo.convert("CMYK").resize((30, 20))).shape == (20, 30, 3)
    small = photo.convert("L").resize((48, 48))
    assert np.array_equal(pixels_of(small), np.asarray(small))


def with_threshold(threshold: float, bundle: Path) -> None:
    """Give the default label set a threshold."""
    manifest = open_bundle(bundle).manifest
    ref = write_label_set(bundle, replace(label_set(open_bundle(bundle), manifest.default_labels), threshold=threshold))
    refs = tuple(ref if other.name == ref.name else other for other in manifest.label_sets)
    write_manifest(bundle, replace(manifest, label_sets=refs))


@pytest.fixture(scope="module")
def faces(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 labelled faces."""
    file = tmp_path_factory.mktemp("robustness") / "faces.npz"
    with np.load(data / "fer2013" / "public_test.npz") as z:
        rows = np.flatnonzero(z["ferplus_majority_labelcsv"] >= 0)[:60]
        np.savez(file, images=z["images"][rows], t=z["ferplus_majority_labelcsv"][rows], c=z["ferplus_class_names"])
    return file


@pytest.fixture(scope="module")
def result(faces: Path) -> Evaluation:
    with fer_edge.load() as clf:
        return evaluate(clf, read_faces(faces, "t", "c"), robustness=True)


def test_figures_against_an_independent_count(faces: Path, result: Evaluation) -> None:
    known = read_faces(faces, "t", "c")
    found = result.robustness
    assert found is not None
    assert [row.text for row in found.rows] == [way.text for way in WAYS]
    with fer_edge.load() as clf:
        for i, way in enumerate(WAYS):
            answers = clf.predict_batch(way.spoil(np.asarray(image) for image in known.images))
            right = np.array([a.label == truth for a, truth in zip(answers, known.classes, strict=True)])
            row = found.rows[i]
            assert row.war == pytest.approx(right.mean(), abs=1e-12)
            by_class = [
                np.mean([r for r, c in zip(right, known.classes, strict=True) if c == name]) for name in set(known.classes)
            ]
            assert row.uar == pytest.approx(np.mean(by_class), abs=1e-12)
            sure = np.array([a.score for a in answers])
            assert row.mean_confidence == pytest.approx(sure.mean(), abs=1e-12)
            assert row.calibration_error == pytest.approx(calibration_error(sure, right), abs=1e-12)
            certain = np.array([a.certain for a in answers])
            assert row.certain == pytest.approx(certain.mean())
            assert row.certain_error == (pytest.approx(1 - right[certain].mean()) if certain.any() else None)
    standard = [row for row in found.rows if row.standard]
    assert found.war_mean == pytest.approx(sum(row.war for row in standard) / 8)
    assert found.uar_mean == pytest.approx(sum(row.uar for row in standard) / 8)
    assert found.lowest.war == min(row.war for row in standard)
    assert min(row.war for row in found.rows) < found.lowest.war, "a hard way has to be in the test"
    assert found.pixels == 48


def called(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, arguments)])
    captured = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, captured.out, captured.err


def test_json_and_text_and_page(
    faces: Path, result: Evaluation, tmp_path: Path, capsys: pytest.CaptureFixture[str], bundle: Path
) -> None:
    plain = json.loads(called(capsys, faces, *MEMBERS, "--json")[1])
    assert "robustness" not in plain
    page = tmp_path / "page.html"
    code, out, err = called(capsys, faces, *MEMBERS, "--robustness", "--json", "--html", page)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert {key: found[key] for key in plain} == plain, "what was there stays as it was"
    assert set(found) - set(plain) == {"robustness", "robustness_summary"}
    assert result.robustness is not None
    assert found["robustness"] == json.loads(json.dumps([vars(row) for row in result.robustness.rows]))
    low = result.robustness.lowest
    assert found["robustness_summary"] == {
        "ways": 8,
        "war_mean": result.robustness.war_mean,
        "uar_mean": result.robustness.uar_mean,
        "lowest": {"way": low.way, "strength": low.strength, "war": low.war},
        "pixels": 48,
    }
    html = page.read_text(encoding="utf-8")
    assert html.count("<figure") == 3
    assert not re.search(r'(src|href)="(?!#)', html), "nothing is fetched"
    for row in result.robustness.rows:
        assert f">{row.text}{' *' if row.standard else ''}</td>" in html
    with_threshold(0.7, bundle)
    _, out, _ = called(capsys, faces, *MEMBERS, "--robustness", "-b", bundle)
    lines = out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("spoilt"))
    rows = lines[head + 1 : head + 1 + len(WAYS)]
    assert [row.rsplit(maxsplit=6)[0] for row in rows] == [w.text + (" *" if w.standard else "") for w in WAYS]
    assert len({len(row) for row in rows}) == 1, "the columns stand under their heads"
    assert 0 < float(rows[1].split()[-2].rstrip("%")) < 100, "a share of the answers reaches the threshold"
    assert f"WAR {result.robustness.war_mean:.1%}" in lines[-1]


def test_a_page_that_cannot_be_written_is_seen_first(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = called(capsys, faces, *MEMBERS, "--html", tmp_path / "no" / "page.html")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "page.html" in err


def test_photos_in_folders_and_one_that_cannot_be_read(
    tmp_path: Path, rgb: Pixels, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "faces" / "happy"
    folder.mkdir(parents=True)
    Image.fromarray(rgb).save(folder / "a.png")
    Image.fromarray(rgb).convert("CMYK").save(folder / "b.jpg")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:500])
    code, out, err = called(capsys, tmp_path / "faces", "--robustness", "--json")
    found = json.loads(out)
    assert (code, found["n"], len(found["unreadable"])) == (2, 2, 1)
    assert found["robustness_summary"]["pixels"] == 112
    assert len(found["robustness"]) == len(WAYS)
    assert "c.png" in err


def test_the_card_has_the_spoilt_faces(result: Evaluation) -> None:
    text = figures_section([result])
    assert result.robustness is not None
    for row in result.robustness.rows:
        assert f"| {row.text}{' *' if row.standard else ''} | {row.war:.1%} | {row.uar:.1%} |" in text
    assert "spoilt" not in figures_section([replace(result, robustness=None)])
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
