"""Sentences to constants: the label sets of a conversion, and ``labels add`` through a bundle's own text projection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.bundle import Bundle, add_label_set, check_name, label_set, open_bundle, text_projection
from fer_edge.errors import ConversionError, LabelError, UsageError
from fer_edge.labels import LABEL_SETS, LabelSet, built_in_prompts, check_labels, read_prompt_file

from .clip import load_clip
from .graph import class_constants
from .sources import Encoder
from .text import TextEncoder, clip_text_encoder, sentence_encoder


def compile_label_sets(
    encoder: Encoder, labels: str | None, prompts: str | None, text: TextEncoder, r: NDArray[np.float64]
) -> tuple[LabelSet, ...]:
    """The default label set first, then every other built-in one that the prompts cover.

    ``labels``: a built-in name or a file; ``prompts``: a built-in type or a file; None: the encoder's own defaults.
    """
    default = labels or ("rafdb7" if encoder.prompts is None else "ferplus8")
    table = _prompt_table(encoder, prompts)
    wanted: dict[str, Mapping[str, tuple[str, ...]]] = {}
    if default in LABEL_SETS:
        missing = [label for label in LABEL_SETS[default] if label not in table]
        if missing:
            raise ConversionError(
                f"the prompts have none for {', '.join(missing)} of the label set {default}; "
                "name your own labels with --labels FILE"
            )
    else:
        path = Path(default)
        if not path.is_file():
            raise UsageError(f"no label set {default!r}; built in are {', '.join(LABEL_SETS)}, or name a TOML or JSON file")
        check_name(path.stem)
        wanted[path.stem] = read_prompt_file(path)
        check_labels(tuple(wanted[path.stem]), str(path))
        if path.stem in LABEL_SETS:
            raise UsageError(f"{path} would be named {path.stem}, which is a built-in label set; rename the file")
    for name in sorted(encoder.label_sets, key=lambda n: n != default):
        if all(label in table for label in LABEL_SETS[name]):
            wanted[name] = {label: table[label] for label in LABEL_SETS[name]}
    return tuple(compile_label_set(name, group, text, r, encoder.logit_scale) for name, group in wanted.items())


def _prompt_table(encoder: Encoder, prompts: str | None) -> Mapping[str, tuple[str, ...]]:
    if prompts is None and encoder.prompts is not None:
        return encoder.prompts
    chosen = prompts or "P3"
    if Path(chosen).suffix.lower() in (".toml", ".json"):
        return read_prompt_file(Path(chosen))
    return built_in_prompts(LABEL_SETS["mafw11"], chosen)


def compile_label_set(
    name: str, prompts: Mapping[str, Sequence[str]], text: TextEncoder, r: NDArray[np.floating], logit_scale: float
) -> LabelSet:
    """Sentences to constants: label -> prompts through a text encoder and R (D, T)."""
    constants = class_constants(list(prompts.values()), text.encode, r)
    names = list(prompts)
    if not np.isfinite(constants).all():
        raise LabelError("the text encoder gives NaN or Inf for the prompts; its weights are broken")
    for i, k in combinations(range(len(names)), 2):
        if prompts[names[i]] != prompts[names[k]] and np.allclose(constants[i], constants[k], rtol=0, atol=1e-7):
            raise LabelError(
                f"the prompts of {names[i]!r} and {names[k]!r} mean the same to the text encoder; are they too long, or cut?"
            )
    return LabelSet(name, tuple(prompts), constants, logit_scale, 1.0, tuple(tuple(group) for group in prompts.values()))


def left_out(bundle: Bundle) -> dict[str, list[str]]:
    """Built-in label sets that a CLIP bundle should have and has not: name -> labels without a prompt."""
    there = {ref.name: ref.labels for ref in bundle.manifest.label_sets}
    known = {label for labels in there.values() for label in labels}
    wanted = LABEL_SETS if bundle.manifest.text_encoder.kind == "clip" else {}
    return {name: [k for k in labels if k not in known] for name, labels in wanted.items() if name not in there}


def add_labels(folder: Path, file: Path, source: str, name: str | None = None) -> tuple[LabelSet, tuple[str, ...]]:
    """Add the label set of a prompt file to a bundle, with the text encoder at ``source``; the set, and notes in words.

    Raises LabelError when that is not the encoder the bundle was made with, or the name is taken.
    """
    bundle = open_bundle(folder)
    prompts = read_prompt_file(file)
    check_labels(tuple(prompts), str(file))
    ref = bundle.manifest.text_encoder
    encoder = open_text_encoder(ref.kind, source)
    if encoder.sha256 != ref.sha256:
        raise LabelError(
            f"{source} is not the text encoder of this bundle, which is {ref.source}: its weights or tokenizer differ"
        )
    check_name(name or file.stem)
    default = label_set(bundle, bundle.manifest.default_labels)
    compiled = compile_label_set(name or file.stem, prompts, encoder, text_projection(bundle), default.logit_scale)
    add_label_set(bundle, compiled)
    return compiled, (*encoder.notes, *_own_words(bundle))


def _own_words(bundle: Bundle) -> tuple[str, ...]:
    """A note where the image encoder never saw what new sentences mean. A CLIP's two sides learned from millions of
    captions; a student's faces met the sentences of its own training alone, through the sentence encoder beside it."""
    if bundle.manifest.text_encoder.kind != "sentence-transformers":
        return ()
    own = ", ".join(label_set(bundle, bundle.manifest.default_labels).labels)
    return (
        f"this encoder learned words for {own}, and no others: a label that means something else gets scores that mean "
        "nothing. Try the set on labelled faces (fer-edge evaluate), or convert a CLIP",
    )


def open_text_encoder(kind: str, source: str) -> TextEncoder:
    """The text encoder at ``source``, read as ``kind``."""
    if kind == "sentence-transformers":
        return sentence_encoder(source)
    if kind == "clip":
        return clip_text_encoder(load_clip(source))
    raise LabelError(f"this fer-edge knows no text encoders of the kind {kind!r}; upgrade fer-edge")
