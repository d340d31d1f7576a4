"""What an artefact says of itself, to whoever opens it without the bundle: in a viewer, from C++ or for Android."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fer_edge.manifest import InputSpec


@dataclass(frozen=True)
class About:
    """``labels``: those of ``logits``, the default label set ``label_set``; ``spec``: what the model takes."""

    name: str
    version: str
    licence: str
    label_set: str
    labels: tuple[str, ...]
    spec: InputSpec

    @property
    def normalisation(self) -> str:
        """What the model itself does with a pixel."""
        spec = self.spec
        if not any(spec.mean) and set(spec.std) == {1.0}:
            return "inside the model: value / 255"
        mean, std = (", ".join(f"{number:.6g}" for number in numbers) for numbers in (spec.mean, spec.std))
        return f"inside the model: (value / 255 - mean) / std, mean {mean}, std {std}"

    @property
    def image(self) -> str:
        """What ``image`` is."""
        spec = self.spec
        return f"one face crop, uint8 (1, {spec.height}, {spec.width}, {spec.channels}), {spec.color}, values 0 to 255"

    @property
    def feature(self) -> str:
        """What ``feature`` is."""
        return "the projected image feature, not normalised; score it against any label set of the bundle"

    @property
    def logits(self) -> str:
        """What ``logits`` are."""
        return f"one for each label of the label set {self.label_set}; their softmax are the scores"

    def facts(self) -> dict[str, str]:
        """For people."""
        return {
            "name": self.name,
            "version": self.version,
            "licence": self.licence,
            "labels": ", ".join(self.labels),
            "normalisation": self.normalisation,
            "image": self.image,
            "feature": self.feature,
            "logits": self.logits,
        }

    def model_info(self) -> dict[str, Any]:
        """For OpenVINO's Model API (openvino-model-api, parameters of ``ClassificationModel`` and ``ImageModel``), which
        parts labels at spaces, takes the first output for the scores, and can prepare pictures of three channels only: a
        gray model has to be given crops of its own size, (H, W, 1)."""
        spec = self.spec
        gray = {"embedded_processing": True, "orig_height": spec.height, "orig_width": spec.width}
        return {
            "model_type": "Classification",
            "labels": ["_".join(label.split()) for label in self.labels],
            "resize_type": "standard",
            "interpolation_mode": "LINEAR",
            "reverse_input_channels": False,
            **(gray if spec.color == "gray" else {}),
        }
