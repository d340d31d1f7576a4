"""Training of a student: on faces with votes, on what teachers say of them, or on a teacher's features alone.

With votes, the loss is (1 - share) H(votes, softmax(l + prior log p)) + share H(teachers, softmax(l)), l = s <f/|f|, c_k>,
p the mean vote: cross-entropy with logit adjustment (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021)
and with the teachers' mean scores on the very view the student sees (Beyer et al., "Knowledge distillation: a good teacher
is patient and consistent", CVPR 2022). Without votes it is 1 - <f/|f|, t/|t|>, t the teacher's feature: the student then
lives in the teacher's space and takes its label sets over. SGD with Nesterov momentum, warm-up, cosine decay, mixup, and an
average of the weights."""

from __future__ import annotations

import csv
import hashlib
import io
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fer_edge.accuracy import war_uar
from fer_edge.arrays import write_npy
from fer_edge.errors import ConversionError
from fer_edge.files import replaced, write_bytes, write_text

from .augment import disturb, mirrored, mixup, view, warp
from .device import training_device
from .language import constants, default_constants, draw, sentence_groups
from .network import InTraining
from .recipe import EpochReport, NetworkConfig, TrainingPlan
from .teachers import ask, mean_scores

ASKING = 0.5
"""The share of an epoch that asking teachers counts for in the fraction done."""
FIRST_VIEW = 1
"""View 0 is the face as it is."""


class Run:
    """The state of one training: network, averaged network, optimizer and epoch, kept in ``work`` so that an interruption
    costs one epoch at most."""

    def __init__(self, plan: TrainingPlan, work: Path) -> None:
        data, config, recipe = plan.data, plan.config, plan.recipe
        self.data, self.recipe, self.work, self.teachers = data, recipe, work, plan.teachers
        torch.manual_seed(recipe.seed)
        self.device = training_device()
        # Channels-last pays with bf16 only, and torch 2.13 crashes in its float32 backward pass at 8 channels.
        self.layout = torch.channels_last if recipe.bf16 else torch.contiguous_format
        net = config.network(recipe.dropout)
        self.net = cast(InTraining, net.to(self.device, memory_format=self.layout))  # type: ignore[call-overload]
        self.mean_net = AveragedModel(self.net, multi_avg_fn=partial(_average, recipe.average), use_buffers=True)
        self.optimizer = self._optimizer()
        self.images = torch.from_numpy(data.train.images)[:, None]
        self.groups = sentence_groups(data.sentences, data.descriptions, data.labels)
        self.steps = len(self.images) // recipe.batch
        self.identity = self._identity(config)
        self.epoch = 0
        self.history: list[EpochReport] = []
        if self.steps == 0:
            raise ConversionError(f"{len(self.images)} faces are fewer than one batch of {recipe.batch}")
        if data.train.targets is None:
            self._check_space(config)
        for teacher in self.teachers:
            teacher.constants(data.labels)  # now, and not when it has been asked about every face
        self.votes = torch.empty(0) if data.train.targets is None else torch.from_numpy(data.train.targets)
        prior = self.votes.mean(0).clamp(min=1e-6)
        self.adjustment = recipe.prior * prior.log()

    def _optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        if recipe.optimizer == "adamw":
            return torch.optim.AdamW(self._groups(), lr=recipe.lr)
        return torch.optim.SGD(self._groups(), lr=recipe.lr, momentum=recipe.momentum, nesterov=True)

    def _groups(self) -> list[dict[str, Any]]:
        """Parameters by weight decay and ``pace``, the factor of the learning rate: the logit scale, one number that sees
        every face, runs away at the pace of the weights."""
        scale, decay = self.net.log_scale, self.recipe.weight_decay
        weights = [p for p in self.net.parameters() if p.ndim > 1]
        plain = [p for p in self.net.parameters() if p.ndim <= 1 and p is not scale]
        return [
            {"params": weights, "weight_decay": decay, "pace": 1.0},
            {"params": plain, "weight_decay": 0.0, "pace": 1.0},
            {"params": [scale], "weight_decay": 0.0, "pace": 0.1},
        ]

    def _check_space(self, config: NetworkConfig) -> None:
        """There must be one teacher, and the student must have the shape of its space."""
        if len(self.teachers) != 1:
            raise ConversionError("faces without votes are learned from exactly one teacher, whose features are matched")
        teacher = self.teachers[0]
        if teacher.r.shape != (config.feature_dim, config.text_dim):
            raise ConversionError(
                f"the teacher {teacher.name} has features of {teacher.r.shape[0]} numbers and text of {teacher.r.shape[1]}; "
                f"the student was given {config.feature_dim} and {config.text_dim}"
            )

    def _identity(self, config: NetworkConfig) -> str:
        data = self.data
        digest = hashlib.sha256(repr((config, self.recipe, tuple(data.labels), data.sentences.text.sha256)).encode())
        for group in self.groups:
            digest.update(group.numpy().tobytes())
        for array in (data.train.images, data.train.targets):
            digest.update(b"" if array is None else array.tobytes())
        for teacher in self.teachers:
            digest.update(teacher.sha256.encode())
        return digest.hexdigest()

    def resume(self) -> None:
        """Go on from ``work``, if it holds this very run. Raises ConversionError when it holds another."""
        self.work.mkdir(parents=True, exist_ok=True)
        whose, file = self.work / "run", self.work / "state.pt"
        if (whose.exists() or file.exists()) and (not whose.exists() or whose.read_text() != self.identity):
            raise ConversionError(
                f"{self.work} holds another training run (other faces, teachers or options, or the other choice of --bf16, "
                "which depends on the machine); remove it or name another --work folder"
            )
        write_text(whose, self.identity)
        if not file.exists():
            return
        try:
            state = torch.load(file, weights_only=True, map_location=self.device)
        except Exception as error:  # torch.load raises whatever its unpickler meets
            raise ConversionError(f"{file} is damaged ({type(error).__name__}); remove {self.work} to start anew") from error
        self.net.load_state_dict(state["net"])
        self.mean_net.load_state_dict(state["mean_net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = [EpochReport(*row) for row in state["history"]]
        self.epoch = len(self.history)

    def save(self) -> None:
        """Write the state, and log.csv from it."""
        state = {
            "net": self.net.state_dict(),
            "mean_net": self.mean_net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": [tuple(asdict(report).values()) for report in self.history],
        }
        stream = io.BytesIO()  # of a full disk, torch tells by an error of its own
        torch.save(state, stream)
        write_bytes(self.work / "state.pt", stream.getvalue())
        with replaced(self.work / "log.csv") as partial:
            _write_log(partial, self.history)

    def run_epoch(self, on_batch: Callable[[float], None]) -> EpochReport:
        """One pass over the faces. Its randomness depends on seed and epoch alone, so a resumed run is the same run."""
        began, total, rate = time.monotonic(), 0.0, 0.0
        number = FIRST_VIEW + (self.epoch % self.recipe.views if self.teachers else self.epoch)
        maps = view(len(self.images), self.recipe.strength, self.recipe.seed, number)
        asked = 0.0 if not self.teachers or self._view_file(number).exists() else ASKING
        taught = self._taught(number, maps, lambda done: on_batch((self.epoch + asked * done) / self.recipe.epochs))
        generator = torch.Generator().manual_seed(self.recipe.seed * 100_003 + self.epoch)
        torch.manual_seed(self.recipe.seed * 100_003 + self.epoch)
        order = torch.randperm(len(self.images), generator=generator)
        maps = mirrored(maps, torch.rand(len(maps), generator=generator) < 0.5)
        self.net.train()
        for step in range(self.steps):
            rate = self._rate(self.epoch + step / self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = rate * group["pace"]
            rows = order[step * self.recipe.batch : (step + 1) * self.recipe.batch]
            total += self._step(rows, maps[rows], None if taught is None else taught[rows], generator)
            on_batch((self.epoch + asked + (1 - asked) * (step + 1) / self.steps) / self.recipe.epochs)
        if not math.isfinite(total):
            raise ConversionError(
                f"the training diverged in epoch {self.epoch + 1}: its loss is no number; start anew with a smaller --lr"
            )
        self.epoch += 1
        war, uar = self._validate()
        seconds = time.monotonic() - began
        report = EpochReport(self.epoch, self.recipe.epochs, total / self.steps, war, uar, rate, seconds)
        self.history.append(report)
        return report

    def _view_file(self, number: int) -> Path:
        return self.work / f"view-{number}.npy"

    def _taught(self, number: int, maps: Tensor, on_chunk: Callable[[float], None]) -> Tensor | None:
        """What the teachers say of this view and its mirror image, averaged: scores (N, K) for faces with votes, else
        normalised features (N, D)."""
        if not self.teachers:
            return None
        file = self._view_file(number)
        if not file.exists():
            answers, share = [], 1 / (2 * len(self.teachers))
            for i, (teacher, side) in enumerate(product(self.teachers, (maps, mirrored(maps)))):
                unit = ask(teacher, self.data.train.pictures, side, lambda done, i=i: on_chunk((i + done) * share))  # type: ignore[misc]
                answers.append((teacher, unit))
            if self.data.train.targets is not None:
                said = mean_scores(answers, self.data.labels)
            else:
                said = F.normalize(torch.from_numpy(answers[0][1] + answers[1][1]), dim=-1).numpy()
            write_npy(file, said.astype(np.float16))
        try:
            return torch.from_numpy(np.load(file, allow_pickle=False).astype(np.float32))
        except (ValueError, EOFError) as error:
            raise ConversionError(f"{file} is damaged; remove it, and its view is asked about again") from error

    def _rate(self, done: float) -> float:
        """Learning rate after ``done`` epochs: linear warm-up times cosine decay to zero."""
        rising = min(1.0, (done + 1 / self.steps) / self.recipe.warmup_epochs)
        return self.recipe.lr * rising * 0.5 * (1 + math.cos(math.pi * done / self.recipe.epochs))

    def _step(self, rows: Tensor, maps: Tensor, taught: Tensor | None, generator: torch.Generator) -> float:
        recipe = self.recipe
        faces = warp(self.images[rows].to(self.device).float() / 255, maps.to(self.device))
        faces = disturb(faces, recipe.strength, generator)
        votes = self.votes[rows] if len(self.votes) else None
        if votes is not None:
            partner, share = mixup(len(rows), recipe.mixup, generator)
            own = share[:, None, None, None].to(self.device)
            faces = own * faces + (1 - own) * faces[partner.to(self.device)]
            votes, taught = (
                None if t is None else share[:, None] * t + (1 - share[:, None]) * t[partner] for t in (votes, taught)
            )
        with torch.autocast(self.device, torch.bfloat16, enabled=recipe.bf16):
            feature = self.net(faces.contiguous(memory_format=self.layout))
        loss = self._loss(feature.float(), votes, taught, generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.mean_net.update_parameters(self.net)
        return loss.item()

    def _loss(self, feature: Tensor, votes: Tensor | None, taught: Tensor | None, generator: torch.Generator) -> Tensor:
        if votes is None:
            assert taught is not None
            return (1 - (F.normalize(feature, dim=-1) * taught.to(self.device)).sum(-1)).mean()
        text = draw(self.groups, self.recipe.sentences_per_class, self.recipe.text_noise, generator).to(self.device)
        logits = self.net.logits(feature, constants(text, self.net.text_projection))
        own = F.cross_entropy(logits + self.adjustment.to(self.device), votes.to(self.device))
        if taught is None:
            return own
        share = self.recipe.teacher_share
        return (1 - share) * own + share * F.cross_entropy(logits, taught.to(self.device))

    def learned(self) -> InTraining:
        """The averaged network."""
        return cast(InTraining, self.mean_net.module)

    def class_constants(self) -> Tensor:
        """Constants (K, D) of the labels: from their descriptions, or the teacher's."""
        if self.data.train.targets is None:
            return torch.from_numpy(self.teachers[0].constants(self.data.labels)[0])
        return default_constants(self.groups, self.learned().text_projection.detach().cpu())

    def _validate(self) -> tuple[float, float]:
        faces = self.data.validation
        if faces is None or faces.labels is None:
            return math.nan, math.nan
        net = self.learned().eval()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.recipe.bf16):
            unit = unit_features(net, faces.images, self.device)
        return war_uar((unit @ self.class_constants().T).argmax(1).numpy(), faces.labels)


@torch.inference_mode()
def unit_features(network: torch.nn.Module, images: NDArray[np.uint8], device: str = "cpu", batch: int = 256) -> Tensor:
    """Normalised features (N, D) of gray faces (N, S, S) by a network in eval mode, in float32."""
    rows = []
    for start in range(0, len(images), batch):
        x = torch.from_numpy(images[start : start + batch])[:, None].to(device).float() / 255
        rows.append(F.normalize(network(x).float(), dim=-1).cpu())
    return torch.cat(rows)


def _average(decay: float, means: Sequence[Tensor], values: Sequence[Tensor], count: Tensor | int) -> None:
    """Exponential moving average in place; ``count`` averaged before. The first steps weigh more, so that a short run does
    not return its first weights."""
    step = get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))  # type: ignore[no-untyped-call]
    step(means, values, count)


def _write_log(path: Path, history: Sequence[EpochReport]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(EpochReport)])
        writer.writeheader()
        writer.writerows(asdict(report) for report in history)
