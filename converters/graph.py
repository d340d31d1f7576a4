"""The graph that every artefact is made from: uint8 (1, H, W, C) in, ``feature`` (1, D) and ``logits`` (1, K) out.

Reference: z = W E(x); logit_k = mean_j s <z/|z|, t_kj/|t_kj|> (Exp-CLIP ``models/Exp_CLIP.py`` and ``test.py``). Exact
fold: with W = QR every cosine is unchanged when W is replaced by R, because Q has orthonormal columns; R goes into the
encoder's own last linear layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F


def fold(projection: NDArray[np.floating] | None, dim: int) -> NDArray[np.float64]:
    """R (min(P, D), D) of W = QR for a projection W (P, D); the identity (D, D) without one. Computed in float64."""
    if projection is None:
        return np.eye(dim)
    r: NDArray[np.float64] = np.linalg.qr(projection.astype(np.float64), mode="r")  # type: ignore[assignment]
    return r


def class_constants(
    prompts: Sequence[Sequence[str]], encode: Callable[[Sequence[str]], NDArray[np.float32]], r: NDArray[np.floating]
) -> NDArray[np.float32]:
    """c_k = mean_j normalise(R T(prompt_kj)), **not** normalised again: (K, D) float32, computed in float64."""
    rows = []
    for group in prompts:
        vectors = encode(group).astype(np.float64) @ r.astype(np.float64).T
        rows.append((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).mean(0))
    return np.stack(rows).astype(np.float32)


class EdgeGraph(nn.Module):
    """uint8 NHWC -> value / 255 (- mean, / std) -> encoder -> last linear layer with R folded in -> feature, logits."""

    last: Tensor
    mean: Tensor
    std: Tensor
    constants: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        last: NDArray[np.floating],
        mean: Sequence[float],
        std: Sequence[float],
        constants: NDArray[np.float32],
        logit_scale: float,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.channels = len(mean)
        self.plain = not any(mean) and all(s == 1 for s in std)
        self.register_buffer("last", torch.from_numpy(np.ascontiguousarray(last, dtype=np.float32)))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[None, :, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[None, :, None, None])
        scaled = constants.astype(np.float64) * logit_scale
        self.register_buffer("constants", torch.from_numpy(scaled.astype(np.float32)))

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """``image`` uint8 (1, H, W, C) -> {"feature": (1, D) unnormalised, "logits": (1, K)} float32."""
        n, h, w, c = image.shape
        x = image.float()
        x = x.reshape(n, 1, h, w) if c == 1 else x.permute(0, 3, 1, 2)
        x = x / 255.0
        if not self.plain:
            x = (x - self.mean) / self.std
        feature = F.linear(self.encoder(x), self.last)
        unit = feature / torch.sqrt((feature * feature).sum(-1, keepdim=True))
        return {"feature": feature, "logits": F.linear(unit, self.constants)}
