"""A face-recognition network as the start of a teacher: dlib's residual network of 29 convolutions, 5.6 million
weights, which learned to tell people apart from three million photos (King, "High Quality Face Recognition with Deep
Metric Learning", 2017; public domain; He et al., CVPR 2016, for its blocks).

The file is dlib_face_recognition_resnet_model_v1.dat, as the package ``face-recognition-models`` installs it. dlib
writes an integer as one byte (the low four bits: how many bytes follow; the highest: minus) and those bytes, lowest
first; a tensor as its version, four sizes and raw float32; layers in the order in which a face passes them. dlib ends
its training by turning each batch normalisation into a gain and an offset; :func:`calibrate` turns them back, so that
the network can learn on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from fer_edge.errors import ConversionError

FILE = "models/dlib_face_recognition_resnet_model_v1.dat"
BLOCKS = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
"""(channels, residual blocks) of every stage; each but the first halves the picture."""
DESCRIPTOR = 128
MEAN = (122.782, 117.001, 104.298)
"""What dlib subtracts from red, green and blue before it divides by 256 (input_rgb_image_sized)."""


def installed_identity() -> Path | None:
    """Where ``face-recognition-models`` keeps the network; None where it is not installed. The package is not imported:
    it wants ``pkg_resources``, which newer setuptools no longer have."""
    spec = find_spec("face_recognition_models")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / FILE
    return path if path.is_file() else None


def read_dlib(path: Path) -> dict[str, NDArray[np.float32]]:
    """``filters.i`` (out, in, k, k), ``bias.i``, ``gain.i`` and ``offset.i`` of the 29 convolutions in order, and
    ``descriptor`` (256, 128). Raises ConversionError when the file is another network, or damaged."""
    data, at = path.read_bytes(), 0
    tensors: dict[str, NDArray[np.float32]] = {}

    def tensor(kind: bytes, count: int, numbers: int = 0) -> NDArray[np.float32]:
        """The tensor of the next layer of this kind, which has so many other ``numbers`` before it."""
        nonlocal at
        start = data.find(kind, at)
        if start < 0:
            raise ConversionError(f"{path} is not dlib's face-recognition network: a layer {kind.decode()} is missing")
        at = start + len(kind)
        head = []
        for _ in range(numbers + 5):
            value, at = _integer(data, at)
            head.append(value)
        version, *sizes = head[numbers:]
        if version != 2 or math.prod(sizes) != count or at + 4 * count > len(data):
            raise ConversionError(f"{path} is not dlib's face-recognition network: a layer {kind.decode()} holds {sizes}")
        values = np.frombuffer(data, "<f4", count, at).astype(np.float32)
        at += 4 * count
        return values

    for i, (cin, cout, size) in enumerate(_shapes()):
        flat = tensor(b"con_4", cout * cin * size**2 + cout)
        tensors[f"filters.{i}"], tensors[f"bias.{i}"] = flat[:-cout].reshape(cout, cin, size, size), flat[-cout:]
        flat = tensor(b"affine_", 2 * cout)
        tensors[f"gain.{i}"], tensors[f"offset.{i}"] = flat[:cout], flat[cout:]
    tensors["descriptor"] = tensor(b"fc_2", BLOCKS[-1][0] * DESCRIPTOR, 2).reshape(BLOCKS[-1][0], DESCRIPTOR)
    return tensors


def _integer(data: bytes, at: int) -> tuple[int, int]:
    """dlib's packed integer, and where the next thing begins."""
    length = data[at] & 0x0F
    value = int.from_bytes(data[at + 1 : at + 1 + length], "little")
    return (-value if data[at] & 0x80 else value), at + 1 + length


def _shapes() -> list[tuple[int, int, int]]:
    """(channels in, channels out, kernel size) of every convolution."""
    shapes, channels = [(3, BLOCKS[0][0], 7)], BLOCKS[0][0]
    for width, count in BLOCKS:
        for _ in range(count):
            shapes += [(channels, width, 3), (width, width, 3)]
            channels = width
    return shapes


class _Unit(nn.Module):
    """A convolution and its normalisation, without the ReLU."""

    def __init__(self, cin: int, cout: int, size: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, size, stride, 0 if stride > 1 else size // 2, bias=False)
        self.norm = nn.BatchNorm2d(cout)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.conv(x))
        return out


class _Residual(nn.Module):
    """dlib's block: where it halves the picture, the short way is an average over 2 x 2, channels that are missing are
    zero, and the smaller of the two pictures is filled up with zeros on the right and below (add_prev). ``drop`` is the
    chance that a face passes the short way alone while the network learns (Huang et al., "Deep Networks with Stochastic
    Depth", ECCV 2016)."""

    def __init__(self, cin: int, cout: int, stride: int, drop: float) -> None:
        super().__init__()
        self.first, self.second = _Unit(cin, cout, 3, stride), _Unit(cout, cout, 3, 1)
        self.stride, self.drop, self.more = stride, drop, cout - cin

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H / stride, W / stride)."""
        out = self.second(F.relu(self.first(x), inplace=True))
        if self.stride > 1:
            x = F.avg_pool2d(x, 2, 2)
            high, wide = x.shape[2] - out.shape[2], x.shape[3] - out.shape[3]
            if high or wide:
                out = F.pad(out, (0, wide, 0, high))
        if self.more:
            x = F.pad(x, (0, 0, 0, 0, 0, self.more))
        if self.training and self.drop:
            kept = torch.empty(len(x), 1, 1, 1, device=x.device, dtype=out.dtype).bernoulli_(1 - self.drop)
            out = out * (kept / (1 - self.drop))
        return F.relu(out + x, inplace=True)


class IdentityBody(nn.Module):
    """The network for gray faces (N, 1, S, S) in [0, 1], which it enlarges to ``size`` pixels: (N, 256). dlib's own
    size is 150; at 131 no picture inside has to be filled up; 112 is the least. Only the mean of the three colours'
    filters is kept: a gray face has the same number in each of them."""

    width = BLOCKS[-1][0]

    def __init__(self, size: int = 131, drop: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.stem = _Unit(1, BLOCKS[0][0], 7, 2)
        blocks: list[_Residual] = []
        channels, total = BLOCKS[0][0], sum(count for _, count in BLOCKS)
        for stage, (width, count) in enumerate(BLOCKS):
            for i in range(count):
                rate = drop * (len(blocks) + 1) / total
                blocks.append(_Residual(channels, width, 2 if stage and not i else 1, rate))
                channels = width
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256) of gray faces (N, 1, S, S) in [0, 1]."""
        if x.shape[-1] != self.size:
            x = F.interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False)
        x = F.max_pool2d(F.relu(self.stem(x), inplace=True), 3, 2)
        for block in self.blocks:
            x = block(x)
        return x.mean((2, 3))

    def units(self) -> list[_Unit]:
        """The 29 convolutions with their normalisations, first to last."""
        blocks = [cast(_Residual, block) for block in self.blocks]
        return [self.stem, *(unit for block in blocks for unit in (block.first, block.second))]

    def depths(self) -> list[list[nn.Parameter]]:
        """The parameters of the first convolution and of each stage, first to last: for learning rates that differ."""
        groups, start = [list(self.stem.parameters())], 0
        for _, count in BLOCKS:
            groups.append(list(self.blocks[start : start + count].parameters()))
            start += count
        return groups


@torch.no_grad()
def load_identity(body: IdentityBody, tensors: Mapping[str, NDArray[np.floating]], faces: Tensor) -> None:
    """Give ``body`` dlib's weights; its normalisations get the mean and variance that ``faces`` (N, 1, S, S) in [0, 1]
    have there, and the weight and offset that undo them: in eval mode the function is dlib's, and while learning it
    begins near it.

    Kernels are scaled to the size that He's initialisation has (He et al., ICCV 2015): normalisation makes that no
    other function, and learning rates then mean what they mean elsewhere."""
    gains, offsets = [], []
    for i, unit in enumerate(body.units()):
        kernel, gain, offset = (
            torch.from_numpy(np.float32(tensors[f"{name}.{i}"])) for name in ("filters", "gain", "offset")
        )
        bias = torch.from_numpy(np.float32(tensors[f"bias.{i}"]))
        if i == 0:  # (255 x - mean) / 256 of each colour, x the same in all: one filter and a constant
            bias = bias - (kernel.sum((2, 3)) @ torch.tensor(MEAN)) / 256
            kernel = kernel.sum(1, keepdim=True) * (255 / 256)
        size = float(kernel.std()) / math.sqrt(2 / kernel[0].numel())
        unit.conv.weight.copy_(kernel / size)
        gains.append((gain * size).to(faces.device))
        offsets.append((offset + gain * bias).to(faces.device))
    calibrate(body, gains, offsets, faces)


@torch.no_grad()
def calibrate(body: IdentityBody, gains: list[Tensor], offsets: list[Tensor], faces: Tensor) -> None:
    """Set every normalisation so that it computes gain * x + offset in eval mode, with the statistics that ``faces``
    have."""

    def fitting(gain: Tensor, offset: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def fit(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(module, nn.BatchNorm2d)
            variance, mean = torch.var_mean(given[0].float(), (0, 2, 3))
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            module.weight.copy_(gain * torch.sqrt(variance + module.eps))
            module.bias.copy_(offset + gain * mean)

        return fit

    hooks = [
        unit.norm.register_forward_pre_hook(fitting(gain, offset))
        for unit, gain, offset in zip(body.units(), gains, offsets, strict=True)
    ]
    training = body.training
    body.eval()(faces)
    body.train(training)
    for hook in hooks:
        hook.remove()
