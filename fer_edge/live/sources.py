"""Where frames come from: a file, an animation, a folder, standard input."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fer_edge.arguments import checked
from fer_edge.console import need_extra
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import SourceError, UsageError

from .frames import Frame, Gap, Source
from .recordings import FOLDER_FPS, RAW_BYTES, FrameFolder, PictureFile, Piped, RawFormat, VideoFile, is_picture

__all__ = ["Frame", "Gap", "Source", "open_source", "raw_format"]


@checked()
def open_source(
    spec: str | os.PathLike[str], *, raw: str | None = None, fps: float | None = None, max_pixels: int = MAX_PIXELS
) -> Source:
    """The source that a text names.

    A file: every frame of a video, an animated picture, a photo. A folder: its pictures by name, ``fps`` a second (default
    25). ``-``: what comes through standard input: a container (MPEG-TS, Matroska, YUV4MPEG, MJPEG), or with ``raw``
    ("640x480:rgb24@30") frames without one, of rgb24, bgr24, gray8, yuv420p, nv12 or yuyv422.

    ``max_pixels`` bounds the memory, as of ``sample_frames``. Raises UsageError for what makes no sense, SourceError or
    ImageError for what is not there, holds no video or is too large."""
    need_extra(extra="live")
    text = os.fspath(spec)
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"fps must be a number above 0, and at most 1000; got {fps:g}")
    if raw is not None and text != "-":
        raise UsageError("raw frames come through standard input: name - as the source")
    if text == "-":
        _refuse(fps=(fps, "the rate of raw frames stands in raw, behind the @"))
        return Piped(0, "standard input", raw=None if raw is None else raw_format(raw), max_pixels=max_pixels)
    if not text:
        raise UsageError("the source has no name; name a file, a folder, or - for standard input")
    path = Path(text)
    if path.is_dir():
        return FrameFolder(path, fps=fps or FOLDER_FPS, max_pixels=max_pixels)
    _refuse(fps=(fps, "a video has its own times; fps is for a folder of frames"))
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        raise UsageError(f"{text.partition('://')[0]}:// is no kind of address that fer-edge knows")
    try:
        if not path.exists():
            raise SourceError(f"{path} does not exist")
        if not path.is_file():
            raise SourceError(f"{path} is neither a file nor a folder")
        return (PictureFile if is_picture(path) else VideoFile)(path, max_pixels=max_pixels)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error


def raw_format(text: str) -> RawFormat:
    """A text as 640x480:rgb24@30. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5}):(\w+)@(\d{1,4}(?:\.\d+)?)", text)
    wide, high, pixels, fps = match.groups() if match else ("0", "0", "", "0")
    if pixels not in RAW_BYTES or not (int(wide) and int(high) and float(fps)):
        raise UsageError(
            f"raw frames are told as WIDTHxHEIGHT:FORMAT@FPS with a format of {', '.join(RAW_BYTES)}; got {text!r}"
        )
    if RAW_BYTES[pixels] not in (1.0, 3.0) and (int(wide) % 2 or int(high) % 2):
        raise UsageError(f"raw frames of {pixels} have even sides; got {wide} x {high}")
    return RawFormat((int(wide), int(high)), pixels, float(fps))


def _refuse(**given: tuple[object, str]) -> None:
    for name, (value, why) in given.items():
        if value is not None:
            raise UsageError(f"{name} makes no sense here: {why}")
