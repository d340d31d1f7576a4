"""Arrays on disk: npy and npz without pickle, and without taking more memory than the reader allows."""

from __future__ import annotations

import bz2
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError, FerEdgeError, UsageError
from .files import replaced, write_bytes

MAX_BYTES = 1 << 27
"""What the arrays of one file of a bundle may take in memory together: 128 MiB."""
MAX_DATA_BYTES = 1 << 29
"""What the arrays of one small file of faces or features may take: 512 MiB, 3,500 colour faces of 224 x 224."""
_MAX_GROWTH = 4
"""A larger file may take this many times its own size: photographs deflate to no less."""
_MAX_DIRECTORY = 1 << 20
"""Bytes of a zip file's directory: some 10,000 members."""
_PIECE = 1 << 20
_NUMPYS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""How numpy packs."""
_OTHERS = (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
"""How people pack data sets more tightly."""
_MAX_DICTIONARY = 1 << 28
"""What unpacking an lzma member may take beside the array; xz -9 needs 64 MiB."""


class _UnreadableError(ValueError):
    """Why a file holds no arrays for us: the end of the sentence that begins with its name."""


def read_npy(file: Path, data: bytes) -> NDArray[Any]:
    """The array of an npy file, of which ``data`` was read. Raises BundleError."""
    try:
        return _read_array(io.BytesIO(data), len(data))
    except Exception as error:  # numpy's header parser lets TokenError, IndexError and more through
        raise BundleError(f"{file} is not a readable array") from error


def read_npz(
    file: Path, members: Collection[str], optional: Collection[str] = (), data: bytes | None = None
) -> dict[str, NDArray[Any]]:
    """Exactly these members of a bundle's npz file, and those of ``optional`` that it has; at most MAX_BYTES of them.
    ``data``: the file's content, where that was read already. Raises BundleError."""

    def chosen(names: list[str]) -> list[str]:
        if not set(members) <= set(names) <= {*members, *optional} or len(set(names)) != len(names):
            raise _UnreadableError(f"does not hold the arrays {', '.join(sorted(members))}")
        return names

    return _read_zip(file, data, chosen, MAX_BYTES, _NUMPYS, BundleError)


def read_members(
    file: Path, members: Collection[str], limit: int = MAX_DATA_BYTES, kind: type[FerEdgeError] = UsageError
) -> dict[str, NDArray[Any]]:
    """Some members of an npz file of data, whatever else is in it, without pickle.

    They take at most ``limit`` bytes together, or four times the file's size where that is more; which is known before any
    of them is unpacked. Raises ``kind`` when the file is no such npz, lacks a member or is larger, with a message of one
    line that names the file."""

    def chosen(names: list[str]) -> list[str]:
        missing = [name for name in members if name not in names]
        if missing:
            raise _UnreadableError(f"has no member {missing[0]!r}; it has {', '.join(names[:20]) or 'none'}")
        if any(names.count(name) > 1 for name in members):
            raise _UnreadableError("has two members of one name")
        return list(members)

    try:
        if not file.is_file():  # reading a pipe would wait for ever
            raise kind(f"{file} is not a file" if file.exists() else f"{file} does not exist")
        size = file.stat().st_size
    except (OSError, ValueError) as error:
        raise kind(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return _read_zip(file, None, chosen, max(limit, _MAX_GROWTH * size), (*_NUMPYS, *_OTHERS), kind)


def _read_zip(
    file: Path,
    data: bytes | None,
    chosen: Callable[[list[str]], list[str]],
    limit: int,
    packings: Collection[int],
    kind: type[FerEdgeError],
) -> dict[str, NDArray[Any]]:
    """The members that ``chosen`` picks of the names of all; ``packings``: zip's compression methods that are taken."""
    try:
        with file.open("rb") if data is None else io.BytesIO(data) as stream:
            _check_directory(stream)
            with zipfile.ZipFile(stream) as archive:
                entries = archive.infolist()
                table = {entry.filename.removesuffix(".npy"): entry for entry in entries}
                wanted = [table[name] for name in chosen([entry.filename.removesuffix(".npy") for entry in entries])]
                total = sum(entry.file_size for entry in wanted)
                if total > limit:
                    raise _UnreadableError(f"unpacks to {total:,} bytes; at most {limit:,} are read")
                if any(entry.compress_type not in packings or entry.flag_bits & 1 for entry in wanted):
                    raise _UnreadableError("is packed in a way that is not read here")
                arrays = {}
                for entry in wanted:
                    with _opened(archive, stream, entry) as member:
                        arrays[entry.filename.removesuffix(".npy")] = _read_array(member, entry.file_size)
                return arrays
    except _UnreadableError as error:
        raise kind(f"{file} {error}") from error
    except OSError as error:
        raise kind(f"{file} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # as in read_npy, and what zipfile raises
        reason = " ".join(str(error).split())[:200]
        raise kind(f"{file} is not a readable npz file{f' ({reason})' if reason else ''}") from error


def _opened(archive: zipfile.ZipFile, stream: BinaryIO, entry: zipfile.ZipInfo) -> IO[bytes]:
    """A member for reading. zipfile itself unpacks bz2 and lzma without a bound: few bytes may become gigabytes."""
    if entry.compress_type in _NUMPYS:
        return archive.open(entry)
    stream.seek(entry.header_offset + 26)  # APPNOTE.TXT of PKWARE, 4.3.7: the lengths of name and extra field
    name, extra = struct.unpack("<HH", stream.read(4))
    stream.seek(name + extra, io.SEEK_CUR)
    size = entry.compress_size
    if entry.compress_type == zipfile.ZIP_BZIP2:
        return io.BufferedReader(_Unpacked(stream, size, bz2.BZ2Decompressor(), entry))
    _, length = struct.unpack("<HH", stream.read(4))  # 5.8.8: version, length of the properties, and these
    settings, dictionary = struct.unpack("<BI", stream.read(length))
    if dictionary > _MAX_DICTIONARY:
        raise _UnreadableError(f"needs {dictionary:,} bytes for its unpacking alone; at most {_MAX_DICTIONARY:,} are given")
    choice = {"lc": settings % 9, "lp": settings // 9 % 5, "pb": settings // 45, "dict_size": max(dictionary, 1 << 12)}
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA1, **choice}])
    return io.BufferedReader(_Unpacked(stream, size - 4 - length, unpacker, entry))


class _Unpacked(io.RawIOBase):
    """What a bz2 or lzma member unpacks to, no more of it at a time than is asked for."""

    def __init__(
        self, stream: BinaryIO, size: int, unpacker: bz2.BZ2Decompressor | lzma.LZMADecompressor, entry: zipfile.ZipInfo
    ) -> None:
        self._stream, self._left, self._unpacker, self._entry = stream, size, unpacker, entry
        self._done = self._check = 0

    def readable(self) -> bool:
        return True

    def readinto(self, room: Any) -> int:
        found = b""
        while not found and not self._unpacker.eof:
            piece = self._stream.read(min(self._left, 1 << 16)) if self._unpacker.needs_input else b""
            if self._unpacker.needs_input and not piece:
                break
            self._left -= len(piece)
            found = self._unpacker.decompress(piece, len(room))
        room[: len(found)] = found
        self._done += len(found)
        self._check = zlib.crc32(found, self._check)
        if found and self._done == self._entry.file_size and self._check != self._entry.CRC:
            raise _UnreadableError("is damaged: a member's check sum is another")
        return len(found)


def _check_directory(stream: BinaryIO) -> None:
    """Refuse a zip file whose directory is large: zipfile makes an object of every entry before anything can be asked.

    The end record (APPNOTE.TXT of PKWARE, 4.3.16) is found as zipfile finds it, and so is zip64's (4.3.14 and 4.3.15), which
    numpy writes to files beyond 2 GiB: right before its locator, which lies right before the end record."""
    size = stream.seek(0, io.SEEK_END)
    stream.seek(max(0, size - 22 - 0xFFFF - 20 - 56))
    tail = stream.read()
    at = len(tail) - 22
    if at < 0 or tail[at : at + 4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + 22 > len(tail):
        raise _UnreadableError("is not a readable npz file")
    (directory,) = struct.unpack_from("<I", tail, at + 12)
    if tail[max(0, at - 20) : at].startswith(b"PK\x06\x07"):
        if at < 76 or tail[at - 76 : at - 72] != b"PK\x06\x06":
            raise _UnreadableError("is not a readable npz file")
        (directory,) = struct.unpack_from("<Q", tail, at - 36)
    if directory > _MAX_DIRECTORY:
        raise _UnreadableError(f"has a directory of more than {_MAX_DIRECTORY:,} bytes, which numpy never writes")
    stream.seek(0)


def _read_array(stream: Any, size: int) -> NDArray[Any]:
    """One .npy array of a stream of ``size`` bytes. The header is read first, so that no lie in it takes memory."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise _UnreadableError("holds an array of another version than 1, the only one whose header is short")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    count = math.prod(shape)
    plain = dtype.kind in "fiubU" and dtype.itemsize > 0 and not dtype.hasobject
    if not plain or min(shape, default=0) < 0 or count * dtype.itemsize > size:
        raise _UnreadableError("is not a readable npz file: a member is no plain array of its size")
    flat: NDArray[Any] = np.empty(count, dtype)
    room = flat.view(np.uint8).data if flat.nbytes else memoryview(b"")
    done = 0
    while done < len(room):  # piece by piece, straight to where it belongs: a member never lies in memory twice
        got = stream.readinto(room[done : done + _PIECE])
        if not got:
            raise _UnreadableError("is not a readable npz file: a member is cut short")
        done += got
    if dtype.kind == "U" and flat.nbytes:  # numpy makes broken strings of numbers that are no character
        codes = flat.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise _UnreadableError("holds names that are no text")
    return flat.reshape(shape, order="F" if fortran else "C")


def write_npz(file: Path, **arrays: NDArray[Any]) -> None:
    """A compressed npz with fixed time stamps (the same arrays give the same bytes), written in one step. Raises
    UsageError."""
    with replaced(file) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)


def write_npy(file: Path, array: NDArray[Any]) -> None:
    """An npy file, written in one step. Raises UsageError."""
    stream = io.BytesIO()  # into a file, numpy reports a full disk by an OSError without a reason
    np.lib.format.write_array(stream, array, allow_pickle=False)
    write_bytes(file, stream.getvalue())
