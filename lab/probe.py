"""Makes the benchmarks' probe: ``python -m lab.probe benchmarks/probe``.

It is a chain of matrix products and nothing else, converted like any encoder, so that a benchmark can say what share of
this machine's own peak a model reaches in the same engine at the same precision."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fer_edge.benchmarks.peak import CHANNELS, PRODUCTS, SIDE
from fer_edge.converters.graph import EdgeGraph


class Products(nn.Module):
    """(1, 3, 32, 32) -> 8 products of a (1024 x 256) with one (256 x 256) matrix, ReLU between -> (1, 256).

    The matrix is orthogonal times sqrt(2), so that ReLU neither starves nor feeds the chain; it is used again and again to
    keep the files small."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.spread = nn.Conv2d(3, CHANNELS, 1)
        self.product = nn.Conv2d(CHANNELS, CHANNELS, 1)
        nn.init.orthogonal_(self.product.weight, 2**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The products."""
        x = self.spread(x)
        for _ in range(PRODUCTS):
            x = torch.relu(self.product(x))
        return x.mean((2, 3))


def write_probe(folder: Path) -> None:
    """Write the artefacts of every runtime and precision into ``folder``."""
    from fer_edge.converters.exporter import Export, load_exporter, write_all
    from fer_edge.engines import PRECISIONS, RUNTIMES

    picks = np.random.default_rng(0)
    crops = picks.integers(0, 256, (16, SIDE, SIDE, 3), dtype=np.uint8)
    last, constants = np.eye(2, CHANNELS), np.eye(2, dtype=np.float32)
    graph = EdgeGraph(Products(), last, (0.0,) * 3, (1.0,) * 3, constants, 1.0).eval()
    folder.mkdir(parents=True, exist_ok=True)
    for runtime in RUNTIMES:
        with tempfile.TemporaryDirectory() as scratch:
            write_all(load_exporter(runtime), Export(graph, crops, "cnn", False, Path(scratch)), PRECISIONS, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    (target,) = sys.argv[1:] if arguments is None else arguments
    with tempfile.TemporaryDirectory() as work:  # converters leave files of their own behind
        write_probe(Path(work))
        Path(target).mkdir(parents=True, exist_ok=True)
        for file in sorted(Path(work).iterdir()):
            if file.suffix in (".xml", ".bin", ".tflite", ".onnx"):
                (Path(target) / file.name).write_bytes(file.read_bytes())


if __name__ == "__main__":
    main()
