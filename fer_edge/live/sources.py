"""Where frames come from: what a text names."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from fer_edge.arguments import checked
from fer_edge.console import Finite, need_extra
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import SourceError, UsageError
from fer_edge.video import is_picture

from .decoder import Decoder, Turns
from .frames import Frame, Gap, Source
from .pipes import RAW_BYTES, Piped, PipeDecoder, RawFormat, raw_format, refuse_terminal
from .recordings import FOLDER_FPS, FrameFolder, PictureFile, VideoFile
from .streams import SCHEMES, LiveSource, Patience, open_camera, open_stream

__all__ = ["SOURCE_OPTIONS", "Frame", "Gap", "Source", "open_source", "source_options"]

F = TypeVar("F", bound=Callable[..., Any])

SOURCE_OPTIONS = ("raw", "live", "size", "fps", "wait", "stall", "give_up")
"""What :func:`source_options` gives, and :func:`open_source` takes."""


def source_options(command: F) -> F:
    """The options of a command that opens a source."""
    seconds = Finite(min=0, min_open=True)
    options = (
        click.option("--raw", metavar="WxH:FORMAT@FPS", help=f"Of raw frames on standard input: {', '.join(RAW_BYTES)}."),
        click.option("--live", is_flag=True, help="Take standard input as a camera: the newest frame wins."),
        click.option("--size", type=_Pixels(), help="Picture to ask a camera for. Default: as it stands."),
        click.option(
            "--fps", type=seconds, help=f"Frames a second, to ask a camera for; of a folder. Default: {FOLDER_FPS:g} there."
        ),
        click.option("--wait", type=seconds, help=f"Seconds for a stream's first frame. Default: {Patience.wait:g}."),
        click.option(
            "--stall",
            type=seconds,
            help=f"Seconds without a frame until a stream is lost. Default: {Patience.stall:g}.",
        ),
        click.option("--give-up", type=seconds, help="Seconds to try to reach a lost stream. Default: no end."),
    )
    for option in reversed(options):
        command = option(command)
    return command


class _Pixels(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """As 640x480."""

    name = "WxH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        if not (match := re.fullmatch(r"(\d{1,5})x(\d{1,5})", value)):
            self.fail(f"{value!r} is not WIDTHxHEIGHT in pixels", param, ctx)
        return int(match[1]), int(match[2])


_INPUT = "standard input"
_USES = {
    "raw": "raw frames come through standard input: name - as the source",
    "live": "it is for standard input: files are never live, cameras and streams always",
    "size": "it is asked of a camera",
    "fps": "it is for a camera, and for a folder of frames",
    "wait": "only a camera, a stream or live standard input is waited for",
    "stall": "only a camera, a stream or live standard input can be lost",
    "give_up": "only a camera or a stream comes back",
}
"""Option -> what to say where it would do nothing."""


@checked()
def open_source(
    spec: str | os.PathLike[str] | int,
    *,
    raw: str | None = None,
    live: bool = False,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    wait: float | None = None,
    stall: float | None = None,
    give_up: float | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """The source that a text names.

    - A number or ``/dev/video*``: a camera, with ``size`` (width, height) and ``fps`` if they are given.
    - ``rtsp://``, ``http://``, ``udp://`` and others (:data:`SCHEMES`): a stream. A file of known length behind ``http`` is
      read as a file.
    - ``-``: what comes through standard input: a container (MPEG-TS, Matroska, YUV4MPEG, MJPEG), or with ``raw``
      ("640x480:rgb24@30") frames without one, of rgb24, bgr24, gray8, yuv420p, nv12 or yuyv422. The writer is held back
      while nobody takes them; with ``live`` the newest frame wins, as of a camera.
    - A file: every frame of a video, an animated picture, a photo.
    - A folder: its pictures by name, ``fps`` a second (default 25).

    ``wait``: seconds that a live source has for its first frame (default 20); ``stall``: seconds without a frame after
    which it counts as lost (5); ``give_up``: seconds after which a lost one is an error (None: it is tried for ever).

    ``max_pixels`` bounds the memory, as of ``sample_frames``. Raises UsageError for what makes no sense, SourceError or
    ImageError for what is not there, holds no video or is too large. Streams and cameras are opened when the iteration
    begins, and raise SourceError there."""
    need_extra("av", extra="live")
    text = str(spec) if isinstance(spec, int) else os.fspath(spec)
    given = {"raw": raw, "live": live or None, "size": size, "fps": fps, "wait": wait, "stall": stall, "give_up": give_up}
    if fps is not None and not 0 < fps <= 1000:
        raise UsageError(f"fps must be a number above 0, and at most 1000; got {fps:g}")
    if size is not None and not (len(size) == 2 and all(isinstance(n, int) and 0 < n < 1 << 16 for n in size)):
        raise UsageError(f"size must be (width, height) in pixels; got {size}")
    told = {"wait": wait, "stall": stall, "give_up": give_up}
    patience = replace(Patience(), **{name: value for name, value in told.items() if value is not None})
    if not text:
        raise UsageError("the source has no name; name a camera, an address, a file, a folder, or - for standard input")
    if text == "-":
        _only(given, "raw", "live", *(("wait", "stall") if live else ()))
        refuse_terminal(0, _INPUT)
        frames = None if raw is None else raw_format(raw)
        return _live_input(frames, patience, max_pixels) if live else Piped(0, _INPUT, raw=frames, max_pixels=max_pixels)
    if re.fullmatch(r"\d{1,3}|/dev/video\w+", text):
        _only(given, "size", "fps", "wait", "stall", "give_up")
        device = f"/dev/video{text}" if text.isdigit() else text
        return open_camera(device, patience, size=size, fps=fps, max_pixels=max_pixels)
    if match := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text):
        _only(given, "wait", "stall", "give_up")
        if match[1].lower() not in SCHEMES:
            raise UsageError(f"{match[1]}:// is no kind of address that fer-edge knows; it knows {', '.join(SCHEMES)}")
        return open_stream(text, patience, max_pixels)
    path = Path(text)
    if path.is_dir():
        _only(given, "fps")
        return FrameFolder(path, fps=fps or FOLDER_FPS, max_pixels=max_pixels)
    _only(given)
    return _file(path, max_pixels)


def _file(path: Path, max_pixels: int) -> Source:
    try:
        if not path.exists():
            raise SourceError(f"{path} does not exist")
        if not path.is_file():
            raise SourceError(f"{path} is neither a file nor a folder")
        return (PictureFile if is_picture(path) else VideoFile)(path, max_pixels=max_pixels)
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}") from error


def _live_input(raw: RawFormat | None, patience: Patience, max_pixels: int) -> LiveSource:
    def connect(wait: tuple[float, float], turns: Turns, over: threading.Event) -> Decoder:
        return PipeDecoder(0, _INPUT, over, raw, wait=wait, max_pixels=max_pixels, turns=turns)

    return LiveSource(_INPUT, connect, patience, ends="always")


def _only(given: Mapping[str, object], *names: str) -> None:
    """Refuse what was given and is none of these names: it would do nothing."""
    for name, value in given.items():
        if value is not None and name not in names:
            raise UsageError(f"{name} makes no sense here: {_USES[name]}")
