"""The float graph that compilers of NPUs go out from: float NCHW pixels of 0 to 255 in, ``feature`` out, no cast in it.

RKNN-Toolkit2 2.5 takes operator sets up to 19 and no uint8 input; what is behind ``feature`` is computed in float beside the
NPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from .about import About
from .graph import EdgeGraph
from .to_onnxruntime import export_graph

FILE = "targets/float.onnx"


class FloatGraph(nn.Module):
    """As :class:`.graph.EdgeGraph` from after its cast up to ``feature``."""

    def __init__(self, graph: EdgeGraph) -> None:
        super().__init__()
        self.whole = graph  # not "graph": torch.export has a graph of its own under that name

    def forward(self, image: Tensor) -> Tensor:
        """float32 (1, C, H, W), 0 to 255 -> (1, D)."""
        x = image / 255.0
        if not self.whole.plain:
            x = (x - self.whole.mean) / self.whole.std
        return F.linear(self.whole.encoder(x), self.whole.last)


def write_float_graph(graph: EdgeGraph, crops: NDArray[np.uint8], folder: Path, about: About) -> NDArray[np.float32]:
    """Write :data:`FILE` into a bundle's folder; the features (N, D) that ONNX Runtime gives of ``crops`` (N, H, W, C)."""
    pixels = np.ascontiguousarray(crops.transpose(0, 3, 1, 2), np.float32)
    (folder / FILE).parent.mkdir(exist_ok=True)
    export_graph(FloatGraph(graph).eval(), torch.from_numpy(pixels[:1]), folder / FILE, ["feature"], about)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["feature"], {"image": picture[None]})[0] for picture in pixels])
