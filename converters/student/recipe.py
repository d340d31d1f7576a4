"""What a training is made of: hyper-parameters, data, and one line of its log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from .augment import Strength
from .faces import Faces
from .language import TextRecipe
from .network import InTraining
from .sentences import Sentences
from .teachers import Teacher


@dataclass(frozen=True)
class Recipe:
    """Hyper-parameters. ``momentum`` is SGD's. ``sentences_per_class`` descriptions are drawn per class and batch,
    ``text_noise`` is added to them; ``mixup`` is the alpha of the shares; ``average`` the decay of the averaged weights
    per step; ``prior`` the strength of the logit adjustment; ``teacher_share`` the weight of the teachers' scores against
    the votes; ``views`` how many different views of a face teachers are asked about, each with its mirror image."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    epochs: int = 150
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup_epochs: float = 2.0
    dropout: float = 0.2
    sentences_per_class: int = 4
    text_noise: float = 0.02
    mixup: float = 0.3
    average: float = 0.999
    prior: float = 0.25
    teacher_share: float = 0.7
    views: int = 16
    strength: Strength = field(default_factory=Strength)
    text: TextRecipe = field(default_factory=TextRecipe)
    bf16: bool = True
    seed: int = 1


@dataclass(frozen=True)
class TrainingData:
    """Faces, and the sentences that class constants are made from: ``descriptions`` for the network, ``phrases`` for the
    final fit of the text side. ``labels`` may be fewer than the table has. ``twins`` counts the faces that were left out
    because they show a photo of the faces to test on."""

    train: Faces
    validation: Faces | None
    sentences: Sentences
    descriptions: Mapping[str, Sequence[str]]
    phrases: Mapping[str, Sequence[str]]
    labels: Sequence[str]
    twins: int = 0


class NetworkConfig(Protocol):
    """The shape of a network that can be trained, as ``StudentConfig``; its ``repr`` is part of a run's identity."""

    @property
    def size(self) -> int:
        """Pixels of a side of its gray faces."""

    @property
    def feature_dim(self) -> int:
        """D, numbers in a feature."""

    @property
    def text_dim(self) -> int:
        """T, numbers in a sentence vector."""

    def network(self, dropout: float) -> InTraining:
        """A network of this shape that can learn."""


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a training needs but a place to work."""

    data: TrainingData
    config: NetworkConfig
    recipe: Recipe
    teachers: tuple[Teacher, ...] = ()


@dataclass(frozen=True)
class EpochReport:
    """One line of log.csv. ``war`` and ``uar`` are fractions on the validation faces, by the averaged weights, NaN without
    any; ``seconds`` is what the epoch took."""

    epoch: int
    epochs: int
    loss: float
    war: float
    uar: float
    lr: float
    seconds: float
