"""The student: a plain stack of 3x3 convolutions, trained with RepVGG branches and deployed without them.

Every operator of the deployed network (3x3 convolution, ReLU, global average, matrix product) exists in int8 on every
NPU we know of. Re-parameterisation: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from fer_edge.errors import ConversionError
from fer_edge.files import write_bytes
from fer_edge.labels import LabelSet
from fer_edge.manifest import TextEncoderRef

FORMAT = "fer-edge-student"
FORMAT_VERSION = 2


@dataclass(frozen=True)
class StudentConfig:
    """Shape of a student. ``widths[i]`` channels and ``depths[i]`` convolutions in stage i; every stage but the
    first halves the picture, and the first convolution strides by ``stem_stride``. The defaults are the embedded
    default's: 66 million multiply-accumulates."""

    size: int = 48
    widths: tuple[int, ...] = (16, 32, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3, 3)
    feature_dim: int = 256
    text_dim: int = 384
    stem_stride: int = 1

    def network(self, dropout: float) -> StudentInTraining:
        """A network of this shape that can learn."""
        return StudentInTraining(self, dropout)

    def layers(self) -> list[tuple[int, int, int]]:
        """(channels in, channels out, stride) of every convolution, first to last."""
        shapes, channels = [], 1
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            for i in range(depth):
                stride = 1 if i else 2 if stage else self.stem_stride
                shapes.append((channels, width, stride))
                channels = width
        return shapes


class Block(nn.Module):
    """Training form of one convolution. Its kernel is the sum of a 3x3, a 1x1 and, where the shape allows, a diagonal
    one, added before the convolution and followed by one batch normalisation: RepVGG's branches at a plain stack's cost
    (Ding et al., "Re-parameterizing Your Optimizers rather than Architectures", ICLR 2023, section 3)."""

    def __init__(self, cin: int, cout: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight3 = nn.Parameter(nn.init.kaiming_normal_(torch.empty(cout, cin, 3, 3)))
        self.weight1 = nn.Parameter(nn.init.kaiming_normal_(torch.empty(cout, cin, 1, 1)))
        self.identity = nn.Parameter(torch.ones(cout)) if cin == cout and stride == 1 else None
        self.norm = nn.BatchNorm2d(cout)

    def kernel(self) -> Tensor:
        """The kernel (cout, cin, 3, 3) that the parts add up to."""
        middle: Tensor = self.weight1
        if self.identity is not None:
            middle = middle + torch.diag(self.identity)[:, :, None, None]
        return self.weight3 + F.pad(middle, (1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, cin, H, W) -> (N, cout, H / stride, W / stride)."""
        return F.relu(self.norm(F.conv2d(x, self.kernel(), None, self.stride, 1)), inplace=True)

    @torch.no_grad()
    def fused(self) -> nn.Conv2d:
        """The single convolution with bias that computes the same in eval mode, without the ReLU."""
        norm = self.norm
        assert norm.running_mean is not None
        assert norm.running_var is not None
        cout, cin = self.weight3.shape[:2]
        gain = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
        conv = nn.Conv2d(cin, cout, 3, self.stride, 1)
        conv.weight.copy_(self.kernel().double() * gain[:, None, None, None])
        conv.bias.copy_(norm.bias.double() - norm.running_mean.double() * gain)  # type: ignore[union-attr]
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


class InTraining(nn.Module):
    """What learns: an encoder, whose ``body`` gives (N, W) of gray faces (N, 1, S, S) in [0, 1], and the text side:
    projection R (feature_dim, text_dim) and logit scale."""

    def __init__(self, body: nn.Module, width: int, feature_dim: int, text_dim: int, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, feature_dim, bias=False)
        self.text_projection = nn.Parameter(torch.empty(feature_dim, text_dim))
        nn.init.orthogonal_(self.text_projection)
        self.log_scale = nn.Parameter(torch.tensor(2.5))

    def forward(self, x: Tensor) -> Tensor:
        """Feature (N, feature_dim) of gray faces (N, 1, S, S) in [0, 1]."""
        feature: Tensor = self.head(self.dropout(self.body(x)))
        return feature

    def logits(self, feature: Tensor, constants: Tensor) -> Tensor:
        """s <f/|f|, c_k> of features (N, D) and constants (K, D): (N, K)."""
        return self.log_scale.exp().clamp(max=100.0) * F.normalize(feature, dim=-1) @ constants.T


class _Blocks(nn.Sequential):
    """Blocks, and the average over the picture."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            x = block(x)
        return x.mean((2, 3))


class StudentInTraining(InTraining):
    """Training form of :class:`Student`."""

    def __init__(self, config: StudentConfig, dropout: float = 0.2) -> None:
        blocks = _Blocks(*(Block(*shape) for shape in config.layers()))
        super().__init__(blocks, config.widths[-1], config.feature_dim, config.text_dim, dropout)
        self.config = config

    @property
    def blocks(self) -> Sequence[Block]:
        """The convolutions, first to last."""
        return list(cast(_Blocks, self.body))  # type: ignore[arg-type]

    @torch.no_grad()
    def deployed(self) -> Student:
        """The re-parameterised network: the same function in eval mode."""
        student = Student(self.config)
        student.convs = nn.ModuleList(block.fused() for block in self.blocks)
        student.head.weight.copy_(self.head.weight)
        return student.eval()


@dataclass(frozen=True)
class StudentCheckpoint:
    """What a student file holds. ``text_projection`` (D, T) float32 takes vectors of the text encoder ``text`` to the
    feature space; ``scale`` is s; ``label_sets`` are those of the teacher whose space the student learned (none for a
    student with a space of its own); ``meta`` says how it was trained."""

    student: Student
    text_projection: Tensor
    scale: float
    text: TextEncoderRef
    label_sets: tuple[LabelSet, ...]
    meta: Mapping[str, Any]


def save_student(path: Path, checkpoint: StudentCheckpoint) -> None:
    """Write a checkpoint as safetensors, the student in fp16, in one step; shape and provenance go into its header."""
    tensors = {f"student.{k}": v.half().contiguous() for k, v in checkpoint.student.state_dict().items()}
    tensors["text_projection"] = checkpoint.text_projection.half().contiguous()
    for labels in checkpoint.label_sets:
        tensors[f"constants.{labels.name}"] = torch.from_numpy(labels.constants).contiguous()
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": asdict(checkpoint.student.config),
        "scale": checkpoint.scale,
        "text_encoder": asdict(checkpoint.text),
        "label_sets": [
            {"name": s.name, "labels": s.labels, "prompts": s.prompts, "scale": s.logit_scale, "temperature": s.temperature}
            for s in checkpoint.label_sets
        ],
        "meta": dict(checkpoint.meta),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, save(tensors, metadata={FORMAT: json.dumps(header, sort_keys=True)}))


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
        # Version 1 had no label sets, and the text encoder stood in meta.
        text = TextEncoderRef(**header.get("text_encoder", header["meta"].get("text_encoder")))
        sets = tuple(_label_set(s, tensors[f"constants.{s['name']}"]) for s in header.get("label_sets", []))
        known = {"text_projection", *(f"constants.{s.name}" for s in sets)}
        odd = sorted(name for name in tensors if name not in known and not name.startswith("student."))
        if odd:
            raise ConversionError(f"{path} holds {odd[0]}, which a student checkpoint has no place for")
        scale, meta = float(header["scale"]), header["meta"]
        return StudentCheckpoint(student.eval(), tensors["text_projection"], scale, text, sets, meta)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConversionError(f"{path} is not a readable student checkpoint ({str(error).splitlines()[0]})") from error


def _label_set(raw: Mapping[str, Any], constants: Tensor) -> LabelSet:
    labels, prompts = tuple(raw["labels"]), tuple(tuple(group) for group in raw["prompts"])
    if not len(labels) == len(prompts) == len(constants):
        raise ValueError(f"the label set {raw['name']} is incomplete")
    return LabelSet(raw["name"], labels, constants.numpy(), float(raw["scale"]), float(raw["temperature"]), prompts)
