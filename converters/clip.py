"""A CLIP as transformers reads it, checked: its weights, all of them and no others, and a tokenizer that is its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fer_edge.errors import ConversionError

from .hub import check_weights, reason_of, refuse_adapters


@dataclass(frozen=True)
class Clip:
    """``source``: folder or id; ``model``: a ``transformers.CLIPModel`` in float32, eval mode; ``notes``: weights that were
    left out, in words."""

    source: str
    model: Any
    tokenizer: Any
    notes: tuple[str, ...]


def load_clip(source: str) -> Clip:
    """The CLIP of a folder or id.

    A folder is read without any network. Raises ConversionError when it is not a complete CLIP, or when it holds weights of
    an encoder that a CLIP has no place for."""
    from transformers import AutoConfig, CLIPModel, CLIPTokenizer

    local = Path(source).exists()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        if config.model_type != "clip":
            raise ConversionError(f"{source} is a {config.model_type} model; only CLIPModel checkpoints can be converted")
        refuse_adapters(source)
        model, info = CLIPModel.from_pretrained(
            source, local_files_only=local, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = CLIPTokenizer.from_pretrained(source, local_files_only=local)
    except ConversionError:
        raise
    except Exception as error:  # a damaged file makes transformers and its readers raise what they like
        raise ConversionError(f"{source} is not a readable CLIP ({reason_of(error)})") from error
    notes = check_weights(source, model, info)
    _check_tokenizer(model, tokenizer, source)
    return Clip(source, model.eval(), tokenizer, notes)


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
