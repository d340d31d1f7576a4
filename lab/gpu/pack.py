"""Faces and weights in little space, to travel to a machine with a GPU.

``python -m lab.gpu.pack DATA LFW OUTPUT``: OUTPUT/faces.npz (FER+ faces, in levels of ``STEP``; unlabelled photos as
JPEG) and OUTPUT/identity.safetensors (the face-recognition network in 8 bits). The figures that count are taken from
the faces as they are, elsewhere."""

from __future__ import annotations

import hashlib
import io
import lzma
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from fer_edge.converters.student.faces import load_faces
from fer_edge.image import IMAGE_SUFFIXES, to_input
from fer_edge.labels import LABEL_SETS
from fer_edge.twins import near_duplicates

from .identity import installed_identity, read_dlib

LABELS = LABEL_SETS["ferplus8"]
SIZE = 48
STEP = 3
"""Gray levels that become one: at most 1 of 255 off, where a face's own grain is more."""
PHOTO_QUALITY = 80
HELD_OUT = 16
"""One training face in so many is kept out of every training."""
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 6, "lc": 0, "lp": 0, "pb": 0}]
COLUMNS = 100


@dataclass(frozen=True)
class Packed:
    """``images`` (N, 48, 48) with ``targets`` (N, 8) and ``labels`` (N,) are the training faces; ``held_out`` and
    ``twin`` (N,) bool say which of them no training may see: a share by hash, and near-duplicates of the faces of
    ``test``. ``test_images`` and ``test_labels`` are the validation split, ``photos`` (M, 48, 48) faces without
    labels."""

    images: NDArray[np.uint8]
    targets: NDArray[np.float32]
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_]
    twin: NDArray[np.bool_]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    photos: NDArray[np.uint8]

    def learnable(self) -> NDArray[np.int64]:
        """Rows of ``images`` that trainings may see."""
        return np.nonzero(~self.held_out & ~self.twin)[0]


def held_out(images: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which faces are kept out of every training: by the hash of their pixels, so that the choice survives other orders
    and other selections of the same faces."""
    return np.array([hashlib.sha256(image.tobytes()).digest()[0] < 256 // HELD_OUT for image in images])


def squeeze(images: NDArray[np.uint8], step: int) -> bytes:
    """Levels of ``step``, what each differs by from a guess by its neighbours, in LZMA. The guess is JPEG-LS's
    (Weinberger et al., "The LOCO-I Lossless Image Compression Algorithm", IEEE TIP 2000)."""
    levels = (images.astype(np.int16) + step // 2) // step
    around = np.pad(levels, ((0, 0), (1, 0), (1, 0)))
    guess = _guess(around[:, 1:, :-1], around[:, :-1, 1:], around[:, :-1, :-1])
    return lzma.compress(((levels - guess) % 256).astype(np.uint8).tobytes(), lzma.FORMAT_XZ, filters=FILTERS)


def expand(data: bytes, count: int, side: int, step: int) -> NDArray[np.uint8]:
    """What :func:`squeeze` was given, at most step // 2 off: (count, side, side)."""
    # Pixels first and faces last: every step of the loops is one row of memory.
    rest = np.frombuffer(lzma.decompress(data), np.uint8).reshape(count, side, side).transpose(1, 2, 0).astype(np.int16)
    around = np.zeros((side + 1, side + 1, count), np.int16)
    for row in range(1, side + 1):
        for column in range(1, side + 1):
            guess = _guess(around[row, column - 1], around[row - 1, column], around[row - 1, column - 1])
            around[row, column] = (guess + rest[row - 1, column - 1]) % 256
    return np.minimum(around[1:, 1:].transpose(2, 0, 1) * step, 255).astype(np.uint8)


def _guess(west: NDArray[np.int16], north: NDArray[np.int16], corner: NDArray[np.int16]) -> NDArray[np.int16]:
    low, high = np.minimum(west, north), np.maximum(west, north)
    return np.where(corner >= high, low, np.where(corner <= low, high, west + north - corner))


def pack_photos(faces: NDArray[np.uint8]) -> bytes:
    """Photos (N, 48, 48) side by side in one JPEG."""
    rows = -(-len(faces) // COLUMNS)
    sheet = np.zeros((rows * COLUMNS, SIZE, SIZE), np.uint8)
    sheet[: len(faces)] = faces
    whole = sheet.reshape(rows, COLUMNS, SIZE, SIZE).transpose(0, 2, 1, 3).reshape(rows * SIZE, COLUMNS * SIZE)
    file = io.BytesIO()
    Image.fromarray(whole).save(file, "JPEG", quality=PHOTO_QUALITY, optimize=True)
    return file.getvalue()


def unpack_photos(data: bytes, count: int) -> NDArray[np.uint8]:
    """(count, 48, 48)."""
    whole = np.asarray(Image.open(io.BytesIO(data)))
    sheet = whole.reshape(-1, SIZE, COLUMNS, SIZE).transpose(0, 2, 1, 3).reshape(-1, SIZE, SIZE)
    return np.ascontiguousarray(sheet[:count])


def pack(data: Path, photos: Path, output: Path) -> None:
    """Write faces.npz and identity.safetensors."""
    output.mkdir(parents=True, exist_ok=True)
    train, test = (load_faces(data / f"{name}.npz", LABELS) for name in ("train", "public_test"))
    assert train.targets is not None
    assert train.labels is not None
    assert test.labels is not None
    paths = sorted(path for path in photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    seen = np.stack([to_input(path, (SIZE, SIZE), "gray")[..., 0] for path in paths])  # as a classifier takes them
    twin = np.zeros(len(train.images), bool)
    twin[near_duplicates(train.images, test.images).first] = True
    np.savez(
        output / "faces.npz",
        images=np.frombuffer(squeeze(train.images, STEP), np.uint8),
        targets=train.targets.astype(np.float16),
        labels=train.labels.astype(np.int8),
        held_out=held_out(train.images),
        twin=twin,
        test_images=np.frombuffer(squeeze(test.images, STEP), np.uint8),
        test_labels=test.labels.astype(np.int8),
        photos=np.frombuffer(pack_photos(seen), np.uint8),
        counts=np.array([len(train.images), len(test.images), len(paths)]),
    )
    where = installed_identity()
    if where is None:
        raise SystemExit("pip install --no-deps face-recognition-models")
    save_file(shrink(read_dlib(where)), output / "identity.safetensors")
    for path in sorted(output.iterdir()):
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")


def unpack(folder: Path) -> Packed:
    """What :func:`pack` wrote; gray levels are those in the middle of each step."""
    with np.load(folder / "faces.npz", allow_pickle=False) as z:
        faces, tests, photos = (int(n) for n in z["counts"])
        return Packed(
            expand(z["images"].tobytes(), faces, SIZE, STEP),
            z["targets"].astype(np.float32),
            z["labels"].astype(np.int64),
            z["held_out"],
            z["twin"],
            expand(z["test_images"].tobytes(), tests, SIZE, STEP),
            z["test_labels"].astype(np.int64),
            unpack_photos(z["photos"].tobytes(), photos),
        )


def shrink(tensors: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.generic]]:
    """Filters in 8 bits with a scale per output channel, the few other numbers as they are."""
    out: dict[str, NDArray[np.generic]] = {}
    for name, tensor in tensors.items():
        if name.startswith("filters"):
            scale = np.abs(tensor).max((1, 2, 3)) / 127
            out[name] = np.round(tensor / scale[:, None, None, None]).astype(np.int8)
            out[f"scale.{name}"] = scale
        else:
            out[name] = tensor
    return out


def read_identity(path: Path) -> dict[str, NDArray[np.float32]]:
    """What :func:`shrink` was given, nearly."""
    raw = load_file(path)
    scales = {name.removeprefix("scale."): raw.pop(name) for name in list(raw) if name.startswith("scale.")}
    return {name: tensor * scales[name][:, None, None, None] if name in scales else tensor for name, tensor in raw.items()}


if __name__ == "__main__":
    pack(*(Path(argument) for argument in sys.argv[1:4]))
