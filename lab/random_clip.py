"""CLIPs of the published sizes with random weights, saved as Hugging Face folders.

They say everything about speed and memory and nothing about accuracy. Shapes: openai/clip-vit-base-patch32, -base-patch16,
-large-patch14. ``python -m lab.random_clip SHAPE FOLDER``"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

SHAPES: dict[str, dict[str, int]] = {
    "B/32": {
        "dim": 512,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "patch": 32,
        "text_width": 512,
        "text_heads": 8,
        "vocabulary": 49408,
    },
    "B/16": {
        "dim": 512,
        "width": 768,
        "layers": 12,
        "heads": 12,
        "patch": 16,
        "text_width": 512,
        "text_heads": 8,
        "vocabulary": 49408,
    },
    "L/14": {
        "dim": 768,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "patch": 14,
        "text_width": 768,
        "text_heads": 12,
        "vocabulary": 49408,
    },
    "tiny": {"dim": 32, "width": 48, "layers": 2, "heads": 4, "patch": 8, "image": 32},
}
_WORDS = ("photo", "face", "expression", "happiness", "sadness", "anger", "with", "of")


def write_tokenizer(folder: Path) -> int:
    """Write a byte-level BPE tokenizer of CLIP's form with a few merges; returns the number of its tokens."""
    from transformers import CLIPTokenizer

    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    units = [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    vocabulary, merges = [*units, *(u + "</w>" for u in units)], []
    for word in _WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts = [parts[0] + parts[1], *parts[2:]]
            vocabulary.append(parts[0])
    vocabulary = [*dict.fromkeys(vocabulary), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in dict.fromkeys(merges)), ""]))
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    return len(vocabulary)


def write_clip(
    folder: Path,
    *,
    dim: int,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    image: int = 224,
    text_width: int | None = None,
    text_heads: int | None = None,
    vocabulary: int | None = None,
    seed: int = 0,
) -> Any:
    """Save a random CLIP of this shape (logit scale 100) into ``folder`` and return it (``transformers.CLIPModel``, eval
    mode).

    The initialisation is wider than CLIP's own, so that features of different faces and prompts differ as trained ones do.
    """
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    tokens = write_tokenizer(folder)
    text = {
        "vocab_size": vocabulary or tokens,
        "hidden_size": text_width or width,
        "intermediate_size": 4 * (text_width or width),
        "num_attention_heads": text_heads or heads,
        "max_position_embeddings": 77,
        "bos_token_id": tokens - 2,
        "eos_token_id": tokens - 1,
        "pad_token_id": tokens - 1,
    }
    vision = {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "image_size": image,
        "patch_size": patch,
    }
    tower = {"num_hidden_layers": layers, "projection_dim": dim}
    config = CLIPConfig(
        text_config=text | tower,
        vision_config=vision | tower,
        projection_dim=dim,
        logit_scale_init_value=4.605170185988092,
        initializer_factor=4.0 if layers <= 4 else 1.0,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


def write_head(path: Path, dim: int, outputs: int = 4096, seed: int = 1) -> Any:
    """Save a random projection W (outputs, dim) as the reference does, ``mlp.weight`` in a .pth, and return it."""
    import torch

    weight = torch.randn(outputs, dim, generator=torch.Generator().manual_seed(seed)) * 0.05
    torch.save({"module.projection_head.mlp.weight": weight}, path)
    return weight


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path))
def clip(shape: str, folder: Path) -> None:
    """Save a random CLIP of SHAPE into FOLDER. "tiny" is for trying commands: it takes a second."""
    write_clip(folder, **SHAPES[shape])


if __name__ == "__main__":
    clip()
