"""Sentence vectors, committed: descriptions.toml through a sentence encoder, so that training needs no text weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fer_edge.errors import LabelError
from fer_edge.labels import read_prompt_file

from ..text import TextEncoder

_HERE = files("fer_edge.converters.learn")


@dataclass(frozen=True)
class Sentences:
    """Sentences and their vectors (n, T) float32, with the text encoder's kind, source and identity."""

    texts: tuple[str, ...]
    vectors: NDArray[np.float32]
    kind: str
    source: str
    sha256: str

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
        return TextEncoder(self.kind, self.source, self.sha256, self.lookup)


def descriptions() -> dict[str, tuple[str, ...]]:
    """Label -> facial-action sentences, as written in descriptions.toml."""
    with as_file(_HERE / "descriptions.toml") as path:
        return read_prompt_file(path)


def stored_sentences() -> Sentences:
    """The committed table, sentences.npz."""
    with as_file(_HERE / "sentences.npz") as path, np.load(path, allow_pickle=False) as z:
        return Sentences(tuple(map(str, z["texts"])), z["vectors"], str(z["kind"]), str(z["source"]), str(z["sha256"]))


def write_sentences(encoder: TextEncoder, path: Path) -> Sentences:
    """Encode every description and write the table to ``path``."""
    texts = tuple(text for group in descriptions().values() for text in group)
    table = Sentences(texts, encoder.encode(texts), encoder.kind, encoder.source, encoder.sha256)
    np.savez_compressed(
        path,
        texts=np.array(table.texts),
        vectors=table.vectors,
        kind=np.array(table.kind),
        source=np.array(table.source),
        sha256=np.array(table.sha256),
    )
    return table
