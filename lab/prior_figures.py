"""Between WAR and UAR: by how much scores are tilted against the frequency of a class, and by which rule that is chosen.

``python -m lab.prior_figures MODEL HELD_OUT.npz TRAIN.npz``: MODEL is a bundle or a student's checkpoint, HELD_OUT what
``lab.held_out`` wrote. A tilt of t answers with the largest log p - t log(share of the class among the training votes)
(Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, equation 9), p at temperature 1. t = 0 leaves the scores
as they are; more favours rare classes.

A rule chooses t. What it is worth is told by faces that it has not seen: it chooses on nine tenths of the faces and is
measured on the last, in turn (each class dealt out evenly), and all of that again with other tenths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
from numpy.typing import NDArray

from fer_edge.accuracy import DRAWS, Interval
from fer_edge.arrays import read_members
from fer_edge.console import emit, say
from fer_edge.errors import UsageError
from fer_edge.labels import LABEL_SETS

from .commands import OneLine

LABELS = LABEL_SETS["ferplus8"]
TILTS = tuple(round(0.05 * i, 2) for i in range(17))
"""From none to 0.8: beyond, WAR has long fallen."""
COST = 0.005
"""Of WAR, that the rule ``guarded`` may give for UAR."""
FOLDS = 10
REPEATS = 20
RARE = ("contempt", "disgust")
NORMAL_95 = 1.959964

Truth: TypeAlias = "NDArray[np.int64]"
Right: TypeAlias = "NDArray[np.bool_]"
"""(T, N): whether the answer to a face is right under each of TILTS."""


@dataclass(frozen=True)
class Curve:
    """WAR (T,) and UAR (T,) of some faces under each of TILTS."""

    war: NDArray[np.float64]
    uar: NDArray[np.float64]


def guarded(curve: Curve) -> int:
    """The largest UAR among the tilts that cost at most COST of WAR against the best; the smallest such tilt."""
    allowed = curve.war >= curve.war.max() - COST - 1e-12
    return int(np.where(allowed, curve.uar, -1).argmax())


RULES: Mapping[str, Callable[[Curve], int]] = {
    "t = 0": lambda curve: 0,
    "best WAR": lambda curve: int(curve.war.argmax()),
    "best UAR": lambda curve: int(curve.uar.argmax()),
    "guarded": guarded,
}
"""Each gives a position in TILTS."""


def answers_right(log_scores: NDArray[np.float64], log_prior: NDArray[np.float64], truth: Truth) -> Right:
    """Of log scores (N, K) and the log share (K,) of each class among the training votes."""
    return np.stack([(log_scores - t * log_prior).argmax(1) == truth for t in TILTS])


def curve_of(right: Right, truth: Truth) -> Curve:
    """WAR and UAR of the faces, by tilt."""
    recall = np.stack([right[:, truth == k].mean(1) for k in np.unique(truth)])
    return Curve(right.mean(1), recall.mean(0))


def folds_of(truth: Truth, seed: int, folds: int = FOLDS) -> NDArray[np.int64]:
    """A fold for each face: every class is shuffled and dealt out in turn, one going on where the last one ended."""
    generator = np.random.default_rng(seed)
    order = np.concatenate([generator.permutation(np.flatnonzero(truth == k)) for k in np.unique(truth)])
    fold = np.empty(len(truth), np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


@dataclass(frozen=True)
class Validated:
    """What a rule is worth on faces that it did not choose on. ``hits`` (N,) is the share of the repeats in which the
    answer to a face was right, ``chosen`` how often each tilt was."""

    hits: NDArray[np.float64]
    chosen: Counter[float]


def validated(right: Right, truth: Truth, rule: Callable[[Curve], int], repeats: int = REPEATS) -> Validated:
    """Cross-validate a rule."""
    hits, chosen = np.zeros(len(truth)), Counter[float]()
    for seed in range(repeats):
        fold = folds_of(truth, seed)
        for number in np.unique(fold):
            out = fold == number
            position = rule(curve_of(right[:, ~out], truth[~out]))
            chosen[TILTS[position]] += 1
            hits[out] += right[position, out]
    return Validated(hits / repeats, chosen)


def war_uar_of(hits: NDArray[np.float64], truth: Truth) -> tuple[float, float]:
    """Means over the faces, and over the classes."""
    return float(hits.mean()), float(np.mean([hits[truth == k].mean() for k in np.unique(truth)]))


def drawn(values: NDArray[np.float64], truth: Truth, draws: int = DRAWS) -> tuple[Interval, Interval]:
    """95% intervals of the mean over the faces and over the classes, of ``values`` (N,): faces drawn anew with replacement,
    always the same; a class that a draw misses is not in its mean."""
    generator = np.random.default_rng(0)
    classes = np.stack([truth == k for k in np.unique(truth)], axis=1).astype(np.float64)
    means = np.empty((draws, 2))
    for row in means:
        times = np.bincount(generator.integers(0, len(truth), len(truth)), minlength=len(truth)).astype(np.float64)
        faces, sums = times @ classes, (times * values) @ classes
        row[:] = sums.sum() / len(truth), (sums[faces > 0] / faces[faces > 0]).mean()
    low, high = np.percentile(means, (2.5, 97.5), axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))


def wilson(hits: float, faces: int) -> Interval:
    """95% interval of a share (Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927):
    it is right for a handful of faces, where the bootstrap of none is none."""
    z2 = NORMAL_95**2
    share = hits / faces
    middle = (share + z2 / (2 * faces)) / (1 + z2 / faces)
    half = NORMAL_95 * sqrt(share * (1 - share) / faces + z2 / (4 * faces**2)) / (1 + z2 / faces)
    return max(0.0, middle - half), min(1.0, middle + half)


def log_scores_of(model: Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Log scores (N, K) of gray faces (N, 48, 48) over LABELS, at temperature 1. Raises LabelError where a bundle has not
    these labels, ConversionError where a checkpoint cannot be read."""
    if model.is_dir():
        import fer_edge
        from fer_edge.bundle import label_set, open_bundle

        known = label_set(open_bundle(model), "ferplus8")
        with fer_edge.load(model, labels="ferplus8") as clf:
            features = np.concatenate([clf.features([image]) for image in images]).astype(np.float64)
        constants, scale = known.constants[[known.labels.index(name) for name in LABELS]], known.logit_scale
    else:
        import torch

        from fer_edge.converters.student.faces import crops
        from fer_edge.converters.student.language import default_constants, sentence_groups
        from fer_edge.converters.student.network import load_student
        from fer_edge.converters.student.run import unit_features
        from fer_edge.converters.student.sentences import descriptions, stored_sentences

        student = load_student(model)
        groups = sentence_groups(stored_sentences(), descriptions(), LABELS)
        constants, scale = default_constants(groups, student.text_projection).detach().numpy(), student.scale
        with torch.inference_mode():
            seen = crops(images, student.student.config.size, "gray")[..., 0]  # type: ignore[arg-type]
            features = unit_features(student.student, seen).numpy().astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    logits = scale * features @ constants.T.astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(1, keepdims=True)), np.float64)


def held_out_faces(file: Path) -> tuple[NDArray[np.uint8], Truth]:
    """Images and labels of what ``lab.held_out`` wrote, faces without a label left out. Raises UsageError."""
    members = read_members(file, {"images", "ferplus_majority_labelcsv", "ferplus_class_names"})
    names = members["ferplus_class_names"].tolist()
    truth = np.array([LABELS.index(name) if name in LABELS else -1 for name in names] + [-1])
    labels = truth[members["ferplus_majority_labelcsv"].astype(np.int64)]
    kept = labels >= 0
    if not kept.any():
        raise UsageError(f"{file} has no face with a label of {', '.join(LABELS)}")
    return members["images"][kept], labels[kept]


def report(right: Right, truth: Truth, repeats: int) -> dict[str, Any]:
    """All rules."""
    whole, plain = curve_of(right, truth), right[0].astype(np.float64)
    rules = {}
    for name, rule in RULES.items():
        found = validated(right, truth, rule, repeats)
        (war, uar), spans = war_uar_of(found.hits, truth), drawn(found.hits, truth)
        gains, changes = war_uar_of(found.hits - plain, truth), drawn(found.hits - plain, truth)
        rare: dict[str, dict[str, Any]] = {}
        for label in RARE:
            faces = found.hits[truth == LABELS.index(label)]
            if len(faces):
                rare[label] = {"faces": len(faces), "recall": rounded(faces.mean())}
                rare[label]["interval"] = [rounded(v) for v in wilson(float(faces.sum()), len(faces))]
        rules[name] = {
            "chosen": TILTS[rule(whole)],
            "chosen_in_folds": {f"{t:g}": n for t, n in sorted(found.chosen.items())},
            "war": rounded(war),
            "war_interval": [rounded(v) for v in spans[0]],
            "uar": rounded(uar),
            "uar_interval": [rounded(v) for v in spans[1]],
            "against_none": {
                "war": rounded(gains[0]),
                "war_interval": [rounded(v) for v in changes[0]],
                "uar": rounded(gains[1]),
                "uar_interval": [rounded(v) for v in changes[1]],
            },
            **rare,
        }
    curve = {f"{t:g}": [rounded(whole.war[i]), rounded(whole.uar[i])] for i, t in enumerate(TILTS)}
    return {"rules": rules, "curve": curve}


def rounded(value: float) -> float:
    """To four places."""
    return round(float(value), 4)


@click.command(cls=OneLine)
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.argument("held_out", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("train", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--keep-twins", is_flag=True, help="Also faces that show a photo of the other training faces.")
@click.option("--repeats", default=REPEATS, show_default=True, type=click.IntRange(1))
def prior(model: Path, held_out: Path, train: Path, keep_twins: bool, repeats: int) -> None:
    """What each rule for the tilt of MODEL's scores chooses on HELD_OUT faces, and what it is worth there: a line of
    JSON."""
    from fer_edge.converters.student.faces import load_faces
    from fer_edge.twins import near_duplicates

    from .gpu.pack import held_out as kept_out

    images, truth = held_out_faces(held_out)
    faces = load_faces(train, LABELS)
    assert faces.targets is not None
    learned = ~kept_out(faces.images)
    prior = faces.targets[learned].mean(0).astype(np.float64)
    twins = np.zeros(len(images), bool)
    if not keep_twins:
        twins[near_duplicates(images, faces.images[learned]).first] = True
        say(f"{int(twins.sum())} of {len(images)} faces show a photo that trainings saw, and are left out")
    images, truth = images[~twins], truth[~twins]
    right = answers_right(log_scores_of(model, images), np.log(np.maximum(prior, 1e-6)), truth)
    shares = {label: rounded(share) for label, share in zip(LABELS, prior, strict=True)}
    counts = {label: int((truth == k).sum()) for k, label in enumerate(LABELS)}
    head = {"figure": "prior", "faces": len(truth), "twins_left_out": int(twins.sum()), "by_class": counts}
    emit({**head, "share_of_votes": shares, "cost": COST, **report(right, truth, repeats)})


if __name__ == "__main__":
    prior()
