"""Sources: a Hugging Face CLIP or a student checkpoint, seen as one thing, an encoder with its last linear layer apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fer_edge.errors import ConversionError
from fer_edge.labels import LABEL_SETS, LabelSet
from fer_edge.manifest import Source, TextEncoderRef

from .text import TextEncoder, clip_text_encoder, source_name, weights_sha256

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation (openai/CLIP ``clip/clip.py``); the released Exp-CLIP heads were trained without any."""


@dataclass(frozen=True)
class Encoder:
    """An image encoder, ready to be folded.

    ``body`` maps (N, C, S, S) to (N, W); ``last`` (D, W) is its bias-free last linear layer. ``text_projection`` (D,
    T): the matrix that takes the text encoder's vectors to the feature space, None when they are there already (CLIP).
    ``prompts``: the built-in prompts it was trained with, None for CLIP. ``architecture`` steers the int8 recipe.
    ``inherited``: the text encoder and compiled label sets of the teacher whose feature space a student learned."""

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


def load_clip(source: str) -> tuple[Any, Any]:
    """(``transformers.CLIPModel`` in float32, eval mode; its tokenizer) of a folder or id.

    A folder is read without any network. Raises ConversionError when it is not a complete CLIP.
    """
    from transformers import AutoConfig, CLIPModel, CLIPTokenizer

    local = Path(source).exists()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        if config.model_type != "clip":
            raise ConversionError(f"{source} is a {config.model_type} model; only CLIPModel checkpoints can be converted")
        model, info = CLIPModel.from_pretrained(
            source, local_files_only=local, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=local)
    except ConversionError:
        raise
    except Exception as error:  # a damaged file makes transformers and its readers raise what they like
        raise ConversionError(f"{source} is not a readable CLIP ({reason_of(error)})") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConversionError(f"{source} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}")
    _check_tokenizer(model, tokenizer, source)
    return model.eval(), tokenizer


def reason_of(error: Exception) -> str:
    """The first line of an error: transformers goes on with advice."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def _check_tokenizer(model: Any, tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer that is not this model's: where its files are missing, transformers builds an empty one."""
    size, end = int(model.config.text_config.vocab_size), model.config.text_config.eos_token_id
    first, second = (tokenizer(text)["input_ids"] for text in ("a photo of anger.", "a photo of fear."))
    ids = [*first, *second]
    # 2 is what old configurations say; transformers then pools at the largest id, whichever it is.
    pooled = end == 2 or (end in first and end in second)
    if first == second or not pooled or max(ids) >= size:
        raise ConversionError(
            f"{source} has no tokenizer that fits its text encoder; "
            "vocab.json and merges.txt, or tokenizer.json, must be there"
        )


def _open_clip(source: str) -> Encoder:
    model, tokenizer = load_clip(source)
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
        size=int(model.config.vision_config.image_size),
        color="rgb",
        logit_scale=float(model.logit_scale.detach().double().exp()),
        text=lambda: clip_text_encoder(model, tokenizer, source),
        text_projection=None,
        prompts=None,
        label_sets=tuple(LABEL_SETS),
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


def made_with(path: Path) -> dict[str, Any] | None:
    """The header of a projection that ``transfer fit`` wrote; None for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {})[PROJECTION])
        return found if isinstance(found, dict) else None
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def read_projection(path: Path, dim: int) -> tuple[NDArray[np.float32], Source]:
    """W (P, D) from the reference's ``.pth`` (key ``mlp.weight``, with any prefix) or from safetensors (that key, or
    its only matrix).

    Raises ConversionError when it cannot be read without pickle, has no such key, or does not fit an encoder of ``dim``
    = D."""
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
    matrices = (
        {k: v for k, v in tensors.items() if isinstance(v, Tensor) and v.ndim == 2} if isinstance(tensors, dict) else {}
    )
    named = [v for k, v in matrices.items() if k == "mlp.weight" or k.endswith(".mlp.weight")]
    if len(named) != 1 and len(matrices) == 1:
        named = list(matrices.values())
    if len(named) != 1:
        raise ConversionError(f"{path} has no projection: expected one matrix under the key mlp.weight, found {len(named)}")
    weight = named[0].float().contiguous()
    if weight.shape[1] != dim:
        raise ConversionError(
            f"{path} projects features of {weight.shape[1]} numbers, this encoder gives {dim}: they do not belong together"
        )
    if not bool(torch.isfinite(weight).all()):
        raise ConversionError(f"{path} holds NaN or Inf")
    return weight.numpy(), Source(path.name, weights_sha256({"mlp.weight": weight}))
