"""ONNX artefacts. int8: static QDQ, per channel, activations of 8 unsigned bits and weights of 7 (or both of 8 signed bits,
for TensorRT); fp16 with float inputs and outputs. The head stays in float."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from .about import About
from .exporter import Export
from .rounding import round_for_outputs

OPSET = 18
"""The lowest that torch's exporter writes without a version converter, which fails on a ReduceMean. NPU compilers take up to
19 (RKNN-Toolkit2 2.5), ONNX Runtime 1.18 up to 21."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, crops: NDArray[np.uint8]) -> None:
        self._rows: Iterator[NDArray[np.uint8]] = iter(crops)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        crop = next(self._rows, None)
        return None if crop is None else {"image": crop[None]}


def trace(export: Export) -> Path:
    """The float model, a file."""
    plain = export.scratch / "plain.onnx"
    export_graph(export.graph, torch.from_numpy(export.example), plain, ["feature", "logits"], None)
    return plain


def export_graph(graph: torch.nn.Module, image: torch.Tensor, file: Path, outputs: list[str], about: About | None) -> None:
    """A graph of one input as a file, without notes of where it was made; ``about``: with what it is."""
    torch.onnx.export(
        graph,
        (image,),
        str(file),
        dynamo=True,
        input_names=["image"],
        output_names=outputs,
        opset_version=OPSET,
        external_data=False,
        verbose=False,
    )
    _forget_origin(file)
    if about:
        model = onnx.load(file)
        for key in ("name", "version", "licence"):
            model.metadata_props.add(key=key, value=about.facts()[key])
        onnx.save(model, file)


def write(traced: Path, precision: str, export: Export, folder: Path) -> list[str]:
    """Write one artefact into ``folder``; its file's name."""
    name = f"onnxruntime-{precision}.onnx"
    if precision == "fp32":
        shutil.copyfile(traced, folder / name)
    elif precision == "fp16":
        model = onnx.load(traced)
        onnx.save(convert_float_to_float16(model, keep_io_types=True, node_block_list=_head(model)), folder / name)
    else:
        _int8(traced, folder / name, export)
    _finish(folder / name, export.about)
    return [name]


def calibrated(export: Export) -> bool:
    """Always: the ranges are measured."""
    return True


def _finish(file: Path, about: About | None) -> None:
    """Put the nodes in order and tell the tensors' types anew (the way to fp16 leaves casts behind their readers, and
    float32 where none is), name no operator set that a model has no operator of (the quantizer names nine), and write into
    it what it is: for people, and in the keys that OpenVINO's Model API reads of an ONNX file."""
    model = onnx.load(file)
    ONNXModel(model).topological_sort()
    del model.graph.value_info[:]
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    used = {node.domain for node in model.graph.node} | {""}
    kept = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if about:
        info = {f"model_info {name}": _text(value) for name, value in about.model_info().items()}
        for key, value in {**about.facts(), **info}.items():
            model.metadata_props.add(key=key, value=value)
    onnx.save(model, file)


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _forget_origin(file: Path) -> None:
    """Remove the exporter's notes (stack traces with paths of this machine) from a model."""
    model = onnx.load(file)
    graph = model.graph
    for item in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        if not isinstance(item, onnx.TensorProto):
            item.ClearField("doc_string")
    onnx.save(model, file)


def _int8(plain: Path, target: Path, export: Export) -> None:
    prepared = export.scratch / "prepared.onnx"
    quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(target),
        _Reader(export.calibration),
        quant_format=QuantFormat.QDQ,
        # Of a ViT only the products: softmax, layer norm and GELU lose more in 8 bits than they cost in float.
        op_types_to_quantize=["Conv", "MatMul", "Gemm"] if export.architecture == "vit" else None,
        per_channel=True,
        # Without VNNI, x86 adds two products of 8 bits in 16: with weights of 8 bits the sum overflows, unseen.
        reduce_range=not export.symmetric,
        activation_type=QuantType.QInt8 if export.symmetric else QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_kept_in_float(onnx.load(prepared)),
        extra_options={"ActivationSymmetric": export.symmetric, "WeightSymmetric": True},
    )
    if export.architecture == "cnn" and not export.symmetric:  # symmetric weights overflow where this may be running
        round_for_outputs(target, prepared, export.calibration)


def _kept_in_float(model: Any) -> list[str]:
    """The head; and where tokens are merged, products of two activations: they choose and gather tokens, and 8 bits choose
    others."""
    nodes = model.graph.node
    if not any(node.op_type == "TopK" for node in nodes):
        return _head(model)
    constant = {item.name for item in model.graph.initializer}
    for node in nodes:  # in topological order
        if all(name in constant for name in node.input if name):
            constant.update(node.output)
    products = (node for node in nodes if node.op_type == "MatMul" and not constant.intersection(node.input))
    return [*_head(model), *(node.name for node in products)]


def _head(model: Any) -> list[str]:
    """Names of the nodes that ``feature`` does not depend on."""
    makers = {output: node for node in model.graph.node for output in node.output}
    body, waiting = set(), ["feature"]
    while waiting:
        node = makers.get(waiting.pop())
        if node is not None and node.output[0] not in body:
            body.add(node.output[0])
            waiting += node.input
    return [node.name for node in model.graph.node if node.output[0] not in body]
