"""Where an image becomes numbers: one face crop in any usual form -> uint8 (H, W, C), ready for an artefact.

The order is the reference's (Exp-CLIP ``test.py``: Pillow image, Resize, ToTensor): colour first, then a stretch to the
input size with Pillow's antialiased bilinear filter. Division by 255 and any mean/std are arithmetic of the artefact
itself."""

from __future__ import annotations

import math
import os
import stat
import struct
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import ImageError

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
Box: TypeAlias = tuple[float, float, float, float]
Color: TypeAlias = Literal["rgb", "gray"]

MAX_PIXELS = 1 << 26
"""Largest picture that is decoded: 67 million pixels (8192 x 8192), 200 MB as RGB. Ours, not Pillow's: checked before
the memory is taken."""

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".heic", ".heif", ".jxl"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    )
)
"""Endings (in small letters) of the files that are taken from a folder: the one table for faces, calibration, classes and
frames. Pillow reads HEIC and JPEG XL only with a plug-in; without it such a file is an error and not left out in silence."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    AttributeError,
    MemoryError,
    RuntimeError,
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow and its plug-ins raise on files that are no pictures, or broken ones."""

_REFUSED = {"EPS", "ICNS", "ICO", "IPTC", "MIC", "WMF"}
"""Formats that are no photographs, and that start another program (EPS: Ghostscript) or decode a picture inside before
its size can be checked."""

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WEBP"}
"""First bytes -> the format, of the usual ones."""

_VIDEOS = {".mp4", ".mkv", ".avi", ".mov", ".webm"}

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what makes the picture upright."""


def to_input(
    image: ImageLike, size: tuple[int, int], color: Color, box: Box | None = None, margin: float = 0.0
) -> NDArray[np.uint8]:
    """One face crop as the artefact takes it: uint8 (height, width, C), C = 3 (rgb) or 1 (gray), contiguous.

    ``image``: a path, a PIL image, or a uint8 array (H, W, 3) RGB, (H, W, 4) RGBA, (H, W, 1) or (H, W) gray. Files are
    turned upright by their EXIF tag; transparent pixels are laid on white; 16-bit gray is scaled by its full range; an
    animation gives its first frame. ``size``: (height, width). ``box``: (x, y, width, height) in pixels of the upright
    picture; ``margin`` widens it on every side by that fraction of its width and height (0.1 = 10%), as far as the
    picture goes. Without a box the whole picture is taken to be the face.

    Raises ImageError for anything that is not such an image, is larger than MAX_PIXELS, or a box that leaves the
    picture."""
    channels = 3 if color == "rgb" else 1
    if isinstance(image, np.ndarray) and box is None and image.dtype == np.uint8 and image.shape[:2] == size:
        if image.shape == (*size, channels):
            return np.ascontiguousarray(image)
        if image.ndim == 2 and channels == 1:
            return np.ascontiguousarray(image)[:, :, None]
    picture, name = _open(image)
    try:
        picture = eight_bit(picture)
        if box is not None:
            picture = crop(picture, box, margin)
        picture = picture.convert("RGB" if color == "rgb" else "L")
        if picture.size != size[::-1]:
            picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
        array = np.asarray(picture, dtype=np.uint8)
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error
    return np.ascontiguousarray(array.reshape(*size, channels))


def load_picture(image: ImageLike) -> Image.Image:
    """The whole picture, decoded: upright, 8 bits a channel, opaque. Raises ImageError as :func:`to_input` does."""
    picture, name = _open(image)
    try:
        return eight_bit(picture)
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error


def crop(picture: Image.Image, box: Box, margin: float = 0.0) -> Image.Image:
    """The part of a picture in ``box`` = (x, y, width, height), widened by ``margin``; see :func:`to_input`."""
    try:
        if isinstance(box, (str, bytes)):
            raise TypeError("a text is not four numbers")
        x, y, w, h = (float(v) for v in box)
        margin = float(margin)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError(f"a box is four numbers x, y, width, height; got {_short(box)}, margin {_short(margin)}") from error
    if not all(map(math.isfinite, (x, y, w, h, x + w, y + h, margin))) or margin < 0:
        raise ImageError(f"a box is four finite numbers, its margin at least 0; got {_short(box)}, margin {_short(margin)}")
    left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
    if right <= left or bottom <= top:
        raise ImageError(f"the box {x:g},{y:g},{w:g},{h:g} has no area")
    if left < 0 or top < 0 or right > picture.width or bottom > picture.height:
        raise ImageError(
            f"the box {x:g},{y:g},{w:g},{h:g} leaves the picture, "
            f"which is {picture.width} x {picture.height} pixels; clip it first"
        )
    dx, dy = round(min(w * margin, picture.width)), round(min(h * margin, picture.height))
    return picture.crop(
        (max(0, left - dx), max(0, top - dy), min(picture.width, right + dx), min(picture.height, bottom + dy))
    )


def _open(image: ImageLike) -> tuple[Image.Image, str]:
    if isinstance(image, Image.Image):
        return checked_size(image, "the PIL image"), "the PIL image"
    if isinstance(image, np.ndarray):
        return _from_array(image), "the array"
    if not isinstance(image, (str, os.PathLike)):
        raise ImageError(f"an image is a path, a PIL image or a uint8 array; got {type(image).__name__}")
    path = Path(image)
    try:
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            raise ImageError(f"{path} is not a file")
        if info.st_size == 0:
            raise ImageError(f"{path} is empty")
        return checked_size(open_picture(path), str(path)), str(path)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist") from error
    except PermissionError as error:
        raise ImageError(f"{path} may not be read (permission denied)") from error
    except UnidentifiedImageError as error:
        video = "; for a video: fer_edge.sample_frames and predict_clip" if path.suffix.lower() in _VIDEOS else ""
        raise ImageError(f"{path} is not an image that Pillow can read{video}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} has more than {MAX_PIXELS:,} pixels; make it smaller first") from error
    except UNREADABLE as error:
        raise ImageError(f"{path} cannot be opened: {reason(error)}") from error


def open_picture(path: Path) -> Image.Image:
    """``Image.open`` without the formats in _REFUSED; the pixels are not decoded yet."""
    with path.open("rb") as file:
        start = file.read(4)
    for magic, name in _MAGIC.items():
        if start.startswith(magic):
            return Image.open(path, formats=(name,))
    Image.init()  # imports all of Pillow's formats, which takes 40 ms: only when they are needed
    return Image.open(path, formats=[name for name in Image.ID if name not in _REFUSED])


def checked_size(picture: Image.Image, name: str) -> Image.Image:
    """The picture, if it has pixels and not too many. Raises ImageError."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {MAX_PIXELS:,}: make it smaller first")
    return picture


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    shape = array.shape
    if array.dtype != np.uint8:
        raise ImageError(f"an image array holds uint8 values 0 to 255; got {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"an image array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; got {shape}")
    if 0 in shape:
        raise ImageError(f"the image array has no pixels: {shape}")
    if shape[0] * shape[1] > MAX_PIXELS:
        raise ImageError(
            f"the image array has {shape[1]} x {shape[0]} pixels; the limit is {MAX_PIXELS:,}: make it smaller first"
        )
    return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and shape[2] == 1 else array))


def eight_bit(picture: Image.Image) -> Image.Image:
    """Upright, 8 bits a channel, opaque: mode L, RGB or CMYK."""
    picture.load()
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails where some other tag in it is broken.
    try:
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        turn = None
    if turn is not None:
        picture = picture.transpose(turn)
    mode = picture.mode
    if mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("32-bit integer images have no defined brightness range; convert to 8 or 16 bits first")
        return Image.fromarray(
            ((values.astype(np.uint32) * np.uint32(255) + np.uint32(32767)) // np.uint32(65535)).astype(np.uint8)
        )
    if mode == "F":
        raise ImageError("floating-point images have no defined brightness range; convert to 8 or 16 bits first")
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if mode in ("L", "RGB", "CMYK"):
        return picture
    return picture.convert("L" if mode == "1" else "RGB")


def reason(error: BaseException) -> str:
    """The first line of an error of Pillow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _short(box: object) -> str:
    return " ".join(repr(box).split())[:80]
