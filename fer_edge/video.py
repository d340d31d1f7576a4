"""Frames of a video, as the paper picks them."""

from __future__ import annotations

import os
import struct
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence

from .arguments import checked
from .decode import MAX_PIXELS, UNREADABLE, Budget, UnknownFormatError, checked_size, decoding_bytes, opened, reason
from .errors import ImageError
from .image import IMAGE_SUFFIXES, ImageLike, load_picture, opaque, several, turn_of

VIDEO_PIXEL_BYTES = 12
"""Bytes per pixel that a video's decoder holds: eight frames of 1.5 bytes a pixel (measured at 3840 x 2160: 5 to 7 for
H.264, MPEG-4 and AV1, 24 for HEVC of 10 bits; 30 for H.264 with 16 reference frames, which no level below 6 allows)."""

MAX_FRAMES = 1 << 16
"""Frames that are picked from one video at most; the paper takes 16."""

_MANY_JPEGS = (".mjpeg", ".mjpg")
"""Videos that are one JPEG after the other."""
_PICTURE_STARTS = (b"GIF8", b"\x89PNG", b"BM", b"\xff\x0a", b"\0\0\0\x0cJXL ")
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")

_ANIMATION_PIXEL_BYTES = 20
"""Bytes per pixel that Pillow holds to lay an animation's frames over each other."""


def segment_middles(frames: int, segments: int) -> list[int]:
    """Index of the middle frame of each of ``segments`` equal parts of ``frames`` frames.

    Exp-CLIP ``data_loader/video_dataloader.py``, ``_get_test_indices`` with duration 1. For videos of fewer frames than
    segments the reference repeats frame 0; here the same formula goes on, so that every frame is seen."""
    tick = frames / segments
    return [int(tick / 2 + tick * i) for i in range(segments)]


@checked("video")
def sample_frames(
    video: str | os.PathLike[str] | Sequence[ImageLike] | NDArray[np.uint8], count: int = 16, *, max_pixels: int = MAX_PIXELS
) -> list[ImageLike]:
    """``count`` frames from the middles of equal parts of a video, for ``predict_clip``.

    ``video``: a sequence of images, an array (T, H, W, C), a folder of frame images (sorted by name; files without an
    image's ending are left out with a warning), an animated image file (GIF, WebP, PNG, AVIF), or any other video file if
    PyAV (``pip install av``) is there. Frames of a file are PIL images, turned and mirrored as the video's display matrix
    or EXIF tag says, in square pixels. ``max_pixels`` bounds the memory: 9 bytes each for the decoder and all frames
    together; larger frames are shrunk by a whole number as they come. A video's file may be of any size.

    Raises ImageError when there is no frame, or the file cannot be read or is too large."""
    if not 1 <= count <= MAX_FRAMES:
        raise ImageError(f"the number of frames must be from 1 to {MAX_FRAMES:,}; got {count}")
    budget = Budget(max_pixels)
    if not isinstance(video, (str, os.PathLike)):
        if not isinstance(video, (Sequence, np.ndarray)) or isinstance(video, (bytes, bytearray, memoryview)):
            raise ImageError(f"a video is a path, or a list or array of frames; got {type(video).__name__}")
        several(video, "video")
        return _pick(video, count, "the video")
    path = Path(os.fsdecode(video))
    try:
        if path.is_dir():
            return _pick(frame_files(path), count, str(path))
        if not path.is_file():
            raise ImageError(f"{path} does not exist")
        if path.stat().st_size > budget.bytes and not is_picture(path):  # a video is not read as a whole, and may be long
            return _decode_video(path, count, budget)
        with opened(path, budget) as animation:
            # The further pictures of an MPO are other views of the same moment, or how bright it was.
            if animation.format == "MPO" or getattr(animation, "n_frames", 1) == 1:
                return [load_picture(path, max_pixels)] * count
            return _animation(animation, count, budget, str(path))
    except UnknownFormatError:
        return _decode_video(path, count, budget)
    except UNREADABLE as error:
        raise ImageError(f"{path} cannot be decoded: {reason(error)}") from error


def is_picture(path: Path) -> bool:
    """Whether Pillow is to read a file: by its first bytes, or its ending. Raises OSError."""
    with path.open("rb") as file:
        start = file.read(16)
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    brand = start[4:8] == b"ftyp" and start[8:12] in _PICTURE_BRANDS
    jpeg = start[:3] == b"\xff\xd8\xff" and path.suffix.lower() not in _MANY_JPEGS
    return start.startswith(_PICTURE_STARTS) or webp or brand or jpeg or path.suffix.lower() in IMAGE_SUFFIXES


def square_size(stored: tuple[int, int], aspect: Any) -> tuple[int, int]:
    """Size (width, height) in square pixels of a picture whose pixels are ``aspect`` times as wide as high (a fraction; None
    or 0: not told, so square). One side grows, none shrinks: nothing of the picture is lost."""
    if not aspect or aspect == 1:
        return stored
    wide, high = stored
    return (round(wide * aspect), high) if aspect > 1 else (wide, round(high / aspect))


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder by name; a warning says what else lies there. Raises ImageError for a folder of other files."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    frames = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
    others = [p.name for p in files if p.suffix.lower() not in IMAGE_SUFFIXES]
    if others:
        text = f"{len(others)} without an image's ending: {', '.join(others[:3])}{', ...' if len(others) > 3 else ''}"
        if not frames:
            raise ImageError(f"{folder} has no frames; its files are {text}")
        warnings.warn(f"{folder}: of {len(files)} files left out {text}", stacklevel=4)
    return frames


def _pick(frames: Sequence[ImageLike] | NDArray[np.uint8], count: int, name: str) -> list[ImageLike]:
    if len(frames) == 0:
        raise ImageError(f"{name} has no frames")
    return [frames[i] for i in segment_middles(len(frames), count)]


def _shrink(size: tuple[int, int], budget: Budget, held: int, frames: int) -> int:
    """By which whole number frames of ``size`` are shrunk, so that ``frames`` of them fit beside ``held`` bytes."""
    share = max(budget.bytes - held, budget.bytes // 8) / frames
    return next(n for n in range(1, 1 << 16) if 4 * (size[0] // n) * (size[1] // n) <= max(share, 4))


def _animation(animation: Image.Image, count: int, budget: Budget, name: str) -> list[ImageLike]:
    positions = segment_middles(animation.n_frames, count)  # type: ignore[attr-defined]  # of the plug-ins
    several, kept = len(set(positions)), dict[int, Image.Image]()
    for i, frame in enumerate(ImageSequence.Iterator(animation)):
        size = checked_size(frame, name)  # a frame may be larger than the first one
        held = max(decoding_bytes(frame), size[0] * size[1] * _ANIMATION_PIXEL_BYTES)
        budget.check(held, size, name)
        if i in positions:
            kept[i] = upright(frame, turn_of(frame), _shrink(size, budget, held, several))
    return [kept[i] for i in positions]


def upright(frame: Image.Image, turn: Image.Transpose | None, shrink: int) -> Image.Image:
    """A copy of an animation's frame, without transparency, ``shrink`` times smaller, then turned."""
    picture = opaque(frame, None)
    if shrink > 1:
        picture = picture.reduce(shrink)
    elif picture is frame:
        picture = frame.copy()
    picture = picture if turn is None else picture.transpose(turn)
    picture.info.clear()  # its turn and transparency are applied, and must not be again
    return picture


def _decode_video(path: Path, count: int, budget: Budget) -> list[ImageLike]:
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{path} is not an animated image, and reading video files needs PyAV: pip install av") from error

    most = budget.bytes // VIDEO_PIXEL_BYTES

    def frames() -> Iterator[tuple[Any, Any]]:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ImageError(f"{path} has no video")
            stream = container.streams.video[0]
            stored = (stream.codec_context.width, stream.codec_context.height)
            for size in (stored, square_size(stored, stream.sample_aspect_ratio)):
                if size[0] * size[1] > most:
                    raise ImageError(
                        f"{path} has frames of {size[0]} x {size[1]} pixels; the limit is {most:,} pixels: make it smaller, "
                        f"or raise max_pixels (now {budget.max_pixels:,})"
                    )
            # The size may change on the way; decoders count their margins, too.
            stream.codec_context.options = {"max_pixels": str(most + most // 10 + (1 << 16))}
            stream.codec_context.thread_count = 2  # some decoders hold frames for each thread
            for frame in container.decode(stream):
                yield frame, stream

    try:
        # Containers lie about their length, so the frames are counted first: two passes, one frame in memory at a time.
        total = sum(1 for _ in frames())
        if total == 0:
            raise ImageError(f"{path} has no frames")
        positions = segment_middles(total, count)
        several, kept = len(set(positions)), dict[int, Image.Image]()
        turns: dict[int, Image.Transpose | None] = {}
        for i, (frame, stream) in enumerate(frames()):
            if i in positions:
                if (angle := frame.rotation) not in turns:
                    turns[angle] = turn_of_frame(frame, stream.codec_context.name)
                turn, held = turns[angle], frame.width * frame.height * VIDEO_PIXEL_BYTES
                size = square_size((frame.width, frame.height), stream.sample_aspect_ratio)
                n = _shrink(size, budget, held, several)
                if n > 1:
                    size = (max(1, size[0] // n), max(1, size[1] // n))
                    frame = frame.reformat(*size, format="rgb24", interpolation="AREA")
                picture = frame.to_image()
                if picture.size != size:
                    picture = picture.resize(size, Image.Resampling.BILINEAR)
                kept[i] = picture if turn is None else picture.transpose(turn)
        return [kept[i] for i in positions]
    except (av.error.FFmpegError, *UNREADABLE) as error:
        raise ImageError(f"{path} cannot be decoded: {reason(error)}") from error


_MATRIX_TURNS: dict[tuple[int, int, int, int], Image.Transpose | None] = {
    (1, 0, 0, 1): None,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
}
"""Signs of (a, b, c, d) -> what does the same: a stored point (p, q), q downwards, is shown at (a p + c q, b p + d q)
(ISO/IEC 14496-12, the matrix of a track header; libavutil/display.h has the same nine numbers)."""


_TURNS: dict[int, Image.Transpose | None] = {
    0: None,
    1: Image.Transpose.ROTATE_90,
    2: Image.Transpose.ROTATE_180,
    3: Image.Transpose.ROTATE_270,
}
"""Quarter turns to the left -> the same."""


def turn_of_frame(frame: Any, decoder: str) -> Image.Transpose | None:
    """What the display matrix of a frame of PyAV asks for, to the nearest quarter turn; None without one. ``decoder``: the
    name of its codec. Ask once for each ``frame.rotation``."""
    # PyAV (14 to 18, at least) frees the metadata of side data twice, and the decoder of PNG alone gives any: its ICC
    # profile's name. Such a frame is turned, but not mirrored.
    if decoder in ("png", "apng"):
        return _TURNS[round(frame.rotation / 90) % 4]
    # A frame whose side data was looked at is not freed before the garbage collector comes: a small one with the same data.
    data = frame.reformat(width=16, height=16, format="gray").side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    return _MATRIX_TURNS[max(_MATRIX_TURNS, key=lambda m: a * m[0] + b * m[1] + c * m[2] + d * m[3])]
