"""A small CLIP-like vision transformer that the students' trainer can train: the subject of experiments with the converter's
treatment of ViTs, for which no trained CLIP is at hand. It is not deployed.

Layers, positions and the class token are CLIP's. Its patches come from the first stages of a trained student and not from
pixels: of pixels, 26,600 faces teach it nothing in the time there is (docs/decisions.md). The hybrid architecture of
Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

import fer_edge.converters.student
from fer_edge.converters.student.network import InTraining, Student, StudentConfig, load_student

STUDENT = Path(fer_edge.converters.student.__file__).with_name("student48.safetensors")
STAGES = 3
"""Of the student, taken as they are and not trained further; they make the picture four times smaller."""
PATCH = 8
"""Pixels from one token to the next: two places of the student's."""


@dataclass(frozen=True)
class VitConfig:
    """Shape of the transformer: by default 37 tokens, and 63 million multiply-accumulates with the student's stages."""

    size: int = 48
    width: int = 96
    layers: int = 6
    heads: int = 3
    feature_dim: int = 256
    text_dim: int = 384

    def network(self, dropout: float) -> InTraining:
        """A network of this shape that can learn."""
        body = VitBody(self, load_student(STUDENT).student)
        return InTraining(body, self.width, self.feature_dim, self.text_dim, dropout)

    def macs(self, tokens: list[int]) -> int:
        """Multiply-accumulates with so many tokens in the MLP of each layer, and as many as the layer before left in its
        attention; the first layer begins with what the picture has."""
        patches, side, total, channels = tokens[0] - 1, PATCH, 0, 1
        for channels_in, channels, stride in _stages(load_student(STUDENT).student.config):
            side //= stride
            total += patches * side**2 * 9 * channels_in * channels
        total += patches * side**2 * channels * self.width
        before = tokens[0]
        for after in tokens[1:]:
            attention = 4 * before * self.width**2 + 2 * before**2 * self.width
            total, before = total + attention + 8 * after * self.width**2, after
        return total


def _stages(config: StudentConfig) -> list[tuple[int, int, int]]:
    return config.layers()[: sum(config.depths[:STAGES])]


class Stem(nn.Sequential):
    """A student's first stages, frozen, and one product for each patch: (N, 1, S, S) in [0, 1] -> (N, W, S / 8, S / 8), in
    the place of CLIP's patch embedding."""

    def __init__(self, config: VitConfig, student: Student) -> None:
        layers: list[nn.Module] = []
        for conv in list(student.convs)[: len(_stages(student.config))]:
            layers += [conv.requires_grad_(False), nn.ReLU()]
        channels = student.config.widths[STAGES - 1]
        super().__init__(*layers, nn.Conv2d(channels, config.width, 2, 2))

    @property
    def weight(self) -> Tensor:
        """What CLIP asks its patch embedding for: the type to compute in."""
        return cast(nn.Conv2d, self[-1]).weight


class VitBody(nn.Module):
    """transformers' CLIP vision tower for gray faces (N, 1, S, S) in [0, 1] -> pooled (N, W)."""

    def __init__(self, config: VitConfig, student: Student) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        shape = CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_channels=1,
            image_size=config.size,
            patch_size=PATCH,
        )
        self.vision: Any = CLIPVisionModel(shape)
        self.vision.embeddings.patch_embedding = Stem(config, student)

    def forward(self, x: Tensor) -> Tensor:
        """The class token after the last layer."""
        pooled: Tensor = self.vision(pixel_values=x).pooler_output
        return pooled
