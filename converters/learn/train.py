"""Training of the student: faces against class constants that come from sentences.

Loss: cross-entropy between FER+ vote distributions and softmax(s <f/|f|, c_k>), where
c_k = mean_j normalise(R t_kj) over a few sentences of class k, drawn anew for every batch.
Recipe: SGD with Nesterov momentum, warm-up and cosine decay, flips, small affine and brightness changes, erased patches.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fer_edge.errors import ConversionError

from .faces import Faces
from .sentences import Sentences
from .student import StudentCheckpoint, StudentConfig, StudentInTraining


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. ``sentences_per_class`` sentences are drawn per class and batch, ``text_noise`` is added to them."""

    epochs: int = 25
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 2.0
    dropout: float = 0.2
    sentences_per_class: int = 4
    text_noise: float = 0.02
    erase: float = 0.25
    bf16: bool = True
    seed: int = 1


@dataclass(frozen=True)
class EpochReport:
    """One line of the training log. ``war`` and ``uar`` are fractions on the validation faces, NaN without any."""

    epoch: int
    epochs: int
    loss: float
    war: float
    uar: float
    lr: float
    seconds: float


def augment(images: Tensor, erase: float, generator: torch.Generator) -> Tensor:
    """Random flips, affine changes, brightness, contrast and erased patches of faces (N, 1, S, S) in [0, 1]."""
    n, _, _, size = images.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(n).uniform_(low, high, generator=generator)

    angle, scale = uniform(-12, 12).deg2rad(), uniform(0.87, 1.12)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack(
        [torch.stack([mirror * cos, -sin, uniform(-0.14, 0.14)], 1), torch.stack([mirror * sin, cos, uniform(-0.14, 0.14)], 1)], 1
    )
    moved = F.grid_sample(images, F.affine_grid(theta, list(images.shape), align_corners=False), padding_mode="border", align_corners=False)
    mean = moved.mean((1, 2, 3), keepdim=True)
    out = (moved - mean) * uniform(0.7, 1.3)[:, None, None, None] + mean + uniform(-0.15, 0.15)[:, None, None, None]
    side = (uniform(0.15, 0.4) * size).long()
    left, top = (uniform(0, 1) * (size - side)).long(), (uniform(0, 1) * (size - side)).long()
    at = torch.arange(size)
    hole = ((at >= left[:, None]) & (at < (left + side)[:, None]))[:, None, None, :] & ((at >= top[:, None]) & (at < (top + side)[:, None]))[:, None, :, None]
    hole &= (uniform(0, 1) < erase)[:, None, None, None]
    return torch.where(hole, mean, out).clamp(0, 1)


def class_vectors(sentences: Sentences, table: Mapping[str, Sequence[str]], labels: Sequence[str]) -> Tensor:
    """Sentence vectors (K, J, T) of the labels; every label must have the same number J of sentences."""
    groups = [sentences.lookup(table[label]) for label in labels]
    if len({len(group) for group in groups}) != 1:
        raise ConversionError("every expression needs the same number of descriptions")
    return torch.from_numpy(np.stack(groups))


def constants(vectors: Tensor, projection: Tensor) -> Tensor:
    """c_k = mean_j normalise(R t_kj), not normalised again: (K, J, T), (D, T) -> (K, D)."""
    return F.normalize(vectors @ projection.T, dim=-1).mean(1)


def scores(checkpoint: StudentCheckpoint, images: NDArray[np.uint8], class_constants: Tensor, batch: int = 256) -> NDArray[np.float32]:
    """Softmax scores (N, K) of gray faces (N, S, S) by the float student."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch])[:, None].float() / 255
            rows.append((checkpoint.scale * F.normalize(checkpoint.student(x), dim=-1) @ class_constants.T).softmax(-1).numpy())
    result: NDArray[np.float32] = np.concatenate(rows)
    return result


def war_uar(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> tuple[float, float]:
    """Accuracy and mean recall over the classes present; truth -1 is left out."""
    kept = truth >= 0
    hit = predicted[kept] == truth[kept]
    return float(hit.mean()), float(np.mean([hit[truth[kept] == k].mean() for k in np.unique(truth[kept])]))


def _checkpoint(net: StudentInTraining, meta: Mapping[str, object]) -> StudentCheckpoint:
    return StudentCheckpoint(net.deployed(), net.text_projection.detach().clone(), float(net.log_scale.exp().clamp(max=100.0)), meta)


def train_student(
    train: Faces,
    validation: Faces | None,
    sentences: Sentences,
    table: Mapping[str, Sequence[str]],
    labels: Sequence[str],
    config: StudentConfig,
    recipe: Recipe,
    work: Path,
    on_epoch: Callable[[EpochReport], None],
    on_batch: Callable[[float], None] = lambda done: None,
) -> StudentCheckpoint:
    """Train a student, or go on where ``work`` (one state file and log.csv) was left by an interruption.

    ``on_batch`` gets the fraction done. Raises ConversionError when ``work`` belongs to another recipe.
    """
    torch.manual_seed(recipe.seed)
    net = StudentInTraining(config, recipe.dropout).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in net.parameters() if p.ndim > 1]
    plain = [p for p in net.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
    identity = repr((config, recipe, tuple(labels), sentences.sha256))
    start, state_file = 0, work / "state.pt"
    work.mkdir(parents=True, exist_ok=True)
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        if state["identity"] != identity:
            raise ConversionError(f"{work} holds another training run; remove it or name another --work folder")
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["epoch"]
    vectors = class_vectors(sentences, table, labels)
    images, targets = torch.from_numpy(train.images)[:, None], torch.from_numpy(train.targets)
    steps = len(images) // recipe.batch
    for epoch in range(start, recipe.epochs):
        began, total = time.monotonic(), 0.0
        generator = torch.Generator().manual_seed(recipe.seed * 100_003 + epoch)
        torch.manual_seed(recipe.seed * 100_003 + epoch)
        order = torch.randperm(len(images), generator=generator)
        net.train()
        for step in range(steps):
            done = epoch + step / steps
            rising = min(1.0, (done + 1 / steps) / recipe.warmup_epochs)
            lr = recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * done / recipe.epochs))
            for group in optimizer.param_groups:
                group["lr"] = lr
            rows = order[step * recipe.batch : (step + 1) * recipe.batch]
            faces = augment(images[rows].float() / 255, recipe.erase, generator).contiguous(memory_format=torch.channels_last)
            drawn = torch.randperm(vectors.shape[1], generator=generator)[: recipe.sentences_per_class]
            text = vectors[:, drawn] + recipe.text_noise * torch.randn(vectors[:, drawn].shape, generator=generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
                feature = net(faces)
            logits = net.logits(feature.float(), constants(text, net.text_projection))
            loss = F.cross_entropy(logits, targets[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item()
            on_batch((done + 1 / steps) / recipe.epochs)
        war = uar = math.nan
        if validation is not None:
            current = _checkpoint(net, {})
            predicted = scores(current, validation.images, constants(vectors, current.text_projection)).argmax(1)
            war, uar = war_uar(predicted, validation.labels)
        report = EpochReport(epoch + 1, recipe.epochs, total / steps, war, uar, lr, time.monotonic() - began)
        _save_state(state_file, {"identity": identity, "net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1})
        _log(work / "log.csv", report)
        on_epoch(report)
    meta = {"recipe": asdict(recipe), "labels": list(labels), "faces": len(images), "text_encoder": {"kind": sentences.kind, "source": sentences.source, "sha256": sentences.sha256}}
    return _checkpoint(net, meta)


def _save_state(path: Path, state: Mapping[str, object]) -> None:
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _log(path: Path, report: EpochReport) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(report)))
        if fresh:
            writer.writeheader()
        writer.writerow(asdict(report))
