"""Rounds the weights of a quantized convolutional network for what its layers put out, instead of one by one.

ONNX Runtime's quantizer takes each weight to its nearest integer. With 7 bits that loses what it need not: the rounding of
one weight can make up for that of its neighbours, and the bias for what remains of the mean. Layers are taken in the order
of the graph, each with the inputs that the quantized layers before it really hand on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

DAMPING = 0.01  # of the mean of the second moments' diagonal: Frantar et al. 2023 (GPTQ), "The GPTQ Algorithm", step 3
WEIGHT_LIMIT = 64  # of 7 bits, as onnxruntime.quantization's reduce_range has it


@dataclass(frozen=True)
class _Conv:
    """A convolution as it stands in both graphs: ``node`` of the quantized one, ``source`` its input in the float one."""

    node: Any
    source: str
    weight: str
    weight_scale: str
    bias: str | None
    bias_scale: str


def round_for_outputs(quantized: Path, plain: Path, calibration: NDArray[np.uint8]) -> None:
    """Rewrite the int8 weights and int32 biases of the convolutions in ``quantized``, made from ``plain`` with float
    nodes of the same names; scales and shapes stay. ``calibration``: (n, H, W, C), shown one by one.

    Grouped convolutions, and weights that several share, are left as they are."""
    model, original = onnx.load(quantized), onnx.load(plain)
    values = {item.name: item for item in model.graph.initializer}
    weights = {item.name: numpy_helper.to_array(item) for item in original.graph.initializer}
    sources = {node.name: node for node in original.graph.node if node.op_type == "Conv"}
    convolutions = list(_convolutions(model, sources))
    for conv, float_mean in zip(convolutions, _means(original, convolutions, calibration), strict=True):
        second, mean = _moments(model, conv, calibration)
        source = sources[conv.node.name]
        wanted = _flat(weights[source.input[1]])
        scale = _flat(numpy_helper.to_array(values[conv.weight_scale])[:, None])
        whole = rounded(wanted, scale, second)
        held = numpy_helper.to_array(values[conv.weight])
        _replace(values[conv.weight], whole.numpy().reshape(held.shape).astype(held.dtype))
        if conv.bias:
            step = numpy_helper.to_array(values[conv.bias_scale]).astype(np.float64)
            missing = wanted @ float_mean - (whole * scale) @ mean + _flat(weights[source.input[2]])[:, 0]
            _replace(values[conv.bias], np.rint(missing.numpy() / step).astype(np.int32))
    onnx.save(model, quantized)


def rounded(weight: Tensor, scale: Tensor, second: Tensor) -> Tensor:
    """(out, in) float64 weights, (out, 1) scales, (in, in) second moments of the inputs -> (out, in) whole numbers within
    the limit. Column by column: what rounding one changes in the layer's outputs is made up for by those after it
    (Frantar et al. 2023, "The GPTQ Algorithm", step 3)."""
    damped = second + DAMPING * second.diagonal().mean().clamp(min=1e-12) * torch.eye(len(second), dtype=second.dtype)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(damped)), upper=True)
    left, whole = weight.clone(), torch.empty_like(weight)
    for column, row in enumerate(inverse):
        whole[:, column] = (left[:, column] / scale[:, 0]).round().clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT)
        error = (left[:, column] - whole[:, column] * scale[:, 0]) / row[column]
        left[:, column:].addr_(error, row[column:], alpha=-1)
    return whole


def _convolutions(model: Any, sources: dict[str, Any]) -> Iterator[_Conv]:
    makers = {output: node for node in model.graph.node for output in node.output}
    readers = [name for node in model.graph.node for name in node.input]
    for node in model.graph.node:
        parts = [makers[name] for name in node.input if name in makers and makers[name].op_type == "DequantizeLinear"]
        if node.op_type != "Conv" or len(parts) < len(node.input):
            continue
        _, weight, *bias = parts
        if _attribute(node, "group", 1) == 1 and readers.count(weight.output[0]) == readers.count(weight.input[0]) == 1:
            source = sources[node.name].input[0]
            yield _Conv(node, source, *weight.input[:2], *(bias[0].input[:2] if bias else (None, "")))


def _means(original: Any, convolutions: Sequence[_Conv], calibration: NDArray[np.uint8]) -> list[Tensor]:
    """Of each convolution, the mean of its windows in the float network: (in,)."""
    totals = [torch.zeros(()) for _ in convolutions]
    for shown in _shown(original, [c.source for c in convolutions], calibration):
        totals = [t + _windows(c, x).mean(1) for t, c, x in zip(totals, convolutions, shown, strict=True)]
    return [total / len(calibration) for total in totals]


def _moments(model: Any, conv: _Conv, calibration: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Second moments (in, in) and mean (in,) of the windows that the quantized network hands to ``conv``."""
    second, mean = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for (shown,) in _shown(model, [conv.node.input[0]], calibration):
        windows = _windows(conv, shown)
        second, mean = second + windows @ windows.T / windows.shape[1], mean + windows.mean(1)
    return second / len(calibration), mean / len(calibration)


def _shown(model: Any, names: Sequence[str], calibration: NDArray[np.uint8]) -> Iterator[list[NDArray[np.float32]]]:
    """What ``model`` has at ``names`` for each crop."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    del tapped.graph.output[:]  # what lies behind need not run
    tapped.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # torch needs the processors between two crops
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for crop in calibration:
        yield session.run(list(names), {"image": crop[None]})


def _windows(conv: _Conv, x: NDArray[np.float32]) -> Tensor:
    """(1, C, H, W) -> (C * kh * kw, positions) in float64."""
    kernel = _attribute(conv.node, "kernel_shape", ())
    top, left, bottom, right = _attribute(conv.node, "pads", (0, 0, 0, 0))
    padded = F.pad(torch.from_numpy(x), (left, right, top, bottom))
    strides, dilations = (tuple(_attribute(conv.node, name, (1, 1))) for name in ("strides", "dilations"))
    return F.unfold(padded, tuple(kernel), dilation=dilations, stride=strides)[0].double()


def _attribute(node: Any, name: str, default: Any) -> Any:
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _flat(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array.reshape(len(array), -1).astype(np.float64))


def _replace(held: Any, array: NDArray[Any]) -> None:
    held.CopyFrom(numpy_helper.from_array(array, held.name))
