"""A detector's box: which pixels are cut, and that every way to the same face gives the same bits."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_image import LYING, UPRIGHT, reference, refused, turned

import fer_edge
from fer_edge import ImageError, UsageError
from fer_edge.image import crop, face_corners, load_picture, to_input, to_inputs

Pixels = NDArray[np.uint8]
FUZZ = settings(max_examples=150, deadline=None, database=None)
WIDTH, HEIGHT = 90, 120
BOXES: list[tuple[float, float, float, float]] = [
    (10, 20, 30, 40),  # inside
    (0, 0, 30, 30),
    (0, 40, 30, 50),  # its square leaves the picture on the left
    (60, 80, 30, 40),  # ... on two sides
    (-20, -30, 50, 50),  # it leaves the picture itself
    (70, 100, 60, 33),
    (-10, -10, 110, 140),  # larger than the picture
    (10.4, 20.6, 30.2, 41.9),
    (40, 50, 1, 1),
]


@pytest.fixture(scope="module")
def face() -> Image.Image:
    """A picture without any symmetry, 90 wide and 120 high."""
    with Image.open(Path(__file__).parent.parent / "examples" / "astronaut.png") as picture:
        return picture.convert("RGB").crop((170, 40, 260, 160))


def squared(pixels: Pixels, box: tuple[float, ...], scale: float = 1.0, margin: float = 0.0) -> Pixels:
    """The square by numpy alone: pad the whole picture far on every side with its edge, then slice."""
    x, y, w, h = box
    side = round(max(w, h) * (1 + 2 * margin) * scale)
    left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
    far = 200
    padded = np.pad(pixels, ((far, far), (far, far), (0, 0))[: pixels.ndim], mode="edge")
    return padded[top + far : top + far + side, left + far : left + far + side]


def stretched(pixels: Pixels, size: tuple[int, int]) -> NDArray[np.float64]:
    """The antialiased bilinear stretch in float64: a triangle as wide as the larger pixel, over pixel centres."""

    def weights(source: int, target: int) -> NDArray[np.float64]:
        step = source / target
        centres = (np.arange(target) + 0.5) * step - 0.5
        share = np.maximum(0, 1 - np.abs(np.arange(source)[None] - centres[:, None]) / max(step, 1.0))
        return share / share.sum(1, keepdims=True)

    rows, columns = weights(pixels.shape[0], size[0]), weights(pixels.shape[1], size[1])
    return np.einsum(
        "ij,jkc,lk->ilc", rows, pixels.reshape(*pixels.shape[:2], -1).astype(np.float64), columns, optimize=True
    )


@pytest.mark.parametrize("color", ["rgb", "gray"])
@pytest.mark.parametrize(("scale", "margin"), [(1.0, 0.0), (0.9, 0.0), (1.3, 0.0), (1.0, 0.1), (0.8, 0.25)])
def test_a_box_is_a_square_round_its_centre(face: Image.Image, color: Any, scale: float, margin: float) -> None:
    pixels = np.asarray(face.convert("RGB" if color == "rgb" else "L"))
    for box in BOXES:
        expected = squared(pixels, box, scale, margin)
        got = to_input(face, (48, 64), color, box, margin, scale=scale)
        np.testing.assert_array_equal(got, reference(np.ascontiguousarray(expected), color), err_msg=str(box))
        np.testing.assert_allclose(got, stretched(expected, (48, 64)), atol=1.5, err_msg=str(box))
        if color == "rgb":
            np.testing.assert_array_equal(np.asarray(crop(face, box, margin, scale=scale)), expected)


def test_a_square_box_inside_is_pillows_crop(face: Image.Image) -> None:
    for x, y, side in ((10, 20, 30), (0, 0, 90), (89, 119, 1)):
        expected = reference(face.crop((x, y, x + side, y + side)), "rgb")
        np.testing.assert_array_equal(to_input(face, (48, 64), "rgb", (x, y, side, side)), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_way_to_a_face_is_the_same(face: Image.Image, tmp_path: Path, orientation: int) -> None:
    """A file, its bytes, a PIL image, an array; one box or many; the square cut by hand. Boxes count upright pixels."""
    pixels = np.asarray(face)
    raw = turned(face, orientation, "png")
    (tmp_path / "a.png").write_bytes(raw)
    with Image.open(io.BytesIO(raw)) as opened:
        images = [tmp_path / "a.png", raw, opened, face, pixels, np.asfortranarray(pixels)]
        for image in images:
            several = to_inputs(image, (48, 48), "gray", BOXES)
            for box, one in zip(BOXES, several, strict=True):
                np.testing.assert_array_equal(one, to_input(image, (48, 48), "gray", box))
                by_hand = np.ascontiguousarray(squared(pixels, box))
                np.testing.assert_array_equal(one, to_input(by_hand, (48, 48), "gray"), err_msg=str(box))


def test_the_tables_of_turns_are_each_others_inverse(face: Image.Image) -> None:
    pixels = np.asarray(face)
    for orientation in UPRIGHT:
        np.testing.assert_array_equal(UPRIGHT[orientation](LYING[orientation](pixels)), pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_a_part_is_converted_as_the_whole(face: Image.Image, tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(face.convert("L")).astype(np.uint16) * 200)
    else:
        picture = face.quantize(16) if mode == "P" else face.convert(mode)
        if mode in ("RGBA", "LA"):
            picture.putalpha(Image.fromarray(np.linspace(0, 255, 90).astype(np.uint8)[None].repeat(120, 0)))
    whole = np.asarray(load_picture(picture).convert("RGB"))
    for box in BOXES:
        expected = reference(np.ascontiguousarray(squared(whole, box)), "rgb")
        np.testing.assert_array_equal(to_input(picture, (48, 64), "rgb", box), expected)
    if mode == "RGBA":
        np.testing.assert_array_equal(
            to_input(np.asarray(picture), (48, 64), "rgb", BOXES[0]), reference(crop(picture, BOXES[0]), "rgb")
        )


# shape="box": the stretch of 0.1.0.


@pytest.mark.parametrize("color", ["rgb", "gray"])
def test_a_stretched_box_is_pillows_crop(face: Image.Image, color: Any) -> None:
    for box in ((10, 20, 30, 40), (0, 0, 90, 120), (89, 119, 1, 1)):
        expected = reference(face.crop((box[0], box[1], box[0] + box[2], box[1] + box[3])), color)
        kinds: list[Any] = [tuple, list, np.array]
        for kind in kinds:
            np.testing.assert_array_equal(to_input(face, (48, 64), color, kind(box), shape="box"), expected)
        np.testing.assert_array_equal(to_input(np.asarray(face), (48, 64), color, box, shape="box"), expected)


@pytest.mark.parametrize(
    ("box", "margin", "corners"),
    [
        ((20, 30, 20, 40), 0.1, (18, 26, 42, 74)),
        ((20, 30, 20, 40), 0.5, (10, 10, 50, 90)),
        ((20, 30, 20, 40), 1, (0, 0, 60, 110)),
        ((20, 30, 20, 40), 1e6, (0, 0, 90, 120)),
        ((20, 30, 20, 40), 1e308, (0, 0, 90, 120)),
        ((0, 0, 20, 40), 0.1, (0, 0, 22, 44)),
        ((70, 80, 20, 40), 0.1, (68, 76, 90, 120)),
        ((10.4, 20.4, 30.2, 40.2), 0.0, (10, 20, 41, 61)),
        (("10", "20", "30", "40"), 0.0, (10, 20, 40, 60)),
    ],
)
def test_margin_widens_a_stretched_box_as_far_as_the_picture_goes(
    face: Image.Image, box: Any, margin: float, corners: tuple[int, int, int, int]
) -> None:
    np.testing.assert_array_equal(np.asarray(crop(face, box, margin, "box")), np.asarray(face.crop(corners)))
    got = to_input(face, (48, 64), "rgb", box, margin, shape="box")
    np.testing.assert_array_equal(got, reference(face.crop(corners), "rgb"))


# What is no box.

NAN, INF = float("nan"), float("inf")
NO_BOXES: list[tuple[Any, Any]] = [
    *((box, 0.0) for box in ((0, 0, 0, 10), (0, 0, 10, 0), (0, 0, -5, 10), (50, 50, -5, -5), (1.1, 1.1, 0.2, 0.2))),
    *((box, 0.0) for box in ((NAN, 0, 10, 10), (0, 0, INF, 10), (-INF, 0, 10, 10), (1e308, 0, 1e308, 1))),
    *((box, 0.0) for box in ((), (1,), (1, 2, 3), (1, 2, 3, 4, 5), np.zeros((40, 4)), np.zeros((4, 4)))),
    *((box, 0.0) for box in ("1234", "10,10,20,20", b"1234", ("a", "b", "c", "d"), ("1", "1", "0", "0"))),
    *((box, 0.0) for box in (5, object(), (None, 0, 1, 1), (1j, 0, 1, 1), (0, 0, 10**400, 1), {"x": 1}, [[1]] * 4)),
    *(((0, 0, 10, 10), margin) for margin in (-0.1, NAN, INF, "x", None)),
    *((box, 0.0) for box in ((200, 200, 10, 10), (-50, -50, 10, 10), (90, 0, 10, 10), (0, -10, 10, 10), (0, 120, 9, 9))),
    *(((0, 0, 10, 10), margin) for margin in (1e6, 1e300)),  # no room for such a square
    *((box, 0.0) for box in ((0, 0, 1e9, 1e9), (-1e7, -1e7, 2e7, 2e7))),
]


@pytest.mark.parametrize(("box", "margin"), NO_BOXES)
def test_wrong_boxes(face: Image.Image, box: Any, margin: Any) -> None:
    with refused(says="box"):
        to_input(np.asarray(face), (48, 48), "rgb", box, margin)


@pytest.mark.parametrize("box", [(-1, 0, 10, 10), (0, -1, 10, 10), (85, 0, 10, 10), (0, 115, 10, 10), (0, 0, 91, 120)])
def test_a_stretched_box_lies_inside(face: Image.Image, box: Any) -> None:
    with refused(says="leaves the picture"):
        to_input(face, (48, 48), "rgb", box, shape="box")
    to_input(face, (48, 48), "rgb", box)


def test_wrong_uses(face: Image.Image) -> None:
    uses: list[dict[str, Any]] = [
        {"margin": 0.1},
        {"shape": "box"},
        {"margin": "x"},
        {"box": (1, 1, 9, 9), "shape": "round"},
    ]
    for use in uses:
        with pytest.raises(UsageError, match="shape"):
            to_input(face, (48, 48), "rgb", **use)


@FUZZ
@given(box=st.tuples(*[st.floats(-150, 150)] * 4), margin=st.floats(0, 3), scale=st.floats(0.5, 2))
def test_any_box_is_a_square_or_refused(box: tuple[float, float, float, float], margin: float, scale: float) -> None:
    x, y, w, h = box
    try:
        left, top, right, bottom = face_corners(box, (WIDTH, HEIGHT), margin, "square", scale)
    except ImageError:
        # Outside, or less than a pixel of it inside; or no area, or less than a pixel of it.
        overlap = min(x + w, WIDTH) - max(x, 0), min(y + h, HEIGHT) - max(y, 0)
        assert min(overlap) < 1 or min(w, h) < 1 or scale < 1
        return
    assert right - left == bottom - top == max(1, round(max(w, h) * (1 + 2 * margin) * scale))
    assert math.isclose((left + right) / 2, x + w / 2, abs_tol=0.501)
    assert math.isclose((top + bottom) / 2, y + h / 2, abs_tol=0.501)


@FUZZ
@given(box=st.tuples(*[st.floats(-20, 150)] * 4), margin=st.floats(0, 3))
def test_any_stretched_box_is_a_part_of_the_picture_or_refused(
    box: tuple[float, float, float, float], margin: float
) -> None:
    x, y, w, h = box
    try:
        part = crop(Image.new("L", (WIDTH, HEIGHT)), box, margin, "box")
    except ImageError:
        assert x < 0.5 or y < 0.5 or x + w > 89.5 or y + h > 119.5 or w <= 1 or h <= 1
        return
    assert min(WIDTH, w - 1) <= part.width <= WIDTH
    assert min(HEIGHT, h - 1) <= part.height <= HEIGHT


# The classifier.


def test_predict_boxes_is_predict_of_each(portrait: Path) -> None:
    boxes = [(168, 56, 112, 112), (160, 40, 128, 150), (-20, -20, 200, 220), (400, 300, 150, 90)]
    with Image.open(portrait) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    with fer_edge.load() as clf:
        answers = clf.predict_boxes(portrait, boxes)
        assert answers == clf.predict_boxes(pixels, np.array(boxes))  # type: ignore[arg-type]
        assert answers == clf.predict_boxes(portrait.read_bytes(), iter(boxes))
        assert answers == [clf.predict(portrait, box=box) for box in boxes] == [clf.predict(pixels, box) for box in boxes]
        assert answers == clf.predict_batch([np.ascontiguousarray(squared(pixels, box)) for box in boxes])
        assert len(set(answers)) == len(boxes)
        assert clf.predict_boxes(portrait, []) == []
        stretched_answer = clf.predict(portrait, boxes[1], shape="box")
        assert stretched_answer == clf.predict(np.ascontiguousarray(pixels[40:190, 160:288])) != answers[1]
        with refused(str(boxes[3]).replace(" ", "")[1:-1], "boxes[1]: "):
            clf.predict_boxes(portrait, [boxes[0], boxes[3], boxes[2]], shape="box")
        with refused(says="boxes[0]"):
            clf.predict_boxes(portrait, boxes[0])  # type: ignore[arg-type]  # one box is no list of boxes


def test_the_frame_of_an_array_is_never_copied() -> None:
    """Only the box is touched: a frame that is broadcast from one pixel would take 1.2 GB."""
    frame = np.broadcast_to(np.array([200, 100, 50], np.uint8), (20_000, 20_000, 3))
    got = to_input(frame, (48, 48), "rgb", (19_000, 500, 160, 120))
    np.testing.assert_array_equal(got, np.broadcast_to(frame[0, 0], (48, 48, 3)))
