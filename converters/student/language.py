"""The text side of a student: class constants from sentences, and the projection R that many ways to say a thing agree on.

c_k = mean_j normalise(R t_kj), not normalised again. While the network learns, R sees a few descriptions per class and
batch. Afterwards the network is left alone and R is fitted anew to every phrase of the table, so that a word it has never
met lands near its meaning."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .sentences import Sentences


@dataclass(frozen=True)
class TextRecipe:
    """Hyper-parameters of the fit. ``noise`` is the standard deviation of what is added to every number of a sentence
    vector, ``drawn`` the sentences per class and step, in turn; ``told`` the weight of the label set's own constants
    against those of the drawn sentences."""

    steps: int = 1500
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.1
    noise: float = 0.05
    drawn: tuple[int, ...] = (1, 2, 4)
    told: float = 0.5


def constants(vectors: Tensor, projection: Tensor) -> Tensor:
    """c_k of sentence vectors (K, J, T) and R (D, T): (K, D)."""
    return F.normalize(vectors @ projection.T, dim=-1).mean(1)


def sentence_groups(sentences: Sentences, table: Mapping[str, Sequence[str]], labels: Sequence[str]) -> list[Tensor]:
    """Sentence vectors (J_k, T) of each label."""
    return [torch.from_numpy(sentences.lookup(table[label])) for label in labels]


def default_constants(groups: Sequence[Tensor], projection: Tensor) -> Tensor:
    """c_k over all sentences of each group: (K, D)."""
    return torch.cat([constants(group[None], projection) for group in groups])


def draw(groups: Sequence[Tensor], count: int, noise: float, generator: torch.Generator) -> Tensor:
    """``count`` sentences of each group without repeats (all of a smaller one, repeated), disturbed: (K, count, T)."""
    picked = []
    for group in groups:
        order = torch.cat([torch.randperm(len(group), generator=generator) for _ in range(math.ceil(count / len(group)))])
        picked.append(group[order[:count]])
    drawn = torch.stack(picked)
    return drawn + noise * torch.randn(drawn.shape, generator=generator)


def fit_text_projection(
    features: Tensor,
    targets: Tensor,
    groups: Sequence[Tensor],
    told: Sequence[Tensor],
    start: tuple[Tensor, float],
    adjustment: Tensor,
    recipe: TextRecipe,
    seed: int,
    on_step: Callable[[float], None] = lambda done: None,
) -> tuple[Tensor, float]:
    """R (D, T) and scale s for frozen features (N, D), normalised, and target distributions (N, K).

    Loss: cross-entropy of softmax(s <f, c_k> + adjustment_k), half of it with c from a few noisy sentences of ``groups``
    drawn at every step, half with the constants of the label set itself, from ``told``; AdamW with one cycle of the
    learning rate. ``start`` holds R and s to begin with."""
    generator = torch.Generator().manual_seed(seed)
    projection = start[0].detach().clone().requires_grad_()
    log_scale = torch.tensor(math.log(start[1])).requires_grad_()
    weights: list[dict[str, Any]] = [{"params": [projection]}, {"params": [log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, recipe.steps)
    for step in range(recipe.steps):
        rows = torch.randint(len(features), (recipe.batch,), generator=generator)
        text = draw(groups, recipe.drawn[step % len(recipe.drawn)], recipe.noise, generator)
        seen, aim = log_scale.exp().clamp(max=100.0) * features[rows], targets[rows]
        loss = (1 - recipe.told) * F.cross_entropy(seen @ constants(text, projection).T + adjustment, aim)
        loss = loss + recipe.told * F.cross_entropy(seen @ default_constants(told, projection).T + adjustment, aim)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        on_step((step + 1) / recipe.steps)
    return projection.detach(), float(log_scale.detach().exp().clamp(max=100.0))
