"""Weights rounded for what a layer puts out, against the plain formula in float64 and against rounding each by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from torch import Tensor, nn

from fer_edge.converters import to_onnxruntime
from fer_edge.converters.crops import augmented
from fer_edge.converters.exporter import Export, load_exporter, write_all
from fer_edge.converters.graph import EdgeGraph
from fer_edge.converters.rounding import WEIGHT_LIMIT, rounded

SIZE = 24


def made(seed: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Weights and the scales that quantization gives them."""
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return weight, weight.abs().amax(1, keepdim=True) / WEIGHT_LIMIT


def nearest(weight: Tensor, scale: Tensor) -> Tensor:
    """Each weight by itself."""
    return (weight / scale).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)


def test_inputs_that_have_nothing_in_common_leave_each_weight_its_nearest() -> None:
    weight, scale = made(0, 40, 8)
    powers = torch.linspace(0.5, 4, 40, dtype=torch.float64)
    assert torch.equal(rounded(weight, scale, torch.diag(powers)), nearest(weight, scale))


@given(seed=st.integers(0, 10_000), inputs=st.integers(16, 48), shared=st.floats(2.0, 8.0))
@settings(max_examples=30, deadline=None)
def test_inputs_that_go_together_lose_less(seed: int, inputs: int, shared: float) -> None:
    """Rounding each leaves the errors' sum to chance, and it meets what the inputs share: 1 + shared^2 an input. Rounding
    for the output brings the sum to nothing: 1 an input."""
    weight, scale = made(seed, inputs, 32)
    draws = np.random.default_rng(seed)
    x = torch.from_numpy(draws.normal(size=(inputs, 4000)) + shared * draws.normal(size=(1, 4000)))
    whole = rounded(weight, scale, x @ x.T / 4000)
    assert torch.equal(whole, whole.round())
    assert whole.abs().max() <= WEIGHT_LIMIT

    def lost(q: Tensor) -> float:
        return float(((weight - q * scale) @ x).square().mean())

    assert lost(whole) < 0.5 * lost(nearest(weight, scale))


def test_an_input_that_never_moves_is_no_trouble() -> None:
    weight, scale = made(1, 12, 4)
    assert torch.equal(rounded(weight, scale, torch.zeros(12, 12, dtype=torch.float64)), nearest(weight, scale))


class Small(nn.Module):
    """Padded, strided, dilated, grouped, one convolution used twice, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.twice = nn.Conv2d(12, 12, 1)
        self.wide = nn.Conv2d(12, 16, (3, 1), padding=(2, 0), dilation=(2, 1), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(1, 3, H, W) -> (1, 16)."""
        x = torch.relu(self.grouped(torch.relu(self.first(x))))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.wide(x).mean((2, 3))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same network in fp32, in int8 as the quantizer leaves it ("each"), and in int8 as it is written ("int8")."""
    torch.manual_seed(3)
    constants = np.eye(2, 16, dtype=np.float32)
    graph = EdgeGraph(Small(), np.eye(16), (0.5,) * 3, (0.25,) * 3, constants, 10.0).eval()
    crops = augmented(64, SIZE, "rgb", seed=1)
    files = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, rounding in (("int8", to_onnxruntime.round_for_outputs), ("each", lambda *_: None)):
            patch.setattr(to_onnxruntime, "round_for_outputs", rounding)
            folder = tmp_path_factory.mktemp(name)
            export = Export(graph, crops, "cnn", False, tmp_path_factory.mktemp("scratch"))
            write_all(load_exporter("onnxruntime"), export, ("fp32", "int8"), folder)
            files[name] = folder / "onnxruntime-int8.onnx"
            files["fp32"] = folder / "onnxruntime-fp32.onnx"
    return files


def features(file: Path, crops: np.ndarray) -> np.ndarray:
    """What a model gives for each crop."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["feature"], {"image": crop[None]})[0] for crop in crops])


def test_a_network_loses_less_on_pictures_it_was_not_rounded_for(both: dict[str, Path]) -> None:
    crops = augmented(64, SIZE, "rgb", seed=2)
    expected = features(both["fp32"], crops)
    error = {name: np.abs(features(both[name], crops) - expected).mean() for name in ("int8", "each")}
    assert error["int8"] < 0.7 * error["each"], error


def test_only_weights_and_biases_of_plain_convolutions_change(both: dict[str, Path]) -> None:
    new, old = (onnx.load(both[name]) for name in ("int8", "each"))
    assert [n.SerializeToString() for n in new.graph.node] == [n.SerializeToString() for n in old.graph.node]
    values = [{i.name: numpy_helper.to_array(i) for i in model.graph.initializer} for model in (new, old)]
    assert {n: (a.shape, a.dtype) for n, a in values[0].items()} == {n: (a.shape, a.dtype) for n, a in values[1].items()}
    changed = {name for name, array in values[0].items() if not np.array_equal(array, values[1][name])}
    assert changed == {f"encoder.{name}_quantized" for name in ("first.weight", "first.bias", "wide.weight")}
