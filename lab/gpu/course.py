"""What a training is: its course, the faces that it sees, and how its network is measured, written and read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from fer_edge.converters.student.augment import Strength, warp
from fer_edge.converters.student.language import default_constants, sentence_groups
from fer_edge.converters.student.network import InTraining, StudentConfig
from fer_edge.converters.student.sentences import descriptions, stored_sentences

from .identity import IdentityBody
from .pack import LABELS, Packed

VIEW_SEED = 77
TEACHER_PRIOR = 0.25
SCALE = "scale."
LEAST_NARROWED = 4096
"""Numbers of a kernel below which 8 bits save nothing."""


@dataclass(frozen=True)
class Course:
    """Hyper-parameters; all learn by AdamW. ``body``: the face-recognition network at ``size`` pixels, or a stack of
    convolutions of this shape. ``warmup`` is a share of the whole; ``by_depth`` is how much slower each stage learns
    than the one after it; ``drop`` the chance that a block is left out (identity); ``light`` the strength of views and
    light, as a factor; ``once`` and ``twice`` the shares of spoilt faces; ``share`` the weight of the teachers' scores;
    ``photos`` how many of a batch are faces without votes."""

    name: str
    body: Literal["identity", "stack"] = "stack"
    seed: int = 1
    size: int = 48
    widths: tuple[int, ...] = (16, 32, 96, 192)
    depths: tuple[int, ...] = (1, 2, 3, 3)
    stem_stride: int = 1
    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.05
    by_depth: float = 1.0
    warmup: float = 0.05
    dropout: float = 0.2
    drop: float = 0.0
    mixup: float = 0.2
    average: float = 0.999
    prior: float = 0.25
    light: float = 0.7
    once: float = 0.35
    twice: float = 0.25
    share: float = 0.0
    photos: int = 0

    def config(self) -> StudentConfig:
        """The shape, as a student checkpoint has it."""
        return StudentConfig(self.size, tuple(self.widths), tuple(self.depths), stem_stride=self.stem_stride)

    def network(self) -> InTraining:
        """Without any training."""
        if self.body == "stack":
            return self.config().network(self.dropout)
        return InTraining(IdentityBody(self.size, self.drop), IdentityBody.width, 256, 384, self.dropout)


_TEACHER = Course("", dropout=0.3, once=0.3, twice=0.15)
_KNOWN = replace(_TEACHER, body="identity", drop=0.1)
TEACHERS = (
    replace(_KNOWN, name="id131", seed=31, size=131, lr=1e-3, by_depth=0.7),
    replace(_KNOWN, name="id150", seed=33, size=150, lr=7e-4, by_depth=0.8),
    replace(_KNOWN, name="id150b", seed=35, size=150, lr=7e-4, by_depth=0.8),
    replace(_TEACHER, name="stack", seed=34, widths=(40, 64, 160, 320), depths=(1, 2, 5, 4), mixup=0.3),
    replace(_TEACHER, name="stackb", seed=36, widths=(32, 72, 176, 320), depths=(1, 3, 4, 3), mixup=0.3),
)
_STUDENT = Course("", share=0.8, photos=64, dropout=0.1, mixup=0.1)
STUDENTS = (
    replace(_STUDENT, name="s66", seed=41),
    replace(_STUDENT, name="s66b", seed=42, share=0.9, once=0.3, twice=0.15),
    replace(_STUDENT, name="s96", seed=43, widths=(16, 40, 112, 240)),
    replace(_STUDENT, name="s64", seed=44, size=64, stem_stride=2, widths=(32, 64, 144, 232), depths=(2, 2, 3, 3)),
)
COURSES = {course.name: course for course in (*TEACHERS, *STUDENTS)}
_GONE = ("optimizer", "most")
"""What courses of earlier runs had: they say nothing about the network."""


def read_course(path: Path, name: str | None = None) -> tuple[Course, dict[str, Any]]:
    """The course and the notes of a network that :func:`save` wrote, or of ``name`` in a file that holds several."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    header = json.loads(header[name]) if name else header
    raw = {key: value for key, value in json.loads(header["course"]).items() if key not in _GONE}
    return Course(**{**raw, "widths": tuple(raw["widths"]), "depths": tuple(raw["depths"])}), json.loads(header["meta"])


class Material:
    """What a training sees, on its device. Rows below ``labelled`` have votes, the others are photos without."""

    def __init__(self, packed: Packed, device: str, photos: bool) -> None:
        rows = packed.learnable()
        images = [packed.images[rows], *([packed.photos] if photos else [])]
        self.device, self.labelled = device, len(rows)
        self.images = torch.from_numpy(np.concatenate(images))[:, None].to(device)
        self.votes = torch.from_numpy(packed.targets[rows])
        prior = self.votes.mean(0).clamp(min=1e-6)
        self.log_prior = prior.log().to(device)
        self.votes = self.votes.to(device)
        self.groups = sentence_groups(stored_sentences(), descriptions(), LABELS)

    def faces(self, rows: Tensor, maps: Tensor) -> Tensor:
        """Views (n, 1, 48, 48) in [0, 1] of faces, by their rows; both on the device."""
        return warp(self.images[rows].float() / 255, maps)


def sized(faces: Tensor, course: Course, channels_last: bool) -> Tensor:
    """Faces in the size that a stack takes; the face-recognition network enlarges them itself."""
    if course.body == "stack" and faces.shape[-1] != course.size:
        faces = F.interpolate(faces, size=(course.size, course.size), mode="bilinear", align_corners=False)
    return faces.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def view_strength() -> Strength:
    """The views that teachers are asked about."""
    return Strength().times(0.7)


def steps(course: Course, material: Material) -> int:
    """Batches of an epoch."""
    return material.labelled // (course.batch - course.photos)


def retilted(scores: Tensor, log_prior: Tensor, prior: float) -> Tensor:
    """Scores of teachers that learned with TEACHER_PRIOR, as if they had with ``prior``: what is rare counts for more."""
    return F.softmax(scores.clamp(min=1e-5).log() - (prior - TEACHER_PRIOR) * log_prior, dim=-1)


@torch.inference_mode()
def scores(
    net: InTraining, course: Course, images: NDArray[np.uint8] | Tensor, device: str, batch: int = 512
) -> NDArray[np.float32]:
    """Scores (N, K) of gray faces (N, 48, 48) over the labels."""
    groups = sentence_groups(stored_sentences(), descriptions(), LABELS)
    net.eval()
    text = default_constants([group.to(device) for group in groups], net.text_projection)
    pictures = torch.as_tensor(images)
    parts = [
        views_scores(net, course, pictures[rows][:, None].to(device).float() / 255, text)
        for rows in equal_parts(len(pictures), batch, pictures.device)
    ]
    return torch.cat(parts)[: len(pictures)].cpu().numpy()


def equal_parts(count: int, size: int, device: torch.device | str) -> Iterator[Tensor]:
    """Rows 0 to ``count`` in parts of ``size``, the last one filled up with its last row: cuDNN looks for the fastest
    way anew for every number of faces."""
    size = min(size, count)
    for start in range(0, count, size):
        yield torch.arange(start, start + size, device=device).clamp(max=count - 1)


def views_scores(net: InTraining, course: Course, faces: Tensor, text: Tensor) -> Tensor:
    """Scores (n, K) of faces (n, 1, 48, 48) in [0, 1], all on the device, in float32."""
    gpu = faces.is_cuda
    with torch.autocast(faces.device.type, torch.bfloat16, enabled=gpu):
        feature = net(sized(faces, course, gpu))
    return F.softmax(net.logits(feature.float(), text), dim=-1)


def war_uar(scores: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and mean recall; labels of -1 are left out."""
    kept = labels >= 0
    hit = scores.argmax(1)[kept] == labels[kept]
    truth = labels[kept]
    return round(float(hit.mean()), 4), round(float(np.mean([hit[truth == k].mean() for k in np.unique(truth)])), 4)


def save(net: InTraining, course: Course, output: Path, meta: Mapping[str, Any]) -> None:
    """The network, its kernels in fp16, as a student's checkpoint has them."""
    tensors = net.state_dict()
    state = {name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous().cpu() for name, tensor in tensors.items()}
    header = {"course": json.dumps(asdict(course)), "meta": json.dumps(dict(meta))}
    part = output.with_name(output.name + ".part")
    save_file(state, part, metadata=header)
    part.replace(output)


def restore(path: Path, course: Course, device: str, prefix: str = "") -> InTraining:
    """What :func:`save` or :func:`keep` wrote, in eval mode; of a file that holds several networks, the one whose tensors
    begin with ``prefix``."""
    net = course.network()
    state = {name.removeprefix(prefix): t for name, t in load_file(path).items() if name.startswith(prefix)}
    scales = {name.removeprefix(SCALE): state.pop(name) for name in list(state) if name.startswith(SCALE)}
    for name, scale in scales.items():
        state[name] = state[name].float() * scale
    net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    layout = torch.channels_last if device == "cuda" else torch.contiguous_format
    return net.to(device, memory_format=layout).eval()  # type: ignore[no-any-return,call-overload]


def keep(path: Path, output: Path) -> None:
    """A network that :func:`save` wrote in half the space: large kernels in 8 bits, with a scale per output channel."""
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    state = {}
    for name, tensor in load_file(path).items():
        if tensor.ndim < 2 or tensor.numel() < LEAST_NARROWED:
            state[name] = tensor
            continue
        scale = tensor.float().abs().amax(tuple(range(1, tensor.ndim)), keepdim=True).clamp(min=1e-12) / 127
        state[name] = (tensor.float() / scale).round().to(torch.int8)
        state[f"{SCALE}{name}"] = scale
    part = output.with_name(output.name + ".part")
    save_file(state, part, metadata=header)
    part.replace(output)
