"""Opening a picture within a budget of memory: its header tells what its decoder will take, before anything is taken.

A kilobyte can unpack to gigabytes, and decoders differ: PNG needs little more than the picture, WebP five times as much,
JPEG 2000 up to a hundred times. What is too large is decoded at a half, a quarter or an eighth of its size where the
format can (JPEG, JPEG 2000), and refused where it cannot."""

from __future__ import annotations

import io
import os
import stat
import struct
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias

from PIL import Image, UnidentifiedImageError

from .errors import ImageError, UsageError, importable

MAX_PIXELS = 16_000_000
"""Pixels of the largest picture that is decoded at its own size, unless a caller raises it."""

MAX_SIDE = 1 << 16
"""Longest side, in pixels, as of JPEG: Pillow keeps a pointer for each row, and 16 bytes for each column when it
stretches."""

BYTES_PER_PIXEL = 9
"""What a pixel may take from file to face: 4 bytes of an RGB picture in Pillow, 4 of its copy turned upright, 1 for what
comes with it. The budget is this times MAX_PIXELS, 144 MB: measured, a process with the largest engine (115 MB) stays
below 256 MB."""

FORMATS = {
    "JPEG": 0,
    "MPO": 0,
    "PNG": 0,
    "BMP": 0,
    "DIB": 0,
    "GIF": 0,
    "TIFF": 0,
    "PPM": 0,
    "TGA": 0,
    "PCX": 0,
    "QOI": 0,
    "SGI": 2,
    "JPEG2000": 0,
    "WEBP": 16,
    "AVIF": 20,
    "HEIF": 20,
    "JXL": 20,
}
"""Formats that are read -> bytes per pixel that the decoder takes beside the decoded picture (measured on Pillow 13 with
pictures of noise and of one colour). JPEG, TIFF and JPEG 2000 depend on their headers as well. Others are left alone: no
photographs, or readers that start another program (EPS) or unpack before a size can be checked (FITS, ICO)."""

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"BM": "BMP", b"GIF8": "GIF", b"RIFF": "WEBP"}
"""First bytes -> the format, of the usual ones."""

_PLUGINS = {"HEIF": ("pillow_heif", "pillow-heif"), "JXL": ("pillow_jxl", "pillow-jxl-plugin")}
"""Formats that Pillow reads with a plug-in -> its import name and its distribution."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JXL_STARTS = (b"\xff\x0a", b"\0\0\0\x0cJXL ")

_WHOLE_FILE = ("WEBP", "AVIF", "HEIF", "JXL", "JPEG2000", "TIFF")
"""Formats whose reader holds the compressed file (or a strip of it) beside the pixels."""

_PYTHON = 28
"""Bytes per pixel of Pillow's decoders that are written in Python. They also take up to a second for a million pixels."""

_CODE_BLOCK = 500
"""Bytes that OpenJPEG takes for a code block or precinct (measured: 410 for a block)."""

_VIDEOS = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v"}

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
    ImportError,  # of a plug-in whose library does not load
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
"""What Pillow and its plug-ins raise on files that are no pictures, or broken ones."""

Encoded: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes]
"""A picture that is still to be decoded: a path, or the file's bytes, or a file that is open for reading."""


@dataclass(frozen=True)
class Budget:
    """How much memory a picture may take. ``max_pixels``: see MAX_PIXELS; ``channel_bytes``: bytes per pixel in Pillow of
    what it is converted to (4 for RGB, 1 for gray); ``width``: of the crop that it is stretched to in the end, in
    pixels. Raises UsageError for less than one pixel."""

    max_pixels: int = MAX_PIXELS
    channel_bytes: int = 4
    width: int = 0

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise UsageError(f"max_pixels must be at least 1; got {self.max_pixels}")

    @property
    def bytes(self) -> int:
        """The whole of it."""
        return self.max_pixels * BYTES_PER_PIXEL

    def converted(self, size: tuple[int, int], storage: int) -> int:
        """Bytes for a decoded picture of ``storage`` bytes per pixel, its conversion, and the first half of its stretch
        (Pillow stretches each row before it looks at the columns)."""
        pixels = size[0] * size[1]
        return pixels * max(storage + self.channel_bytes, 2 * self.channel_bytes) + size[1] * self.width * self.channel_bytes

    def check(self, need: int, size: tuple[int, int], name: str) -> None:
        """Raise ImageError when a picture has too many pixels, or needs too many bytes."""
        what = f"{name} has {size[0]} x {size[1]} pixels"
        if size[0] * size[1] > self.max_pixels:
            raise ImageError(f"{what}; the limit is {self.max_pixels:,}: make it smaller, or raise max_pixels")
        if need > self.bytes:
            raise ImageError(
                f"{what} and needs {need / 1e6:,.0f} MB in this format; the limit is {self.bytes / 1e6:,.0f} MB: make it "
                f"smaller, or raise max_pixels (now {self.max_pixels:,})"
            )


@dataclass(frozen=True)
class Decoded:
    """A decoded picture as it lies in its file, not yet turned. ``shrunk``: how many times smaller than the file's own
    size each side is."""

    picture: Image.Image
    shrunk: int
    name: str


def is_encoded(image: object) -> bool:
    """Whether it is a path, bytes or an open file."""
    return isinstance(image, (str, os.PathLike, bytes, bytearray, memoryview)) or callable(getattr(image, "read", None))


def decoded(image: Encoded, budget: Budget) -> Decoded:
    """Read and decode the first picture of a file. Raises ImageError of one line that names it."""
    name = name_of(image)
    try:
        with ExitStack() as files:  # Pillow keeps the file of an animation, and of a picture that it cannot decode, open
            picture = opened(image, budget, files)
            shrunk = _reduced(picture, budget, name)
            picture.load()
            with suppress(Exception):  # while the file is open, for a TIFF's lies in it; a broken one is no turn
                picture.getexif()
        return Decoded(picture, shrunk, name)
    except ImageError:
        raise
    except UNREADABLE as error:
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from error


def name_of(image: Encoded) -> str:
    """How messages call it."""
    if isinstance(image, (str, os.PathLike)):
        return str(image)
    label = getattr(image, "name", None)
    return label if isinstance(label, str) else "the open file" if hasattr(image, "read") else "the bytes"


def opened(image: Encoded, budget: Budget, files: ExitStack | None = None) -> Image.Image:
    """``Image.open`` for the formats in FORMATS, of a file that is not too large; the pixels are not decoded yet. ``files``
    closes the file; without it the picture does, as a context. Raises ImageError; a file of no known format raises its
    sub-class :class:`UnknownFormatError`."""
    name = name_of(image)
    try:
        stream = _stream(image, budget.bytes, name)
        if files is not None and isinstance(stream, Path):
            stream = files.enter_context(stream.open("rb"))
        return _identified(stream, budget, name)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise ImageError(f"{name} does not exist") from error
    except PermissionError as error:
        raise ImageError(f"{name} may not be read (permission denied)") from error
    except UnidentifiedImageError as error:
        video = "; for a video: fer_edge.sample_frames and predict_clip" if Path(name).suffix.lower() in _VIDEOS else ""
        raise UnknownFormatError(f"{name} is not an image that fer-edge can read{video}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} has more pixels than Pillow opens; the limit is {2 * (Image.MAX_IMAGE_PIXELS or 0):,}"
        ) from error
    except UNREADABLE as error:
        raise ImageError(f"{name} cannot be opened: {reason(error)}") from error


class UnknownFormatError(ImageError):
    """A file is no picture of a known format; it may still be a video."""


def _stream(image: Encoded, most: int, name: str) -> Path | BinaryIO:
    if isinstance(image, (str, os.PathLike)):
        path = Path(image)
        info = path.stat()
        if not stat.S_ISREG(info.st_mode):
            folder = stat.S_ISDIR(info.st_mode)
            raise ImageError(f"{name or repr(name)} is {'a folder; name the images in it' if folder else 'not a file'}")
        size = info.st_size
        result: Path | BinaryIO = path
    else:
        raw = bytes(image) if isinstance(image, (bytes, bytearray, memoryview)) else _read(image, most + 1, name)
        size = len(raw)
        result = io.BytesIO(raw)
    if size == 0:
        raise ImageError(f"{name} is empty" if not hasattr(image, "read") else f"{name} has nothing to read")
    if size > most:
        raise ImageError(f"{name} is larger than {most / 1e6:,.0f} MB, the limit for a picture; raise max_pixels to read it")
    return result


def _read(stream: IO[bytes], most: int, name: str) -> bytes:
    pieces, size = [], 0
    while size < most and (piece := stream.read(min(1 << 20, most - size))):  # a pipe gives less than it is asked for
        if not isinstance(piece, bytes):
            raise ImageError(f"{name} gives text and not bytes: open the file in binary mode, open(path, 'rb')")
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces)


def _identified(stream: Path | BinaryIO, budget: Budget, name: str) -> Image.Image:
    if isinstance(stream, Path):
        with stream.open("rb") as file:
            start = file.read(30)
    else:
        start = stream.read(30)
        stream.seek(0)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            if (size := _webp_size(start)) is not None:  # its decoder takes memory as soon as the file is opened
                budget.check(size[0] * size[1] * (4 + FORMATS["WEBP"]), size, name)
            return Image.open(stream, formats=(kind,))
    is_heif = start[4:8] == b"ftyp" and start[8:12] in _HEIF_BRANDS
    plugin = "HEIF" if is_heif else "JXL" if start.startswith(_JXL_STARTS) else None
    Image.init()  # imports all of Pillow's formats, which takes 40 ms: only when they are needed
    if plugin is not None and plugin not in Image.OPEN:
        module, distribution = _PLUGINS[plugin]
        if not importable(module):
            raise ImageError(f"{name} is a {plugin} picture, which needs a plug-in of Pillow: pip install {distribution}")
        getattr(import_module(module), "register_heif_opener", lambda: None)()
    return Image.open(stream, formats=[kind for kind in FORMATS if kind in Image.OPEN])


def _webp_size(start: bytes) -> tuple[int, int] | None:
    """Width and height that a WebP file's first 30 bytes tell (RFC 9649, section 2); None for other files."""
    kind, body = start[8:16], start[20:30]
    if kind == b"WEBPVP8X" and len(body) == 10:
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"WEBPVP8L" and len(body) == 10:
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"WEBPVP8 " and len(body) == 10:
        return int.from_bytes(body[6:8], "little") & 0x3FFF, int.from_bytes(body[8:10], "little") & 0x3FFF
    return None


def reason(error: BaseException) -> str:
    """The first line of an error of Pillow."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def storage_of(mode: str) -> int:
    """Bytes per pixel of a Pillow mode."""
    return 1 if mode in ("1", "L", "P") else 2 if mode.startswith("I;16") else 4


def checked_size(picture: Image.Image, name: str) -> tuple[int, int]:
    """The picture's size, if it has pixels and no side is too long. Raises ImageError."""
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name} has no pixels ({width} x {height})")
    if max(width, height) > MAX_SIDE:
        raise ImageError(f"{name} has {width} x {height} pixels; the limit is {MAX_SIDE:,} a side: make it smaller first")
    return width, height


def decoding_bytes(picture: Image.Image) -> int:
    """Bytes that a picture's decoder takes at its own size, the decoded picture included."""
    return _Needs(picture).at(1)


def _reduced(picture: Image.Image, budget: Budget, name: str) -> int:
    """Ask the decoder for a smaller picture if that is needed and can be had; returns how many times smaller. Raises
    ImageError when the smallest is still too large."""
    size, needs = checked_size(picture, name), _Needs(picture)

    for times in needs.reductions:
        smaller = (-(-size[0] // times), -(-size[1] // times))
        need = max(needs.at(times), needs.fixed + budget.converted(smaller, needs.storage))
        if smaller[0] * smaller[1] <= budget.max_pixels and need <= budget.bytes:
            break
    else:
        budget.check(needs.at(1), size, name)
        budget.check(needs.fixed + budget.converted(size, needs.storage), size, name)
    if times > 1 and picture.format == "JPEG2000":
        picture.reduce = times.bit_length() - 1  # type: ignore[method-assign,assignment]  # this plug-in's own attribute
    elif times > 1:
        picture.draft(picture.mode, (max(1, size[0] // times), max(1, size[1] // times)))
    return times


class _Needs:
    """What decoding one opened picture takes: ``fixed`` bytes, and more for each pixel."""

    def __init__(self, picture: Image.Image) -> None:
        kind = picture.format or ""
        self.pixels = picture.width * picture.height
        self.storage = storage_of(picture.mode)
        self.fixed = sum(len(v) for v in picture.info.values() if isinstance(v, (bytes, str)))
        self.reductions: tuple[int, ...] = (1,)
        self.extra = FORMATS.get(kind, 0)
        stream = getattr(picture, "fp", None)
        if stream is not None and kind in _WHOLE_FILE:
            self.fixed += _length(stream)
        # Pillow's decoders that are written in Python are told by a table of its own.
        if any(tile[0] in Image.DECODERS for tile in getattr(picture, "tile", ())):
            self.extra += _PYTHON
        if kind in ("JPEG", "MPO") and stream is not None:
            self.fixed += self.pixels * _coefficients(stream)
            self.reductions = (1, 2, 4, 8)
        elif kind == "TIFF":
            self._tiff(picture)
        elif kind == "JPEG2000" and stream is not None:
            self._jpeg2000(picture, stream)

    def at(self, times: int) -> int:
        """Bytes, with each side decoded ``times`` smaller."""
        return self.fixed + self.pixels * (self.storage + self.extra) // (times * times)

    def _tiff(self, picture: Image.Image) -> None:
        tags = getattr(picture, "tag_v2", {})
        bits = tags.get(258, (1,))
        depth = sum(bits) if len(bits) > 1 else bits[0] * int(tags.get(277, 1))
        kind = picture.info.get("compression")
        if kind == "raw":
            return
        if 322 in tags:  # a tile may be larger than the picture
            piece = int(tags.get(322, 0)) * int(tags.get(323, 0))
        else:
            piece = picture.width * min(picture.height, int(tags.get(278, picture.height)))
        self.fixed += piece * depth // 8
        if kind not in ("packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate", "group3", "group4", "tiff_ccitt"):
            self.fixed += 8 * self.pixels  # a picture of another format inside
        if tags.get(274, 1) != 1:  # this plug-in turns it at once
            self.extra += self.storage

    def _jpeg2000(self, picture: Image.Image, stream: IO[bytes]) -> None:
        code = _codestream(stream)
        blocks = int(self.pixels * code.components * code.blocks) + 1
        self.fixed += _length(stream) + blocks * (_CODE_BLOCK + 2 * code.layers)
        self.extra += 6 * code.components  # int32 a sample, and the tile's bytes
        if code.pixels > self.pixels:  # the box around it promises less
            self.fixed += code.pixels * (self.storage + self.extra)
        # Pillow rounds the smaller size, OpenJPEG takes the next whole number: where they differ, Pillow finds broken data.
        self.reductions = (
            1,
            *(
                1 << n
                for n in range(1, min(code.levels, 6) + 1)
                if all((side + (1 << n >> 1)) >> n == -(-side >> n) for side in picture.size)
            ),
        )


def _length(stream: IO[bytes]) -> int:
    place = stream.tell()
    stream.seek(0, os.SEEK_END)
    length = stream.tell()
    stream.seek(place)
    return length


def _coefficients(stream: IO[bytes]) -> int:
    """Bytes per pixel that libjpeg keeps for a whole JPEG: none when it comes in one scan, else its coefficients, two bytes
    each (jdcoefct.c; no subsampling is counted on)."""
    place = stream.tell()
    stream.seek(0)
    try:
        components, several = 0, False
        while byte := stream.read(1):
            if byte != b"\xff":
                continue
            while (marker := stream.read(1)) == b"\xff":
                pass
            if not marker or marker == b"\xd9":
                break
            code = marker[0]
            if code in (0x00, 0x01) or 0xD0 <= code <= 0xD8:
                continue
            length = int.from_bytes(stream.read(2), "big")
            body = stream.read(6) if 0xC0 <= code <= 0xDA else b""
            if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and len(body) == 6:
                components, several = body[5], several or code in (0xC2, 0xC6, 0xCA, 0xCE)
            elif code == 0xDA:
                return 2 * components if several or body[:1] < bytes([components]) else 0
            stream.seek(length - 2 - len(body), os.SEEK_CUR)
        return 2 * components
    finally:
        stream.seek(place)


@dataclass(frozen=True)
class _Codestream:
    """What a JPEG 2000 codestream (ISO/IEC 15444-1, annex A) says of itself. ``blocks``: code blocks and precincts for each
    sample."""

    pixels: int
    components: int
    levels: int
    layers: int
    blocks: float


def _codestream(stream: IO[bytes]) -> _Codestream:
    """Read the markers of the main header and of every tile part. Raises struct.error or IndexError for a short one."""
    place = stream.tell()
    try:
        _seek_codestream(stream)
        stream.seek(4, os.SEEK_CUR)
        x1, y1, x0, y0 = struct.unpack(">4xIIII", stream.read(20))
        components = struct.unpack(">16xH", stream.read(18))[0]
        stream.seek(3 * components, os.SEEK_CUR)
        levels, layers, blocks, end = 32, 1, 0.0, 0
        while len(head := stream.read(4)) == 4:
            marker, length = struct.unpack(">HH", head)
            start = stream.tell() - 4
            if marker == 0xFF93:  # the data of a tile part: the next one begins where this one ends
                if end <= stream.tell():
                    break
                stream.seek(end)
                continue
            if marker == 0xFFD9 or length < 2:
                break
            body = stream.read(min(length - 2, 64))
            if marker == 0xFF90:
                end = start + struct.unpack(">2xI", body[:6])[0]
            elif marker == 0xFF52:
                layers = max(layers, struct.unpack(">xxH", body[:4])[0])
                levels, blocks = min(levels, body[5]), max(blocks, _blocks(body[5:], body[0] & 1))
            elif marker == 0xFF53:
                body = body[1 if components < 257 else 2 :]
                levels, blocks = min(levels, body[1]), max(blocks, _blocks(body[1:], body[0] & 1))
            stream.seek(start + 2 + length)
        return _Codestream((x1 - x0) * (y1 - y0), components, levels, layers, blocks)
    finally:
        stream.seek(place)


def _blocks(style: bytes, precincts: int) -> float:
    """Code blocks, or precincts where these are smaller, for each sample: table A.20's parameters of a coding style."""
    levels = style[0]
    block = 1 << (style[1] & 15) + (style[2] & 15) + 4
    total = 0.0
    for resolution in range(levels + 1):
        size = style[5 + resolution] if precincts else 0xFF
        precinct = 1 << max(0, (size & 15) + (size >> 4) - (2 if resolution else 0))
        total += 0.25 ** (levels - resolution) / min(block, precinct)
    return total


def _seek_codestream(stream: IO[bytes]) -> None:
    """To the first byte of the codestream, through the boxes around it."""
    stream.seek(0)
    if stream.read(4) == b"\xff\x4f\xff\x51":
        stream.seek(0)
        return
    stream.seek(0)
    while True:
        length, kind = struct.unpack(">I4s", stream.read(8))
        head = 8
        if length == 1:
            length, head = struct.unpack(">Q", stream.read(8))[0], 16
        if kind == b"jp2c":
            return
        if length < head:
            raise ValueError("the file has no JPEG 2000 codestream")
        stream.seek(length - head, os.SEEK_CUR)
