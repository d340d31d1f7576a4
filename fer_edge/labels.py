"""Label sets: names, one constant vector each, the prompts they came from, and the score that compares a feature with
them."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import LabelError

PAPER_LABELS = (
    "happiness",
    "sadness",
    "neutral",
    "anger",
    "surprise",
    "disgust",
    "fear",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)
"""Exp-CLIP's label order (``models/Text.py``): the first 7 are RAF-DB, AffectNet-7, DFEW, FERV39k and AFEW, 8 FERPlus,
11 MAFW."""

LABEL_SETS: Mapping[str, tuple[str, ...]] = {
    "rafdb7": PAPER_LABELS[:7],
    "ferplus8": PAPER_LABELS[:8],
    "mafw11": PAPER_LABELS,
}

PROMPT_TYPES: Mapping[str, tuple[str, ...]] = {
    "P1": ("{}.",),
    "P2": ("an expression of {}.",),
    "P3": ("a photo of a face with an expression of {}.",),
    "ensemble": (
        "an expression of {}.",
        "a photo of a face with an expression of {}.",
        "a close-up photo of a person showing {}.",
        "a face that shows {}.",
        "a portrait of someone whose face expresses {}.",
        "a black and white photo of a face with an expression of {}.",
        "a blurry low resolution photo of a face showing {}.",
    ),
}
"""P1 to P3: Exp-CLIP ``models/Text.py``; ``ensemble`` is this project's own."""

SYNONYMS: Mapping[str, str] = {
    "happy": "happiness",
    "sad": "sadness",
    "neutrality": "neutral",
    "angry": "anger",
    "surprised": "surprise",
    "disgusted": "disgust",
    "fearful": "fear",
    "afraid": "fear",
    "scared": "fear",
    "contemptuous": "contempt",
    "anxious": "anxiety",
    "helpless": "helplessness",
    "disappointed": "disappointment",
}
"""Class names of common data sets -> label."""


_IGNORABLE = (
    *((0x034F, 0x034F), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x3164, 0x3164), (0xFE00, 0xFE0F)),
    *((0xFFA0, 0xFFA0), (0xFFF0, 0xFFF8), (0xE0000, 0xE0FFF)),
)
"""Default_Ignorable_Code_Point beyond the category Cf."""


@dataclass(frozen=True)
class LabelSet:
    """A label set compiled to constants.

    ``constants`` (K, D) float32, c_k = mean_j normalise(R T(prompt_kj)), not normalised again; ``logit_scale`` is s;
    ``prompts`` are the sentences of each label; ``threshold``: the score from which the first label counts as certain,
    0: none was set; ``least_length``: the length of a feature, before normalisation, from which any label can be certain
    (an encoder says little where it sees no face), 0: none was set.
    """

    name: str
    labels: tuple[str, ...]
    constants: NDArray[np.float32]
    logit_scale: float
    temperature: float
    prompts: tuple[tuple[str, ...], ...]
    threshold: float = 0.0
    least_length: float = 0.0

    @cached_property
    def _weights(self) -> NDArray[np.float64]:
        """s c_k as columns (D, K)."""
        return np.ascontiguousarray(self.constants.T.astype(np.float64) * self.logit_scale)

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """logit_k = s <f/|f|, c_k> of unnormalised features (..., D): (..., K) float32. Computed in float64: the squares of
        a feature may leave float32."""
        wide = features.astype(np.float64)
        length = np.sqrt((wide * wide).sum(-1, keepdims=True))
        result: NDArray[np.float32] = (wide @ self._weights / np.maximum(length, 1e-300)).astype(np.float32)
        return result

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """softmax(logits / temperature) of unnormalised features (..., D): (..., K) float32, rows sum to 1."""
        return softmax(self.logits(features) / np.float32(self.temperature))

    def is_certain(self, score: float, feature: NDArray[np.float32]) -> bool:
        """Whether an answer with this score, to this feature (D,) before normalisation, counts as certain."""
        if score < self.threshold or not self.least_length:
            return score >= self.threshold
        wide = feature.astype(np.float64)
        return math.sqrt(wide.dot(wide)) >= self.least_length

    def score_one(self, feature: NDArray[np.float32]) -> list[float]:
        """:meth:`scores` of one feature (D,), as plain floats: for a handful of labels, a call per face of numpy's softmax
        costs more than the softmax."""
        wide = feature.astype(np.float64)
        length = math.sqrt(wide.dot(wide)) or 1.0
        logits = wide.dot(self._weights).tolist()
        top = max(logits)
        powers = [math.exp((z - top) / (length * self.temperature)) for z in logits]
        total = sum(powers)
        return [p / total for p in powers]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    result: NDArray[np.float32] = powers / powers.sum(-1, keepdims=True)
    return result


def built_in_prompts(labels: Sequence[str], prompt_type: str) -> dict[str, tuple[str, ...]]:
    """Label -> prompts of a built-in prompt type. Raises LabelError for a type that does not exist."""
    if prompt_type not in PROMPT_TYPES:
        raise LabelError(
            f"no prompt type {prompt_type}; built in are {', '.join(PROMPT_TYPES)}, or name a TOML or JSON file"
        )
    return {label: tuple(template.format(label) for template in PROMPT_TYPES[prompt_type]) for label in labels}


def read_prompt_file(path: Path) -> dict[str, tuple[str, ...]]:
    """A TOML or JSON file, label -> prompt or list of prompts, in the file's order.

    Raises LabelError when it cannot be read or has another shape.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = json.loads(text, object_pairs_hook=_no_repeats) if path.suffix.lower() == ".json" else _toml(text)
    except FileNotFoundError as error:
        raise LabelError(f"{path} does not exist; name a TOML or JSON file, label -> prompt or prompts") from error
    except (OSError, ValueError, RecursionError) as error:
        raise LabelError(f"{path} is not a readable TOML or JSON file ({(str(error).splitlines() or [''])[0]})") from error
    if not isinstance(table, dict) or not table:
        raise LabelError(f"{path} holds no labels; it must map each label to a prompt or a list of prompts")
    prompts: dict[str, tuple[str, ...]] = {}
    for label, value in table.items():
        sentences = [value] if isinstance(value, str) else value
        check_label(label, str(path))
        if not isinstance(sentences, list) or not sentences or not all(isinstance(s, str) and s.strip() for s in sentences):
            raise LabelError(f'{path}: "{label}" must be a prompt or a list of prompts (non-empty strings)')
        if not all(is_one_line(s.replace("\n", " ").replace("\t", " ")) for s in sentences):
            raise LabelError(f'{path}: a prompt of "{label}" holds a control character')
        prompts[label] = tuple(sentences)
    return prompts


def is_one_line(text: str) -> bool:
    """Whether a text holds no line break, control character or lone surrogate: fit to be stored and encoded."""
    return text.isprintable() or not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def hidden_character(text: str) -> str | None:
    """The first character of a label or name that breaks its line, or that a reader does not see while it changes the text:
    control and direction characters, those of no width, fillers. "joy" and "joy" with one of them would be two labels.
    None when there is none.

    Unicode: the categories Cc, Cf, Cs, Zl and Zp, and the property Default_Ignorable_Code_Point
    (DerivedCoreProperties.txt)."""
    if text.isascii() and text.isprintable():
        return None
    for c in text:
        if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") or any(a <= ord(c) <= b for a, b in _IGNORABLE):
            return c
    return None


def check_label(label: str, where: str) -> None:
    """Raise LabelError for a label that is empty or holds a character that nobody sees. ``where``: what it is of, the
    beginning of the message."""
    hidden = hidden_character(label)
    if hidden is not None:
        name = unicodedata.name(hidden, "a control character")
        raise LabelError(f"{where}: label {label!r} holds U+{ord(hidden):04X} ({name}), which nobody sees; remove it")
    if not label.strip():
        raise LabelError(f"{where}: label {label!r} is empty")


def check_labels(labels: Sequence[str], where: str) -> None:
    """As :func:`check_label`, for labels that are to be a label set: two or more, all different."""
    for label in labels:
        check_label(label, where)
    if len(labels) < 2:
        raise LabelError(f"{where}: a label set needs at least two labels to choose among; it has {len(labels)}")
    if len(set(labels)) != len(labels):
        again = next(label for label in labels if labels.count(label) > 1)
        raise LabelError(f"{where}: the label {again!r} comes twice")


def _no_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; TOML refuses a key that comes twice, and so do we."""
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a label comes twice")
    return table


def _toml(text: str) -> object:
    if sys.version_info < (3, 11):
        raise ValueError("TOML needs Python 3.11; write JSON")
    import tomllib

    return tomllib.loads(text)
