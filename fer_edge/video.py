"""Frames of a video, as the paper picks them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageSequence, UnidentifiedImageError

from .arguments import checked
from .errors import ImageError
from .image import UNREADABLE, ImageLike, checked_size, eight_bit, open_picture, reason


def segment_middles(frames: int, segments: int) -> list[int]:
    """Index of the middle frame of each of ``segments`` equal parts of ``frames`` frames.

    Exp-CLIP ``data_loader/video_dataloader.py``, ``_get_test_indices`` with duration 1. For videos of fewer frames than
    segments the reference repeats frame 0; here the same formula goes on, so that every frame is seen."""
    tick = frames / segments
    return [int(tick / 2 + tick * i) for i in range(segments)]


@checked("video")
def sample_frames(
    video: str | os.PathLike[str] | Sequence[ImageLike] | NDArray[np.uint8], count: int = 16
) -> list[ImageLike]:
    """``count`` frames from the middles of equal parts of a video, for ``predict_clip``.

    ``video``: a sequence of images, an array (T, H, W, C), a folder of frame images (sorted by name), an animated image
    file (GIF, WebP, PNG), or any other video file if PyAV (``pip install av``) is there.

    Raises ImageError when there is no frame, or the file cannot be read."""
    if count < 1:
        raise ImageError(f"the number of frames must be at least 1; got {count}")
    if not isinstance(video, (str, os.PathLike)):
        if not isinstance(video, (Sequence, np.ndarray)):
            raise ImageError(f"a video is a path, or a list or array of frames; got {type(video).__name__}")
        return _pick(video, count, "the video")
    path = Path(video)
    try:
        if path.is_dir():
            return _pick(sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")), count, str(path))
        if not path.is_file():
            raise ImageError(f"{path} does not exist")
        with open_picture(path) as animation:
            checked_size(animation, str(path))
            wanted = segment_middles(getattr(animation, "n_frames", 1), count)
            kept: dict[int, Image.Image] = {}
            for i, frame in enumerate(ImageSequence.Iterator(animation)):
                if i in wanted:
                    checked_size(frame, str(path))  # a frame may be larger than the first one
                    kept[i] = eight_bit(frame.copy())
                    kept[i].info.clear()  # its turn and transparency are applied, and must not be again
            return [kept[i] for i in wanted]
    except UnidentifiedImageError:
        return _decode_video(path, count)
    except UNREADABLE as error:
        raise ImageError(f"{path} cannot be decoded: {reason(error)}") from error


def _pick(frames: Sequence[ImageLike] | NDArray[np.uint8], count: int, name: str) -> list[ImageLike]:
    if len(frames) == 0:
        raise ImageError(f"{name} has no frames")
    return [frames[i] for i in segment_middles(len(frames), count)]


def _decode_video(path: Path, count: int) -> list[ImageLike]:
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{path} is not an animated image, and reading video files needs PyAV: pip install av") from error

    def frames() -> Iterator[object]:
        with av.open(str(path)) as container:
            yield from container.decode(video=0)

    try:
        # Containers lie about their length, so the frames are counted first: two passes, one frame in memory at a time.
        total = sum(1 for _ in frames())
        if total == 0:
            raise ImageError(f"{path} has no frames")
        wanted = segment_middles(total, count)
        kept = {i: frame.to_image() for i, frame in enumerate(frames()) if i in set(wanted)}  # type: ignore[attr-defined]
        return [kept[i] for i in wanted]
    except (av.error.FFmpegError, *UNREADABLE) as error:
        raise ImageError(f"{path} cannot be decoded: {reason(error)}") from error
