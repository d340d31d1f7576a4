"""Small files that unpack to much: whatever a picture's header says, reading it takes a bounded part of the memory, measured
in a child process that has no more."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_image import reference, refused

import fer_edge
from fer_edge.decode import MAX_PIXELS, MAX_SIDE
from fer_edge.image import face_corners, load_picture, to_input

LIMIT_MB = 256

CHILD = """
import gc, json, resource, sys
from pathlib import Path
import av
from PIL import Image
import fer_edge
from fer_edge.image import to_input

def field(name):
    return int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0]) / 1024

Image.init()
to_input(sys.argv[1], (224, 224), "rgb")
readers = {
    "gray": lambda p: to_input(p, (48, 48), "gray"),
    "rgb": lambda p: to_input(p, (224, 224), "rgb"),
    "frames": lambda p: fer_edge.sample_frames(p, 16),
}
limit = int((field("VmSize") + float(sys.argv[2])) * 2**20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for path in sys.argv[3:]:
    row = {"file": Path(path).name}
    for name, read in readers.items():
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before = field("VmRSS")
        try:
            read(path)
            said = ""
        except fer_edge.ImageError as error:
            said = str(error)
        row[name] = (said, field("VmHWM") - before)
    print(json.dumps(row), flush=True)
"""


def png(width: int, height: int, bits: int, kind: int, head: bytes = b"") -> bytes:
    """A PNG of zeros; ``kind``: 0 gray, 2 RGB, 6 RGBA; ``head``: the end of 63 texts."""
    channels = {0: 1, 2: 3, 6: 4}[kind]
    packer, row = zlib.compressobj(1), bytes(1 + (width * channels * bits + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(name, data)
        for name, data in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)),
            *((b"zTXt", b"%d" % i + head) for i in range(63 if head else 0)),
            (b"IDAT", body),
            (b"IEND", b""),
        )
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bmp(side: int) -> bytes:
    """A run-length BMP of one colour."""
    row = b"\xff\x07" * (side // 255) + bytes([side % 255, 7]) + b"\0\0"
    data = row * side + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024 + len(data), 0, 0, 54 + 1024) + head + bytes(1024) + data


def jpeg2000(side: int, **options: Any) -> bytes:
    """A codestream of a small picture that calls itself ``side`` wide and high."""
    stream = io.BytesIO()
    Image.new("RGB", (256, 256), (9, 90, 130)).save(stream, "JPEG2000", no_jp2=True, **options)
    raw = bytearray(stream.getvalue())
    assert raw[:4] == b"\xff\x4f\xff\x51"
    for place in (8, 12, 24, 28):  # picture and tile
        struct.pack_into(">I", raw, place, side)
    return bytes(raw)


def tiled(side: int, tile: int) -> bytes:
    """A small TIFF in one large tile."""
    data = zlib.compress(bytes(10_000), 9)
    data += b"\0" * (len(data) % 2)
    size, kind = [(256, 4, side), (257, 4, side)], [(258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags = [*size, *kind, (322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(data))]
    table = b"".join(struct.pack("<HHII", tag, form, 1, value) for tag, form, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + table + bytes(4)


def flat(side: int, kind: str, frames: int = 1, mode: str = "RGB", **options: Any) -> bytes:
    """A picture of one colour, or an animation of several."""
    stream = io.BytesIO()
    pictures = [Image.new("RGB", (side, side), (9 * i, 90, 130)).convert(mode) for i in range(frames)]
    several: dict[str, Any] = {"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}
    pictures[0].save(stream, kind, **several, **options)
    return stream.getvalue()


def video(side: tuple[int, int], codec: str, path: Path) -> bytes:
    import av

    with av.open(str(path), "w", format="matroska") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *side, "yuv420p"
        for i in range(6):
            frame = av.VideoFrame.from_ndarray(np.full((side[1] * 3 // 2, side[0]), 20 * i, np.uint8), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


SIDEWAYS = struct.pack(">6s2HIH2HI2HI", b"Exif\0\0", 0x4D4D, 42, 8, 1, 0x112, 3, 1, 6, 0, 0)

TAKEN: dict[str, Callable[[], bytes]] = {
    "turned.png": lambda: flat(
        4000, "png", exif=struct.pack(">6sHHIHHHIHHI", b"Exif\0\0", 0x4D4D, 42, 8, 1, 0x112, 3, 1, 6, 0, 0)
    ),
    "alpha.png": lambda: png(4000, 4000, 8, 6),
    "deep.png": lambda: png(4000, 4000, 16, 0),
    "deep colours.png": lambda: png(4000, 4000, 16, 2),
    "80 megapixels.jpg": lambda: flat(9000, "jpeg"),
    "scans.jpg": lambda: flat(4000, "jpeg", progressive=True, subsampling=0),
    "ink.jpg": lambda: flat(3200, "jpeg", mode="CMYK", progressive=True),
    "wavelets.jp2": lambda: flat(3000, "JPEG2000"),
    "photo.webp": lambda: flat(2300, "webp", quality=10, method=0),
    "photo.avif": lambda: flat(2300, "avif", speed=10),
    "strip.tif": lambda: flat(3400, "tiff", compression="tiff_adobe_deflate", tiffinfo={278: 3400}),
    "pages.tif": lambda: flat(2500, "tiff", 3, compression="tiff_lzw"),
    "moving.gif": lambda: flat(2500, "gif", 3),
    "moving.png": lambda: flat(2500, "png", 3, compress_level=1),
    "moving.webp": lambda: flat(2300, "webp", 3, quality=10, method=0),
    "runs.bmp": lambda: bmp(2000),
}
"""As large as each kind may be, or nearly."""

REFUSED: dict[str, Callable[[], bytes]] = {
    "colours.png": lambda: png(8000, 8000, 8, 2),
    "long.png": lambda: png(1, 1 << 20, 8, 0),
    "wide.png": lambda: png(1 << 20, 1, 8, 0),
    "texts.png": lambda: png(4000, 4000, 8, 2, b"\0\0" + zlib.compress(bytes(1 << 20), 9)),
    "scans.jpg": lambda: flat(5000, "jpeg", progressive=True, subsampling=0),
    "blocks.j2k": lambda: jpeg2000(4096, codeblock_size=(4, 4)),
    "huge.j2k": lambda: jpeg2000(60000),
    "canvas.webp": lambda: flat(4000, "webp", quality=10, method=0),
    "moving.gif": lambda: flat(2800, "gif", 2),
    "tile.tif": lambda: tiled(64, 1 << 14),
    "runs.bmp": lambda: bmp(8000),
    "gzip.fits": lambda: b"SIMPLE  =                    T" + bytes(3000),
}
"""Larger; or of a kind whose reader cannot be bounded."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, portrait: Path) -> dict[str, dict[str, tuple[str, float]]]:
    """File -> reader -> (what it refused with, or nothing; megabytes)."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell the peak of memory")
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("files")
    for name, files in (("taken", TAKEN), ("refused", REFUSED)):
        for file, make in files.items():
            (folder / f"{name} {file}").write_bytes(make())
    (folder / "taken 4k.mkv").write_bytes(video((3840, 2160), "mpeg4", folder / "video"))
    (folder / "refused 16k.mkv").write_bytes(video((8192, 4096), "ffv1", folder / "video"))
    paths = sorted(str(p) for p in folder.glob("* *"))
    command = [sys.executable, "-c", CHILD, str(portrait), str(LIMIT_MB), *paths]
    done = subprocess.run(command, capture_output=True, text=True, env=None)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(paths)
    return {row.pop("file"): row for row in rows}


def test_no_file_takes_more_than_the_limit(measured: dict[str, dict[str, tuple[str, float]]]) -> None:
    high = {f"{file} as {how}": mb for file, row in measured.items() for how, (_, mb) in row.items() if mb > 200}
    assert high == {}


def test_what_fits_is_taken_and_what_does_not_is_refused_for_its_size(
    measured: dict[str, dict[str, tuple[str, float]]],
) -> None:
    for file, row in measured.items():
        for how, (said, mb) in row.items():
            if file.endswith(".mkv") and how != "frames":
                assert "for a video: fer_edge.sample_frames" in said
            elif file == "refused moving.gif" and how != "frames":
                assert said == ""  # its first frame alone is a picture of 8 megapixels
            elif file == "refused gzip.fits":
                assert said != ""
            elif file.startswith("taken"):
                assert said == "", (file, how, mb)
            else:
                assert "the limit is" in said or "not an image" in said, (file, how, said)


# What is decoded smaller.


@pytest.mark.parametrize("kind", ["jpeg", "JPEG2000"])
def test_large_pictures_are_decoded_smaller(kind: str, portrait: Path) -> None:
    """A fourth of the pixels, a sixteenth, ...: near to the whole picture's answer; boxes count the file's own pixels."""
    with Image.open(portrait) as opened:
        picture = opened.convert("RGB").resize((800, 640), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 95} if kind == "jpeg" else {"irreversible": True, "quality_layers": [15]}))
    raw, box = stream.getvalue(), (262, 70, 175, 140)
    whole, face = reference(Image.open(io.BytesIO(raw)), "rgb"), to_input(raw, (48, 64), "rgb", box)
    for times in (1, 2, 4):
        most = 800 * 640 // times**2 * (1 if kind == "jpeg" else 2 * times + 2)  # JPEG 2000 needs more
        assert load_picture(raw, most).size == (800 // times, 640 // times)
        assert np.abs(to_input(raw, (48, 64), "rgb", max_pixels=most).astype(int) - whole).mean() < 4
        assert np.abs(to_input(raw, (48, 64), "rgb", box, max_pixels=most).astype(int) - face).mean() < 3 * times
    np.testing.assert_array_equal(to_input(raw, (48, 64), "rgb", max_pixels=4 * 800 * 640), whole)
    with refused(says="raise max_pixels"):
        to_input(raw, (48, 64), "rgb", max_pixels=100)


def test_a_box_of_a_picture_that_was_decoded_smaller() -> None:
    assert face_corners((40, 80, 20, 20), (100, 100), shrunk=4) == (10, 20, 15, 25)
    assert face_corners((0, 0, 400, 400), (100, 100), shape="box", shrunk=4) == (0, 0, 100, 100)
    assert face_corners((399, 399, 1, 1), (100, 100), shrunk=4)[2] <= 101
    with refused(says="400 x 400"):
        face_corners((400, 0, 10, 10), (100, 100), shrunk=4)


@pytest.mark.parametrize("kind", ["png", "webp", "gif", "tiff"])
def test_other_formats_are_refused_and_an_option_takes_them(kind: str, portrait: Path) -> None:
    stream = io.BytesIO()
    with Image.open(portrait) as opened:
        opened.convert("RGB").save(stream, kind)
    with refused(says="raise max_pixels"):
        to_input(stream.getvalue(), (48, 48), "rgb", max_pixels=512 * 512 - 1)
    with fer_edge.load(runtime="null") as clf:
        for call in (clf.predict, clf.features, clf.predict_batch, clf.predict_clip, clf.predict_boxes):
            image: Any = stream.getvalue() if call == clf.predict else [stream.getvalue()]
            arguments = (stream.getvalue(), [(0, 0, 99, 99)]) if call == clf.predict_boxes else (image,)
            with refused(says="raise max_pixels"):
                call(*arguments, max_pixels=90_000)  # type: ignore[operator]
            call(*arguments, max_pixels=600_000)  # type: ignore[operator]


def test_the_default_limits() -> None:
    for width, height in ((4000, 4000), (4000, 4001), (MAX_SIDE, 1), (MAX_SIDE + 1, 1), (2**31 - 1, 2**31 - 1)):
        head = png(1, 1, 8, 0).replace(struct.pack(">II", 1, 1), struct.pack(">II", width, height))
        crc = struct.pack(">I", zlib.crc32(head[12:29]))
        large = width * height > MAX_PIXELS or width > MAX_SIDE
        with refused(says="the limit is" if large else "cannot be decoded"):
            to_input(head[:29] + crc + head[33:], (48, 48), "gray")


def test_frames_shrink_until_all_fit(tmp_path: Path) -> None:
    """By a whole number, each to the mean of its pixels; a picture that does not move is read as predict reads it."""
    noise = [np.random.default_rng(i).integers(0, 256, (240, 320, 3), dtype=np.uint8) for i in range(4)]
    pictures = [Image.fromarray(pixels) for pixels in noise]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:])
    for limit, times in ((1_000_000, 1), (240_000, 2), (200_000, 3)):
        frames = fer_edge.sample_frames(tmp_path / "a.png", 4, max_pixels=limit)
        for frame, pixels in zip(frames, noise, strict=True):
            high, wide = 240 // times, 320 // times
            parts = pixels[: high * times, : wide * times].reshape(high, times, wide, times, 3)
            got = np.asarray(frame)[:high, :wide]
            np.testing.assert_allclose(got, parts.mean((1, 3)), atol=1)
    with refused(str(tmp_path / "a.png"), "raise max_pixels"):
        fer_edge.sample_frames(tmp_path / "a.png", 4, max_pixels=70_000)
    (tmp_path / "still.jpg").write_bytes(flat(1000, "jpeg"))
    still = fer_edge.sample_frames(tmp_path / "still.jpg", 3, max_pixels=300_000)
    assert [frame.size for frame in still] == [(500, 500)] * 3  # type: ignore[union-attr]
