"""Figures of the knowledge transfer: what each way of fitting finds on planted data, and what the published one costs."""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from typing import Any

import click
import torch

from fer_edge.console import emit, say

from .transfer.fit import METHODS, FitRecipe, fit
from .transfer.planted import Plan, planted, shuffled, zero_shot

PLANS = {
    "planted": Plan(),
    "planted, as many faces as the paper": Plan(faces=48_640),
    "planted, LLM features no linear function": Plan(bent=True),
    "planted, smaller identity": Plan(identity=3.0, prompt_nuisance=1.0),
}


@click.command("planted")
@click.option("--seeds", default=3, show_default=True)
def planted_table(seeds: int) -> None:
    """Zero-shot accuracy on planted data by every method: before, after, with shuffled LLM features, and with the true
    subspace known; means over seeds."""
    found: dict[str, Any] = {}
    for name, plan in PLANS.items():
        rows: dict[str, list[float]] = {}
        for seed in range(seeds):
            data = planted(replace(plan, seed=seed))
            rows.setdefault("before", []).append(zero_shot(data, None))
            rows.setdefault("ceiling", []).append(zero_shot(data, data.expression))
            for method in METHODS:
                for kind, pairs in (("", data), (", shuffled", shuffled(data))):
                    weight = fit(pairs.image, pairs.llm, FitRecipe(method=method)).weight
                    rows.setdefault(f"{method}{kind}", []).append(zero_shot(data, weight))
        found[name] = {key: round(sum(values) / len(values), 4) for key, values in rows.items()}
        say(f"{name}: {found[name]}")
    emit({"figure": "planted", "seeds": seeds, "accuracy": found})


@click.command("fit-speed")
@click.option("--faces", default=48_640, show_default=True)
def fit_speed(faces: int) -> None:
    """Seconds and peak memory of the published recipe, five epochs, on random pairs of 512 and 4096 numbers in fp16; and of
    the closed forms."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(faces, 512, generator=generator).half()
    llm = torch.cat([torch.randn(4096, 4096, generator=generator).half() for _ in range(-(-faces // 4096))])[:faces]
    seconds = {}
    for method in ("infonce", "ridge", "cca"):
        began = time.monotonic()
        fit(image, llm, FitRecipe(method=method))
        seconds[method] = round(time.monotonic() - began, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    emit({"figure": "fit-speed", "faces": faces, "seconds": seconds, "peak_mb": round(peak)})
