"""BLIP-2's and InstructBLIP's T5 features written from the papers in plain torch, in float64: no module of transformers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

HEADS = 4
"""Of every part of the small random models."""


def features(
    weights: Mapping[str, Tensor], pixels: Tensor, tokens: Sequence[int], asked: Sequence[int] | None, kept: int = 32
) -> Tensor:
    """Normalised mean (N, P) of the T5 encoder's last norm, over query tokens and instruction, of pixels (N, 3, S, S)."""
    w = {name: value.double() for name, value in weights.items()}
    seen = vision(w, pixels.double())
    queries = former(w, seen, asked)[:, :kept]
    spoken = queries @ w["language_projection.weight"].T + w["language_projection.bias"]
    words = w["language_model.encoder.embed_tokens.weight"][torch.tensor(tokens)].expand(len(pixels), -1, -1)
    said = t5(w, torch.cat([spoken, words], 1))
    return F.normalize(said.mean(1), dim=-1)


def norm(w: Mapping[str, Tensor], name: str, x: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    spread = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(spread + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | float = 0.0) -> Tensor:
    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)

    scores = split(q) @ split(k).transpose(-1, -2) * scale + bias
    return (scores.softmax(-1) @ split(v)).transpose(1, 2).reshape(*q.shape[:2], -1)


def vision(w: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """A pre-norm ViT (EVA-CLIP's shape), all its tokens through the last norm."""
    patches = w["vision_model.embeddings.patch_embedding.weight"]
    grid = F.unfold(x, patches.shape[-1], stride=patches.shape[-1]).transpose(1, 2)
    tokens = grid @ patches.flatten(1).T + w["vision_model.embeddings.patch_embedding.bias"]
    first = w["vision_model.embeddings.class_embedding"].expand(len(x), -1, -1)
    h = torch.cat([first, tokens], 1) + w["vision_model.embeddings.position_embedding"]
    for i in range(2):
        name = f"vision_model.encoder.layers.{i}"
        q, k, v = linear(w, f"{name}.self_attn.qkv", norm(w, f"{name}.layer_norm1", h, 1e-6)).chunk(3, -1)
        h = h + linear(w, f"{name}.self_attn.projection", attend(q, k, v, (q.shape[-1] / HEADS) ** -0.5))
        inner = linear(w, f"{name}.mlp.fc1", norm(w, f"{name}.layer_norm2", h, 1e-6))
        h = h + linear(w, f"{name}.mlp.fc2", gelu(inner))
    return norm(w, "vision_model.post_layernorm", h, 1e-6)


def former(w: Mapping[str, Tensor], seen: Tensor, asked: Sequence[int] | None) -> Tensor:
    """A post-norm BERT whose first tokens are the queries; they alone look at the picture, in every second layer."""
    queries = w["query_tokens"].expand(len(seen), -1, -1)
    count = queries.shape[1]
    if asked is None:
        h = norm(w, "qformer.layernorm", queries, 1e-12)
    else:
        words = w["qformer.embeddings.word_embeddings.weight"][torch.tensor(asked)]
        words = words + w["qformer.embeddings.position_embeddings.weight"][: len(asked)]
        h = norm(w, "qformer.embeddings.layernorm", torch.cat([queries, words.expand(len(seen), -1, -1)], 1), 1e-12)

    def block(name: str, x: Tensor, source: Tensor) -> Tensor:
        q, k, v = (
            linear(w, f"{name}.attention.{part}", y)
            for part, y in zip(("query", "key", "value"), (x, source, source), strict=True)
        )
        mixed = attend(q, k, v, (q.shape[-1] / HEADS) ** -0.5)
        return norm(w, f"{name}.output.LayerNorm", linear(w, f"{name}.output.dense", mixed) + x, 1e-12)

    def feed(name: str, side: str, x: Tensor) -> Tensor:
        inner = gelu(linear(w, f"{name}.intermediate{side}.dense", x))
        return norm(w, f"{name}.output{side}.LayerNorm", linear(w, f"{name}.output{side}.dense", inner) + x, 1e-12)

    for i in range(2):
        name = f"qformer.encoder.layer.{i}"
        h = block(f"{name}.attention", h, h)
        looking, reading = h[:, :count], h[:, count:]
        if i % 2 == 0:
            looking = block(f"{name}.crossattention", looking, seen)
        h = feed(name, "_query", looking)
        if asked is not None:
            h = torch.cat([h, feed(name, "", reading)], 1)
    return h


def bucket(distance: int) -> int:
    """T5's bucket of a relative position: 32 of them, half for what comes after; exact up to 8, then logarithmic to 128."""
    found = 16 if distance > 0 else 0
    far = abs(distance)
    if far < 8:
        return found + far
    return found + min(15, 8 + int(math.log(far / 8) / math.log(128 / 8) * 8))


def t5(w: Mapping[str, Tensor], h: Tensor) -> Tensor:
    """T5 1.1's encoder: root-mean-square norms before each part, unscaled attention, a gated GELU (tanh form)."""
    n, stem = h.shape[1], "language_model.encoder"

    def rms(name: str, x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * w[f"{name}.weight"]

    table = w[f"{stem}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    places = torch.tensor([[bucket(j - i) for j in range(n)] for i in range(n)])
    bias = table[places].permute(2, 0, 1)[None]
    for i in range(2):
        name = f"{stem}.block.{i}.layer"
        x = rms(f"{name}.0.layer_norm", h)
        q, k, v = (linear(w, f"{name}.0.SelfAttention.{part}", x) for part in "qkv")
        h = h + linear(w, f"{name}.0.SelfAttention.o", attend(q, k, v, 1.0, bias))
        x = rms(f"{name}.1.layer_norm", h)
        gate = linear(w, f"{name}.1.DenseReluDense.wi_0", x)
        gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        h = h + linear(w, f"{name}.1.DenseReluDense.wo", gate * linear(w, f"{name}.1.DenseReluDense.wi_1", x))
    return rms(f"{stem}.final_layer_norm", h)
