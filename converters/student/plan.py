"""From what a user names to a training plan: labelled or unlabelled faces, teachers, the student's shape."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fer_edge.errors import ConversionError, ImageError, UsageError
from fer_edge.image import ImageLike
from fer_edge.labelled import read_pictures
from fer_edge.labels import LABEL_SETS
from fer_edge.twins import near_duplicates, squares

from .augment import Strength
from .device import native_bf16, training_device
from .faces import Faces, load_faces, load_pictures
from .network import StudentConfig
from .recipe import Recipe, TrainingData, TrainingPlan
from .sentences import descriptions, phrases, stored_sentences
from .teachers import Teacher


def plan_training(
    faces: Path,
    teachers: Sequence[Teacher],
    validation: Path | None = None,
    without: Sequence[str] = (),
    size: int = 48,
    widths: tuple[int, ...] = StudentConfig.widths,
    depths: tuple[int, ...] = StudentConfig.depths,
    strength: float = 1.0,
    bf16: bool | None = None,
    apart: Sequence[Path] = (),
    keep_twins: bool = False,
    **recipe: float,
) -> TrainingPlan:
    """Read the faces and shape the student. Faces that show the same photo as one of ``validation`` or of ``apart``
    (folders or npz files) are left out, unless ``keep_twins``: what was learned says nothing about its twin.

    ``strength``: how hard faces are disturbed and mixed, against the recipe's defaults; ``bf16``: None where this machine
    has it; ``recipe``: other fields of :class:`Recipe` that differ from its defaults. Faces without votes need one teacher,
    whose space the student takes over. Raises UsageError or ConversionError."""
    if len(widths) != len(depths):
        raise UsageError(f"{len(widths)} widths and {len(depths)} depths do not make stages; give one of each per stage")
    every = LABEL_SETS["ferplus8"]
    unknown = [label for label in without if label not in every]
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no expression of FER+; there are {', '.join(every)}")
    labels = tuple(label for label in every if label not in without)
    if len(labels) < 2:
        raise UsageError("at least two expressions must be left to learn")
    if not faces.is_dir() and not zipfile.is_zipfile(faces):
        problem = "is neither a folder of faces nor an npz file" if faces.exists() else "does not exist"
        raise UsageError(f"{faces} {problem}")
    labelled = has_votes(faces)
    if not labelled and len(teachers) != 1:
        raise UsageError(f"{faces} has no FER+ votes: name one --teacher whose features the student shall learn")
    if without and not labelled:
        raise UsageError(f"{faces} has no FER+ votes, so no expression can be left out of it")
    train = load_faces(faces, labels, size) if labelled else load_pictures(faces, size)
    known = load_faces(validation, labels, size) if validation else None
    tests = [*([known.pictures] if known is not None and not keep_twins else []), *(read_pictures(p).images for p in apart)]
    train, twins = without_twins(train, tests)
    config = StudentConfig(size, widths, depths)
    if not labelled:
        feature_dim, text_dim = teachers[0].r.shape
        config = StudentConfig(size, widths, depths, feature_dim, text_dim)
    data = TrainingData(train, known, stored_sentences(), descriptions(), phrases(), labels, twins)
    disturbed: dict[str, Any] = {"strength": Strength().times(strength), "mixup": strength * Recipe.mixup}
    known_bf16 = native_bf16(training_device()) if bf16 is None else bf16
    return TrainingPlan(data, config, Recipe(**{**disturbed, "bf16": known_bf16, **recipe}), tuple(teachers))


def without_twins(train: Faces, tests: Sequence[Sequence[ImageLike]]) -> tuple[Faces, int]:
    """The faces that show no photo of the others, and how many do. Raises ConversionError for a picture that cannot be read
    and where no face is left."""
    if not tests:
        return train, 0
    try:
        seen, others = squares(train.pictures), np.concatenate([squares(pictures) for pictures in tests])
    except ImageError as error:
        raise ConversionError(f"a face cannot be read: {error}") from error
    rows = near_duplicates(seen, others).rows()
    kept = np.delete(np.arange(len(train.pictures)), rows)
    if not len(kept):
        raise ConversionError(
            "every face to learn from shows a photo to be tested on; name other faces, or pass --keep-twins"
        )
    return train.part(kept), len(rows)


def has_votes(faces: Path) -> bool:
    """Whether ``faces`` is an npz file with FER+ votes."""
    if not zipfile.is_zipfile(faces):
        return False
    with zipfile.ZipFile(faces) as archive:
        return "ferplus_votes_labelcsv.npy" in archive.namelist()
