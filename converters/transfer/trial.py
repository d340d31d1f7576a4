"""The trial of a cache: does the projection learn anything, what does it change, would more faces help?

Everything is shown against plain CLIP under the same prompts, because much of a published gain is the prompt's. On labelled
faces plain CLIP sees pixels as it was trained, with its mean and std; of the cache's faces there are only the features of
its own pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fer_edge.accuracy import Difference, confusion_matrix, intervals, paired_difference, recall_by_label, uar, war
from fer_edge.errors import ConversionError, LabelError, UsageError
from fer_edge.folders import IgnoredFile
from fer_edge.labelled import LabelledFaces, label_of
from fer_edge.labels import LabelSet

from ..compile_labels import compile_label_sets
from ..graph import fold
from ..sources import open_encoder
from .feature_pairs import FeaturePairs
from .fit import FitRecipe, Fitted, Sides, evaluate, fit
from .sources import image_source

CURVE_SHARES = (0.125, 0.25, 0.5, 1.0)
"""Of the faces to learn from: points of the learning curve."""
RETRIEVAL_FACES = 512
"""Held-out faces among which one looks for its own LLM features, if there are so many: the paper's batch."""
SHEET_FACES = 6
"""Faces of a label on the contact sheet, at each end."""


@dataclass(frozen=True)
class Accuracy:
    """On labelled faces; 95% bootstrap intervals."""

    war: float
    war_interval: tuple[float, float]
    uar: float
    uar_interval: tuple[float, float]
    recall: Mapping[str, float | None]


@dataclass(frozen=True)
class CurvePoint:
    """Of the learning curve: faces learned from, retrieval on the held-out faces, accuracy on the labelled ones."""

    faces: int
    retrieval: float
    war: float | None
    uar: float | None


@dataclass(frozen=True)
class ExtremeFaces:
    """Faces whose projected features are nearest to a label's constant, and farthest from it, with their cosines."""

    nearest: tuple[tuple[str, float], ...]
    farthest: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class TransferTrial:
    """``retrieval``: share of held-out faces whose own LLM features are the nearest among ``among``; ``balance_*``: share of
    the unlabelled faces given each label, by plain CLIP (on the cache's pixels) and projected; ``flips``: share whose label
    changes, and ``flows`` how many from which label to which; ``labelled``: faces with a label, None without any, and then
    neither ``before``, ``after`` nor ``gain``, which is what ``after`` has on ``before`` over the same faces."""

    faces: int
    left_out: int
    repeated: int
    held_out: int
    recipe: Mapping[str, Any]
    image: Mapping[str, Any]
    llm: Mapping[str, Any]
    labels: tuple[str, ...]
    prompts: Mapping[str, tuple[str, ...]]
    retrieval: float
    among: int
    balance_before: Mapping[str, float]
    balance_after: Mapping[str, float]
    flips: float
    flows: tuple[tuple[str, str, int], ...]
    ends: Mapping[str, ExtremeFaces]
    curve: tuple[CurvePoint, ...]
    labelled: int | None
    before: Accuracy | None
    after: Accuracy | None
    gain: Difference | None
    skipped: Mapping[str, int]
    ignored: tuple[IgnoredFile, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


@dataclass(frozen=True)
class TrialRequest:
    """What a verdict is about: ``labels`` and ``prompts`` as of ``convert``; ``held_out``: share of faces that nothing is
    learned from; ``labelled``: a small set with labels."""

    encoder: str
    labels: str | None = None
    prompts: str | None = None
    held_out: float = 0.1
    labelled: LabelledFaces | None = None


def run_trial(
    pairs: FeaturePairs, asked: TrialRequest, recipe: FitRecipe, on_step: Callable[[float, str], None] = lambda d, t: None
) -> TransferTrial:
    """Fit on parts of the cache's faces and judge what comes out.

    Raises ConversionError when ``asked.encoder`` is not the cache's, UsageError when there are too few faces."""
    order = torch.randperm(len(pairs.rows), generator=torch.Generator().manual_seed(recipe.seed))
    count = round(asked.held_out * len(order))
    held, rest = order[:count], order[count:]
    if count < 2 or len(rest) < recipe.batch:
        raise UsageError(
            f"{len(order)} faces are too few for a verdict: {count} to hold out, {len(rest)} to learn from, a batch of "
            f"{recipe.batch}; give more faces, or a smaller --batch"
        )
    prompts = _Prompts(asked, pairs)
    truth = _Labelled.read(asked, pairs, prompts, on_step)
    plain = prompts.compiled(None)
    curve, fitted = [], None
    counts = sorted({max(recipe.batch, round(share * len(rest))) for share in CURVE_SHARES})
    for i, many in enumerate(counts):
        rows = rest[:many]
        on_step(0.3 + 0.6 * i / len(counts), f"learning from {many} faces")
        # As many steps at every point: the curve is about faces, not about steps. An epoch drops its last incomplete batch.
        steps = recipe.epochs * (len(rest) // recipe.batch)
        as_long = replace(recipe, epochs=max(1, round(steps / (many // recipe.batch))))
        fitted = fit(pairs.image, pairs.llm, as_long, rows=rows)
        accuracy = truth.accuracy(prompts.compiled(fitted)) if truth else None
        seen = _retrieval(pairs, fitted, held, recipe)
        curve.append(CurvePoint(len(rows), seen, accuracy.war if accuracy else None, accuracy.uar if accuracy else None))
    assert fitted is not None
    on_step(0.9, "comparing with plain CLIP")
    projected = prompts.compiled(fitted)
    features = pairs.image.float().numpy()
    before, after = plain.predicted(features), projected.predicted(features)
    names = plain.labels.labels
    return TransferTrial(
        faces=len(pairs.rows),
        left_out=len(pairs.left_out),
        repeated=len(pairs.repeated),
        held_out=count,
        recipe=asdict(recipe),
        image=asdict(pairs.plan.image),
        llm=asdict(pairs.plan.llm),
        labels=names,
        prompts=dict(zip(names, plain.labels.prompts, strict=True)),
        retrieval=curve[-1].retrieval,
        among=min(RETRIEVAL_FACES, count),
        balance_before=_balance(before, names),
        balance_after=_balance(after, names),
        flips=float((before != after).mean()),
        flows=_flows(before, after, names),
        ends=_extreme_faces(projected, features, pairs),
        curve=tuple(curve),
        labelled=None if truth is None else len(truth.truth),
        before=truth.accuracy(plain, plain=True) if truth else None,
        after=truth.accuracy(projected) if truth else None,
        gain=truth.gain(plain, projected) if truth else None,
        skipped=truth.skipped if truth else {},
        ignored=asked.labelled.ignored if asked.labelled else (),
    )


@dataclass(frozen=True)
class _Compiled:
    """A label set, and R that goes with it."""

    labels: LabelSet
    r: NDArray[np.float64]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.labels.logits((features @ self.r.T).astype(np.float32))

    def predicted(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        best: NDArray[np.int64] = self.logits(features).argmax(1)
        return best


class _Prompts:
    """The text side: the same prompts, plain and through a projection."""

    def __init__(self, asked: TrialRequest, pairs: FeaturePairs) -> None:
        self._asked, self._encoder = asked, open_encoder(asked.encoder)
        if self._encoder.source.sha256 != pairs.plan.image.sha256:
            raise ConversionError(
                f"{asked.encoder} is not the CLIP of this cache, which is {pairs.plan.image.source}: its weights differ"
            )
        assert self._encoder.text is not None
        self._text = self._encoder.text()

    def compiled(self, fitted: Fitted | None) -> _Compiled:
        """The default label set, by plain CLIP (None) or projected."""
        weight = None if fitted is None else fitted.weight.numpy()
        r = fold(weight, len(self._encoder.last))
        first, *_ = compile_label_sets(self._encoder, self._asked.labels, self._asked.prompts, self._text, r)
        return _Compiled(first, r)


@dataclass(frozen=True)
class _Labelled:
    """Image features (M, D) of labelled faces on the cache's pixels, the same as plain CLIP sees them, and the truth (M,) as
    positions in the label set."""

    features: NDArray[np.float32]
    plain: NDArray[np.float32]
    truth: NDArray[np.int64]
    skipped: Mapping[str, int]

    @staticmethod
    def read(
        asked: TrialRequest, pairs: FeaturePairs, prompts: _Prompts, on_step: Callable[[float, str], None]
    ) -> _Labelled | None:
        if asked.labelled is None:
            return None
        names = prompts.compiled(None).labels.labels
        meant = [label_of(name, names) for name in asked.labelled.classes]
        known = [i for i, label in enumerate(meant) if label is not None]
        if not known:
            raise LabelError(f"none of the classes is a label of {', '.join(names)}; choose --labels")
        missing = [name for name, label in zip(asked.labelled.classes, meant, strict=True) if label is None]
        images = [asked.labelled.images[i] for i in known]
        sides: list[NDArray[np.float32]] = []
        for pixels in (pairs.plan.image.settings["pixels"], "clip"):
            source, _ = image_source(asked.encoder, pixels)  # type: ignore[arg-type]
            rows = []
            for start in range(0, len(images), 64):
                on_step(0.15 * (len(sides) + start / len(images)), f"labelled faces: {start} of {len(images)}")
                rows.append(source.features(images[start : start + 64], [""] * len(images[start : start + 64])))
            sides.append(np.concatenate(rows))
        truth = np.array([names.index(str(meant[i])) for i in known])
        return _Labelled(sides[0], sides[1], truth, {name: missing.count(name) for name in dict.fromkeys(missing)})

    def accuracy(self, compiled: _Compiled, plain: bool = False) -> Accuracy:
        names = compiled.labels.labels
        table = confusion_matrix(self.truth, self._answers(compiled, plain), len(names))
        spans = intervals(table, names)
        return Accuracy(war(table), spans.war, uar(table), spans.uar, recall_by_label(table, names))

    def gain(self, plain: _Compiled, projected: _Compiled) -> Difference:
        return paired_difference(self.truth, self._answers(plain, plain=True), self._answers(projected))

    def _answers(self, compiled: _Compiled, plain: bool = False) -> NDArray[np.int64]:
        return compiled.predicted(self.plain if plain else self.features)


def _retrieval(pairs: FeaturePairs, fitted: Fitted, held: Tensor, recipe: FitRecipe) -> float:
    among = replace(recipe, batch=min(RETRIEVAL_FACES, len(held)))
    return evaluate(Sides(pairs.image, pairs.llm, fitted.theirs), fitted.weight, held, among)[1]


def _balance(predicted: NDArray[np.int64], names: Sequence[str]) -> dict[str, float]:
    return {name: float((predicted == k).mean()) for k, name in enumerate(names)}


def _flows(before: NDArray[np.int64], after: NDArray[np.int64], names: Sequence[str]) -> tuple[tuple[str, str, int], ...]:
    """From which label to which, the largest first."""
    table = confusion_matrix(before, after, len(names))
    np.fill_diagonal(table, 0)
    places = np.argsort(table, axis=None, kind="stable")[::-1]
    rows = ((int(p) // len(names), int(p) % len(names)) for p in places)
    return tuple((names[i], names[k], int(table[i, k])) for i, k in rows if table[i, k])


def _extreme_faces(compiled: _Compiled, features: NDArray[np.float32], pairs: FeaturePairs) -> dict[str, ExtremeFaces]:
    logits = compiled.logits(features)
    cosines = logits / compiled.labels.logit_scale
    found = {}
    for k, name in enumerate(compiled.labels.labels):
        order = np.argsort(-cosines[:, k], kind="stable")
        ends = (order[:SHEET_FACES], order[::-1][:SHEET_FACES])
        nearest, farthest = (tuple((pairs.rows[i].path, float(cosines[i, k])) for i in end) for end in ends)
        found[name] = ExtremeFaces(nearest, farthest)
    return found
