"""Sentence vectors, committed, so that training needs no text weights: descriptions.toml, and words.toml in templates,
through a sentence encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.arrays import write_npz
from fer_edge.errors import LabelError
from fer_edge.labels import read_prompt_file
from fer_edge.manifest import TextEncoderRef

from ..text import TextEncoder

_HERE = files("fer_edge.converters.student")

TEMPLATES = (
    "{}",
    "{}.",
    "an expression of {}.",
    "a photo of a face with an expression of {}.",
    "a face that shows {}",
    "the face of a person who feels {}",
)
"""Ways to put a word; the second to fourth are Exp-CLIP's P1 to P3."""


@dataclass(frozen=True)
class Sentences:
    """Sentences and their vectors (n, T) float32, with the text encoder they come from."""

    texts: tuple[str, ...]
    vectors: NDArray[np.float32]
    text: TextEncoderRef

    def lookup(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors (len(texts), T) of sentences in the table. Raises LabelError for one that is not."""
        index = {text: i for i, text in enumerate(self.texts)}
        missing = [text for text in texts if text not in index]
        if missing:
            raise LabelError(
                f'no stored vector for the sentence "{missing[0]}"; convert without --prompts, '
                "then: fer-edge labels add BUNDLE FILE --text-encoder SOURCE"
            )
        return self.vectors[[index[text] for text in texts]]

    def encoder(self) -> TextEncoder:
        """The table seen as a text encoder that knows only its own sentences."""
        return TextEncoder(self.text.kind, self.text.source, self.text.sha256, self.lookup)


def descriptions() -> dict[str, tuple[str, ...]]:
    """Label -> facial-action sentences, as written in descriptions.toml: the prompts of a student's own label sets."""
    with as_file(_HERE / "descriptions.toml") as path:
        return read_prompt_file(path)


def phrases() -> dict[str, tuple[str, ...]]:
    """Label -> everything the text side learns from: the descriptions, and the words of words.toml in every template."""
    with as_file(_HERE / "words.toml") as path:
        words = read_prompt_file(path)
    told: Mapping[str, Sequence[str]] = descriptions()
    return {
        label: tuple(dict.fromkeys([*told[label], *(t.format(word) for word in words[label] for t in TEMPLATES)]))
        for label in told
    }


def stored_sentences() -> Sentences:
    """The committed table, sentences.npz."""
    with as_file(_HERE / "sentences.npz") as path, np.load(path, allow_pickle=False) as z:
        text = TextEncoderRef(str(z["kind"]), str(z["source"]), str(z["sha256"]))
        return Sentences(tuple(text.decode() for text in z["texts"].tolist()), z["vectors"].astype(np.float32), text)


def write_sentences(encoder: TextEncoder, path: Path) -> Sentences:
    """Encode every phrase and write the table to ``path``, vectors in float16."""
    texts = tuple(dict.fromkeys(text for group in phrases().values() for text in group))
    text = TextEncoderRef(encoder.kind, encoder.source, encoder.sha256)
    table = Sentences(texts, encoder.encode(texts), text)
    write_npz(
        path,
        texts=np.array([text.encode() for text in table.texts]),
        vectors=table.vectors.astype(np.float16),
        kind=np.array(text.kind),
        source=np.array(text.source),
        sha256=np.array(text.sha256),
    )
    return table
