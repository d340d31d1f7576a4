"""Training of the student: faces against class constants that come from sentences.

Loss: cross-entropy between FER+ vote distributions and softmax(s <f/|f|, c_k>), where c_k = mean_j normalise(R t_kj)
over a few sentences of class k, drawn anew for every batch. Recipe: SGD with Nesterov momentum, warm-up and cosine
decay, flips, small affine and brightness changes, erased patches."""

from __future__ import annotations

import csv
import hashlib
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
    """Hyper-parameters. ``sentences_per_class`` sentences are drawn per class and batch, ``text_noise`` is added to
    them."""

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
class TrainingData:
    """Faces, and the sentences (label -> descriptions, with their vectors) that the class constants are made from."""

    train: Faces
    validation: Faces | None
    sentences: Sentences
    descriptions: Mapping[str, Sequence[str]]
    labels: Sequence[str]


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
        [
            torch.stack([mirror * cos, -sin, uniform(-0.14, 0.14)], 1),
            torch.stack([mirror * sin, cos, uniform(-0.14, 0.14)], 1),
        ],
        1,
    )
    moved = F.grid_sample(
        images,
        F.affine_grid(theta, list(images.shape), align_corners=False),
        padding_mode="border",
        align_corners=False,
    )
    mean = moved.mean((1, 2, 3), keepdim=True)
    out = (moved - mean) * uniform(0.7, 1.3)[:, None, None, None] + mean + uniform(-0.15, 0.15)[:, None, None, None]
    side = (uniform(0.15, 0.4) * size).long()
    left, top = (uniform(0, 1) * (size - side)).long(), (uniform(0, 1) * (size - side)).long()
    at = torch.arange(size)
    hole = ((at >= left[:, None]) & (at < (left + side)[:, None]))[:, None, None, :] & (
        (at >= top[:, None]) & (at < (top + side)[:, None])
    )[:, None, :, None]
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


def scores(
    checkpoint: StudentCheckpoint, images: NDArray[np.uint8], class_constants: Tensor, batch: int = 256
) -> NDArray[np.float32]:
    """Softmax scores (N, K) of gray faces (N, S, S) by the float student."""
    rows = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = torch.from_numpy(images[start : start + batch])[:, None].float() / 255
            rows.append(
                (checkpoint.scale * F.normalize(checkpoint.student(x), dim=-1) @ class_constants.T).softmax(-1).numpy()
            )
    result: NDArray[np.float32] = np.concatenate(rows)
    return result


def war_uar(predicted: NDArray[np.integer], truth: NDArray[np.integer]) -> tuple[float, float]:
    """Accuracy and mean recall over the classes present; truth -1 is left out."""
    kept = truth >= 0
    hit = predicted[kept] == truth[kept]
    return float(hit.mean()), float(np.mean([hit[truth[kept] == k].mean() for k in np.unique(truth[kept])]))


class _Run:
    """The state of one training: network, optimizer and epoch, kept in ``work`` so that an interruption costs one epoch."""

    def __init__(self, data: TrainingData, config: StudentConfig, recipe: Recipe, work: Path) -> None:
        torch.manual_seed(recipe.seed)
        self.data, self.recipe, self.work = data, recipe, work
        # Channels-last pays with bf16 only, and torch 2.13 crashes in its float32 backward pass at 8 channels.
        self.layout = torch.channels_last if recipe.bf16 else torch.contiguous_format
        self.net = StudentInTraining(config, recipe.dropout).to(memory_format=self.layout)  # type: ignore[call-overload]
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=True)
        self.vectors = class_vectors(data.sentences, data.descriptions, data.labels)
        self.images = torch.from_numpy(data.train.images)[:, None]
        self.targets = torch.from_numpy(data.train.targets)
        self.steps = len(self.images) // recipe.batch
        self.identity = repr((config, recipe, tuple(data.labels), data.sentences.sha256, _faces_sha256(data.train)))
        self.epoch = 0
        if self.steps == 0:
            raise ConversionError(f"{len(self.images)} faces are fewer than one batch of {recipe.batch}")

    def resume(self) -> None:
        """Go on from ``work``, if it holds this very run. Raises ConversionError when it holds another."""
        self.work.mkdir(parents=True, exist_ok=True)
        file = self.work / "state.pt"
        if not file.exists():
            return
        state = torch.load(file, weights_only=True)
        if state["identity"] != self.identity:
            raise ConversionError(f"{self.work} holds another training run; remove it or name another --work folder")
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch = state["epoch"]

    def save(self) -> None:
        """Write the state in one step."""
        file, partial = self.work / "state.pt", self.work / "state.partial"
        state = {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save({**state, "identity": self.identity, "epoch": self.epoch}, partial)
        partial.replace(file)

    def checkpoint(self, meta: Mapping[str, object]) -> StudentCheckpoint:
        """The deployed form of the network as it is."""
        scale = float(self.net.log_scale.detach().exp().clamp(max=100.0))
        return StudentCheckpoint(self.net.deployed(), self.net.text_projection.detach().clone(), scale, meta)

    def run_epoch(self, on_batch: Callable[[float], None]) -> EpochReport:
        """One pass over the faces. Its randomness depends on seed and epoch alone, so a resumed run is the same run."""
        began, total, epochs = time.monotonic(), 0.0, self.recipe.epochs
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        self.net.train()
        rate = 0.0
        for step in range(self.steps):
            rate = self._rate(self.epoch + step / self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            rows = order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
            total += self._step(rows, generator)
            on_batch((self.epoch + (step + 1) / self.steps) / epochs)
        self.epoch += 1
        war, uar = self._validate()
        return EpochReport(self.epoch, epochs, total / self.steps, war, uar, rate, time.monotonic() - began)

    def _rate(self, done: float) -> float:
        """Learning rate after ``done`` epochs: linear warm-up times cosine decay to zero."""
        rising = min(1.0, (done + 1 / self.steps) / self.recipe.warmup_epochs)
        return self.recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * done / self.recipe.epochs))

    def _step(self, rows: Tensor, generator: torch.Generator) -> float:
        recipe = self.recipe
        faces = augment(self.images[rows].float() / 255, recipe.erase, generator)
        drawn = self.vectors[:, torch.randperm(self.vectors.shape[1], generator=generator)[: recipe.sentences_per_class]]
        text = drawn + recipe.text_noise * torch.randn(drawn.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            feature = self.net(faces.contiguous(memory_format=self.layout))
        logits = self.net.logits(feature.float(), constants(text, self.net.text_projection))
        loss = F.cross_entropy(logits, self.targets[rows])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.item()

    def _validate(self) -> tuple[float, float]:
        if self.data.validation is None:
            return math.nan, math.nan
        current = self.checkpoint({})
        predicted = scores(current, self.data.validation.images, constants(self.vectors, current.text_projection)).argmax(1)
        return war_uar(predicted, self.data.validation.labels)


def train_student(
    data: TrainingData,
    config: StudentConfig,
    recipe: Recipe,
    work: Path,
    on_epoch: Callable[[EpochReport], None],
    on_batch: Callable[[float], None] = lambda done: None,
) -> StudentCheckpoint:
    """Train a student, or go on where ``work`` (state.pt and log.csv) was left by an interruption.

    ``on_batch`` gets the fraction done. Raises ConversionError when ``work`` belongs to another run.
    """
    run = _Run(data, config, recipe, work)
    run.resume()
    while run.epoch < recipe.epochs:
        report = run.run_epoch(on_batch)
        run.save()
        _log(work / "log.csv", report)
        on_epoch(report)
    table = data.sentences
    text = {"kind": table.kind, "source": table.source, "sha256": table.sha256}
    meta = {"recipe": asdict(recipe), "labels": list(data.labels), "faces": len(data.train.images), "text_encoder": text}
    return run.checkpoint(meta)


def _faces_sha256(faces: Faces) -> str:
    digest = hashlib.sha256(faces.images.tobytes())
    digest.update(faces.targets.tobytes())
    return digest.hexdigest()


def _log(path: Path, report: EpochReport) -> None:
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(report)))
        if fresh:
            writer.writeheader()
        writer.writerow(asdict(report))
