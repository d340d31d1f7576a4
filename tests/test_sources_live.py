"""Where a watch's frames come from: files, animations, folders and standard input, against what ffmpeg makes of them."""

from __future__ import annotations

import gc
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_image import LYING, turned
from test_video import MATRICES, film

import fer_edge
from fer_edge.live.frames import Frame, Pixels, Source
from fer_edge.live.pipes import Piped, raw_format
from fer_edge.live.sources import open_source

av = pytest.importorskip("av")
pytest.importorskip("cv2")

FFMPEG = shutil.which("ffmpeg") or ""
needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason="needs ffmpeg (apt-get install ffmpeg)")


def ffmpeg(*arguments: object) -> bytes:
    """What Debian's ffmpeg writes to its standard output."""
    command = [FFMPEG, "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True).stdout


def reference(path: Path, width: int, height: int) -> Pixels:
    """Every frame of a file as ffmpeg decodes it, (T, H, W, 3); the colours of fields are those of their own lines."""
    to_rgb = ["-vf", "scale=interl=-1", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    raw = ffmpeg("-i", path, *to_rgb, "-")
    return np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)


def frames(source: Source) -> list[Frame]:
    """All of them; a recording has nothing else."""
    items = list(source)
    assert all(isinstance(item, Frame) for item in items)
    return [item for item in items if isinstance(item, Frame)]


def far(one: Pixels, other: Pixels) -> float:
    """Mean distance of two pictures."""
    assert one.shape == other.shape
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


@pytest.fixture(scope="module")
def moving(portrait: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 160 x 120: a window that moves over the portrait; no two are the same."""
    folder = tmp_path_factory.mktemp("moving")
    with Image.open(portrait) as picture:
        whole = picture.convert("RGB").resize((300, 300))
    for i in range(12):
        whole.crop((i * 8, i * 4, i * 8 + 160, i * 4 + 120)).save(folder / f"{i:03}.png")
    return folder


ENCODINGS = {
    "h264.mp4": "-c:v libx264 -pix_fmt yuv420p -qp 10",
    "b-frames.mkv": "-c:v libx264 -pix_fmt yuv420p -bf 3 -qp 10",
    "ten-bits.mkv": "-c:v libx264 -pix_fmt yuv422p10le -qp 10",
    "gray.mkv": "-c:v ffv1 -pix_fmt gray",
    "full-range.avi": "-c:v mjpeg -pix_fmt yuvj420p -q:v 2",
    "bt709.mp4": "-vf scale=out_color_matrix=bt709 -c:v libx264 -pix_fmt yuv420p -qp 10 -colorspace bt709",
    "interlaced.ts": "-vf interlace -c:v mpeg2video -flags +ildct+ilme -q:v 2 -pix_fmt yuv420p",
    "rgb.mkv": "-c:v ffv1 -pix_fmt bgr0",
    "see-through.webm": "-c:v libvpx-vp9 -pix_fmt yuva420p -crf 10 -b:v 0",
}


@needs_ffmpeg
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_has_the_colours_that_ffmpeg_gives_it(name: str, moving: Path, tmp_path: Path) -> None:
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", *ENCODINGS[name].split(), tmp_path / name)
    expected = reference(tmp_path / name, 160, 120)
    given = frames(open_source(str(tmp_path / name)))
    assert len(given) == len(expected) > 5
    assert [frame.number for frame in given] == list(range(len(given)))
    for frame, picture in zip(given, expected, strict=True):
        assert frame.size == (160, 120)
        assert far(frame.pixels, picture) < 1.6
        small = np.asarray(Image.fromarray(picture).resize((80, 60), Image.Resampling.BOX))
        assert far(frame.shrunk((80, 60)), small) < 3
        for left, top, right, bottom in ((10, 20, 50, 60), (0, 0, 33, 21), (121, 77, 160, 120), (70, 50, 71, 51)):
            np.testing.assert_array_equal(
                Frame(0, 0.0, frame.picture, 0.0).part(left, top, right, bottom), frame.pixels[top:bottom, left:right]
            )
    assert far(given[0].pixels, given[-1].pixels) > 10, "the frames differ, so their order was looked at"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_video_stands_upright(orientation: int, portrait: Path, tmp_path: Path) -> None:
    """And so does the small picture that the detector gets."""
    with Image.open(portrait) as picture:
        face = picture.convert("RGB").crop((168, 40, 280, 174)).resize((160, 192), Image.Resampling.BILINEAR)
    upright = np.asarray(face)
    film(tmp_path / "a.mp4", Image.fromarray(np.ascontiguousarray(LYING[orientation](upright))), MATRICES[orientation])
    for frame in frames(open_source(tmp_path / "a.mp4")):
        assert frame.size == (160, 192)
        assert far(frame.pixels, upright) < 6
        small = np.asarray(face.resize((80, 96), Image.Resampling.BOX))
        assert far(frame.shrunk((80, 96)), small) < 6


@needs_ffmpeg
@pytest.mark.parametrize("field", ["", ",interlace"])
@pytest.mark.parametrize(("aspect", "stored"), [("2/1", (80, 192)), ("1/2", (160, 96))])
def test_pixels_are_square(aspect: str, stored: tuple[int, int], field: str, portrait: Path, tmp_path: Path) -> None:
    """Whole, shrunk and in part, against the picture that was squeezed."""
    with Image.open(portrait) as picture:
        face = picture.convert("RGB").crop((168, 40, 280, 174)).resize((160, 192), Image.Resampling.BILINEAR)
    face.save(tmp_path / "a.png")
    squeeze = f"scale={stored[0]}:{stored[1]}:flags=area,setsar={aspect}{field}"
    repeated = ["-loop", 1, "-r", 8, "-t", 1, "-i", tmp_path / "a.png"]
    ffmpeg(*repeated, "-vf", squeeze, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-qp", 5, tmp_path / "a.mp4")
    for frame in frames(open_source(tmp_path / "a.mp4")):
        assert frame.size == (160, 192)
        assert far(frame.shrunk((80, 96)), np.asarray(face.resize((80, 96), Image.Resampling.BOX))) < 6
        assert far(frame.part(40, 60, 60, 80), np.asarray(face)[60:80, 40:60]) < 12
        assert far(frame.pixels, np.asarray(face)) < 6


@needs_ffmpeg
def test_pixels_of_a_wild_shape_are_refused(moving: Path, tmp_path: Path) -> None:
    ffmpeg("-i", moving / "000.png", "-vf", "setsar=1000/1:max=1000", "-c:v", "ffv1", tmp_path / "a.mkv")
    refused(tmp_path / "a.mkv", r"frames of 160000 x 120 pixels; the limit is")


def test_a_turned_video_keeps_no_frame(portrait: Path, tmp_path: Path) -> None:
    """PyAV's frame whose side data was looked at lies in a circle, and waits for the garbage collector."""
    with Image.open(portrait) as picture:
        film(tmp_path / "a.mp4", picture.convert("RGB").resize((64, 48)), MATRICES[6], frames=60)
    gc.collect()
    gc.disable()
    try:
        seen = 0
        for frame in open_source(tmp_path / "a.mp4"):
            assert isinstance(frame, Frame)
            assert frame.pixels.shape == (64, 48, 3)
            seen += 1
        del frame
        assert seen == 60
        kept = [thing for thing in gc.get_objects() if type(thing) is av.VideoFrame]
        assert sum(frame.width * frame.height for frame in kept) <= 2 * 16 * 16
    finally:
        gc.enable()


@needs_ffmpeg
def test_the_name_of_a_colour_profile_is_left_alone(moving: Path, tmp_path: Path) -> None:
    """PyAV frees it twice, and the process dies when the garbage collector comes."""
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-c:v", "png", tmp_path / "a.mkv")
    code = """
import gc, sys, fer_edge
from fer_edge.live.sources import open_source
for _ in range(10):
    for read in (lambda: fer_edge.sample_frames(sys.argv[1], 3), lambda: [f.pixels for f in open_source(sys.argv[1])]):
        read()
        gc.collect()
print("lives")
"""
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.mkv")], capture_output=True, text=True)
    assert (answer.stdout, answer.returncode) == ("lives\n", 0), answer.stderr


@needs_ffmpeg
def test_times_are_those_of_the_medium(moving: Path, tmp_path: Path) -> None:
    """Of a variable rate, from 0 though the file begins at a later time, and from the rate where a file says none."""
    picked = "select='not(mod(n\\,2))+eq(n\\,3)',setpts=PTS+5/TB"
    ffmpeg(
        "-framerate", 10, "-i", moving / "%03d.png", "-vf", picked, "-fps_mode", "vfr", "-c:v", "libx264", tmp_path / "a.ts"
    )
    times = [frame.time for frame in frames(open_source(tmp_path / "a.ts"))]
    assert times == pytest.approx([0, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0], abs=1e-3)
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-c:v", "libx264", "-bf", 0, tmp_path / "a.h264")
    times = [frame.time for frame in frames(open_source(tmp_path / "a.h264"))]
    assert times == pytest.approx([i / 10 for i in range(12)], abs=1e-6)


@needs_ffmpeg
def test_a_file_put_behind_another_goes_on_in_its_own_size(moving: Path, tmp_path: Path) -> None:
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-c:v", "libx264", tmp_path / "a.ts")
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-vf", "scale=80:64", "-c:v", "libx264", tmp_path / "b.ts")
    (tmp_path / "c.ts").write_bytes(b"".join((tmp_path / name).read_bytes() for name in ("a.ts", "b.ts", "a.ts")))
    given = frames(open_source(tmp_path / "c.ts"))
    assert [frame.pixels.shape[:2] for frame in given] == [(120, 160)] * 12 + [(64, 80)] * 12 + [(120, 160)] * 12
    assert [frame.size for frame in given[11:13]] == [(160, 120), (80, 64)]
    assert [frame.time for frame in given] == pytest.approx([i / 10 for i in range(36)], abs=0.11)
    assert all(a.time <= b.time for a, b in pairwise(given))


@pytest.mark.parametrize("kind", ["gif", "webp", "png"])
def test_an_animation_is_every_frame_at_its_time(kind: str, moving: Path, tmp_path: Path) -> None:
    pictures = [Image.open(file).convert("RGB") for file in sorted(moving.iterdir())[:4]]
    options = {"lossless": True} if kind == "webp" else {}
    times = [100, 300, 100, 200]
    pictures[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=pictures[1:], duration=times, **options)
    given = frames(open_source(tmp_path / f"a.{kind}"))
    assert [frame.time for frame in given] == pytest.approx([0, 0.1, 0.4, 0.5])
    for frame, picture in zip(given, pictures, strict=True):
        assert far(frame.pixels, np.asarray(picture)) < (8 if kind == "gif" else 0.01)


def test_a_folder_is_its_pictures_by_name(moving: Path, tmp_path: Path, portrait: Path) -> None:
    given = frames(open_source(moving, fps=5))
    assert [frame.time for frame in given] == pytest.approx([i / 5 for i in range(12)])
    for frame, file in zip(given, sorted(moving.iterdir()), strict=True):
        np.testing.assert_array_equal(frame.pixels, np.asarray(Image.open(file)))
    assert [frame.time for frame in frames(open_source(moving))][:2] == pytest.approx([0, 1 / 25])
    with Image.open(portrait) as picture:
        face = picture.convert("RGB").resize((64, 48))
    (tmp_path / "a.png").write_bytes(turned(face, 6, "png"))
    (tmp_path / "b.png").write_bytes((moving / "000.png").read_bytes())
    first, second = frames(open_source(tmp_path))
    np.testing.assert_array_equal(first.pixels, np.asarray(face))
    assert (first.size, second.size) == ((64, 48), (160, 120))
    (photo,) = frames(open_source(tmp_path / "a.png"))
    np.testing.assert_array_equal(photo.pixels, np.asarray(face))


class Writer:
    """A pipe that another thread writes into; the reader's end is closed at the end."""

    def __init__(self, content: bytes) -> None:
        self.end, write = os.pipe()
        self._thread = threading.Thread(target=self._write, args=(write, content))

    @staticmethod
    def _write(descriptor: int, content: bytes) -> None:
        with suppress(BrokenPipeError), os.fdopen(descriptor, "wb", buffering=0) as file:
            file.write(content)

    def __enter__(self) -> int:
        self._thread.start()
        return self.end

    def __exit__(self, *_: object) -> None:
        os.close(self.end)
        self._thread.join()


@needs_ffmpeg
@pytest.mark.parametrize("pixels", ["rgb24", "bgr24", "gray8", "yuv420p", "nv12", "yuyv422"])
def test_raw_frames_through_a_pipe(pixels: str, moving: Path) -> None:
    name = "gray" if pixels == "gray8" else pixels
    raw = ffmpeg("-i", moving / "%03d.png", "-f", "rawvideo", "-pix_fmt", name, "-")
    with Writer(raw) as end:
        given = frames(Piped(end, "the pipe", raw=raw_format(f"160x120:{pixels}@12.5")))
    assert [frame.time for frame in given] == pytest.approx([i / 12.5 for i in range(12)])
    for frame, file in zip(given, sorted(moving.iterdir()), strict=True):
        with Image.open(file) as picture:
            expected = np.asarray(picture.convert("L").convert("RGB") if pixels == "gray8" else picture)
        assert far(frame.pixels, expected) < (0.01 if "24" in pixels else 4)


@needs_ffmpeg
@pytest.mark.parametrize(
    "options", ["-c:v libx264 -f mpegts", "-c:v ffv1 -f matroska", "-c:v mjpeg -q:v 2 -f mjpeg", "-f yuv4mpegpipe"]
)
def test_a_container_through_a_pipe(options: str, moving: Path) -> None:
    content = ffmpeg(
        "-framerate", 25, "-i", moving / "%03d.png", "-pix_fmt", "yuv420p", *options.split(), "-strict", -1, "-"
    )
    with Writer(content) as end:
        given = frames(Piped(end, "the pipe"))
    assert [frame.time for frame in given] == pytest.approx([i / 25 for i in range(12)], abs=1e-3)
    for frame, file in zip(given, sorted(moving.iterdir()), strict=True):
        with Image.open(file) as picture:
            assert far(frame.pixels, np.asarray(picture)) < 6


def test_a_pipe_that_ends_too_early_is_told(moving: Path) -> None:
    cases = {
        b"": (None, r"the pipe gave nothing"),
        b"no video at all" * 90: (None, r"the pipe: Invalid data"),
    }
    for content, (raw, message) in cases.items():
        with Writer(content) as end, pytest.raises(fer_edge.SourceError, match=message):
            list(Piped(end, "the pipe", raw=raw))
    for rest, whole in ((1, 2), (57599, 0)):
        given: list[object] = []
        with Writer(bytes(57600 * whole + rest)) as end, pytest.raises(fer_edge.SourceError) as caught:
            given.extend(Piped(end, "the pipe", raw=raw_format("160x120:rgb24@10")))
        assert len(given) == whole
        assert f"after {whole} frames there are {rest} bytes of 57600" in str(caught.value)
    with Writer(b"") as end, pytest.raises(fer_edge.SourceError, match="gave nothing"):
        list(Piped(end, "the pipe", raw=raw_format("160x120:rgb24@10")))


def test_a_pipe_that_waits_can_be_closed() -> None:
    end, write = os.pipe()
    try:
        source = Piped(end, "the pipe", raw=raw_format("16x16:rgb24@10"))
        threading.Timer(0.2, source.close).start()
        began = time.monotonic()
        assert list(source) == []
        assert time.monotonic() - began < 5
    finally:
        os.close(end)
        os.close(write)


def test_standard_input_is_read(data: Path, moving: Path) -> None:
    """By its own process: a file that stands there, table at the end and all, and raw frames."""
    count_them = "print(len(list(open_source('-', raw=eval(sys.argv[1])))))"
    code = f"import sys; from fer_edge.live.sources import open_source; {count_them}"
    with (data / "scenes" / "videos" / "no_face.mp4").open("rb") as file:
        count = subprocess.run([sys.executable, "-c", code, "None"], stdin=file, check=True, capture_output=True).stdout
    assert int(count) == 95
    raw = b"".join(np.asarray(Image.open(file)).tobytes() for file in sorted(moving.iterdir()))
    answer = subprocess.run([sys.executable, "-c", code, "'160x120:rgb24@30'"], input=raw, check=True, capture_output=True)
    assert int(answer.stdout) == 12


@needs_ffmpeg
def test_what_is_damaged_is_told_at_the_end(moving: Path, tmp_path: Path) -> None:
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-c:v", "png", tmp_path / "a.mkv")
    content = bytearray((tmp_path / "a.mkv").read_bytes())
    place = [match.start() for match in re.finditer(b"\x89PNG", content)][6]
    content[place : place + 8] = bytes(8)
    (tmp_path / "a.mkv").write_bytes(content)
    source, given = open_source(tmp_path / "a.mkv"), list[object]()
    with pytest.raises(fer_edge.SourceError, match=r"a\.mkv is damaged: 1 packets .*first after 0\.5 s") as caught:
        given.extend(source)
    assert len(given) == len(reference(tmp_path / "a.mkv", 160, 120)) == 10, "libav takes the next one for a part of it"
    assert "\n" not in str(caught.value)


def refused(spec: object, message: str, kind: type[Exception] = fer_edge.SourceError, **options: object) -> None:
    """One line, of this kind, before a frame is asked for."""
    with pytest.raises(kind, match=message) as caught:
        open_source(spec, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_holds_no_video_is_refused(tmp_path: Path, moving: Path) -> None:
    refused(tmp_path / "none.mp4", "does not exist")
    refused(tmp_path, r"has no frames: it is empty")
    (tmp_path / "notes.txt").write_text("none")
    refused(tmp_path, r"has no frames; its files are 1 without", fer_edge.ImageError)
    refused(tmp_path / "notes.txt", r"notes\.txt: Invalid data")
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(tmp_path / "empty.mp4", r"empty\.mp4 is empty")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", r"fifo is neither a file nor a folder")
    refused("concat:a|b", r"concat:a\|b does not exist")
    for spec in ("ftp://host/a.mp4", "gopher://x", "pipe://0"):
        refused(spec, r"no kind of address", fer_edge.UsageError)
    refused("", "no name", fer_edge.UsageError)
    refused(moving, "raw frames come through standard input", fer_edge.UsageError, raw="1x1:rgb24@1")
    refused(moving / "000.png", "fps makes no sense here: it is for a camera, and for a folder", fer_edge.UsageError, fps=5)
    refused("-", "fps makes no sense here", fer_edge.UsageError, fps=5)
    for fps in (0, -1, float("nan"), 1e9):
        refused(moving, "fps must be", fer_edge.UsageError, fps=fps)
    for text in (
        "640x480",
        "640x480:rgb24",
        "0x480:rgb24@30",
        "640x480:rgb48@30",
        "640x480:rgb24@0",
        "3x4:nv12@5",
        "axb:gray8@1",
    ):
        refused("-", r"raw frames (are told|of nv12)", fer_edge.UsageError, raw=text)


def test_what_is_no_video_or_too_large_is_refused(tmp_path: Path, portrait: Path) -> None:
    with av.open(str(tmp_path / "sound.mka"), "w", format="matroska") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    refused(tmp_path / "sound.mka", r"sound\.mka has no video; it has sound alone")
    with Image.open(portrait) as picture:
        film(tmp_path / "a.mp4", picture.convert("RGB").resize((320, 240)), None)
    refused(tmp_path / "a.mp4", r"frames of 320 x 240 pixels; the limit is 52,500", max_pixels=70_000)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "a.mp4").read_bytes()[:300])
    refused(tmp_path / "cut.mp4", r"cut\.mp4: ")
    refused(portrait, r"the limit is 70,000", fer_edge.ImageError, max_pixels=70_000)


def test_closing_ends_the_iteration(moving: Path, tmp_path: Path, portrait: Path) -> None:
    with Image.open(portrait) as picture:
        film(tmp_path / "a.mp4", picture.convert("RGB").resize((64, 48)), None, frames=30)

    def some(source: Source) -> Iterator[int]:
        for frame in source:
            assert isinstance(frame, Frame)
            yield frame.number
            if frame.number == 3:
                source.close()

    for spec in (moving, tmp_path / "a.mp4"):
        assert list(some(open_source(spec))) == [0, 1, 2, 3]
