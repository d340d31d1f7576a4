"""What is done to pixels before an encoder sees them: mean and std as stated, or those of the source's own processor."""

from __future__ import annotations

import json
import math
from typing import Any, Literal

from PIL import Image

from fer_edge.errors import ConversionError, UsageError

from .hub import side_file

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's own normalisation (openai/CLIP ``clip/clip.py``); the released Exp-CLIP heads were trained without any."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std) of every channel, for pixels in [0, 1]."""

Normalize = Literal["auto", "none", "clip"] | Statistics
"""``none``: value / 255 alone; ``clip``: mean and std of the source's own processor, CLIP's where it has none; ``auto``: as
the projection was learned (a released head: none), without one ``clip``; or (mean, std), one or three numbers each."""


def stated(statistics: Statistics, channels: int) -> Statistics:
    """(mean, std) of every channel from one or ``channels`` numbers each. Raises UsageError."""
    mean, std = (tuple(values) * (channels if len(values) == 1 else 1) for values in statistics)
    if not len(mean) == len(std) == channels:
        raise UsageError(f"mean and std have one number, or {channels} of them, each; {len(mean)} and {len(std)} are given")
    if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
        raise UsageError("mean and std are finite numbers, and std is above 0")
    if max(map(abs, (*mean, *std))) > 16:
        raise UsageError("mean and std are of pixels from 0 to 1; yours seem to be of 0 to 255: divide them by 255")
    return mean, std


def own_pixels(source: str, size: int) -> tuple[Statistics, tuple[str, ...]]:
    """(mean and std of the processor of a CLIP folder or id, CLIP's where it states none; notes on what that processor does
    and a bundle does not). ``size``: pixels of the encoder's side. Raises ConversionError."""
    name, raw = _processor(source)
    if not raw:
        return (CLIP_MEAN, CLIP_STD), ()
    try:
        # A bundle's mean and std are of value / 255.
        unit = 255 * float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else 255.0
        if raw.get("do_normalize", True):
            given = (_numbers(raw.get("image_mean") or CLIP_MEAN), _numbers(raw.get("image_std") or CLIP_STD))
        else:
            given = ((0.0,), (1.0,))
        mean, std = (tuple(v / unit for v in values) for values in given)
        if not math.isfinite(unit) or unit <= 0 or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
            raise ValueError("mean and std must be finite, and std above 0")
        (mean, std) = ((v * 3 if len(v) == 1 else v) for v in (mean, std))
        if not len(mean) == len(std) == 3:
            raise ValueError("mean and std have three numbers each")
        return (mean, std), _geometry(name, raw, size)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConversionError(f"{source}: {name} is malformed ({error})") from error


def _processor(source: str) -> tuple[str, dict[str, Any]]:
    """(name, content) of the image processor's configuration; since transformers 5 it lies in the processor's."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        file = side_file(source, name)
        if file is None:
            continue
        try:
            raw = json.loads(file.read_text(encoding="utf-8"))
            raw = raw.get("image_processor", {} if name.startswith("processor") else raw)
        except (OSError, ValueError, AttributeError) as error:
            raise ConversionError(f"{source}: {name} is not readable JSON ({error})") from error
        if isinstance(raw, dict) and raw:
            return name, raw
    return "", {}


def _numbers(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in (value if isinstance(value, (list, tuple)) else [value]))


def _geometry(name: str, raw: dict[str, Any], size: int) -> tuple[str, ...]:
    """A note where the processor cuts and resizes otherwise than a bundle does."""
    steps = []
    if raw.get("do_resize", True):
        way = Image.Resampling(int(raw.get("resample", Image.Resampling.BICUBIC))).name.lower()
        edge = raw.get("size", size)
        short = isinstance(edge, int) or "shortest_edge" in edge
        text = _edges(edge)
        steps.append(f"resizes {'the shorter side' if short else 'the picture'} to {text} ({way})")
        stretched = not short and text == f"{size} x {size}" and way == "bilinear"
    else:
        stretched = False
    if raw.get("do_center_crop", True):
        steps.append(f"cuts the middle {_edges(raw.get('crop_size', size))}")
        stretched = False
    if stretched:
        return ()
    done = " and ".join(steps) or "resizes nothing"
    return (f"{name} {done}; here the whole face crop is stretched to {size} x {size} (bilinear), as Exp-CLIP does",)


def _edges(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['height']} x {value['width']}" if "height" in value else str(value["shortest_edge"])
    return str(int(value))
