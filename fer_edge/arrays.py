"""Arrays on disk: npy and npz without pickle, and without taking more memory than the file holds."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import BundleError
from .files import replaced

_MAX_NPZ_BYTES = 1 << 28


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an npy file. Raises BundleError."""
    try:
        with path.open("rb") as stream:
            return _read_array(stream, path.stat().st_size)
    except Exception as error:  # numpy's header parser lets TokenError, IndexError and more through
        raise BundleError(f"{path} is not a readable array") from error


def read_npz(path: Path, members: set[str]) -> dict[str, NDArray[Any]]:
    """Exactly these members of an npz file, without pickle and without taking more memory than the file declares and
    our limit allows."""
    try:
        with zipfile.ZipFile(path) as archive:
            if {info.filename for info in archive.infolist()} != {f"{m}.npy" for m in members} or len(
                archive.infolist()
            ) != len(members):
                raise BundleError(f"{path} does not hold the arrays {', '.join(sorted(members))}")
            if sum(info.file_size for info in archive.infolist()) > _MAX_NPZ_BYTES:
                raise BundleError(f"{path} unpacks to more than {_MAX_NPZ_BYTES:,} bytes")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in archive.infolist()):
                # zipfile unpacks bz2 and lzma without a bound, whatever size the archive declares.
                raise BundleError(f"{path} is packed in a way that numpy never writes")
            arrays = {}
            for info in archive.infolist():
                with archive.open(info) as stream:
                    arrays[info.filename.removesuffix(".npy")] = _read_array(stream, info.file_size)
            return arrays
    except BundleError:
        raise
    except Exception as error:  # as in read_npy, and what zipfile raises
        raise BundleError(f"{path} is not a readable npz file") from error


def _read_array(stream: Any, size: int) -> NDArray[Any]:
    """One .npy array of a stream of ``size`` bytes. The header is read first, so that no lie in it takes memory."""
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("not version 1, the only one whose header is short; numpy takes another for no plain array")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    count = 1
    for n in shape:
        count *= n
    if dtype.hasobject or dtype.kind not in "fiuU" or count < 0 or count * dtype.itemsize > size:
        raise ValueError("not a plain array of this size")
    data = stream.read(count * dtype.itemsize)
    array: NDArray[Any] = np.frombuffer(data, dtype=dtype, count=count).reshape(shape, order="F" if fortran else "C")
    if dtype.kind == "U":  # numpy makes broken strings of numbers that are no character
        codes = np.frombuffer(data, dtype=np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        if ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes < 0xE000))).any():
            raise ValueError("not text")
    return array


def write_npz(path: Path, **arrays: NDArray[Any]) -> None:
    """A compressed npz with fixed time stamps (the same arrays give the same bytes), written in one step. Raises
    UsageError."""
    with replaced(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, np.asarray(array), allow_pickle=False)
