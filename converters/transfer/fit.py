"""The projection W (P, D) from pairs of frozen features: image features E(x) (N, D) and LLM features t (N, P) of the same
faces.

As published (Exp-CLIP, WACV 2025, section 3.2, and the reference's ``train.py``): z = W E(x), symmetric InfoNCE between
z/|z| and t/|t| within a batch at CLIP's frozen scale, SGD. The reference recomputes both features at every step; here they
are computed once, and training is a few seconds of matrix products.

After the fold only the Gram matrix W'W counts (``converters/graph.py``), so W may have any number of rows: the other methods
make use of that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fer_edge.errors import ConversionError, UsageError

Theirs = tuple[Tensor | None, Tensor] | None
Method = Literal["infonce", "ridge", "cca", "warm"]
BLOCK = 4096
"""Faces that are widened to float32 at once."""
METHODS: tuple[Method, ...] = ("infonce", "ridge", "cca", "warm")


@dataclass(frozen=True)
class FitRecipe:
    """The published settings are the defaults; ``scale`` is CLIP's.

    ``method``: "infonce", W from a random start by SGD; "ridge", the closed-form linear map from image features to LLM
    features; "cca", canonical correlations, weighted by their size; "warm", InfoNCE by Adam on the canonical directions from
    the closed-form start. ``rank``: directions that "cca" and "warm" keep, None: all. ``ridge``: what is added to the
    variances, as a share of their mean. ``held_out``: share of the faces that are only looked at; ``patience``: epochs
    without a smaller held-out loss before training stops, None: never; the best epoch's W is then kept."""

    method: Method = "infonce"
    epochs: int = 5
    batch: int = 512
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    scale: float = 100.0
    seed: int = 1
    rank: int | None = None
    ridge: float = 1e-2
    held_out: float = 0.0
    patience: int | None = None


@dataclass(frozen=True)
class FitEpoch:
    """``loss`` and ``retrieval`` (share of faces whose own LLM features are the nearest of their batch) while
    training; ``held_out_*``: after the epoch, NaN without held-out faces; epoch 0 is the start."""

    epoch: int
    loss: float
    retrieval: float
    held_out_loss: float
    held_out_retrieval: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """``weight`` W (rows, D) float32; ``epochs`` as they went; ``kept``: the epoch that W is of; ``theirs``: the map
    (rows, P), if there is one, and the shift (rows,) that take LLM features to where W takes image features; None: these
    are their own space."""

    weight: Tensor
    epochs: tuple[FitEpoch, ...]
    kept: int
    theirs: Theirs = None


@dataclass(frozen=True)
class Sides:
    """Both sides as a fit sees them, half or float as they are kept; ``theirs`` as in :class:`Fitted`."""

    image: Tensor
    llm: Tensor
    theirs: Theirs = None

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Image features (B, D), and LLM features in the space of W's outputs, in float32."""
        rows = rows.to(self.image.device)
        x, t = self.image[rows].float(), self.llm[rows].float()
        if self.theirs is None:
            return x, t
        matrix, shift = self.theirs
        return x, (t if matrix is None else t @ matrix.T) - shift


def fit(
    image: Tensor,
    llm: Tensor,
    recipe: FitRecipe,
    on_epoch: Callable[[FitEpoch], None] = lambda e: None,
    rows: Tensor | None = None,
) -> Fitted:
    """Fit W to pairs of features (N, D) and (N, P), half or float, on the device that they are on; ``rows``: to these alone.

    Raises UsageError when there are fewer faces than one batch, ConversionError for NaN or Inf."""
    rows = torch.arange(len(image)) if rows is None else rows
    _check(image, llm, recipe, len(rows))
    generator = torch.Generator().manual_seed(recipe.seed)
    order = rows[torch.randperm(len(rows), generator=generator)]
    count = round(recipe.held_out * len(rows))
    held, kept = order[:count], order[count:]
    if recipe.method in ("infonce", "warm") and len(kept) < recipe.batch:
        raise UsageError(
            f"{len(kept)} faces to learn from are fewer than one batch of {recipe.batch}; give more, or a smaller --batch"
        )
    start, theirs = _start(image, llm, kept, recipe, generator)
    sides = Sides(image, llm, theirs)
    if recipe.method in ("ridge", "cca"):
        return _closed(sides, start, (kept, held), recipe, on_epoch)
    return _descend(sides, start, (kept, held), recipe, generator, on_epoch)


def _check(image: Tensor, llm: Tensor, recipe: FitRecipe, faces: int) -> None:
    if image.ndim != 2 or llm.ndim != 2 or len(image) != len(llm):
        raise UsageError(f"pairs of features are needed, (N, D) and (N, P); got {tuple(image.shape)} and {tuple(llm.shape)}")
    if not 0 <= recipe.held_out < 1:
        raise UsageError(f"the held-out share must be at least 0 and below 1, not {recipe.held_out}")
    if recipe.patience is not None and recipe.held_out == 0:
        raise UsageError("stopping early needs held-out faces: give --held-out too")
    if recipe.patience is not None and round(recipe.held_out * faces) < 2:
        raise UsageError(f"of {faces} faces {recipe.held_out:g} are fewer than two to hold out: give a larger --held-out")
    if faces < 3:
        raise UsageError(f"{faces} faces are too few to learn from")
    for name, side in (("image", image), ("LLM", llm)):
        if not all(bool(torch.isfinite(part).all()) for part in torch.split(side, BLOCK)):
            raise ConversionError(f"the {name} features hold NaN or Inf")


def info_nce(z: Tensor, t: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(symmetric InfoNCE, share of z whose nearest t is their own) of a batch z, t (B, P), as in the reference."""
    logits = scale * F.normalize(z, dim=-1) @ F.normalize(t, dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    with torch.no_grad():
        right = (logits.argmax(1) == own).float().mean()
    return loss, right


def _start(image: Tensor, llm: Tensor, kept: Tensor, recipe: FitRecipe, generator: torch.Generator) -> tuple[Tensor, Theirs]:
    """W to begin with, or in closed form, and the LLM side that goes with it."""
    if recipe.method == "infonce":
        bound = 1 / math.sqrt(image.shape[1])  # torch.nn.Linear's own, which the reference starts from
        weight = torch.empty(llm.shape[1], image.shape[1]).uniform_(-bound, bound, generator=generator)
        return weight.to(image.device), None
    if recipe.method == "ridge":
        return ridge(image, llm, kept, recipe.ridge), (None, _mean(llm, kept))
    ours, theirs = canonical(image, llm, kept, recipe)
    return ours, (theirs, theirs @ _mean(llm, kept))


def _closed(
    sides: Sides, weight: Tensor, rows: tuple[Tensor, Tensor], recipe: FitRecipe, on_epoch: Callable[[FitEpoch], None]
) -> Fitted:
    """A W that is there already, judged on the faces learned from and on those held out."""
    began = time.monotonic()
    seen, held = (evaluate(sides, weight, part, recipe) for part in rows)
    report = FitEpoch(0, *seen, *held, time.monotonic() - began)
    on_epoch(report)
    return Fitted(weight.cpu(), (report,), 0, sides.theirs)


def _descend(
    sides: Sides,
    weight: Tensor,
    rows: tuple[Tensor, Tensor],
    recipe: FitRecipe,
    generator: torch.Generator,
    on_epoch: Callable[[FitEpoch], None],
) -> Fitted:
    """InfoNCE by gradient descent, the last incomplete batch of every epoch dropped."""
    kept, held = rows
    weight = weight.clone().requires_grad_()
    if recipe.method == "infonce":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            [weight], lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    else:
        optimizer = torch.optim.Adam([weight], lr=recipe.lr)
    began = time.monotonic()
    start = evaluate(sides, weight.detach(), held, recipe)
    reports = [FitEpoch(0, math.nan, math.nan, *start, time.monotonic() - began)]
    best, best_weight = (start[0], 0), weight.detach().clone()
    for epoch in range(1, recipe.epochs + 1):
        began = time.monotonic()
        order = kept[torch.randperm(len(kept), generator=generator)]
        steps, losses, rights = len(order) // recipe.batch, 0.0, 0.0
        for part in torch.split(order[: steps * recipe.batch], recipe.batch):
            x, t = sides.batch(part)
            loss, right = info_nce(x @ weight.T, t, recipe.scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses, rights = losses + loss.item(), rights + right.item()
        if not (math.isfinite(losses) and bool(torch.isfinite(weight).all())):
            raise ConversionError(f"the fit diverged in epoch {epoch}: its loss is no number; give a smaller --lr")
        seen = evaluate(sides, weight.detach(), held, recipe)
        report = FitEpoch(epoch, losses / steps, rights / steps, *seen, time.monotonic() - began)
        reports.append(report)
        on_epoch(report)
        if recipe.patience is None or seen[0] < best[0]:
            best, best_weight = (seen[0], epoch), weight.detach().clone()
        elif epoch - best[1] >= recipe.patience:
            break
    return Fitted(best_weight.cpu(), tuple(reports), best[1], sides.theirs)


@torch.no_grad()
def evaluate(sides: Sides, weight: Tensor, rows: Tensor, recipe: FitRecipe) -> tuple[float, float]:
    """(loss, retrieval) over batches of ``rows``, the last incomplete one counted only when there is no other; NaN without
    rows."""
    if len(rows) < 2:
        return math.nan, math.nan
    whole = rows[: max(1, len(rows) // recipe.batch) * recipe.batch]
    found = []
    for part in torch.split(whole, recipe.batch):
        x, t = sides.batch(part)
        loss, right = info_nce(x @ weight.T, t, recipe.scale)
        found.append((loss.item(), right.item()))
    losses, rights = zip(*found, strict=True)
    return sum(losses) / len(losses), sum(rights) / len(rights)


def _mean(side: Tensor, rows: Tensor) -> Tensor:
    return torch.stack([side[part.to(side.device)].float().sum(0) for part in torch.split(rows, BLOCK)]).sum(0) / len(rows)


def _covariances(image: Tensor, llm: Tensor, rows: Tensor, both: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """(image x image (D, D), LLM x image (P, D), LLM x LLM (P, P) if asked) of the rows. The LLM side is centred; the image
    side is not, because W is applied without an offset: the large mean that all of a CLIP's features share counts as
    variance, and is projected away rather than amplified."""
    mean = _mean(llm, rows)
    d, p = image.shape[1], llm.shape[1]
    own, cross = image.new_zeros(d, d, dtype=torch.float32), image.new_zeros(p, d, dtype=torch.float32)
    theirs = image.new_zeros(p, p, dtype=torch.float32) if both else None
    for part in torch.split(rows, BLOCK):
        part = part.to(image.device)
        x, t = image[part].float(), llm[part].float() - mean
        own.addmm_(x.T, x)
        cross.addmm_(t.T, x)
        if theirs is not None:
            theirs.addmm_(t.T, t)
    return own / len(rows), cross / len(rows), None if theirs is None else theirs / len(rows)


def ridge(image: Tensor, llm: Tensor, rows: Tensor, share: float) -> Tensor:
    """W = C_tx (C_xx + lambda I)^-1: the linear map from E(x) to centred t with the smallest squared error."""
    own, cross, _ = _covariances(image, llm, rows, both=False)
    own = own.double()
    own += share * own.diagonal().mean() * torch.eye(len(own), dtype=torch.float64, device=own.device)
    weight: Tensor = torch.linalg.solve(own, cross.double().T).T.float().contiguous()
    return weight


def canonical(image: Tensor, llm: Tensor, rows: Tensor, recipe: FitRecipe) -> tuple[Tensor, Tensor]:
    """Canonical directions of both sides, each times the root of its correlation: (rank, D) and (rank, P).

    The singular value decomposition of C_xx^-1/2 C_xt C_tt^-1/2 (Hotelling 1936; with ridge terms: Vinod 1976)."""
    own, cross, theirs = _covariances(image, llm, rows, both=True)
    assert theirs is not None
    if not (float(own.diagonal().sum()) > 0 and float(theirs.diagonal().sum()) > 0):
        raise ConversionError("one side of the pairs is the same for every face: there is nothing to learn from it")
    left, right = _inverse_root(own, recipe.ridge), _inverse_root(theirs, recipe.ridge)
    u, s, v = torch.linalg.svd(left @ cross.T @ right, full_matrices=False)
    rank = min(len(s), recipe.rank or len(s))
    root = s[:rank, None].sqrt()
    return (root * (u[:, :rank].T @ left)).contiguous(), (root * (v[:rank] @ right)).contiguous()


def _inverse_root(matrix: Tensor, share: float) -> Tensor:
    """(matrix + lambda I)^-1/2 of a symmetric matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    lifted = values.clamp(min=0) + share * values.clamp(min=0).mean()
    root: Tensor = (vectors / lifted.sqrt()) @ vectors.T
    return root
