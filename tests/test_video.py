"""Real video files, by PyAV: frames from the paper's positions, one label for the clip, refusals."""

from __future__ import annotations

import math
import shutil
import struct
import subprocess
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_image import LYING, turned

import fer_edge
from fer_edge.decode import MAX_PIXELS
from fer_edge.image import to_input
from fer_edge.video import is_picture, segment_middles


@pytest.mark.parametrize("name", ["WolfgangLanger_Pexels.mp4", "again.mkv", "no_face.mp4"])
def test_frames_are_the_segment_middles(name: str, data: Path) -> None:
    av = pytest.importorskip("av")
    file = data / "scenes" / "videos" / name
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picked = fer_edge.sample_frames(file, 16)
    assert len(picked) == 16
    for frame, position in zip(picked, segment_middles(len(frames), 16), strict=True):
        assert np.abs(np.asarray(frame).astype(int) - frames[position]).max() <= 2


def film(path: Path, picture: Image.Image, matrix: tuple[int, int, int, int] | None, frames: int = 4) -> None:
    """An mp4 of one picture; ``matrix``: a, b, c, d of its track header in 16.16, as phones write them."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"qscale": "1"})
        stream.width, stream.height, stream.pix_fmt = *picture.size, "yuv420p"
        stream.bit_rate = 8_000_000
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    raw = bytearray(path.read_bytes())
    place = raw.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), raw.index(b"tkhd"))
    if matrix is not None:
        a, b, c, d = (v << 16 if isinstance(v, int) else round(v * 65536) for v in matrix)
        raw[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
        path.write_bytes(raw)


MATRICES = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
"""EXIF's number -> the matrix (a, b, c, d) that asks for the same: (x, y) is shown at (a x + c y, b x + d y)."""


@pytest.fixture(scope="module")
def face(portrait: Path) -> Image.Image:
    """160 x 192, without any symmetry."""
    with Image.open(portrait) as picture:
        return picture.convert("RGB").crop((168, 40, 280, 174)).resize((160, 192), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_portrait_video_stands_upright(orientation: int, face: Image.Image, tmp_path: Path) -> None:
    """Every quarter turn and mirroring of the display matrix, against its own arithmetic and against the picture."""
    matrix = MATRICES[orientation]
    lying = np.ascontiguousarray(LYING[orientation](np.asarray(face)))
    a, b, c, d = matrix
    ys, xs = np.mgrid[: lying.shape[0], : lying.shape[1]]
    shown = np.zeros_like(np.asarray(face))
    x, y = a * xs + c * ys, b * xs + d * ys
    shown[y - y.min(), x - x.min()] = lying
    np.testing.assert_array_equal(shown, np.asarray(face))

    film(tmp_path / "a.mp4", Image.fromarray(lying), matrix)
    for most in (MAX_PIXELS, 60_000):  # whole, and shrunk
        frames = fer_edge.sample_frames(tmp_path / "a.mp4", 3, max_pixels=most)
        assert len(frames) == 3
        for frame in frames:
            got = np.asarray(frame).astype(int)
            expected = np.asarray(face.reduce(face.width // got.shape[1]))
            assert got.shape == expected.shape
            assert np.abs(got - expected).mean() < 6


def test_a_matrix_between_quarter_turns_is_the_nearest(face: Image.Image, tmp_path: Path) -> None:
    turn = math.radians(80)
    lying = np.ascontiguousarray(LYING[6](np.asarray(face)))
    film(tmp_path / "a.mp4", Image.fromarray(lying), (math.cos(turn), math.sin(turn), -math.sin(turn), math.cos(turn)))  # type: ignore[arg-type]
    (frame,) = fer_edge.sample_frames(tmp_path / "a.mp4", 1)
    assert np.abs(np.asarray(frame).astype(int) - np.asarray(face)).mean() < 6


@pytest.mark.parametrize("kind", ["folder", "list", "webp", "png"])
def test_image_sequences_stand_upright_by_exif(kind: str, face: Image.Image, tmp_path: Path) -> None:
    for i in (1, 5, 6):
        (tmp_path / f"{i}.png").write_bytes(turned(face, i, "png"))
    if kind in ("webp", "png"):
        lying = [Image.fromarray(np.ascontiguousarray(LYING[6](np.asarray(p)))) for p in (face, face.rotate(180))]
        tags = Image.Exif()
        tags[0x0112] = 6
        options: dict[str, Any] = {"lossless": True} if kind == "webp" else {}
        lying[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=lying[1:], exif=tags, **options)
        frames = fer_edge.sample_frames(tmp_path / f"a.{kind}", 2)
        np.testing.assert_array_equal(np.asarray(frames[0]), np.asarray(face))
        np.testing.assert_array_equal(np.asarray(frames[1]), np.asarray(face.rotate(180)))
        return
    video: Any = tmp_path if kind == "folder" else sorted(tmp_path.iterdir())
    frames = fer_edge.sample_frames(video, 3)
    assert len(frames) == 3
    for frame in frames:
        np.testing.assert_array_equal(to_input(frame, (192, 160), "rgb"), np.asarray(face))


def test_what_a_folder_of_frames_leaves_out_is_said(face: Image.Image, tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jfif", "c.tiff"):
        face.save(tmp_path / name, "png")
    (tmp_path / ".DS_Store").write_bytes(b"x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [p.name for p in fer_edge.sample_frames(tmp_path, 3)] == ["a.jfif", "b.PNG", "c.tiff"]  # type: ignore[union-attr]
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    with pytest.warns(UserWarning, match=r"left out 1 without an image's ending: Thumbs\.db"):
        assert len(fer_edge.sample_frames(tmp_path, 3)) == 3
    with fer_edge.load(runtime="null") as clf, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.predict_clip(fer_edge.sample_frames(tmp_path))
    for name in ("b.PNG", "a.jfif", "c.tiff"):
        (tmp_path / name).unlink()
    with pytest.raises(fer_edge.ImageError, match=r"has no frames; .*Thumbs\.db"):
        fer_edge.sample_frames(tmp_path)


def test_a_picture_in_several_views_is_one_frame(face: Image.Image, tmp_path: Path) -> None:
    """Phones store how bright a photo is, or its other eye, as a second picture in the same JPEG."""
    face.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", face.size)], quality=95)
    frames = fer_edge.sample_frames(tmp_path / "a.jpg", 4)
    for frame in frames:
        assert np.abs(np.asarray(frame).astype(int) - np.asarray(face)).mean() < 6


def test_wrong_uses(face: Image.Image) -> None:
    for count in (2.5, "3", None, True):
        with pytest.raises(fer_edge.UsageError, match="count"):
            fer_edge.sample_frames([face], count)  # type: ignore[arg-type]
    with pytest.raises(fer_edge.UsageError, match="max_pixels"):
        fer_edge.sample_frames([face], 3, max_pixels=0)
    with pytest.raises(fer_edge.ImageError, match="a video is"):
        fer_edge.sample_frames(b"bytes")  # type: ignore[arg-type]


def test_a_clip_has_one_label(data: Path) -> None:
    pytest.importorskip("av")
    with fer_edge.load(runtime="null") as clf:
        answer = clf.predict_clip(fer_edge.sample_frames(data / "scenes" / "videos" / "again.mkv", 16))
    assert answer.label in answer.scores


def test_a_broken_video_is_one_error(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    raw = (data / "scenes" / "videos" / "again.mkv").read_bytes()
    for name, content in {"cut.mkv": raw[:100], "noise.mp4": bytes(range(256)) * 40, "empty.mp4": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(fer_edge.ImageError, match=name) as caught:
            fer_edge.sample_frames(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("aspect", "stored"), [("2/1", (80, 192)), ("3/2", (107, 192)), ("1/2", (160, 96)), ("8/9", (160, 171))]
)
@pytest.mark.parametrize("most", [MAX_PIXELS, 60_000])
def test_pixels_are_square(aspect: str, stored: tuple[int, int], most: int, face: Image.Image, tmp_path: Path) -> None:
    """Against the picture that was squeezed; whole, and shrunk."""
    pytest.importorskip("av")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("needs ffmpeg (apt-get install ffmpeg)")
    face.save(tmp_path / "a.png")
    squeeze = f"scale={stored[0]}:{stored[1]}:flags=area,setsar={aspect}"
    repeated = [ffmpeg, "-v", "error", "-loop", "1", "-r", "8", "-t", "1", "-i", str(tmp_path / "a.png")]
    subprocess.run([*repeated, "-vf", squeeze, "-c:v", "ffv1", "-pix_fmt", "bgr0", str(tmp_path / "a.mkv")], check=True)
    frame, *_ = fer_edge.sample_frames(tmp_path / "a.mkv", 8, max_pixels=most)
    got = np.asarray(frame).astype(int)
    times = round(face.width / got.shape[1])
    assert (times > 1) == (most < MAX_PIXELS)
    assert np.abs(np.array(got.shape[:2]) * times - (192, 160)).max() <= times
    expected = np.asarray(face.resize((got.shape[1], got.shape[0]), Image.Resampling.BOX)).astype(int)
    assert np.abs(got - expected).mean() < 6


def test_pixels_of_a_wild_shape_are_refused(tmp_path: Path) -> None:
    """Stretching a small frame to a row of two million pixels, and shrinking that, takes gigabytes."""
    pytest.importorskip("av")
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("needs ffmpeg (apt-get install ffmpeg)")
    wild = ["-f", "lavfi", "-i", "testsrc=size=64x48:duration=0.2", "-vf", "setsar=9000/1:max=9000", "-c:v", "ffv1"]
    subprocess.run([ffmpeg, "-v", "error", *wild, str(tmp_path / "a.mkv")], check=True)
    with pytest.raises(fer_edge.ImageError, match=r"a\.mkv has frames of 576000 x 48 pixels; the limit is"):
        fer_edge.sample_frames(tmp_path / "a.mkv", 2)


def test_a_long_video_is_read(tmp_path: Path, face: Image.Image) -> None:
    """However large its file is: it is not held as a whole, as a picture would be, and that is still refused."""
    film(tmp_path / "a.mp4", face, None)
    most = 30_000
    with (tmp_path / "a.mp4").open("ab") as file:
        file.write((16 << 20).to_bytes(4, "big") + b"free")
        file.truncate(file.tell() + (16 << 20) - 8)  # a box of nothing, with a hole in it
    frames = fer_edge.sample_frames(tmp_path / "a.mp4", 3, max_pixels=most * 9)
    assert [np.asarray(frame).shape for frame in frames] == [(192, 160, 3)] * 3
    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(16 << 20))
    with pytest.raises(fer_edge.ImageError, match="the limit for a picture"):
        fer_edge.sample_frames(tmp_path / "a.gif", 3, max_pixels=most * 9)


def test_a_jpeg_needs_no_ending_to_be_a_picture(face: Image.Image, tmp_path: Path) -> None:
    for name, picture in {"photo": True, "photo.dat": True, "many.mjpeg": False, "many.MJPG": False}.items():
        face.save(tmp_path / name, "JPEG")
        assert is_picture(tmp_path / name) is picture
