"""Figures of the knowledge transfer: what each way of fitting finds on planted data, what the published one costs, and what
the features of a face cost at the size of the real models."""

from __future__ import annotations

import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from fer_edge.console import emit, say
from fer_edge.converters.transfer.cache import CachePlan, Row, Shard, Side, shard_file, write_shard
from fer_edge.converters.transfer.fit import METHODS, FitRecipe, fit
from fer_edge.errors import UsageError
from fer_edge.image import IMAGE_SUFFIXES, load_picture, to_input

from .planted import Plan, planted, shuffled, zero_shot

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


@dataclass(frozen=True)
class Depth:
    """A tower measured at two depths: what one layer costs, and all of them."""

    layers: int
    build: Callable[[int], Callable[[], object]]


SHALLOW, DEEPER = 1, 3


@click.command("face-cost")
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--batch", default=4, show_default=True, help="Faces at once.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option("--times", default=3, show_default=True, help="Runs of each tower; the median counts.")
def face_cost(photos: Path, batch: int, device: str, dtype: str, times: int) -> None:
    """Seconds a face in every step of 'transfer features' with CLIP B/32 and BLIP-2 FlanT5-XXL, at random weights.

    Towers are run with one layer and with three: a layer costs half the difference, and the whole is that times the layers
    of the real model. So neither 12 billion weights nor their memory are needed. PHOTOS: some to decode."""
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    decoding, size = _decoding(photos)
    seconds: dict[str, float] = {"decode_and_resize": decoding}
    with torch.inference_mode():
        for name, tower in _towers(batch, device, kind).items():
            took = [_median(tower.build(depth), times, device) for depth in (SHALLOW, DEEPER)]
            layer = (took[1] - took[0]) / (DEEPER - SHALLOW)
            seconds[name] = (took[0] + layer * (tower.layers - SHALLOW)) / batch
            say(f"{name}: {seconds[name]:.4f} s a face ({tower.layers} layers of {layer / batch:.4f} s)")
    per_face, shard_seconds = _shard_cost()
    seconds["write_shard"] = shard_seconds
    found = {name: round(value, 6) for name, value in seconds.items()}
    setting = {"photo": list(size), "batch": batch, "device": device, "dtype": dtype, "threads": torch.get_num_threads()}
    emit(
        {
            "figure": "face-cost",
            **setting,
            "seconds_a_face": found,
            "sum": round(sum(seconds.values()), 4),
            "bytes": per_face,
        }
    )


def _median(run: Callable[[], object], times: int, device: str) -> float:
    run()
    took = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def _decoding(photos: Path, most: int = 200) -> tuple[float, tuple[int, int]]:
    """(seconds to read a file, decode it and make both models' inputs of it; median width and height)."""
    files = sorted(p for p in photos.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)[:most]
    if not files:
        raise UsageError(f"{photos} holds no images to decode ({', '.join(sorted(IMAGE_SUFFIXES))})")
    sizes = []
    began = time.perf_counter()
    for file in files:
        picture = load_picture(file)
        sizes.append(picture.size)
        for _ in ("CLIP", "BLIP-2"):
            to_input(picture, (224, 224), "rgb")
    seconds = (time.perf_counter() - began) / len(files)
    width, height = (int(statistics.median(side)) for side in zip(*sizes, strict=True))
    return seconds, (width, height)


def _shard_cost(faces: int = 512) -> tuple[int, float]:
    """(bytes, seconds) a face of a shard of 512 and 4096 numbers in fp16."""
    sides = (Side("clip", "0" * 64, 512, {}), Side("llm", "0" * 64, 4096, {}))
    rows = tuple(Row(f"folder/{i:09d}.jpg", f"{i:064d}") for i in range(faces))
    plan = CachePlan(tuple(row.path for row in rows), *sides, faces, True, 100.0)
    image, llm = (np.random.default_rng(0).standard_normal((faces, side.dim), np.float32) for side in sides)
    with tempfile.TemporaryDirectory() as folder:
        shard_file(Path(folder), 0).parent.mkdir()
        began = time.perf_counter()
        write_shard(Path(folder), plan, 0, Shard(rows, (), image, llm))
        return shard_file(Path(folder), 0).stat().st_size // faces, (time.perf_counter() - began) / faces


def _towers(batch: int, device: str, kind: torch.dtype) -> dict[str, Depth]:
    """The towers of CLIP B/32 and of Salesforce/blip2-flan-t5-xxl (their config.json); the instruction has 31 tokens."""
    from transformers import Blip2QFormerConfig, Blip2VisionConfig, CLIPVisionConfig, T5Config
    from transformers.models.blip_2.modeling_blip_2 import Blip2QFormerModel, Blip2VisionModel
    from transformers.models.clip.modeling_clip import CLIPVisionModel
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    def made(model: Any, **inputs: torch.Tensor) -> Callable[[], object]:
        ready = model.to(device, kind).eval()
        return lambda: ready(**inputs)

    def given(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, device=device, dtype=kind)

    def clip(layers: int) -> Callable[[], object]:
        config = CLIPVisionConfig(num_hidden_layers=layers)  # the defaults are B/32
        return made(CLIPVisionModel(config), pixel_values=given(3, 224, 224))

    def vision(layers: int) -> Callable[[], object]:
        config = Blip2VisionConfig(num_hidden_layers=layers)  # the defaults are ViT-g/14 of EVA
        return made(Blip2VisionModel(config), pixel_values=given(3, 224, 224))

    def former(layers: int) -> Callable[[], object]:
        config = Blip2QFormerConfig(num_hidden_layers=2 * layers)  # every second one looks at the picture
        return made(Blip2QFormerModel(config), query_embeds=given(32, 768), encoder_hidden_states=given(257, 1408))

    def language(layers: int) -> Callable[[], object]:
        config = T5Config(
            d_model=4096, d_kv=64, d_ff=10240, num_layers=layers, num_heads=64, feed_forward_proj="gated-gelu", vocab_size=8
        )
        return made(T5EncoderModel(config), inputs_embeds=given(63, 4096))

    return {
        "clip_b32": Depth(12, clip),
        "blip2_vision": Depth(39, vision),
        "blip2_qformer": Depth(6, former),
        "t5_xxl_encoder": Depth(24, language),
    }
