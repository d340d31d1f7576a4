"""Parity: does this engine, on this device, compute the float reference's answer?

A plain cosine proves nothing: features of different faces have cosine 0.999 under random weights, so an artefact that
returns a constant would pass. So the reference's mean over the golden set is subtracted first, each output must find
its own crop again, and two runs must be the same to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from .bundle import Golden
from .labels import LabelSet, softmax

BARS: Mapping[str, Mapping[str, float]] = {
    "fp32": {"centred_cosine": 0.999, "self_retrieval": 1.0, "score_difference": 1e-3},
    "fp16": {"centred_cosine": 0.99, "self_retrieval": 1.0, "score_difference": 1e-2},
    "int8": {"centred_cosine": 0.95, "self_retrieval": 0.95, "top1_agreement": 0.9},
}
"""Bars per precision that a conversion has to reach and that a bundle's manifest carries. int8 is meant for trained
encoders: of a random ViT it keeps a centred cosine of 0.2 to 0.5, which means nothing."""

FLOORS = BARS
"""What no manifest can lower: the bars that every bundle was written with so far. Bars of tomorrow may be higher."""

HEAD = 5e-3
"""How far the graph's logits may lie from those that the label set gives the graph's own feature, as a cosine. Measured on a
small CLIP and the default, three engines, fp32 and int8: 2e-7 to 1e-6; fp16: 1e-4 to 4e-4."""

_CONSTANT = 1e-5
"""Features that differ by less than this share of the largest number are one answer, but for rounding. Measured on working
encoders: 0.95 (the default), 1.1 (a small CLIP with random weights)."""

Run = Callable[[NDArray[np.uint8]], "tuple[NDArray[np.float32], NDArray[np.float32]]"]
"""One crop (1, H, W, C) uint8 -> feature (D,), logits (K,)."""


@dataclass(frozen=True)
class Parity:
    """What was measured on the golden set.

    ``centred_cosine``: mean over crops of the cosine after the reference's mean is subtracted from both;
    ``centred_cosine_min``: the worst crop; ``self_retrieval``: share of outputs whose nearest reference (by that
    cosine) is their own; ``top1_agreement``: share with the reference's label; ``score_difference``: largest difference
    of a score, over the feature's scores and the graph's own logits; ``finite``: no NaN or Inf; ``repeatable``: two
    runs gave the same bytes; ``head_difference``: largest difference, as a cosine, between the graph's logits and those
    that the label set gives its own feature: it shows a changed constant of any label, whatever the crops show;
    ``varies``: the features of different crops differ."""

    centred_cosine: float
    centred_cosine_min: float
    self_retrieval: float
    top1_agreement: float
    score_difference: float
    finite: bool
    repeatable: bool
    head_difference: float = 0.0
    varies: bool = True

    def misses(self, bars: Mapping[str, float]) -> list[str]:
        """What falls short, in words; empty when the answer counts as the same. NaN, Inf, unequal runs, one answer to every
        picture, and logits of other constants than the label set's always fall short."""
        short = []
        if not self.finite:
            short.append("the output has NaN or Inf")
        if not self.repeatable:
            short.append("two runs gave different outputs")
        if not self.varies:
            short.append("the answer is the same for every picture")
        if self.head_difference > HEAD:
            short.append(
                f"the model's logits are not those of its default label set (head difference {self.head_difference:.2g})"
            )
        measured = asdict(self)
        for name, bar in sorted(bars.items()):
            value = measured.get(name)
            if value is None:
                short.append(f"nothing here measures the bar {name!r}; upgrade fer-edge")
                continue
            upper = is_upper(name)
            if not (value <= bar if upper else value >= bar):
                short.append(f"{name.replace('_', ' ')} {value:.4g} is {'above' if upper else 'below'} {bar:g}")
        return short

    def numbers(self) -> dict[str, float]:
        """The measured numbers as the manifest stores them (4 to 7 significant digits; finite and repeatable as 1 or
        0)."""
        return {k: float(f"{float(v):.7g}") if np.isfinite(float(v)) else 0.0 for k, v in asdict(self).items()}


def is_upper(name: str) -> bool:
    """Whether a bar says how much is allowed, and not how much is needed."""
    return name == "score_difference"


def with_floors(asked: Mapping[str, float], precision: str) -> Mapping[str, float]:
    """The bars that a manifest asks for, none of them below its floor."""
    bars = {**FLOORS[precision], **asked}
    for name, floor in FLOORS[precision].items():
        bars[name] = min(bars[name], floor) if is_upper(name) else max(bars[name], floor)
    return bars


Answers = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Features (N, D) and the graph's logits (N, K) of the golden crops."""


def answers(run: Run, golden: Golden, backwards: bool = False) -> Answers:
    """Run every golden crop once. ``backwards``: the last crop first, so that whatever an engine leaves behind in its memory
    stands before another crop than in a run forwards."""
    order = range(len(golden.crops))
    rows = {i: run(golden.crops[i][None]) for i in (reversed(order) if backwards else order)}
    return np.stack([rows[i][0] for i in order]), np.stack([rows[i][1] for i in order])


def same_bytes(first: Answers, second: Answers) -> bool:
    """Whether two runs gave the same to the bit."""
    return all(a.tobytes() == b.tobytes() for a, b in zip(first, second, strict=True))


def measure(run: Run, golden: Golden, labels: LabelSet) -> Parity:
    """Run every golden crop twice, the second time backwards, and compare with the reference; ``labels`` is the label set
    baked into the graph's logits."""
    first = answers(run, golden)
    return compare(*first, golden.features, labels, same_bytes(first, answers(run, golden, backwards=True)))


def compare(
    features: NDArray[np.float32],
    logits: NDArray[np.float32] | None,
    reference: NDArray[np.float32],
    labels: LabelSet,
    repeatable: bool = True,
) -> Parity:
    """Parity of features (N, D) and the graph's logits (N, K), if it has any, with the reference's features (N, D). Logits
    of another label set count as none that agrees."""
    finite = bool(np.isfinite(features).all()) and (logits is None or bool(np.isfinite(logits).all()))
    if not finite or features.shape != reference.shape:
        return Parity(0.0, 0.0, 0.0, 0.0, 1.0, finite, repeatable)
    mean = reference.astype(np.float64).mean(0)
    cosines = _unit(features - mean) @ _unit(reference - mean).T
    own = np.diagonal(cosines)
    expected, got = labels.scores(reference), labels.scores(features)
    difference = float(np.abs(got - expected).max())
    agreement = float((got.argmax(1) == expected.argmax(1)).mean())
    if logits is not None and logits.shape != got.shape:
        difference, agreement = 1.0, 0.0
    elif logits is not None:
        graph = softmax(logits / np.float32(labels.temperature))
        difference = max(difference, float(np.abs(graph - expected).max()))
        agreement = min(agreement, float((graph.argmax(1) == expected.argmax(1)).mean()))
    retrieval = float((cosines.argmax(1) == np.arange(len(own))).mean())
    head = 0.0 if logits is None else 1.0
    if logits is not None and logits.shape == got.shape:
        head = float(np.abs(labels.logits(features) - logits).max()) / labels.logit_scale
    varies = bool(np.ptp(features, axis=0).max() > _CONSTANT * np.abs(features).max())
    return Parity(float(own.mean()), float(own.min()), retrieval, agreement, difference, finite, repeatable, head, varies)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.sqrt((rows * rows).sum(1, keepdims=True))
    result: NDArray[np.float64] = rows / np.maximum(norm, 1e-30)
    return result
