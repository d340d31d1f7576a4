"""Fewer operations for a CLIP's vision tower, experimental: a smaller input with interpolated positions, and token merging.

Engines run a B/32 at what their int8 products reach, so only fewer products make it faster. Both change the function that
the encoder computes: what they cost in answers has been measured on a small ViT only, not on released weights.

Token merging: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023 (facebookresearch/ToMe, ``tome/merge.py`` and
``tome/patch/timm.py``): in every layer, between attention and MLP, the r most similar pairs of two alternating sets become
one token each, weighted by how many patches they stand for, and attention counts that number (its logarithm is added to the
scores). Here it is written with products of one-hot matrices, so that every engine has its operators and all shapes are
static."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fer_edge.errors import UsageError
from fer_edge.manifest import Source

from .sources import Encoder

NEVER = -1e4
"""Similarity of the class token to anything: it is never merged away. Finite, so that fp16 and int8 can hold it."""


@dataclass(frozen=True)
class Pruning:
    """``input_size``: pixels of a side, None: the encoder's own; ``merge_tokens``: r, how many tokens every layer merges
    away, fewer where not enough are left."""

    input_size: int | None = None
    merge_tokens: int = 0

    def __bool__(self) -> bool:
        return self.input_size is not None or self.merge_tokens > 0

    def __str__(self) -> str:
        size = [f"input {self.input_size}"] if self.input_size is not None else []
        merged = [f"{self.merge_tokens} tokens merged a layer"] if self.merge_tokens else []
        return ", ".join([*size, *merged])


WHOLE = Pruning()
"""No change at all."""


def prune(encoder: Encoder, wanted: Pruning) -> Encoder:
    """The encoder with fewer operations; the manifest's encoder source names how. Changes ``encoder.body`` in place.

    Raises UsageError for a student, or for a size that the patches do not fill."""
    if not wanted:
        return encoder
    if encoder.architecture != "vit":
        raise UsageError("--input-size and --merge-tokens go with a CLIP; a student is trained at its size")
    vision: Any = encoder.body.vision
    size = encoder.size
    if wanted.input_size is not None:
        size = wanted.input_size
        resize_positions(vision, size)
    body = MergingTower(vision, wanted.merge_tokens).eval() if wanted.merge_tokens else encoder.body
    source = Source(f"{encoder.source.source} ({wanted})", encoder.source.sha256)
    return replace(encoder, body=body, size=size, source=source)


@torch.no_grad()
def resize_positions(vision: Any, size: int) -> None:
    """Position embeddings of the patches interpolated (bicubic) to another grid, once, as transformers' CLIP does at every
    call with ``interpolate_pos_encoding`` (``modeling_clip.py``)."""
    embeddings = vision.embeddings
    patch = int(embeddings.patch_size)
    if size % patch or size < patch:
        raise UsageError(f"--input-size {size}: the patches of this encoder have {patch} pixels; give a multiple of that")
    table: Tensor = embeddings.position_embedding.weight
    own, grid = round((len(table) - 1) ** 0.5), size // patch
    patches = table[1:].T.reshape(1, -1, own, own)
    resized = F.interpolate(patches, (grid, grid), mode="bicubic", align_corners=False)
    everything = torch.cat([table[:1], resized.flatten(2)[0].T])
    embeddings.position_embedding = nn.Embedding(len(everything), everything.shape[1], _weight=everything.contiguous())
    embeddings.position_ids = torch.arange(len(everything))[None]
    embeddings.image_size = size
    embeddings.num_patches, embeddings.num_positions = grid**2, len(everything)


class MergingTower(nn.Module):
    """A ``transformers.CLIPVisionModel`` whose layers merge tokens: (N, 3, S, S) -> pooled (N, W)."""

    def __init__(self, vision: Any, merge: int) -> None:
        super().__init__()
        self.vision = vision
        tokens, merged = int(vision.embeddings.num_positions), []
        for _ in vision.encoder.layers:
            # The class token stays, and a token can only be merged into one of the other set.
            merged.append(min(merge, max(0, (tokens + 1) // 2 - 1)))
            tokens -= merged[-1]
        self.merged = tuple(merged)

    def forward(self, x: Tensor) -> Tensor:
        """The class token after the last layer."""
        vision = self.vision
        tokens = vision.pre_layrnorm(vision.embeddings(x))
        size = torch.ones_like(tokens[..., :1])
        grown = False
        for layer, count in zip(vision.encoder.layers, self.merged, strict=True):
            update, keys = _attention(layer.self_attn, layer.layer_norm1(tokens), size.log() if grown else None)
            tokens = tokens + update
            if count:
                tokens, size = merge(tokens, keys, size, count)
                grown = True
            tokens = tokens + layer.mlp(layer.layer_norm2(tokens))
        pooled: Tensor = vision.post_layernorm(tokens[:, 0])
        return pooled


def _attention(attention: Any, x: Tensor, log_size: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, T, W) -> the attention's output (N, T, W), and its keys averaged over heads (N, T, W / heads)."""
    n, t, _ = x.shape
    queries, keys, values = (
        project(x).reshape(n, t, attention.num_heads, attention.head_dim).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    scores = (queries * attention.scale) @ keys.transpose(-1, -2)
    if log_size is not None:
        scores = scores + log_size.reshape(n, 1, 1, t)
    mixed = (scores.softmax(-1) @ values).transpose(1, 2).reshape(n, t, -1)
    return attention.out_proj(mixed), keys.mean(1)


def merge(tokens: Tensor, keys: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Bipartite soft matching: ``count`` of the tokens (N, T, W) at even places go into the most similar one at an odd
    place, by the cosine of ``keys`` (N, T, d). Returns tokens (N, T - count, W), the class token first, and their sizes
    (N, T - count, 1)."""
    unit = F.normalize(keys, dim=-1)
    similar = unit[:, ::2] @ unit[:, 1::2].transpose(-1, -2)
    even, odd = similar.shape[1:]
    class_token = torch.cat([torch.full((1, 1), NEVER), torch.zeros(even - 1, 1)])
    # Among one there is nothing to choose, and LiteRT has no operator for a choice among one.
    if odd == 1:
        best, place = (similar + class_token)[..., 0], torch.zeros(1, even)
    else:
        best, place = (similar + class_token).max(-1)
    # One order for both, so that they share no token among equals; the class token comes first.
    order = _one_hot((-best).topk(even).indices, even)
    stays, leaves = order[:, : even - count], order[:, even - count :]
    into = (leaves @ _one_hot(place, odd)).transpose(-1, -2)
    weighted = torch.cat([tokens * size, size], -1)
    kept = stays @ weighted[:, ::2]
    grown = weighted[:, 1::2] + into @ (leaves @ weighted[:, ::2])
    everything = torch.cat([kept, grown], 1)
    sizes = everything[..., -1:]
    return everything[..., :-1] / sizes, sizes


def _one_hot(index: Tensor, classes: int) -> Tensor:
    """Indices (N, T) as rows of zeros and a one (N, T, classes), by a comparison that every exporter knows."""
    return (index[..., None].float() == torch.arange(classes, dtype=torch.float32)).float()
