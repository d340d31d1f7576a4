"""``labels add``: sentences to constants through the bundle's own text projection."""

from __future__ import annotations

from pathlib import Path

from fer_edge.bundle import add_label_set, label_set, open_bundle, text_projection
from fer_edge.errors import LabelError
from fer_edge.labels import LabelSet, read_prompt_file

from .convert import compile_label_set
from .sources import load_clip
from .text import TextEncoder, clip_text_encoder, sentence_encoder


def add_labels(folder: Path, file: Path, source: str, name: str | None = None) -> LabelSet:
    """Add the label set of a prompt file to a bundle, with the text encoder at ``source``.

    Raises LabelError when that is not the encoder the bundle was made with, or the name is taken.
    """
    bundle = open_bundle(folder)
    prompts = read_prompt_file(file)
    ref = bundle.manifest.text_encoder
    encoder = open_text_encoder(ref.kind, source)
    if encoder.sha256 != ref.sha256:
        raise LabelError(
            f"{source} is not the text encoder of this bundle, which is {ref.source}: its weights or tokenizer differ"
        )
    default = label_set(bundle, bundle.manifest.default_labels)
    compiled = compile_label_set(name or file.stem, prompts, encoder, text_projection(bundle), default.logit_scale)
    add_label_set(bundle, compiled)
    return compiled


def open_text_encoder(kind: str, source: str) -> TextEncoder:
    """The text encoder at ``source``, read as ``kind``."""
    if kind == "sentence-transformers":
        return sentence_encoder(source)
    if kind == "clip":
        return clip_text_encoder(*load_clip(source), source)
    raise LabelError(f"this fer-edge knows no text encoders of the kind {kind!r}; upgrade fer-edge")
