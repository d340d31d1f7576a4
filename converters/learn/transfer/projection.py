"""The projection file that ``transfer fit`` writes and ``convert --projection`` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from .cache import Pairs
from .fit import FitRecipe, Fitted

FORMAT = "fer-edge-projection"


def write_projection(path: Path, fitted: Fitted, recipe: FitRecipe, pairs: Pairs) -> None:
    """Write W under the reference's key, ``mlp.weight``, in one step; how it was made goes into the header."""
    made = {
        "recipe": asdict(recipe),
        "kept_epoch": fitted.kept,
        "faces": len(pairs.rows),
        "image": asdict(pairs.plan.image),
        "llm": asdict(pairs.plan.llm),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file({"mlp.weight": fitted.weight.contiguous()}, partial, metadata={FORMAT: json.dumps(made, sort_keys=True)})
    partial.replace(path)
