"""A small CLIP-like vision transformer that the students' trainer can train: the subject of experiments with the converter's
treatment of ViTs, for which no trained CLIP is at hand. It is not deployed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .student import InTraining


@dataclass(frozen=True)
class VitConfig:
    """Shape of the transformer: by default 65 tokens, 170 million multiply-accumulates."""

    size: int = 48
    patch: int = 6
    width: int = 192
    layers: int = 6
    heads: int = 6
    feature_dim: int = 256
    text_dim: int = 384

    def network(self, dropout: float) -> InTraining:
        """A network of this shape that can learn."""
        body = VitBody(self)
        return InTraining(body, self.width, self.feature_dim, self.text_dim, dropout)

    def macs(self, tokens: list[int]) -> int:
        """Multiply-accumulates with so many tokens in the MLP of each layer, and as many as the layer before left in its
        attention; the first layer begins with what the picture has."""
        total, before = (tokens[0] - 1) * self.patch**2 * self.width, tokens[0]
        for after in tokens[1:]:
            attention = 4 * before * self.width**2 + 2 * before**2 * self.width
            total, before = total + attention + 8 * after * self.width**2, after
        return total


class VitBody(nn.Module):
    """transformers' CLIP vision tower for gray faces (N, 1, S, S) in [0, 1] -> pooled (N, W)."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        shape = CLIPVisionConfig(
            hidden_size=config.width,
            intermediate_size=4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_channels=1,
            image_size=config.size,
            patch_size=config.patch,
        )
        self.vision: Any = CLIPVisionModel(shape)

    def forward(self, x: Tensor) -> Tensor:
        """The class token after the last layer."""
        pooled: Tensor = self.vision(pixel_values=x - 0.5).pooler_output
        return pooled
