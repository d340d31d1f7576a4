"""Sources: a Hugging Face CLIP or a student checkpoint, seen as one thing, an encoder with its last linear layer apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fer_edge.errors import ConversionError
from fer_edge.labels import LABEL_SETS, LabelSet
from fer_edge.manifest import Source, TextEncoderRef

from .clip import load_clip
from .pixels import CLIP_MEAN, CLIP_STD, Statistics, own_pixels
from .text import TextEncoder, clip_text_encoder, source_name, weights_sha256


@dataclass(frozen=True)
class Encoder:
    """An image encoder, ready to be folded.

    ``body`` maps (N, C, S, S) to (N, W); ``last`` (D, W) is its bias-free last linear layer. ``text_projection`` (D,
    T): the matrix that takes the text encoder's vectors to the feature space, None when they are there already (CLIP).
    ``prompts``: the built-in prompts it was trained with, None for CLIP. ``architecture`` steers the int8 recipe.
    ``inherited``: the text encoder and compiled label sets of the teacher whose feature space a student learned;
    ``pixels``: mean and std of its own image processor; ``notes``: what of the source is left out, in words."""

    source: Source
    architecture: Literal["vit", "cnn"]
    body: nn.Module
    last: NDArray[np.float32]
    size: int
    color: Literal["rgb", "gray"]
    logit_scale: float
    text: Callable[[], TextEncoder] | None
    text_projection: NDArray[np.float32] | None
    prompts: dict[str, tuple[str, ...]] | None
    label_sets: tuple[str, ...]
    inherited: tuple[TextEncoderRef, tuple[LabelSet, ...]] | None = None
    pixels: Statistics = (CLIP_MEAN, CLIP_STD)
    notes: tuple[str, ...] = ()


class _ClipBody(nn.Module):
    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, x: Tensor) -> Tensor:
        pooled: Tensor = self.vision(pixel_values=x).pooler_output
        return pooled


def open_encoder(source: str) -> Encoder:
    """A student checkpoint (a file) or a CLIP (a folder or a Hugging Face id). Raises ConversionError."""
    path = Path(source)
    if path.is_file():
        return _open_student(path)
    looks_local = source.startswith((".", "/", "~")) or source.count("/") != 1 or path.parent.is_dir()
    if not path.exists() and looks_local:
        raise ConversionError(
            f"{source} does not exist: give a CLIP folder, a Hugging Face id (owner/name) or a student checkpoint"
        )
    return _open_clip(source)


def _open_clip(source: str) -> Encoder:
    clip = load_clip(source)
    model = clip.model
    size = int(model.config.vision_config.image_size)
    pixels, processing = own_pixels(source, size)
    vision = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(("vision_model.", "visual_projection.")) and "position_ids" not in k
    }
    return Encoder(
        source=Source(source_name(source), weights_sha256(vision)),
        architecture="vit",
        body=_ClipBody(model.vision_model).eval(),
        last=model.visual_projection.weight.detach().numpy(),
        size=size,
        color="rgb",
        logit_scale=float(model.logit_scale.detach().double().exp()),
        text=lambda: clip_text_encoder(clip),
        text_projection=None,
        prompts=None,
        label_sets=tuple(LABEL_SETS),
        pixels=pixels,
        notes=(*clip.notes, *processing),
    )


def _open_student(path: Path) -> Encoder:
    from .student.network import StudentBody, load_student
    from .student.sentences import descriptions, stored_sentences

    checkpoint, table = load_student(path), stored_sentences()
    inherited = (checkpoint.text, checkpoint.label_sets) if checkpoint.label_sets else None
    if inherited is None and checkpoint.text.sha256 != table.text.sha256:
        raise ConversionError(
            f"{path} was trained with the text encoder {checkpoint.text.source}, whose sentence vectors are not stored here"
        )
    student, prompts = checkpoint.student, descriptions()
    weights = {**student.state_dict(), "text_projection": checkpoint.text_projection}
    return Encoder(
        source=Source(path.name, weights_sha256(weights)),
        architecture="cnn",
        body=StudentBody(student.convs).eval(),
        last=student.head.weight.detach().numpy(),
        size=student.config.size,
        color="gray",
        logit_scale=checkpoint.scale,
        text=table.encoder,
        text_projection=checkpoint.text_projection.numpy(),
        prompts=prompts,
        label_sets=tuple(name for name, labels in LABEL_SETS.items() if set(labels) <= prompts.keys()),
        inherited=inherited,
    )


PROJECTION = "fer-edge-projection"
"""Key of the header in which ``transfer fit`` writes how a projection was made."""


@dataclass(frozen=True)
class LearnedWith:
    """The image encoder that a projection was learned with; ``pixels``: "plain", value / 255, or "clip", its own."""

    source: str
    sha256: str
    pixels: str


def made_with(path: Path) -> LearnedWith | None:
    """What the header of a projection that ``transfer fit`` wrote says; None for any other file. Raises ConversionError for
    such a header that is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(PROJECTION)
    except (SafetensorError, OSError):
        return None
    if header is None:
        return None
    try:
        image = json.loads(header)["image"]
        return LearnedWith(str(image["source"]), str(image["sha256"]), str(image["settings"]["pixels"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path}: its header {PROJECTION} is damaged; make it anew: fer-edge transfer fit") from error


def read_projection(path: Path, dim: int) -> tuple[NDArray[np.float32], Source, tuple[str, ...]]:
    """W (P, D), where it came from, and notes on what else the file holds: from the reference's ``.pth`` or safetensors, key
    ``mlp.weight`` with any prefix, or the only matrix.

    Raises ConversionError when it cannot be read without pickle, has no such key, has more layers or a bias, or does not fit
    an encoder of ``dim`` = D."""
    try:
        tensors = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        )
    except FileNotFoundError as error:
        raise ConversionError(f"{path} does not exist") from error
    except Exception as error:  # torch.load raises whatever its unpickler meets
        raise ConversionError(
            f"{path} is not a readable projection: expected the reference's .pth or safetensors ({type(error).__name__})"
        ) from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    known = {k: v for k, v in tensors.items() if isinstance(v, Tensor)} if isinstance(tensors, dict) else {}
    key, notes = _projection_key(path, known)
    weight = known[key].float().contiguous()
    if weight.shape[1] != dim:
        raise ConversionError(
            f"{path} projects features of {weight.shape[1]} numbers, this encoder gives {dim}: they do not belong together"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ConversionError(f"{path} holds NaN or Inf")
    return weight.numpy(), Source(path.name, weights_sha256({"mlp.weight": weight})), notes


def _projection_key(path: Path, known: dict[str, Tensor]) -> tuple[str, tuple[str, ...]]:
    """(the key of W, notes). Raises ConversionError."""
    matrices = [k for k, v in known.items() if v.ndim == 2]
    promised = [k for k in matrices if k == "mlp.weight" or k.endswith(".mlp.weight")]
    chosen = promised if len(promised) == 1 else matrices
    if len(chosen) != 1:
        found = f"found {len(promised)}" if promised else f"found {', '.join(sorted(known)[:3]) or 'no tensor'}"
        raise ConversionError(f"{path} has no projection: expected one matrix under the key mlp.weight, {found}")
    key = chosen[0]
    module = key.rpartition(".")[0]
    others = sorted(k for k in known if k != key)
    same = [k for k in others if k.rpartition(".")[0] == module or (module and k.startswith(f"{module}."))]
    changing = [k for k in same if bool(known[k].count_nonzero())]
    if changing:
        raise ConversionError(
            f"{path} holds {changing[0]} beside {key}: Exp-CLIP's projection is one matrix without a bias, and only that "
            "can be folded into an encoder"
        )
    notes = []
    if not promised:
        notes.append(f"{path}: there is no key mlp.weight; its only matrix, {key}, was taken for the projection")
    left = [k for k in others if k not in same]
    if left:
        notes.append(f"{path}: {len(left)} other tensors were left out, the first is {left[0]}")
    return key, tuple(notes)
