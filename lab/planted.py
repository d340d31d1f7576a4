"""Pairs of features with a known answer: what a projection must find, and what must not fool it.

Image features are E = e B + a i A + noise: a few directions B say the expression e, many A the identity i, which is larger.
LLM features see the same expression, and things of their own: t = e C + j F + noise. Class prompts live in the space of the
image features, as CLIP's do: their expression, and a nuisance of their own along A. So zero-shot by cosine fails where the
identity drowns the expression, and a projection that keeps what both sides agree on makes it work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Plan:
    """Sizes of the planted data. ``identity``: how many times larger the identity is than the expression, per face;
    ``offset``: length of what all faces share, and of something else that all prompts share, as in a CLIP's two cones;
    ``bent``: LLM features are no linear function of what they see, but its rectified mixtures."""

    faces: int = 8192
    test: int = 4000
    classes: int = 7
    image_dim: int = 128
    llm_dim: int = 512
    expression_dim: int = 6
    identity_dim: int = 60
    identity: float = 4.0
    within: float = 0.35
    noise: float = 0.3
    prompt_nuisance: float = 1.5
    offset: float = 1.0
    bent: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Planted:
    """``image`` (N, D) and ``llm`` (N, P) to fit; ``test`` (M, D) with ``truth`` (M,); ``prompts`` (K, D); ``expression``
    (k, D): the rows that span the true subspace."""

    image: Tensor
    llm: Tensor
    test: Tensor
    truth: Tensor
    prompts: Tensor
    expression: Tensor


def planted(plan: Plan) -> Planted:
    """Draw the data; the seed decides everything."""
    generator = torch.Generator().manual_seed(plan.seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    basis = torch.linalg.qr(normal(plan.image_dim, plan.expression_dim + plan.identity_dim + 2))[0].T
    expression, identity = basis[: plan.expression_dim], basis[plan.expression_dim : -2]
    shared = plan.offset * basis[-2:]
    theirs = torch.linalg.qr(normal(plan.llm_dim, plan.expression_dim + plan.identity_dim))[0].T
    centres = F.normalize(normal(plan.classes, plan.expression_dim), dim=-1)

    def faces(count: int) -> tuple[Tensor, Tensor, Tensor]:
        truth = torch.randint(plan.classes, (count,), generator=generator)
        e = centres[truth] + plan.within * normal(count, plan.expression_dim) / sqrt(plan.expression_dim)
        who = normal(count, plan.identity_dim) / sqrt(plan.identity_dim)
        return e, who, truth

    def seen(e: Tensor, who: Tensor) -> Tensor:
        noise = plan.noise * normal(len(e), plan.image_dim) / sqrt(plan.image_dim)
        picture: Tensor = e @ expression + plan.identity * who @ identity + noise + shared[0]
        return picture

    e, who, _ = faces(plan.faces)
    other = normal(plan.faces, plan.identity_dim) / sqrt(plan.identity_dim)
    said = e @ theirs[: plan.expression_dim] + other @ theirs[plan.expression_dim :]
    if plan.bent:
        mixtures = normal(plan.llm_dim, plan.llm_dim) / sqrt(plan.llm_dim)
        said = (said @ mixtures * sqrt(plan.llm_dim)).relu() / sqrt(plan.llm_dim)
    said = said + plan.noise * normal(plan.faces, plan.llm_dim) / sqrt(plan.llm_dim)
    test_e, test_who, truth = faces(plan.test)
    nuisance = normal(plan.classes, plan.identity_dim) / sqrt(plan.identity_dim)
    prompts = centres @ expression + plan.prompt_nuisance * nuisance @ identity + shared[1]
    return Planted(seen(e, who), F.normalize(said, dim=-1), seen(test_e, test_who), truth, prompts, expression)


def shuffled(data: Planted, seed: int = 1) -> Planted:
    """The same with the LLM features of other faces: there is nothing to learn."""
    order = torch.randperm(len(data.llm), generator=torch.Generator().manual_seed(seed))
    return replace(data, llm=data.llm[order])


def zero_shot(data: Planted, weight: Tensor | None) -> float:
    """Accuracy of the nearest class prompt by cosine, after W (rows, D) on both sides, or without it."""
    faces, prompts = (x if weight is None else x @ weight.T for x in (data.test, data.prompts))
    predicted = (F.normalize(faces, dim=-1) @ F.normalize(prompts, dim=-1).T).argmax(1)
    return float((predicted == data.truth).float().mean())
