"""Arrays of strangers: what is read is what numpy wrote, and no file takes more memory than the reader allows."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fer_edge import BundleError, UsageError
from fer_edge.arrays import read_members, read_npy, read_npz, write_npy, write_npz

ARRAYS = {
    "images": np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3),
    "truth": np.array([-1, 0, 2, 1, 0], dtype=np.int64),
    "names": np.array(["joy", "größer ☺", ""]),
    "fortran": np.asfortranarray(np.arange(12, dtype=">f4").reshape(3, 4)),
    "flags": np.array([True, False]),
    "nothing": np.zeros((0, 7), np.float32),
    "one": np.array(2.5),
}


def packed(method: int) -> Callable[..., None]:
    """As np.savez, packed otherwise."""

    def save(file: Path, **arrays: np.ndarray) -> None:  # type: ignore[type-arg]
        with zipfile.ZipFile(file, "w", method) as archive:
            for name, array in arrays.items():
                archive.writestr(f"{name}.npy", npy(array))

    return save


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bz2", "lzma"])
def test_data_sets_may_be_packed_more_tightly(tmp_path: Path, method: int) -> None:
    file = tmp_path / "a.npz"
    noise = np.random.default_rng(0).integers(0, 9, (300, 48, 48), dtype=np.uint8)
    packed(method)(file, noise=noise, **ARRAYS)
    for name, expected in {"noise": noise, **ARRAYS}.items():
        np.testing.assert_array_equal(read_members(file, [name])[name], expected)
    with pytest.raises(BundleError, match="packed in a way that is not read here"):
        read_npz(file, {"noise", *ARRAYS})
    raw = bytearray(file.read_bytes())
    for at in (len(raw) // 3, len(raw) // 2):
        raw[at] ^= 1
    file.write_bytes(raw)
    with pytest.raises(UsageError, match=r"a\.npz is "):
        read_members(file, ["noise"])


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bz2", "lzma"])
def test_what_unpacks_to_more_than_it_says_takes_no_memory(tmp_path: Path, method: int) -> None:
    """A member that says it has a thousand numbers, and holds 100 million of them in a few kilobytes."""
    file = tmp_path / "bomb.npz"
    packed(method)(file, images=np.zeros(100 << 20, np.uint8))
    raw = file.read_bytes()
    header = npy(np.zeros(1000, np.uint8))[:128]
    entry = raw.rindex(b"PK\x01\x02")
    file.write_bytes(raw[: entry + 24] + struct.pack("<I", len(header) + 1000) + raw[entry + 28 :])
    assert file.stat().st_size < 1 << 18
    code = rf"""
import re
from pathlib import Path
from fer_edge.arrays import read_members
from fer_edge.errors import UsageError
try:
    read_members(Path({str(file)!r}), ["images"])
except UsageError as error:
    print(error)
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "bomb.npz is not a readable npz file" in ran.stdout
    assert int(ran.stdout.splitlines()[-1]) < 130


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, write_npz])
def test_members_are_what_numpy_wrote(tmp_path: Path, save: Callable[..., None]) -> None:
    file = tmp_path / "a.npz"
    save(file, **ARRAYS)
    for array in (read_members(file, set(ARRAYS)), read_npz(file, set(ARRAYS))):
        for name, expected in ARRAYS.items():
            np.testing.assert_array_equal(array[name], expected)
            assert array[name].dtype == expected.dtype
    assert list(read_members(file, ["truth", "one"])) == ["truth", "one"]
    read_npz(file, set(ARRAYS) - {"one"}, optional=["one", "another"])
    with pytest.raises(BundleError, match="does not hold the arrays"):
        read_npz(file, set(ARRAYS) - {"one"})
    with pytest.raises(UsageError, match=r"a\.npz has no member 'faces'; it has .*images"):
        read_members(file, ["faces"])


def test_npy(tmp_path: Path) -> None:
    file = tmp_path / "a.npy"
    write_npy(file, ARRAYS["fortran"])
    np.testing.assert_array_equal(read_npy(file, file.read_bytes()), ARRAYS["fortran"])
    np.testing.assert_array_equal(np.load(file), ARRAYS["fortran"])


def bomb(file: Path, size: int, method: int = zipfile.ZIP_DEFLATED) -> None:
    """Zeros that unpack to ``size`` bytes from a thousandth of that."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
    with zipfile.ZipFile(file, "w", method, compresslevel=1) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as stream:
            stream.write(header.getvalue())
            for start in range(0, size, 1 << 20):
                stream.write(bytes(min(1 << 20, size - start)))
        archive.writestr("truth.npy", npy(ARRAYS["truth"]))


def npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array)
    return stream.getvalue()


def test_a_bomb_is_refused_before_it_goes_off(tmp_path: Path) -> None:
    file = tmp_path / "bomb.npz"
    bomb(file, 140 << 20)
    assert file.stat().st_size < 1 << 20
    code = rf"""
import re
from pathlib import Path
from fer_edge.arrays import read_members, read_npz
from fer_edge.errors import FerEdgeError
file = Path({str(file)!r})
for read in (lambda: read_members(file, ["images", "truth"], 100 << 20), lambda: read_npz(file, ["images", "truth"])):
    try:
        read()
    except FerEdgeError as error:
        print(error)
assert len(read_members(file, ["truth"])["truth"]) == 5
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    one, two, peak = ran.stdout.splitlines()
    assert "bomb.npz unpacks to 146,8" in one
    assert "bomb.npz unpacks to 146,8" in two
    assert int(peak) < 130


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_member_lies_in_memory_once(tmp_path: Path, method: int) -> None:
    file = tmp_path / "large.npz"
    bomb(file, 100 << 20, method)
    code = rf"""
import re
from pathlib import Path
from fer_edge.arrays import read_members
assert read_members(Path({str(file)!r}), ["images"])["images"].nbytes == 100 << 20
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 200


def test_large_directories_are_not_listed(tmp_path: Path) -> None:
    file = tmp_path / "many.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for k in range(25_000):
            archive.writestr(f"{k}.npy", b"")
    with pytest.raises(UsageError, match=r"many\.npz has a directory of more than"):
        read_members(file, ["images"])


def test_what_is_no_archive(tmp_path: Path) -> None:
    good = tmp_path / "good.npz"
    np.savez(good, **ARRAYS)
    raw = good.read_bytes()
    end = raw.rindex(b"PK\x05\x06")
    broken = [
        b"",
        b"not a zip",
        raw[:-1],
        raw[: len(raw) // 2],
        raw[:end] + b"PK\x06\x07" + bytes(16) + raw[end:],
        raw[: end + 12] + struct.pack("<I", 0xFFFFFFF0) + raw[end + 16 :],
    ]
    for data in broken:
        (tmp_path / "bad.npz").write_bytes(data)
        with pytest.raises(UsageError) as caught:
            read_members(tmp_path / "bad.npz", ["images"])
        assert len(str(caught.value).splitlines()) == 1
        assert "bad.npz" in str(caught.value)
    for name in ("none.npz", ".", "a\0b"):
        with pytest.raises(UsageError):
            read_members(tmp_path / name, ["images"])
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.npz")
        with pytest.raises(UsageError, match="is not a file"):
            read_members(tmp_path / "pipe.npz", ["images"])


def test_files_beyond_2_gib_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy ends them with a zip64 directory; here any file is as large as that."""
    file, images = tmp_path / "large.npz", np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 500)
        np.savez(file, images=images, many=np.zeros(9))
    raw = file.read_bytes()
    at = raw.rindex(b"PK\x06\x06")
    assert np.array_equal(read_members(file, ["images"])["images"], images)
    for broken, text in (
        (raw[: at + 40] + struct.pack("<Q", 1 << 40) + raw[at + 48 :], "has a directory of more than"),
        (raw[:at] + b"PKxx" + raw[at + 4 :], "is not a readable npz file"),
    ):
        file.write_bytes(broken)
        with pytest.raises(UsageError, match=text):
            read_members(file, ["images"])
