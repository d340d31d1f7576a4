"""LLM knowledge of the faces that somebody has in a file already: vectors, or descriptions in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch.nn import functional as F

from fer_edge.bundle import file_ref
from fer_edge.errors import ConversionError
from fer_edge.image import ImageLike

from ..text import sentence_encoder, shown
from .cache import Side, Source, common_names


def vectors_source(file: Path) -> Source:
    """LLM features made elsewhere: a safetensors file with ``features`` (n, P) and, in its header, ``paths``: a JSON list of
    the faces' names, relative to the folder of faces. Raises ConversionError."""
    try:
        with safe_open(file, framework="pt") as opened:
            names = json.loads((opened.metadata() or {})["paths"])
            table = opened.get_tensor("features").float()
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConversionError(
            f"{file} is no file of LLM features ({type(error).__name__}): safetensors with a tensor 'features' (n, P) and, "
            "in its header, 'paths', a JSON list of the faces' names"
        ) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConversionError(f"{file}: 'paths' in its header is no JSON list of the faces' names")
    if table.ndim != 2 or len(table) != len(names):
        raise ConversionError(f"{file} has {len(names)} paths and features of shape {tuple(table.shape)}")
    return _table(file, names, F.normalize(table, dim=-1).numpy(), {"kind": "vectors"})


def descriptions_source(file: Path, text_model: str) -> Source:
    """What anybody wrote of each face, embedded by a sentence encoder: JSON lines of {"path", "text"}.

    Raises ConversionError or LabelError."""
    told: dict[str, str] = {}
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # JSON may hold what splitlines takes for an end of line
    except (OSError, ValueError) as error:
        raise ConversionError(f"{file} cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line) if line.strip() else None
            if entry is not None:
                if not isinstance(entry["text"], str) or not entry["text"].strip():
                    raise ValueError("no text")
                name = str(entry["path"])
                if name in told:
                    raise ConversionError(f"{file}, line {number} describes {name!r} a second time; keep one of the two")
                told[name] = entry["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConversionError(f'{file}, line {number} is not {{"path": ..., "text": ...}}') from error
    if not told:
        raise ConversionError(f"{file} holds no descriptions")
    encoder = sentence_encoder(text_model)
    texts = list(dict.fromkeys(told.values()))
    rows = [encoder.encode(texts[i : i + 64]) for i in range(0, len(texts), 64)]
    place = {text: i for i, text in enumerate(texts)}
    vectors = np.concatenate(rows)[[place[text] for text in told.values()]]
    return _table(file, list(told), vectors, {"kind": "descriptions", "text_model": encoder.sha256})


def _table(file: Path, names: Sequence[str], vectors: NDArray[np.float32], settings: Mapping[str, str]) -> Source:
    known = {name: i for i, name in enumerate(names)}
    if len(known) != len(names):
        again = next(name for name, count in Counter(names).items() if count > 1)
        raise ConversionError(f"{file} names the face {again!r} twice; which of its rows is meant?")
    sha = file_ref(file.parent, file.name).sha256

    def features(pictures: Sequence[ImageLike], faces: Sequence[str]) -> NDArray[np.float32]:
        return vectors[common_names(faces, known)]

    return Source(Side(shown(file.name), sha, vectors.shape[1], settings), features, names=known)
