"""The student: a plain stack of 3x3 convolutions, trained with RepVGG branches and deployed without them.

Every operator of the deployed network (3x3 convolution, ReLU, global average, matrix product) exists in int8 on every
NPU we know of. Re-parameterisation: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fer_edge.errors import ConversionError

FORMAT = "fer-edge-student"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class StudentConfig:
    """Shape of a student. ``widths[i]`` channels and ``depths[i]`` convolutions in stage i; every stage but the
    first halves the picture."""

    size: int = 48
    widths: tuple[int, ...] = (32, 48, 112, 224)
    depths: tuple[int, ...] = (1, 3, 4, 3)
    feature_dim: int = 256
    text_dim: int = 384

    def layers(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of every convolution, first to last."""
        shapes, channels = [], 1
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for i in range(depth):
                shapes.append((channels, width, 2 if stage and not i else 1))
                channels = width
        return shapes


class RepBlock(nn.Module):
    """Training form of one convolution: 3x3 + 1x1 (+ identity where the shape allows), each batch-normalised."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv3 = nn.Conv2d(cin, cout, 3, stride, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(cout)
        self.conv1 = nn.Conv2d(cin, cout, 1, stride, 0, bias=False)
        self.norm1 = nn.BatchNorm2d(cout)
        self.norm0 = nn.BatchNorm2d(cout) if cin == cout and stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H / stride, W / stride)."""
        y = self.norm3(self.conv3(x)) + self.norm1(self.conv1(x))
        return F.relu(y if self.norm0 is None else y + self.norm0(x))

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The single 3x3 convolution that computes the same in eval mode (RepVGG, section 3.3)."""
        cout, cin = self.conv3.weight.shape[:2]
        weight = torch.zeros(cout, cin, 3, 3, dtype=torch.float64)
        bias = torch.zeros(cout, dtype=torch.float64)
        identity = torch.eye(cout, dtype=torch.float64)[:, :, None, None]
        branches = [
            (self.conv3.weight.double(), self.norm3),
            (F.pad(self.conv1.weight.double(), (1, 1, 1, 1)), self.norm1),
        ]
        if self.norm0 is not None:
            branches.append((F.pad(identity, (1, 1, 1, 1)), self.norm0))
        for kernel, norm in branches:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
            weight += kernel * gain[:, None, None, None]
            bias += norm.bias.double() - norm.running_mean.double() * gain
        conv = nn.Conv2d(cin, cout, 3, self.stride, 1)
        conv.weight.copy_(weight)
        conv.bias.copy_(bias)  # type: ignore[union-attr]
        return conv


class StudentBody(nn.Module):
    """The convolutions of a deployed student: gray faces (N, 1, S, S) in [0, 1] -> (N, widths[-1])."""

    def __init__(self, convs: nn.ModuleList) -> None:
        super().__init__()
        self.convs = convs

    def forward(self, x: Tensor) -> Tensor:
        """Averaged activations (N, widths[-1]) of the last convolution."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return x.mean((2, 3))


class Student(StudentBody):
    """Deployed form. Input (N, 1, S, S) float in [0, 1]; output feature (N, feature_dim), unnormalised."""

    def __init__(self, config: StudentConfig) -> None:
        super().__init__(nn.ModuleList(nn.Conv2d(i, o, 3, s, 1) for i, o, s in config.layers()))
        self.config = config
        self.head = nn.Linear(config.widths[-1], config.feature_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Feature (N, feature_dim) of gray faces (N, 1, S, S) in [0, 1]."""
        feature: Tensor = self.head(super().forward(x))
        return feature


class StudentInTraining(nn.Module):
    """Training form of :class:`Student`, with the text side: projection R (feature_dim, text_dim) and logit scale."""

    def __init__(self, config: StudentConfig, dropout: float = 0.2) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.Sequential(*(RepBlock(*shape) for shape in config.layers()))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(config.widths[-1], config.feature_dim, bias=False)
        self.text_projection = nn.Parameter(torch.empty(config.feature_dim, config.text_dim))
        nn.init.orthogonal_(self.text_projection)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor) -> Tensor:
        """Feature (N, feature_dim) of gray faces (N, 1, S, S) in [0, 1]."""
        feature: Tensor = self.head(self.dropout(self.blocks(x).mean((2, 3))))
        return feature

    def logits(self, feature: Tensor, constants: Tensor) -> Tensor:
        """s <f/|f|, c_k> of features (N, D) and constants (K, D): (N, K)."""
        return self.log_scale.exp().clamp(max=100.0) * F.normalize(feature, dim=-1) @ constants.T

    @torch.no_grad()
    def deployed(self) -> Student:
        """The re-parameterised network: the same function in eval mode."""
        student = Student(self.config)
        student.convs = nn.ModuleList(block.fused() for block in self.blocks)  # type: ignore[operator]
        student.head.weight.copy_(self.head.weight)
        return student.eval()


@dataclass(frozen=True)
class StudentCheckpoint:
    """What a student file holds. ``text_projection`` (D, T) float32; ``scale`` is s; ``meta`` says how it was trained."""

    student: Student
    text_projection: Tensor
    scale: float
    meta: Mapping[str, Any]


def save_student(path: Path, checkpoint: StudentCheckpoint) -> None:
    """Write a checkpoint as fp16 safetensors; shape and provenance go into its header."""
    tensors = {f"student.{k}": v.half().contiguous() for k, v in checkpoint.student.state_dict().items()}
    tensors["text_projection"] = checkpoint.text_projection.half().contiguous()
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": asdict(checkpoint.student.config),
        "scale": checkpoint.scale,
        "meta": dict(checkpoint.meta),
    }
    save_file(tensors, path, metadata={FORMAT: json.dumps(header, sort_keys=True)})


def load_student(path: Path) -> StudentCheckpoint:
    """Read a checkpoint; weights are widened to float32.

    Raises ConversionError when the file is no student checkpoint, is truncated, or comes from a newer fer-edge.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[FORMAT])
            if header["format_version"] > FORMAT_VERSION:
                raise ConversionError(
                    f"{path} was written by a newer fer-edge (student format {header['format_version']}); upgrade fer-edge"
                )
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        raw = header["config"]
        config = StudentConfig(**{**raw, "widths": tuple(raw["widths"]), "depths": tuple(raw["depths"])})
        student = Student(config)
        student.load_state_dict({k.removeprefix("student."): v for k, v in tensors.items() if k.startswith("student.")})
        return StudentCheckpoint(student.eval(), tensors["text_projection"], float(header["scale"]), header["meta"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ConversionError(f"{path} is not a readable student checkpoint ({str(error).splitlines()[0]})") from error
