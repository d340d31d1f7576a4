"""Images: every usual form gives the reference's numbers; every other file gives an ImageError of one line."""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

import fer_edge
from fer_edge import ImageError, sample_frames
from fer_edge.image import load_picture, to_input
from fer_edge.video import segment_middles

Pixels = NDArray[np.uint8]
Color = Literal["rgb", "gray"]
FUZZ = settings(max_examples=150, deadline=None, database=None)
BOTH = pytest.mark.parametrize("color", ["rgb", "gray"])


@contextmanager
def refused(name: str = "", says: str = "") -> Iterator[None]:
    """The block raises an ImageError of one line that names the file."""
    with pytest.raises(ImageError) as caught:
        yield
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert name in message
    assert says in message


def reference(pixels: Image.Image | Pixels, color: Color, size: tuple[int, int] = (48, 64)) -> Pixels:
    """Colour first, then Pillow's stretch: Exp-CLIP's test.py up to ToTensor."""
    picture = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    picture = picture.convert("RGB" if color == "rgb" else "L")
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)).reshape(*size, -1)


def same(image: Any, pixels: Image.Image | Pixels) -> None:
    """``to_input`` gives exactly the reference's numbers, in colour and in gray, stretched and as it is."""
    whole = (pixels.height, pixels.width) if isinstance(pixels, Image.Image) else pixels.shape[:2]
    for size in ((48, 64), whole):
        for color in ("rgb", "gray"):
            got = to_input(image, size, color)
            assert got.dtype == np.uint8
            assert got.flags.c_contiguous
            assert got.shape == (*size, 3 if color == "rgb" else 1)
            np.testing.assert_array_equal(got, reference(pixels, color, size))


# Pillow warns of pictures that are broken on purpose here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL[.]TiffImagePlugin")


@pytest.fixture(scope="module")
def face() -> Image.Image:
    """A picture without any symmetry, 90 wide and 120 high."""
    with Image.open(Path(__file__).parent.parent / "examples" / "astronaut.png") as picture:
        return picture.convert("RGB").crop((170, 40, 260, 160))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for fuzzing."""
    return tmp_path_factory.mktemp("fuzz") / "file"


def deep_gray(face: Image.Image) -> NDArray[np.uint16]:
    """The face in 16 bits, from 0 to the full range."""
    gray = np.asarray(face.convert("L")).astype(np.uint16) * 256 + np.arange(90, dtype=np.uint16) * 2
    gray[0, :3] = 0, 32768, 65535
    return gray


# Every usual form.


def test_paths_pictures_and_arrays(face: Image.Image, portrait: Path, tmp_path: Path) -> None:
    with Image.open(portrait) as picture:
        same(portrait, picture.convert("RGB"))
        same(str(portrait), picture.convert("RGB"))
    array = np.asarray(face)
    gray = np.asarray(face.convert("L"))
    for image in (face, array, array[::-1, ::-1][::-1, ::-1], np.asfortranarray(array)):
        same(image, face)
    for image in (face.convert("L"), gray, gray[:, :, None], np.asfortranarray(gray)):
        same(image, gray)


def need_writer(kind: str) -> None:
    """Old Pillows write no AVIF and no QOI."""
    if Image.registered_extensions().get(f".{kind}") not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {kind}")


@pytest.mark.parametrize("kind", ["png", "tiff", "gif", "jp2", "avif"])
def test_bytes_and_open_files(face: Image.Image, tmp_path: Path, kind: str) -> None:
    need_writer(kind)
    file = tmp_path / f"a.{kind}"
    face.save(file)
    raw = file.read_bytes()
    for size in ((48, 64), (120, 90)):
        expected = to_input(file, size, "rgb")
        for image in (raw, bytearray(raw), memoryview(raw), io.BytesIO(raw)):
            np.testing.assert_array_equal(to_input(image, size, "rgb"), expected)
        with file.open("rb") as stream:
            np.testing.assert_array_equal(to_input(stream, size, "rgb"), expected)


class Drops(io.RawIOBase):
    """A pipe: it cannot be sought, and gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self.rest = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.rest[: min(7, len(buffer))]
        self.rest = self.rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)


def test_a_pipe(face: Image.Image) -> None:
    stream = io.BytesIO()
    face.resize((20, 20)).save(stream, "png")
    np.testing.assert_array_equal(to_input(Drops(stream.getvalue()), (20, 20), "rgb"), np.asarray(face.resize((20, 20))))


def test_inputs_are_left_alone(face: Image.Image) -> None:
    array = np.asarray(face).copy()
    before = array.copy()
    to_input(array, (48, 48), "gray", (1, 2, 30, 40), 0.1)
    to_input(face, (48, 48), "gray", (1, 2, 30, 40), 0.1)
    np.testing.assert_array_equal(array, before)
    assert (face.mode, face.size) == ("RGB", (90, 120))
    np.testing.assert_array_equal(np.asarray(face), before)


def test_colour_comes_before_the_stretch(face: Image.Image) -> None:
    late = np.asarray(face.resize((64, 48), Image.Resampling.BILINEAR).convert("L"))
    assert (to_input(face, (48, 64), "gray")[:, :, 0] != late).any()


@pytest.mark.parametrize("kind", ["png", "bmp", "tiff", "webp", "ppm", "jp2", "tga", "qoi", "pcx", "sgi"])
def test_lossless_files(face: Image.Image, tmp_path: Path, kind: str) -> None:
    need_writer(kind)
    file = tmp_path / f"a.{kind}"
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    face.save(file, **options)
    same(file, face)
    if kind not in ("webp", "qoi"):
        face.convert("L").save(file)
        same(file, face.convert("L"))


def test_jpeg(face: Image.Image, tmp_path: Path) -> None:
    for mode in ("RGB", "L"):
        face.convert(mode).save(tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as picture:
            same(tmp_path / "a.jpg", np.asarray(picture))


def test_cmyk_jpeg(face: Image.Image, tmp_path: Path) -> None:
    face.convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as picture:
        assert picture.mode == "CMYK"
        same(tmp_path / "a.jpg", picture.convert("RGB"))
    got = to_input(tmp_path / "a.jpg", (120, 90), "rgb").astype(int)
    assert np.abs(got - np.asarray(face)).mean() < 6


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_are_white(face: Image.Image, tmp_path: Path, mode: str) -> None:
    clear = np.zeros((120, 90), bool)
    clear[10:50, 20:70] = True
    picture = face.convert(mode)
    picture.putalpha(Image.fromarray(np.where(clear, 0, 255).astype(np.uint8)))
    picture.save(tmp_path / "a.png")
    expected = np.asarray(face.convert("RGB" if mode == "RGBA" else "L").convert("RGB")).copy()
    expected[clear] = 255
    same(picture, expected)
    same(tmp_path / "a.png", expected)
    if mode == "RGBA":
        same(np.asarray(picture), expected)


def test_half_transparent_pixels_are_mixed_with_white(face: Image.Image) -> None:
    alpha = np.linspace(0, 255, 90).astype(np.uint8)[None].repeat(120, 0)
    picture = face.copy()
    picture.putalpha(Image.fromarray(alpha))
    share = alpha[:, :, None] / 255.0
    exact = np.asarray(face) * share + 255.0 * (1 - share)
    assert np.abs(to_input(picture, (120, 90), "rgb") - exact).max() <= 1.0


def test_palettes(face: Image.Image, tmp_path: Path) -> None:
    picture = face.quantize(16)
    picture.save(tmp_path / "a.png")
    same(picture, picture.convert("RGB"))
    same(tmp_path / "a.png", picture.convert("RGB"))
    index = np.asarray(picture)
    picture.save(tmp_path / "b.png", transparency=3)
    expected = np.asarray(picture.convert("RGB")).copy()
    expected[index == 3] = 255
    same(tmp_path / "b.png", expected)
    picture.save(tmp_path / "c.png", transparency=bytes([255] * 5 + [0] + [255] * 10))
    expected = np.asarray(picture.convert("RGB")).copy()
    expected[index == 5] = 255
    same(tmp_path / "c.png", expected)


def test_one_transparent_colour(face: Image.Image, tmp_path: Path) -> None:
    gray = np.asarray(face.convert("L")).copy()
    gray[:20] = 7
    Image.fromarray(gray).save(tmp_path / "a.png", transparency=7)
    same(tmp_path / "a.png", np.where(gray == 7, 255, gray).astype(np.uint8))


def test_one_bit(face: Image.Image, tmp_path: Path) -> None:
    picture = face.convert("1")
    picture.save(tmp_path / "a.png")
    expected = np.where(np.asarray(picture), 255, 0).astype(np.uint8)
    same(picture, expected)
    same(tmp_path / "a.png", expected)


@pytest.mark.parametrize("kind", ["png", "tif", "big-endian tif"])
def test_sixteen_bits_are_scaled_by_their_full_range(face: Image.Image, tmp_path: Path, kind: str) -> None:
    gray = deep_gray(face)
    file = tmp_path / f"a.{kind[-3:]}"
    if kind == "big-endian tif":
        Image.frombytes("I;16B", (90, 120), gray.astype(">u2").tobytes()).save(file)
    else:
        Image.fromarray(gray).save(file)
    with Image.open(file) as picture:
        assert picture.mode.startswith("I;16")
    expected = np.round(gray / 257.0).astype(np.uint8)
    assert expected[0, :3].tolist() == [0, 128, 255]
    same(file, expected)
    same(Image.fromarray(gray.astype(np.int32)), expected)


def test_eight_bits_in_thirty_two_are_not_taken_for_a_dark_picture(face: Image.Image, tmp_path: Path) -> None:
    gray = np.asarray(face.convert("L"))
    same(Image.fromarray(gray.astype(np.int32)), gray)
    same(Image.fromarray(gray.astype(np.int32)).crop((0, 0, 50, 50)), gray[:50, :50])
    Image.fromarray(gray.astype(np.int32)).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as stored:
        assert stored.mode == "I"
    same(tmp_path / "a.tif", gray)
    Image.fromarray(gray.astype(np.uint16)).save(tmp_path / "night.png")  # its file says 16 bits
    same(tmp_path / "night.png", np.round(gray / 257.0).astype(np.uint8))


def test_modes_without_a_brightness_range(face: Image.Image) -> None:
    with refused(says="convert to 8 or 16 bits"):
        to_input(face.convert("F"), (48, 48), "rgb")
    for value in (-1, 65536, 1 << 30):
        with refused(says="convert to 8 or 16 bits"):
            to_input(Image.new("I", (8, 8), value), (48, 48), "rgb")


UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}
"""EXIF's own table: what makes a stored picture upright."""
LYING = {**UPRIGHT, 6: UPRIGHT[8], 8: UPRIGHT[6]}
"""How an upright picture is stored."""


def turned(face: Image.Image, orientation: int, kind: str, exif: bytes | None = None, **options: Any) -> bytes:
    tags = Image.Exif()
    tags[0x0112] = orientation
    stream = io.BytesIO()
    stored = Image.fromarray(np.ascontiguousarray(LYING[orientation](np.asarray(face))))
    stored.save(stream, kind, exif=exif or tags, **options)
    return stream.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_by_exif(face: Image.Image, tmp_path: Path, orientation: int) -> None:
    ways: dict[str, dict[str, Any]] = {"png": {}, "webp": {"lossless": True}, "tiff": {}}
    for kind, options in ways.items():
        (tmp_path / kind).write_bytes(turned(face, orientation, kind, **options))
        same(tmp_path / kind, face)
    (tmp_path / "a.jpg").write_bytes(turned(face, orientation, "jpeg", quality=95))
    with Image.open(tmp_path / "a.jpg") as stored:
        upright = UPRIGHT[orientation](np.asarray(stored))
    assert np.abs(upright.astype(int) - np.asarray(face)).mean() < 4
    same(tmp_path / "a.jpg", np.ascontiguousarray(upright))
    np.testing.assert_array_equal(
        to_input(tmp_path / "a.jpg", (30, 30), "rgb", (5, 40, 20, 30)), upright[40:70, :30], "boxes count upright pixels"
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_turned_once(face: Image.Image, orientation: int) -> None:
    """As Image.open gives it, it lies as its file does; what was made from it is as its maker wanted it, although Pillow
    leaves the tag in it."""
    with Image.open(io.BytesIO(turned(face, orientation, "png"))) as stored:
        same(stored, face)
        same(ImageOps.exif_transpose(stored), face)
        by_hand = Image.fromarray(UPRIGHT[orientation](np.asarray(stored)))
        by_hand.info.update(stored.info)
        assert by_hand.getexif()[0x0112] == orientation
        same(by_hand, face)
        same(load_picture(by_hand), face)
        same(stored.convert("RGB"), np.asarray(stored))
        ImageOps.exif_transpose(stored, in_place=True)
        same(stored, face)
    same(load_picture(turned(face, orientation, "png")), face)


def test_a_broken_exif_tag_does_not_lose_the_picture(face: Image.Image, tmp_path: Path) -> None:
    # Orientation 6, and a width that claims to be text: Pillow reads this block but cannot write it again.
    tags = struct.pack(">H", 2) + struct.pack(">HHI4s", 0x0100, 2, 4, b"abc\0") + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    block = b"Exif\0\0MM\0*\0\0\0\x08" + tags + bytes(4)
    for broken in (block, block[:40]):
        (tmp_path / "a.jpg").write_bytes(turned(face, 6, "jpeg", broken, quality=95))
        to_input(tmp_path / "a.jpg", (48, 48), "rgb")
    (tmp_path / "a.png").write_bytes(turned(face, 6, "png", block))
    same(tmp_path / "a.png", face)


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_animations_give_their_first_frame(face: Image.Image, tmp_path: Path, kind: str) -> None:
    first = face.quantize(16).convert("RGB")
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"a.{kind}", save_all=True, append_images=[first.rotate(180)], **options)
    same(tmp_path / f"a.{kind}", first)


# What is no image.


@pytest.mark.parametrize("data", [b"", b"\0", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM"])
def test_files_that_are_no_image(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(data)
    with refused(str(file), "empty" if not data else ""):
        to_input(file, (48, 48), "rgb")
    with refused(str(file)):
        sample_frames(file)


def test_truncated_files(face: Image.Image, scratch: Path) -> None:
    for kind in ("png", "jpeg", "gif", "tiff", "bmp"):
        stream = io.BytesIO()
        face.save(stream, kind)
        for share in (0.1, 0.5, 0.9):
            scratch.write_bytes(stream.getvalue()[: int(share * len(stream.getvalue()))])
            with refused(str(scratch)):
                to_input(scratch, (48, 48), "rgb")


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with refused(str(tmp_path), "is a folder; name the images in it"):
        to_input(tmp_path, (48, 48), "rgb")
    for name, says in ((str(tmp_path / "none.png"), "does not exist"), ("x" * 5000, ""), ("a\0b", ""), ("", "")):
        with refused(name, says):
            to_input(name, (48, 48), "rgb")
        if name:  # an empty path is the current folder
            with refused(name):
                sample_frames(name)
    with refused(says="no frames"):
        sample_frames(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (lambda p: to_input(p, (48, 48), "rgb"), sample_frames):
        with refused(str(tmp_path / "pipe")):
            read(tmp_path / "pipe")


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may read everything")
def test_files_that_may_not_be_read(face: Image.Image, tmp_path: Path) -> None:
    face.save(tmp_path / "a.png")
    (tmp_path / "a.png").chmod(0)
    with refused(str(tmp_path / "a.png"), "permission"):
        to_input(tmp_path / "a.png", (48, 48), "rgb")


@pytest.mark.parametrize("image", [None, 3, [1, 2], object()])
def test_things_that_are_no_image(image: Any) -> None:
    with refused(says="a path, bytes, an open file, a PIL image or a uint8 array"):
        to_input(image, (48, 48), "rgb")


@pytest.mark.parametrize("image", [b"bytes", b"", io.BytesIO(), io.BytesIO(b"bytes"), io.StringIO("text")])
def test_bytes_and_open_files_that_are_no_image(image: Any) -> None:
    with refused(says="the bytes" if isinstance(image, bytes) else "the open file"):
        to_input(image, (48, 48), "rgb")


@BOTH
@pytest.mark.parametrize(
    "array",
    [
        np.zeros((48, 48, 3), np.float32),
        np.zeros((48, 48, 3), np.int64),
        np.zeros((48, 48), np.uint16),
        np.zeros((48, 48), bool),
        np.array("face"),
        np.array([[None]]),
        np.zeros((48, 48, 2), np.uint8),
        np.zeros((48, 48, 5), np.uint8),
        np.zeros((3, 48, 48), np.uint8),
        np.zeros((1, 48, 48, 3), np.uint8),
        np.zeros(48, np.uint8),
        np.zeros((), np.uint8),
        np.zeros((0, 48), np.uint8),
        np.zeros((48, 0, 3), np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((48, 48, 0), np.uint8),
        np.broadcast_to(np.uint8(0), (13000, 13000)),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_wrong_arrays(array: Any, color: Color) -> None:
    with refused(says="image array"):
        to_input(array, (48, 48), color)


def test_messages_give_the_conversion() -> None:
    """What the message says, done, gives the picture."""
    gray = np.arange(48 * 48, dtype=np.uint8).reshape(48, 48)
    arrays = (gray / 255, gray / np.float32(255), gray.astype(np.float64), gray.astype(np.int64), gray > 7)
    for array in (*arrays, gray.astype(np.uint16) * 257):
        with pytest.raises(ImageError) as caught:
            to_input(array, (48, 48), "gray")
        code = re.search(r": (.*?\('uint8'\)(?: \* 255)?)", str(caught.value))
        assert code is not None, str(caught.value)
        expected = np.where(gray > 7, 255, 0) if array.dtype == bool else gray
        np.testing.assert_array_equal(eval(code[1], {"array": array}), expected)
    with refused(says="undo the normalisation"):
        to_input((gray - 128.0) / 64, (48, 48), "gray")
    with refused(says="array.transpose(1, 2, 0)"):
        to_input(np.zeros((3, 48, 48), np.uint8), (48, 48), "rgb")


def test_pictures_without_pixels() -> None:
    for size in ((0, 5), (5, 0)):
        with refused(says="no pixels"):
            to_input(Image.new("RGB", size), (48, 48), "rgb")


def png(width: int, height: int, body: bytes, bits: int = 1) -> bytes:
    """A gray PNG of a declared size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def test_postscript_is_not_run(face: Image.Image, tmp_path: Path) -> None:
    face.save(tmp_path / "a.eps")
    with refused(str(tmp_path / "a.eps"), "is not an image that fer-edge can read"):
        to_input(tmp_path / "a.eps", (48, 48), "rgb")


def test_the_classifier_says_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no")
    with fer_edge.load(runtime="null") as clf, refused(str(tmp_path / "a.png")):
        clf.predict(tmp_path / "a.png")


# Fuzzing.


def look(file: Path) -> None:
    """Nothing but ImageError comes out, in one line."""
    readers: list[Callable[[], object]] = [lambda: to_input(file, (8, 8), "rgb"), lambda: sample_frames(file, 3)]
    for read in readers:
        try:
            read()
        except ImageError as error:
            message = str(error)
        else:
            continue
        assert len(message.splitlines()) == 1
        assert str(file) in message


MAGIC = [
    *(b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\0\0\0\0WEBPVP8 "),
    *(b"II*\0", b"MM\0*", b"BM", b"P6 ", b"8BPS"),
]


@FUZZ
@given(magic=st.sampled_from(MAGIC), data=st.binary(max_size=400))
def test_random_bytes(scratch: Path, magic: bytes, data: bytes) -> None:
    scratch.write_bytes(magic + data)
    look(scratch)


def samples() -> dict[str, bytes]:
    """A small picture in many forms."""
    ramp = np.arange(20 * 16 * 3, dtype=np.uint32).reshape(20, 16, 3)
    picture = Image.fromarray((ramp * 37 % 251).astype(np.uint8))
    other = picture.rotate(180)
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x011A] = 6, "text", 72.0
    animated: dict[str, Any] = {"save_all": True, "append_images": [other]}
    made = {}
    for name, kind, image, options in (
        ("png", "png", picture, {"exif": tags}),
        ("apng", "png", picture, animated),
        ("palette", "png", picture.quantize(8), {"transparency": 1}),
        ("16 bit", "png", Image.fromarray(ramp[:, :, 0].astype(np.uint16) * 60), {}),
        ("jpeg", "jpeg", picture, {"exif": tags}),
        ("cmyk", "jpeg", picture.convert("CMYK"), {"progressive": True}),
        ("gif", "gif", picture, animated),
        ("webp", "webp", picture, {**animated, "exif": tags}),
        ("tiff", "tiff", picture, {"exif": tags}),
        ("lzw", "tiff", picture, {"compression": "tiff_lzw", **animated}),
        ("jpeg in tiff", "tiff", picture, {"compression": "jpeg"}),
    ):
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        made[name] = stream.getvalue()
    return made


SAMPLES = samples()


@pytest.mark.filterwarnings("ignore:Invalid APNG")  # Pillow's word to whoever reads it: its first picture is taken
@pytest.mark.parametrize("name", sorted(SAMPLES))
@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_mutated_files(scratch: Path, name: str, data: st.DataObject) -> None:
    raw = bytearray(SAMPLES[name])
    anywhere = st.one_of(st.integers(0, min(150, len(raw) - 1)), st.integers(0, len(raw) - 1))
    for position, byte in data.draw(st.lists(st.tuples(anywhere, st.integers(0, 255)), min_size=1, max_size=5)):
        raw[position] = byte
    scratch.write_bytes(bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(1, len(raw))))]))
    look(scratch)


def test_the_samples_themselves_are_read(scratch: Path) -> None:
    for raw in SAMPLES.values():
        scratch.write_bytes(raw)
        to_input(scratch, (8, 8), "rgb")
        assert len(sample_frames(scratch, 3)) == 3


# Frames of a video.


@given(n=st.integers(1, 5000), count=st.integers(1, 64))
@FUZZ
def test_segment_middles(n: int, count: int) -> None:
    tick = n / count
    middles = segment_middles(n, count)
    assert middles == [int(tick / 2 + tick * i) for i in range(count)]
    assert all(0 <= i < n for i in middles)
    assert middles == sorted(middles)


def test_the_papers_sixteen_frames() -> None:
    assert segment_middles(16, 16) == list(range(16))
    assert segment_middles(32, 16) == list(range(1, 32, 2))
    assert segment_middles(100, 16) == [3, 9, 15, 21, 28, 34, 40, 46, 53, 59, 65, 71, 78, 84, 90, 96]


@pytest.mark.parametrize("n", [1, 5, 16, 17, 100])
def test_frames_of_every_source(tmp_path: Path, n: int) -> None:
    levels = [int(i * 255 / 100) for i in range(n)]
    pictures = [Image.new("L", (8, 8), v) for v in levels]
    wanted = [levels[i] for i in segment_middles(n, 16)]
    assert sample_frames(pictures) == [pictures[i] for i in segment_middles(n, 16)]
    assert [np.asarray(p)[0, 0] for p in sample_frames(tuple(pictures))] == wanted
    stack = np.stack([np.asarray(p.convert("RGB")) for p in pictures])
    np.testing.assert_array_equal(np.stack([np.asarray(f) for f in sample_frames(stack)]), stack[segment_middles(n, 16)])
    folder = tmp_path / "frames"
    (folder / "deeper").mkdir(parents=True)
    (folder / ".hidden").write_bytes(b"")
    for i in reversed(range(n)):
        pictures[i].save(folder / f"{i:04d}.png")
    got = sample_frames(folder)
    assert [Path(p).name for p in got] == [f"{i:04d}.png" for i in segment_middles(n, 16)]  # type: ignore[arg-type]
    assert [int(to_input(p, (8, 8), "gray")[0, 0, 0]) for p in got] == wanted
    for kind in ("gif", "png", "webp"):
        file = tmp_path / f"a.{kind}"
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        pictures[0].save(file, save_all=True, append_images=pictures[1:], duration=20, **options)
        assert [int(to_input(p, (8, 8), "gray")[0, 0, 0]) for p in sample_frames(file)] == wanted
        assert len(sample_frames(str(file), 3)) == 3


def test_frames_are_read_as_pictures_are(face: Image.Image, tmp_path: Path) -> None:
    clear = [Image.new("RGBA", (8, 8), (i, 0, 0, 0)) for i in range(3)]
    clear[0].save(tmp_path / "a.webp", save_all=True, append_images=clear[1:], lossless=True, exact=True)
    Image.fromarray(deep_gray(face)).save(tmp_path / "deep.png")
    (tmp_path / "lying.png").write_bytes(turned(face, 6, "png"))
    for name in ("a.webp", "deep.png", "lying.png"):
        for frame in sample_frames(tmp_path / name, 2):
            np.testing.assert_array_equal(
                to_input(frame, (48, 48), "rgb"), to_input(tmp_path / name, (48, 48), "rgb"), err_msg=name
            )


@pytest.mark.parametrize("video", [[], (), np.zeros((0, 8, 8, 3), np.uint8), 42, None, iter([1]), Image.new("L", (8, 8))])
def test_no_video(video: Any) -> None:
    with refused(says="frames"):
        sample_frames(video)


def test_frames_of_no_frames(face: Image.Image, tmp_path: Path) -> None:
    for count in (0, 10**12):
        with refused(says="from 1 to 65,536"):
            sample_frames([face], count)
    with refused(str(tmp_path), "no frames"):
        sample_frames(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(100))
    with refused(str(tmp_path / "clip.mp4")):
        sample_frames(tmp_path / "clip.mp4")
