"""The projection file that ``transfer fit`` writes and ``convert --projection`` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save

from fer_edge.errors import UsageError
from fer_edge.files import check_target, write_bytes

from ..sources import PROJECTION
from .feature_pairs import FeaturePairs
from .fit import FitRecipe, Fitted


def check_projection(path: Path) -> None:
    """Raise UsageError for a file that :func:`write_projection` could not write: before the fit, not after it."""
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: a projection is a safetensors file; name it so")
    check_target(path, make_folder=True)


def write_projection(path: Path, fitted: Fitted, recipe: FitRecipe, pairs: FeaturePairs) -> None:
    """Write W under the reference's key, ``mlp.weight``, in one step; how it was made goes into the header. Raises
    UsageError for another ending than .safetensors."""
    made = {
        "recipe": asdict(recipe),
        "kept_epoch": fitted.kept,
        "faces": len(pairs.rows),
        "image": asdict(pairs.plan.image),
        "llm": asdict(pairs.plan.llm),
    }
    check_projection(path)
    write_bytes(
        path, save({"mlp.weight": fitted.weight.contiguous()}, metadata={PROJECTION: json.dumps(made, sort_keys=True)})
    )
