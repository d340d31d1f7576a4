"""The picture of a training: loss, WAR and UAR over epochs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fer_edge.files import replaced

from .recipe import EpochReport


def draw_curve(history: Sequence[EpochReport], path: Path) -> None:
    """Draw a training's log as PNG, in one step."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    epochs = [report.epoch for report in history]
    left.plot(epochs, [report.loss for report in history], color="tab:gray")
    left.set(xlabel="epoch", ylabel="training loss", xlim=(0, history[-1].epochs))
    for name, colour in (("war", "tab:blue"), ("uar", "tab:orange")):
        values = np.array([getattr(report, name) for report in history])
        if np.isfinite(values).any():
            right.plot(epochs, values * 100, color=colour, label=f"{name.upper()} {values[-1]:.1%}")
    right.set(xlabel="epoch", ylabel="validation, percent", xlim=(0, history[-1].epochs))
    right.grid(alpha=0.3)
    if right.lines:
        right.legend(loc="lower right")
    with replaced(path) as partial:
        figure.savefig(partial, format="png", dpi=100)
