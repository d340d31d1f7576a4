"""The float reference: a source with its projection folded in, its label sets, and the one graph that artefacts are made
from, parity is measured against, and students learn from."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fer_edge.errors import ConversionError, UsageError
from fer_edge.labels import LabelSet
from fer_edge.manifest import InputSpec, Source, TextEncoderRef

from .compile_labels import compile_label_sets
from .graph import EdgeGraph, fold
from .hub import unread_weights
from .pixels import CLIP_MEAN, CLIP_STD, Normalize, Statistics, stated
from .pruning import WHOLE, Pruning, prune
from .sources import Encoder, made_with, open_encoder, read_projection


@dataclass(frozen=True)
class Reference:
    """``graph`` takes uint8 (N, H, W, C) and gives ``feature`` (N, D) and ``logits`` of the first of ``sets``; ``r`` (D,
    T) takes the vectors of the text encoder ``text`` to the feature space; ``notes``: what of the source was used in its own
    way, or left out, in words."""

    encoder: Encoder
    graph: EdgeGraph
    spec: InputSpec
    r: NDArray[np.float64]
    projection: Source | None
    text: TextEncoderRef
    sets: tuple[LabelSet, ...]
    notes: tuple[str, ...] = ()


def open_reference(
    source: str,
    projection: Path | None = None,
    labels: str | None = None,
    prompts: str | None = None,
    normalize: Normalize = "auto",
    pruning: Pruning = WHOLE,
) -> Reference:
    """Read ``source`` (a CLIP folder or id, or a student checkpoint) and ``projection``, prune a CLIP's tower,
    fold, compile the labels.

    Raises ConversionError, LabelError or UsageError."""
    encoder = prune(open_encoder(source), pruning)
    if encoder.architecture == "cnn" and (projection is not None or normalize not in ("auto", "none")):
        raise UsageError(
            "a student checkpoint has its own projection and pixels; --projection and --normalize go with a CLIP"
        )
    dim = len(encoder.last)
    weight, origin, notes = read_projection(projection, dim) if projection else (None, None, ())
    r = fold(weight, dim)
    last = r @ encoder.last.astype(np.float64)
    text_r = r if encoder.text_projection is None else encoder.text_projection.astype(np.float64)
    made = made_with(projection) if projection else None
    if made and made.sha256 != encoder.source.sha256:
        raise ConversionError(f"{projection} was learned with {made.source}, which is not {source}: its weights differ")
    learned = "clip" if weight is None else made.pixels if made else "plain"
    (mean, std), pixels = _pixels(encoder, normalize, learned)
    spec = InputSpec(encoder.size, encoder.size, encoder.color, "stretch-bilinear", mean, std)
    text, sets = _label_sets(encoder, labels, prompts, text_r)
    graph = EdgeGraph(encoder.body, last, mean, std, sets[0].constants, sets[0].logit_scale).eval().requires_grad_(False)
    encoder = replace(encoder, text=None)  # lets go of a CLIP's text tower, half a gigabyte of an L/14
    notes = (*encoder.notes, *notes, *pixels, *unread_weights(source, projection))
    return Reference(encoder, graph, spec, text_r, origin or _text_side(encoder), text, sets, notes)


def _pixels(encoder: Encoder, normalize: Normalize, learned: str) -> tuple[Statistics, tuple[str, ...]]:
    """(mean and std of every channel, notes). ``learned``: "clip" where the projection, or none, goes with the encoder's own
    pixels. Raises UsageError."""
    channels = 3 if encoder.color == "rgb" else 1
    if isinstance(normalize, tuple):
        return stated(normalize, channels), ()
    if encoder.architecture == "cnn" or normalize == "none" or (normalize == "auto" and learned != "clip"):
        return ((0.0,) * channels, (1.0,) * channels), ()
    if encoder.pixels == (CLIP_MEAN, CLIP_STD):
        return encoder.pixels, ()
    mean, std = encoder.pixels
    return encoder.pixels, (f"pixels: the source's own mean {_shown(mean)} and std {_shown(std)}, not CLIP's",)


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _label_sets(
    encoder: Encoder, labels: str | None, prompts: str | None, r: NDArray[np.float64]
) -> tuple[TextEncoderRef, tuple[LabelSet, ...]]:
    """The text encoder's identity and the compiled label sets, the default one first."""
    if encoder.inherited is not None:
        text, sets = encoder.inherited
        names = [s.name for s in sets]
        if prompts is not None or (labels is not None and labels not in names):
            raise UsageError(
                f"this student took its label sets ({', '.join(names)}) over from its teacher; "
                "convert without --prompts, then: fer-edge labels add BUNDLE FILE --text-encoder SOURCE"
            )
        return text, tuple(sorted(sets, key=lambda s: s.name != labels))
    assert encoder.text is not None
    known = encoder.text()
    sets = compile_label_sets(encoder, labels, prompts, known, r)
    return TextEncoderRef(known.kind, known.source, known.sha256), sets


def _text_side(encoder: Encoder) -> Source | None:
    """A student's projection is its own text side; plain CLIP has none."""
    if encoder.text_projection is None:
        return None
    return Source(encoder.source.source, hashlib.sha256(encoder.text_projection.tobytes()).hexdigest())


@torch.inference_mode()
def reference_features(reference: Reference, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features (N, D), unnormalised, of uint8 crops (N, H, W, C) of the reference's size."""
    features: NDArray[np.float32] = reference.graph(torch.from_numpy(images))["feature"].numpy()
    return features
