"""Every runtime at fp32 against the published formula, written plainly in float64 at the reference's shapes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

import fer_edge
from fer_edge.converters.convert import Plan, convert
from fer_edge.engines import RUNTIMES
from lab.random_clip import write_clip, write_head

CASES = {
    "D512 with P3": {"dim": 512, "width": 768, "heads": 12, "prompts": "P3"},
    "D768 with the reference's ensemble P4": {"dim": 768, "width": 1024, "heads": 16, "prompts": "P4"},
}


@dataclass(frozen=True)
class Case:
    """A bundle, the pictures, and the formula's scores: of each picture (N, K), of all as a video (K,), of a bicubic resize
    (N, K)."""

    bundle: Path
    pictures: list[Image.Image]
    scores: np.ndarray
    video: np.ndarray
    bicubic: np.ndarray


def formula(
    model: Any, weight: torch.Tensor, folder: Path, prompts: list[list[str]]
) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """softmax over k of mean_j s <z/|z|, t_kj/|t_kj|>, z = W E(x), for a video the mean over its frames
    (Exp-CLIP models/Exp_CLIP.py, test.py); the result maps pictures to (scores of each, scores of the video)."""
    model, weight = model.double(), weight.double()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    side = model.config.vision_config.image_size
    with torch.inference_mode():
        tokens = tokenizer([p for group in prompts for p in group], padding=True, return_tensors="pt")
        t = model.get_text_features(**tokens).pooler_output @ weight.T
        t = (t / t.norm(dim=-1, keepdim=True)).reshape(len(prompts), len(prompts[0]), -1)

    @torch.inference_mode()
    def score(pictures: list[Image.Image], resample: Image.Resampling) -> tuple[np.ndarray, np.ndarray]:
        pixels = [np.asarray(f.convert("RGB").resize((side, side), resample), dtype=np.float64) / 255 for f in pictures]
        x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        frames = model.get_image_features(pixel_values=x).pooler_output @ weight.T
        z = torch.cat([frames, frames.mean(0, keepdim=True)])
        z = z / z.norm(dim=-1, keepdim=True)
        logits = model.logit_scale.exp() * torch.einsum("nd,kjd->nkj", z, t).mean(-1)
        scores = logits.softmax(-1).numpy()
        return scores[:-1], scores[-1]

    return score


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path) -> Case:
    """One shape, converted for every runtime, with the formula's answers."""
    shape, folder = dict(CASES[request.param]), tmp_path_factory.mktemp("exact")
    kind = shape.pop("prompts")
    model = write_clip(folder / "clip", patch=32, layers=2, **shape)
    weight = write_head(folder / "head.pth", shape["dim"])
    table = json.loads((data / "expclip_prompts.json").read_text())
    (folder / "prompts.json").write_text(json.dumps(table[kind]))
    given = "P3" if kind == "P3" else str(folder / "prompts.json")
    plan = Plan(precisions=("fp32",), projection=folder / "head.pth", prompts=given, labels="rafdb7")
    convert(str(folder / "clip"), folder / "bundle", plan)
    faces = [sorted((data / "lfw_expressions" / c).iterdir())[0] for c in ("happiness", "anger", "surprise", "neutral")]
    pictures = [Image.open(p) for p in [*faces, data / "scenes" / "images" / "fr_obama.jpg"]]
    score = formula(model, weight, folder / "clip", [table[kind][label] for label in table["label_order"][:7]])
    bicubic, _ = score(pictures, Image.Resampling.BICUBIC)
    return Case(folder / "bundle", pictures, *score(pictures, Image.Resampling.BILINEAR), bicubic)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_scores_equal_the_published_formula(case: Case, runtime: str) -> None:
    with fer_edge.load(case.bundle, runtime=runtime, precision="fp32") as clf:
        assert clf.execution_precision == "fp32"
        got = np.array([list(p.scores.values()) for p in clf.predict_batch(case.pictures)])
        video = np.array(list(clf.predict_clip(case.pictures).scores.values()))
    assert np.abs(got - case.scores).max() < 1e-4
    assert np.abs(video - case.video).max() < 1e-4


def test_the_comparison_has_teeth(case: Case) -> None:
    """Scores are spread over labels, differ between faces, and a bicubic resize would be seen."""
    assert (case.scores > 0.01).sum(1).min() >= 3
    assert np.abs(case.scores[0] - case.scores[-1]).max() > 1e-3
    assert np.abs(case.scores - case.bicubic).max() > 1e-4
