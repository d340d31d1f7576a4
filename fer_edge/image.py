"""Where an image becomes numbers: one face crop in any usual form -> uint8 (H, W, C), ready for an artefact.

The order is the reference's (Exp-CLIP ``test.py``: Pillow image, Resize, ToTensor): colour first, then a stretch to the
input size with Pillow's antialiased bilinear filter. Division by 255 and any mean/std are arithmetic of the artefact
itself. Of a photo with a box only the box is looked at: cut first, then turned, converted and stretched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from .decode import (
    MAX_PIXELS,
    UNREADABLE,
    Budget,
    Encoded,
    checked_size,
    decoded,
    decoding_bytes,
    is_encoded,
    reason,
    storage_of,
)
from .errors import ImageError, UsageError

ImageLike: TypeAlias = Encoded | Image.Image | NDArray[np.uint8]
Box: TypeAlias = tuple[float, float, float, float]
Color: TypeAlias = Literal["rgb", "gray"]
Shape: TypeAlias = Literal["square", "box"]
Corners: TypeAlias = tuple[int, int, int, int]

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
        *(".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".avif", ".heic", ".heif", ".jxl"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi"),
    )
)
"""Endings (in small letters) of the files that are taken from a folder: the one table for faces, calibration, classes and
frames. Pillow reads HEIC and JPEG XL only with a plug-in; without it such a file is an error and not left out in silence."""

_STRIP = 1 << 20
"""Pixels that are converted at a time: whole pictures would need room for every step of a conversion at once."""

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

_LYING: dict[Image.Transpose | None, Callable[[int, int, int, int, int, int], Corners]] = {
    None: lambda w, h, left, top, right, bottom: (left, top, right, bottom),
    Image.Transpose.FLIP_LEFT_RIGHT: lambda w, h, left, top, right, bottom: (w - right, top, w - left, bottom),
    Image.Transpose.ROTATE_180: lambda w, h, left, top, right, bottom: (w - right, h - bottom, w - left, h - top),
    Image.Transpose.FLIP_TOP_BOTTOM: lambda w, h, left, top, right, bottom: (left, h - bottom, right, h - top),
    Image.Transpose.TRANSPOSE: lambda w, h, left, top, right, bottom: (top, left, bottom, right),
    Image.Transpose.ROTATE_270: lambda w, h, left, top, right, bottom: (top, h - right, bottom, h - left),
    Image.Transpose.TRANSVERSE: lambda w, h, left, top, right, bottom: (w - bottom, h - right, w - top, h - left),
    Image.Transpose.ROTATE_90: lambda w, h, left, top, right, bottom: (w - bottom, left, w - top, right),
}
"""Turn -> where a part (left, top, right, bottom) of the upright picture lies in the stored one, w x h pixels."""


def to_input(
    image: ImageLike,
    size: tuple[int, int],
    color: Color,
    box: Box | None = None,
    margin: float = 0.0,
    *,
    shape: Shape = "square",
    scale: float = 1.0,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8]:
    """One face crop as the artefact takes it: uint8 (height, width, C), C = 3 (rgb) or 1 (gray), contiguous.

    ``image``: a path, the bytes of a file, a file open for reading, a PIL image, or a uint8 array (H, W, 3) RGB, (H, W, 4)
    RGBA, (H, W, 1) or (H, W) gray. **OpenCV gives BGR**: pass ``cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)``
    (``COLOR_BGRA2RGBA`` with alpha), or ``frame[..., ::-1]``; nothing here can tell the two apart. Files, and PIL images
    as ``Image.open`` gives them, are turned upright by their EXIF tag; a PIL image that was made from another one
    (converted, cut, turned) is taken as it is. Transparent pixels are laid on white; 16-bit gray is scaled by its full
    range, 32-bit integers as 8 or 16 bits by their largest value; an animation gives its first frame.

    ``size``: (height, width). ``box``, ``margin``, ``shape`` and ``scale``: see :func:`face_corners`, in pixels of the
    upright picture; where the crop leaves the picture, its edge pixels are repeated. Without a box the whole picture is
    taken to be the face. ``max_pixels``: larger pictures are decoded smaller (JPEG, JPEG 2000) or refused.

    Raises ImageError for anything that is not such an image, or too large, and for a box that does not fit; UsageError for
    a margin or shape without a box."""
    if box is not None:
        return to_inputs(image, size, color, [box], margin, shape=shape, scale=scale, max_pixels=max_pixels)[0]
    if margin != 0 or shape != "square":
        raise UsageError("margin and shape say how a box is cut: give the box as well, box=(x, y, width, height)")
    channels, budget = 3 if color == "rgb" else 1, Budget(max_pixels, 4 if color == "rgb" else 1, size[1])
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape[:2] == size:
        if image.shape == (*size, channels):
            return np.ascontiguousarray(image)
        if image.ndim == 2 and channels == 1:
            return np.ascontiguousarray(image)[:, :, None]
    photo = _photo(image, budget, whole=True)
    return _stretched(photo, (0, 0, *photo.size), size, color)


def to_inputs(
    image: ImageLike,
    size: tuple[int, int],
    color: Color,
    boxes: Sequence[Box],
    margin: float = 0.0,
    *,
    shape: Shape = "square",
    scale: float = 1.0,
    angles: Sequence[float] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> list[NDArray[np.uint8]]:
    """Several faces of one photo, which is decoded once; each as :func:`to_input` gives it. ``angles``: degrees by which
    each face leans, clockwise as seen; its square is turned with it, about the box's centre, so that it stands upright in
    the crop. When there is more than one box, an ImageError names the one that does not fit: ``boxes[3]``."""
    if shape not in ("square", "box"):
        raise UsageError(f"shape is 'square' or 'box'; got {_short(shape)}")
    if angles is not None and (shape == "box" or len(angles) != len(boxes)):
        raise UsageError(f"angles turn the squares of boxes, one each; got {len(angles)} for {len(boxes)}, shape {shape}")
    photo = _photo(image, Budget(max_pixels, 4 if color == "rgb" else 1), whole=False)
    crops = []
    for i, box in enumerate(boxes):
        try:
            corners = face_corners(box, photo.size, margin, shape, scale, photo.shrunk)
            angle = angles[i] if angles is not None else 0.0
            reach = _reach(corners, angle)
            if (reach[2] - reach[0]) * (reach[3] - reach[1]) > max_pixels:
                raise ImageError(f"the crop of the box {_short(box)} has more than max_pixels ({max_pixels:,}) pixels")
            crops.append(_stretched(photo, corners, size, color, angle))
        except ImageError as error:
            if len(boxes) == 1:
                raise
            raise ImageError(f"boxes[{i}]: {error}") from error
    return crops


def load_picture(image: ImageLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The whole picture, decoded: upright, 8 bits a channel, opaque (mode L, RGB or CMYK). Raises ImageError as
    :func:`to_input` does."""
    photo = _photo(image, Budget(max_pixels), whole=True)
    with _decoding(photo.name):
        picture = _upright(photo, (0, 0, *photo.size), None)
        picture.load()
    picture.info = {}  # its turn and transparency are applied, and must not be again
    return picture


def rgb_array(image: ImageLike, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.uint8], int]:
    """(the whole picture, upright and opaque, as uint8 (H, W, 3) RGB; how many times smaller than its file it was decoded).
    An array of that kind is given back as it is. Raises ImageError as :func:`to_input` does."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3:
        return _checked_array(image), 1
    photo = _photo(image, Budget(max_pixels), whole=True)
    shrunk = photo.shrunk
    with _decoding(photo.name):
        picture = _upright(photo, (0, 0, *photo.size), "rgb")
        del photo  # a picture that was turned or converted is not held twice
        pixels = np.empty((picture.height, picture.width, 3), np.uint8)
        rows = max(1, _STRIP // picture.width)
        for top in range(0, picture.height, rows):  # Pillow gives an array by way of two copies
            bottom = min(top + rows, picture.height)
            pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return pixels, shrunk


def crop(picture: Image.Image, box: Box, margin: float = 0.0, shape: Shape = "square", scale: float = 1.0) -> Image.Image:
    """What :func:`to_input` cuts from a picture, before it is stretched to the input's size; upright, opaque, mode L or
    RGB."""
    photo = _photo(picture, Budget(), whole=False)
    return _cut(photo, face_corners(box, photo.size, margin, shape, scale), None)


def face_corners(
    box: Box, picture: tuple[int, int], margin: float = 0.0, shape: Shape = "square", scale: float = 1.0, shrunk: int = 1
) -> Corners:
    """Where to cut a detector's box: (left, top, right, bottom) in whole pixels, right and bottom outside.

    ``box``: (x, y, width, height) in pixels; ``picture``: (width, height), ``shrunk`` times smaller than the one that the
    box was found in; ``margin`` widens the box on every side by that fraction of its width and height (0.1 = 10%).
    ``shape`` "square": a square round the box's centre, its side ``scale`` times the longer side of the widened box; it may
    leave the picture, the box must not lie wholly outside. ``shape`` "box": the widened box itself, as far as the picture
    goes; the box must lie inside.

    Raises ImageError for a box that is not four finite numbers, has no area or does not fit."""
    try:
        if isinstance(box, (str, bytes)):
            raise TypeError("a text is not four numbers")
        x, y, w, h = (float(v) / shrunk for v in box)
        margin = float(margin)
    except (TypeError, ValueError, OverflowError) as error:
        raise ImageError(f"a box is four numbers x, y, width, height; got {_short(box)}, margin {_short(margin)}") from error
    if not all(map(math.isfinite, (x, y, w, h, x + w, y + h, margin))) or margin < 0:
        raise ImageError(f"a box is four finite numbers, its margin at least 0; got {_short(box)}, margin {_short(margin)}")
    text = ",".join(f"{float(v):g}" for v in box)
    left, top, right, bottom = round(x), round(y), round(x + w), round(y + h)
    if w <= 0 or h <= 0 or (shrunk == 1 and (right <= left or bottom <= top)):
        raise ImageError(f"the box {text} has no area")
    width, height = picture
    size = f"which is {width * shrunk} x {height * shrunk} pixels"
    if shape == "box":
        if left < 0 or top < 0 or right > width or bottom > height:
            raise ImageError(f"the box {text} leaves the picture, {size}; clip it first, or take shape='square'")
        dx, dy = round(min(w * margin, width)), round(min(h * margin, height))
        return (
            max(0, left - dx),
            max(0, top - dy),
            min(width, max(right, left + 1) + dx),
            min(height, max(bottom, top + 1) + dy),
        )
    if x + w <= 0 or y + h <= 0 or x >= width or y >= height:
        raise ImageError(f"the box {text} lies outside the picture, {size}; was it found in another one?")
    longest = max(w, h) * (1 + 2 * margin) * scale
    if not longest <= 1e9:
        raise ImageError(f"the box {text} with margin {margin:g} is larger than any picture")
    side = max(1, round(longest))
    left, top = round(x + w / 2 - side / 2), round(y + h / 2 - side / 2)
    if left >= width or top >= height or left + side <= 0 or top + side <= 0:  # with a scale or by rounding
        raise ImageError(f"the square in the box {text} lies outside the picture, {size}")
    return left, top, left + side, top + side


@dataclass(frozen=True)
class _Photo:
    """A picture in memory, as it lies there: ``turn`` makes it upright, ``shrunk`` is how many times smaller than its file
    it was decoded."""

    pixels: Image.Image | NDArray[np.uint8]
    turn: Image.Transpose | None
    shrunk: int
    name: str

    @property
    def stored_size(self) -> tuple[int, int]:
        """(width, height) as it lies."""
        if isinstance(self.pixels, np.ndarray):
            return self.pixels.shape[1], self.pixels.shape[0]
        return self.pixels.size

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), upright."""
        width, height = self.stored_size
        return (height, width) if self.turn in _SIDEWAYS else (width, height)


_SIDEWAYS = (
    Image.Transpose.TRANSPOSE,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90,
)


class _decoding:
    """Whatever Pillow raises inside becomes an ImageError of one line."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UNREADABLE):
            raise ImageError(f"{self.name} cannot be decoded: {reason(error)}") from error


def _photo(image: ImageLike, budget: Budget, whole: bool) -> _Photo:
    """Any kind of image in memory. ``whole``: all of it will be converted, and has to fit the budget."""
    if isinstance(image, np.ndarray):
        array = _checked_array(image)
        if whole:
            size = (array.shape[1], array.shape[0])
            budget.check(budget.converted(size, 4 if array.ndim == 3 and array.shape[2] > 1 else 1), size, "the image array")
        return _Photo(array, None, 1, "the array")
    if isinstance(image, Image.Image):
        name, size = "the PIL image", checked_size(image, "the PIL image")
        lazy = bool(getattr(image, "tile", ()))
        if whole or lazy:
            budget.check(max(decoding_bytes(image) if lazy else 0, budget.converted(size, 0)), size, name)
        with _decoding(name):
            image.load()
        # Only what Image.open gave is as its EXIF tag says: what was made from it keeps the tag, turned or not.
        return _Photo(_ranged(image), turn_of(image) if isinstance(image, ImageFile.ImageFile) else None, 1, name)
    if not is_encoded(image):
        raise ImageError(
            f"an image is a path, bytes, an open file, a PIL image or a uint8 array; got {type(image).__name__}"
        )
    file = decoded(image, budget)
    turn = turn_of(file.picture)
    budget.check(
        budget.converted(file.picture.size, storage_of(file.picture.mode)) if whole else 0, file.picture.size, file.name
    )
    return _Photo(_ranged(file.picture), turn, file.shrunk, file.name)


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """What makes a decoded picture upright, by its EXIF tag.

    Not ImageOps.exif_transpose: it writes the EXIF block anew, and fails where some other tag in it is broken."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return None


def _ranged(picture: Image.Image) -> Image.Image:
    """The picture, if its numbers have a brightness range. Raises ImageError.

    32 bits hold 8 or 16: which, a PNG or PPM file says, and otherwise the largest number does. Nothing is lost by that: as
    16 bits, a picture with no number above 255 is black."""
    if picture.mode == "F":
        raise ImageError("floating-point images have no defined brightness range; convert to 8 or 16 bits first")
    if picture.mode == "I":
        values = np.asarray(picture)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise ImageError("32-bit integer images have no defined brightness range; convert to 8 or 16 bits first")
        if high <= 255 and picture.format not in ("PNG", "PPM"):
            return picture.convert("L")
    return picture


def _checked_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    shape = array.shape
    if array.dtype != np.uint8:
        raise ImageError(f"an image array holds uint8 values 0 to 255; got {array.dtype}{_conversion(array)}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        turn = "; move the channels last: array.transpose(1, 2, 0)" if array.ndim == 3 and shape[0] in (1, 3, 4) else ""
        raise ImageError(f"an image array is (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; got {shape}{turn}")
    if 0 in shape:
        raise ImageError(f"the image array has no pixels: {shape}")
    return array


def _conversion(array: NDArray[np.generic]) -> str:
    """How to make 8 bits of an array, by its type and largest value; nothing where that is not clear."""
    if array.dtype == bool:
        return ": array.astype('uint8') * 255"
    if array.dtype == np.uint16:
        return ": (array / 257).round().astype('uint8') for 16 bits of range"
    if array.dtype.kind not in "fiu" or array.size == 0:
        return ""
    low, high = float(array.min()), float(array.max())
    if array.dtype.kind == "f" and low >= 0 and high <= 1:
        return ": (array * 255).round().astype('uint8') for values 0 to 1"
    if low >= 0 and high <= 255:
        return ": array.round().astype('uint8') for values 0 to 255"
    return f", from {low:g} to {high:g}: undo the normalisation, then .round().astype('uint8')"


def _reach(corners: Corners, angle: float) -> Corners:
    """What a square takes of the picture when it is turned by ``angle`` degrees about its centre."""
    if angle == 0:
        return corners
    turn = math.radians(angle)
    more = math.ceil((corners[2] - corners[0]) / 2 * (abs(math.cos(turn)) + abs(math.sin(turn)) - 1)) + 2
    return corners[0] - more, corners[1] - more, corners[2] + more, corners[3] + more


def _turned(photo: _Photo, corners: Corners, color: Color, angle: float) -> Image.Image:
    """A square of the upright picture that is turned clockwise about its centre: in one step, from its reach alone."""
    reach = _reach(corners, angle)
    part, side = _cut(photo, reach, color), corners[2] - corners[0]
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    half, centre = side / 2, (reach[2] - reach[0]) / 2
    # Pillow wants, for a point of the crop, where it lies in the part.
    rows = (cos, -sin, centre - half * (cos - sin), sin, cos, centre - half * (sin + cos))
    return part.transform((side, side), Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC)


def _stretched(
    photo: _Photo, corners: Corners, size: tuple[int, int], color: Color, angle: float = 0.0
) -> NDArray[np.uint8]:
    """A part of the upright picture, turned, converted and stretched to (height, width)."""
    part = _turned(photo, corners, color, angle) if angle else _cut(photo, corners, color)
    with _decoding(photo.name):
        if part.size != size[::-1]:
            part = part.resize(size[::-1], Image.Resampling.BILINEAR)
        array = np.asarray(part, dtype=np.uint8)
    return np.ascontiguousarray(array.reshape(*size, 3 if color == "rgb" else 1))


def _cut(photo: _Photo, corners: Corners, color: Color | None) -> Image.Image:
    """A part of the upright picture; edge pixels are repeated where it leaves the picture."""
    left, top, right, bottom = corners
    width, height = photo.size
    inside = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    with _decoding(photo.name):
        part = _upright(photo, inside, color)
        if inside == corners:
            return part
        whole = Image.new(part.mode, (right - left, bottom - top))
        x, y = inside[0] - left, inside[1] - top
        whole.paste(part, (x, y))
        # A side's last column, over the rows of the part; then the last rows, over the whole width.
        for place, column in ((0, 0), (x + part.width, part.width - 1)):
            if wide := (x if place == 0 else right - inside[2]):
                edge = part.crop((column, 0, column + 1, part.height))
                whole.paste(edge.resize((wide, part.height), Image.Resampling.NEAREST), (place, y))
        for place, row in ((0, y), (y + part.height, y + part.height - 1)):
            if high := (y if place == 0 else bottom - inside[3]):
                edge = whole.crop((0, row, whole.width, row + 1))
                whole.paste(edge.resize((whole.width, high), Image.Resampling.NEAREST), (0, place))
        return whole


def _upright(photo: _Photo, corners: Corners, color: Color | None) -> Image.Image:
    """A part of the upright picture, opaque, 8 bits a channel; ``color`` None: mode L, RGB or CMYK, whichever it is."""
    left, top, right, bottom = _LYING[photo.turn](*photo.stored_size, *corners)
    if isinstance(photo.pixels, np.ndarray):
        array = photo.pixels[top:bottom, left:right]
        picture = Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array))
    elif (left, top, right, bottom) == (0, 0, *photo.pixels.size):
        picture = photo.pixels
    else:
        picture = photo.pixels.crop((left, top, right, bottom))
    picture = opaque(picture, color)
    return picture if photo.turn is None else picture.transpose(photo.turn)


def opaque(picture: Image.Image, color: Color | None) -> Image.Image:
    """A decoded picture in 8 bits a channel on white: mode RGB or L as ``color`` says; None: L, RGB or CMYK, whichever it
    is. Raises ImageError for modes without a brightness range."""
    mode = {"rgb": "RGB", "gray": "L", None: None}[color]
    clear = picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info
    if not clear and picture.mode in (("L", "RGB", "CMYK") if mode is None else (mode,)):
        return picture
    rows = max(1, _STRIP // picture.width)
    if picture.height <= rows:
        return _opaque_strip(picture, mode)
    result: Image.Image | None = None
    for top in range(0, picture.height, rows):
        strip = _opaque_strip(picture.crop((0, top, picture.width, min(top + rows, picture.height))), mode)
        result = result or Image.new(strip.mode, picture.size)
        result.paste(strip, (0, top))
    assert result is not None
    return result


def _opaque_strip(picture: Image.Image, to: str | None) -> Image.Image:
    mode = picture.mode
    if mode.startswith("I"):
        values = np.asarray(picture)
        result = Image.fromarray(
            ((values.astype(np.uint32) * np.uint32(255) + np.uint32(32767)) // np.uint32(65535)).astype(np.uint8)
        )
    elif mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        result = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    elif mode in ("L", "RGB", "CMYK"):
        result = picture
    else:
        result = picture.convert("L" if mode == "1" else "RGB")
    return result if to is None else result.convert(to)


def several(images: Iterable[ImageLike], name: str) -> Iterable[ImageLike]:
    """The images, if they are several: one image, or one file, in their place is a UsageError."""
    one = is_encoded(images) or isinstance(images, Image.Image)
    if isinstance(images, np.ndarray):  # (H, W, 3) is one photo: taken as a stack, its rows would pass as gray images
        one = images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    if one:
        raise UsageError(
            f"{name}: expected several images (a list or an array of them), got one; for a video file: "
            "fer_edge.sample_frames(path)"
        )
    return images


def _short(box: object) -> str:
    return " ".join(repr(box).split())[:80]
