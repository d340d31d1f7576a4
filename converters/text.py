"""Text encoders: sentences in, vectors out, and an identity that says whose vectors they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fer_edge.errors import LabelError
from fer_edge.runtime import one_line

from .clip import Clip
from .hub import check_weights, refuse_adapters, side_file

_PROBE = ("a photo of a face with an expression of happiness.", "Sadness; ANGER -- 2 eyes, 1 mouth")


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder.

    ``kind`` is "clip" or "sentence-transformers"; ``sha256`` identifies the weights and the tokenizer whatever file
    they came from; ``encode`` maps n sentences to (n, T) float32, unnormalised; ``notes``: weights that were left out, in
    words.
    """

    kind: str
    source: str
    sha256: str
    encode: Callable[[Sequence[str]], NDArray[np.float32]]
    notes: tuple[str, ...] = ()


def weights_sha256(tensors: dict[str, torch.Tensor], extra: object = None) -> str:
    """sha256 over names, shapes and float32 values of tensors: the same for every file format that holds them."""
    digest = hashlib.sha256(json.dumps(extra, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().float().contiguous().cpu()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def source_name(source: str) -> str:
    """A source as a manifest may show it: the id, or the last part of a folder's path (never a path of this machine)."""
    path = Path(source)
    return shown(path.resolve().name if path.exists() else source)


def shown(name: str) -> str:
    """A file's name as JSON in UTF-8 can hold it: bytes that are no text are written as \\udc.."""
    return name.encode(errors="backslashreplace").decode()


def clip_text_encoder(clip: Clip) -> TextEncoder:
    """Text side of a CLIP.

    As the reference does it (Exp-CLIP ``models/Exp_CLIP.py``): cut at the context length, pooled at the end-of-text
    token, through CLIP's own text projection.
    """
    model, tokenizer = clip.model, clip.tokenizer
    limit = int(model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def encode(sentences: Sequence[str]) -> NDArray[np.float32]:
        # One at a time, without padding: which token pads, and on which side, is then no question.
        rows = []
        for sentence in sentences:
            ids = tokenizer(sentence, truncation=True, max_length=limit)["input_ids"]
            out = model.get_text_features(input_ids=torch.tensor([ids]))
            rows.append(getattr(out, "pooler_output", out)[0].float().numpy())
        return np.stack(rows)

    side = {
        k: v
        for k, v in model.state_dict().items()
        if k.startswith(("text_model.", "text_projection.")) and "position_ids" not in k
    }
    identity = weights_sha256(side, [tokenizer(text)["input_ids"] for text in _PROBE])
    return TextEncoder("clip", source_name(clip.source), identity, encode, clip.notes)


def sentence_encoder(source: str) -> TextEncoder:
    """A sentence-transformers folder or id that mean-pools a BERT-like model and normalises (MiniLM does). Raises
    LabelError."""
    from transformers import AutoModel, AutoTokenizer

    local = Path(source).exists()
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local)
        refuse_adapters(source, LabelError)
        model, info = AutoModel.from_pretrained(source, local_files_only=local, output_loading_info=True)
        model = model.float().eval()
        pooling = _json(source, "1_Pooling/config.json") or {"pooling_mode_mean_tokens": True}
        modules = [str(module["type"]).rpartition(".")[2] for module in _json(source, "modules.json") or []]
    except LabelError:
        raise
    except Exception as error:  # transformers, its readers and pydantic-like checks raise what they like
        raise LabelError(f"{source} is not a readable sentence encoder ({one_line(error)})") from error
    # The pooler is a layer that mean pooling does not use, and not every checkpoint has it.
    notes = check_weights(source, model, info, ("pooler.",), LabelError)
    if not hasattr(model.config, "hidden_size") or not pooling.get("pooling_mode_mean_tokens", False):
        raise LabelError(f"{source} does not use mean pooling; only mean-pooled sentence encoders are supported")
    more = [name for name in modules if name not in ("Transformer", "Pooling", "Normalize")]
    if more:
        raise LabelError(f"{source} has a layer {more[0]} after its pooling, which is not supported")

    def encode(sentences: Sequence[str]) -> NDArray[np.float32]:
        tokens = tokenizer(list(sentences), padding=True, truncation=True, max_length=256, return_tensors="pt")
        with torch.inference_mode():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].to(hidden.dtype)
        pooled = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        vectors: NDArray[np.float32] = pooled.cpu().numpy()
        return vectors

    side = {k: v for k, v in model.state_dict().items() if "position_ids" not in k}
    identity = weights_sha256(side, [tokenizer(text)["input_ids"] for text in _PROBE])
    return TextEncoder("sentence-transformers", source_name(source), identity, encode, notes)


def _json(source: str, name: str) -> Any:
    file = side_file(source, name)
    return json.loads(file.read_text(encoding="utf-8")) if file else None
