"""The face-recognition network that teachers start from."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from fer_edge import ConversionError
from lab.gpu.identity import IdentityBody, installed_identity, load_identity, read_dlib

FILE = installed_identity()
PHOTOS = Path(os.environ.get("FER_EDGE_DATA", "../shared/data"), "lfw_expressions")
installed = pytest.mark.skipif(FILE is None, reason="pip install --no-deps face-recognition-models")


def loaded(size: int, faces: Tensor) -> tuple[IdentityBody, Tensor]:
    """In eval mode, with the matrix of its descriptors."""
    assert FILE is not None
    tensors = read_dlib(FILE)
    body = IdentityBody(size)
    load_identity(body, tensors, faces)
    return body.eval(), torch.from_numpy(tensors["descriptor"])


@installed
def test_all_weights_are_read() -> None:
    assert FILE is not None
    tensors = read_dlib(FILE)
    assert sum(tensor.size for tensor in tensors.values()) == 5_614_592
    assert tensors["filters.0"].shape == (32, 3, 7, 7)
    assert tensors["filters.28"].shape == (256, 256, 3, 3)
    assert all(np.isfinite(tensor).all() and np.abs(tensor).max() < 100 for tensor in tensors.values())


@installed
@torch.inference_mode()
def test_the_function_is_dlibs_whatever_faces_it_was_calibrated_with() -> None:
    """Normalisations are undone by their weights: what is computed does not depend on the faces that gave mean and
    variance. The first convolution of the three colours, done by hand, is the gray one."""
    generator = torch.Generator().manual_seed(0)
    some, others, seen = (torch.rand(n, 1, 112, 112, generator=generator) for n in (16, 24, 8))
    (first, _), (second, _) = loaded(112, some), loaded(112, others**2)
    torch.testing.assert_close(first(seen), second(seen), rtol=1e-3, atol=1e-4)
    assert FILE is not None
    raw = {name: torch.from_numpy(tensor) for name, tensor in read_dlib(FILE).items()}
    colours = (255 * seen.expand(-1, 3, -1, -1) - torch.tensor([122.782, 117.001, 104.298])[:, None, None]) / 256
    expected = (
        F.conv2d(colours, raw["filters.0"], raw["bias.0"], 2) * raw["gain.0"][:, None, None] + raw["offset.0"][:, None, None]
    )
    torch.testing.assert_close(first.stem(seen), expected, rtol=1e-3, atol=1e-3)


@installed
@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"no photos of known people at {PHOTOS}")
@torch.inference_mode()
def test_photos_of_one_person_are_nearer_than_photos_of_two() -> None:
    """By as much as dlib says of its network: 0.6 parts them."""
    people: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(PHOTOS.rglob("*.jpg")):
        people[re.sub(r"_\d+$", "", path.stem)].append(path)
    some = [
        (name, path) for name in sorted(name for name in people if len(people[name]) >= 2)[:30] for path in people[name][:2]
    ]
    photos = np.stack([np.asarray(Image.open(path).convert("L").resize((150, 150))) for _, path in some])
    faces = torch.from_numpy(photos)[:, None].float() / 255
    body, matrix = loaded(150, faces[:16])
    distances = torch.cdist(body(faces) @ matrix, body(faces) @ matrix)
    names = np.array([name for name, _ in some])
    same = torch.from_numpy((names[:, None] == names) & ~np.eye(len(names), dtype=bool))
    other = torch.from_numpy(names[:, None] != names)
    assert float(distances[same].mean()) < 0.55
    assert float(distances[other].mean()) > 0.65


@installed
@torch.no_grad()
def test_while_learning_it_begins_near_what_it_was() -> None:
    faces = torch.rand(48, 1, 12, 12, generator=torch.Generator().manual_seed(1))
    faces = F.interpolate(faces, size=(112, 112), mode="bicubic").clamp(0, 1)
    body, _ = loaded(112, faces)
    before = body(faces)
    during = body.train()(faces)
    spread = lambda x: x - x.mean(0)  # noqa: E731
    assert float(F.cosine_similarity(spread(before), spread(during)).mean()) > 0.9


@pytest.mark.parametrize("size", [112, 131, 150])
def test_sizes_and_gradients(size: int) -> None:
    """Blocks are left out for some faces while the network learns only, and every weight gets a gradient."""
    torch.manual_seed(0)
    body = IdentityBody(size, drop=0.2)
    faces = torch.rand(4, 1, 48, 48)
    out = body(faces)
    assert out.shape == (4, 256)
    out.sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in body.parameters())
    assert sum(len(group) for group in body.depths()) == len(list(body.parameters()))
    body.eval()
    with torch.no_grad():
        assert torch.equal(body(faces), body(faces))


def test_another_file_is_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "other.dat"
    file.write_bytes(b"\x01\x05con_4" + bytes(500))
    with pytest.raises(ConversionError, match="is not dlib's face-recognition network"):
        read_dlib(file)
