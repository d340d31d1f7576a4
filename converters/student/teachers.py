"""Teachers: bundles, student checkpoints, and CLIPs with their projection, asked about views of faces.

Asking is dear, so the answers to a view of all faces are written to the run's work folder and read from there when the
view comes round again, or when the run is resumed (Shen and Xing, "A Fast Knowledge Distillation Framework for Visual
Recognition", ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import fer_edge
from fer_edge.bundle import label_set, open_bundle, text_projection
from fer_edge.engines import PRECISIONS, installed
from fer_edge.errors import ConversionError
from fer_edge.image import ImageLike
from fer_edge.labels import LabelSet, softmax
from fer_edge.manifest import TextEncoderRef, digest_of

from ..reference import open_reference
from .augment import warp
from .faces import crops

CHUNK = 128


@dataclass(frozen=True)
class Teacher:
    """``features`` maps uint8 crops (N, size, size, C) to (N, D), unnormalised. ``sets`` are its label sets, the default one
    first; ``r`` (D, T) takes vectors of the text encoder ``text`` to its feature space; ``notes``: what of its source was
    used in its own way, or left out."""

    name: str
    sha256: str
    size: int
    color: Literal["rgb", "gray"]
    features: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    sets: tuple[LabelSet, ...]
    text: TextEncoderRef
    r: NDArray[np.float32]
    notes: tuple[str, ...] = ()

    def constants(self, labels: Sequence[str]) -> tuple[NDArray[np.float32], float]:
        """Constants (K, D) of ``labels`` and the scale over the temperature, from the first label set that has them all.
        Raises ConversionError when none does."""
        for known in self.sets:
            if set(labels) <= set(known.labels):
                return known.constants[
                    [known.labels.index(label) for label in labels]
                ], known.logit_scale / known.temperature
        raise ConversionError(f"the teacher {self.name} has no label set with {', '.join(labels)}")


def open_teacher(source: str, projection: Path | None = None, device: str = "cpu", bf16: bool = False) -> Teacher:
    """A bundle folder, a student checkpoint, or a CLIP folder or id with its ``projection``; the last two run in torch, on
    ``device``, with their products in bf16 if asked. Raises FerEdgeError."""
    path = Path(source)
    if (path / "manifest.json").is_file():
        if projection is not None:
            raise ConversionError(f"{source} is a bundle and has its projection inside; leave the projection out")
        return _bundle_teacher(path)
    reference = open_reference(source, projection)
    sha = reference.encoder.source.sha256 + (reference.projection.sha256 if reference.projection else "")
    layout = torch.channels_last if bf16 and reference.encoder.architecture == "cnn" else torch.preserve_format
    graph = reference.graph.to(device, memory_format=layout)  # type: ignore[call-overload]

    @torch.inference_mode()
    def features(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            answer: NDArray[np.float32] = graph(torch.from_numpy(images).to(device))["feature"].float().cpu().numpy()
        return answer

    spec = reference.spec
    r = reference.r.astype(np.float32)
    return Teacher(source, sha, spec.height, spec.color, features, reference.sets, reference.text, r, reference.notes)


def _bundle_teacher(path: Path) -> Teacher:
    """Answers in the highest precision that an installed engine can open: what a teacher rounds, its students learn."""
    bundle = open_bundle(path)
    spec, manifest = bundle.manifest.input, bundle.manifest
    if spec.height != spec.width:
        raise ConversionError(f"{path} takes pictures of {spec.width} x {spec.height}; teachers take squares")
    offered = {a.precision for a in manifest.general_artefacts if installed(a.runtime)}
    clf = fer_edge.load(path, precision=next((p for p in reversed(PRECISIONS) if p in offered), None))
    names = sorted((ref.name for ref in manifest.label_sets), key=lambda name: name != manifest.default_labels)
    sets = tuple(label_set(bundle, name) for name in names)
    name, text = f"{path.name} ({clf.runtime} {clf.precision})", manifest.text_encoder
    return Teacher(name, digest_of(manifest), spec.height, spec.color, clf.features, sets, text, text_projection(bundle))


def ask(
    teacher: Teacher,
    pictures: Sequence[ImageLike],
    maps: Tensor,
    on_chunk: Callable[[float], None] = lambda done: None,
) -> NDArray[np.float32]:
    """Normalised features (N, D) of one view (affine maps (N, 2, 3)) of all pictures, at the teacher's own resolution.

    Raises ConversionError for NaN or Inf."""
    rows = []
    for start in range(0, len(pictures), CHUNK):
        part = slice(start, start + CHUNK)
        x = torch.from_numpy(crops(pictures[part], teacher.size, teacher.color)).permute(0, 3, 1, 2).float()
        seen = warp(x, maps[part]).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        rows.append(teacher.features(seen))
        on_chunk(min(1.0, (start + CHUNK) / len(pictures)))
    features = np.concatenate(rows)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    if not (np.isfinite(length).all() and (length > 0).all()):
        raise ConversionError(f"the teacher {teacher.name} gives NaN, Inf or nothing but zeros for a face")
    unit: NDArray[np.float32] = features / length
    return unit


def mean_scores(answers: Sequence[tuple[Teacher, NDArray[np.float32]]], labels: Sequence[str]) -> NDArray[np.float32]:
    """Softmax scores (N, K) over ``labels``, averaged over teachers, of their normalised features (N, D)."""
    scores = []
    for teacher, unit in answers:
        class_constants, scale = teacher.constants(labels)
        scores.append(softmax((scale * unit @ class_constants.T).astype(np.float32)))
    average: NDArray[np.float32] = np.mean(scores, axis=0, dtype=np.float32)
    return average
