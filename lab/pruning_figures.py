"""What fewer operations cost in answers: a small vision transformer, trained here, whole and lighter."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from fer_edge.accuracy import war_uar
from fer_edge.console import emit, say
from fer_edge.converters.pruning import MergingTower, Pruning, resize_positions
from fer_edge.converters.student.faces import Faces, crops, load_faces
from fer_edge.converters.student.network import InTraining
from fer_edge.converters.student.plan import plan_training
from fer_edge.converters.student.recipe import EpochReport, Recipe, TrainingPlan
from fer_edge.converters.student.run import Run
from fer_edge.converters.student.train import run_epochs
from fer_edge.golden import compare
from fer_edge.labels import LABEL_SETS, LabelSet

from .vit import PATCH, VitConfig

LABELS = LABEL_SETS["ferplus8"]
RECIPE = Recipe(optimizer="adamw", batch=64, lr=1e-3, weight_decay=0.05, warmup_epochs=0.5, dropout=0.1)
STRENGTH = 0.5
WAYS = (
    Pruning(),
    Pruning(40),
    Pruning(32),
    Pruning(24),
    Pruning(None, 1),
    Pruning(None, 2),
    Pruning(None, 3),
    Pruning(None, 4),
    Pruning(None, 6),
    Pruning(40, 2),
)
"""Of 37 tokens and 6 layers: a B/32 has 50 and 12."""

file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("faces", type=file)
@click.argument("validation", type=file)
@click.option("--work", type=click.Path(path_type=Path), default="runs/vit", show_default=True)
@click.option("--epochs", default=5, show_default=True)
def lighter(faces: Path, validation: Path, work: Path, epochs: int) -> None:
    """A small ViT, trained on FACES, with a smaller input and with merged tokens, on VALIDATION in float32: share of the
    multiplications, tokens before the first layer and after the last, WAR, UAR, and agreement and centred cosine with the
    whole one. Nothing is trained after the change."""
    plan = plan_training(faces, (), validation, strength=STRENGTH)
    drawn = {name: getattr(plan.recipe, name) for name in ("strength", "mixup", "bf16")}
    plan = TrainingPlan(plan.data, VitConfig(), replace(RECIPE, epochs=epochs, **drawn))
    run = Run(plan, work)

    def line(report: EpochReport) -> None:
        say(f"epoch {report.epoch}/{epochs}, loss {report.loss:.4f}, WAR {report.war:.4f}, {report.seconds:.0f} s")

    run_epochs(run, line, lambda done: None)
    emit({"figure": "lighter", "epochs": epochs, "ways": compared(run, VitConfig(), load_faces(validation, LABELS))})


def compared(run: Run, config: VitConfig, test: Faces) -> list[dict[str, Any]]:
    """Every way of :data:`WAYS`, against the first one, the whole network."""
    assert test.labels is not None
    net = run.learned().cpu().eval()
    class_constants = run.class_constants().numpy()
    labels = LabelSet(
        "ferplus8", LABELS, class_constants, float(net.log_scale.detach().exp()), 1.0, tuple(("",) for _ in LABELS)
    )
    rows: list[dict[str, Any]] = []
    whole: NDArray[np.float32] | None = None
    for way in WAYS:
        features, tokens = _features(copy.deepcopy(net), config, way, test)
        whole = features if whole is None else whole
        macs = config.macs(tokens)
        parity = compare(features, None, whole, labels)
        war, uar = war_uar(labels.logits(features).argmax(1), test.labels)
        rows.append(
            {
                "way": str(way) or "whole",
                "macs_share": round(macs / (rows[0]["macs"] if rows else macs), 3),
                "macs": macs,
                "tokens": [tokens[0], tokens[-1]],
                "war": round(war, 4),
                "uar": round(uar, 4),
                "agreement": round(parity.top1_agreement, 4),
                "centred_cosine": round(parity.centred_cosine, 4),
            }
        )
    return rows


@torch.inference_mode()
def _features(net: InTraining, config: VitConfig, way: Pruning, test: Faces) -> tuple[NDArray[np.float32], list[int]]:
    """Features (N, D) of the test faces, and the tokens of each layer. Changes ``net``."""
    vision: Any = net.body.vision
    size = way.input_size or config.size
    if way.input_size is not None:
        resize_positions(vision, size)
    tower = MergingTower(vision, way.merge_tokens).eval()
    images = torch.from_numpy(crops(test.pictures, size, "gray")).permute(0, 3, 1, 2)
    rows = [net.head(tower(part.float() / 255)) for part in torch.split(images, 128)]
    tokens = [(size // PATCH) ** 2 + 1]
    for count in tower.merged:
        tokens.append(tokens[-1] - count)
    features: NDArray[np.float32] = torch.cat(rows).numpy()
    return features, tokens
