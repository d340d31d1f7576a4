"""Multiply-accumulates of an encoder, counted in the shapes of whichever artefact can be read here: OpenVINO's XML needs
nothing, LiteRT's file its interpreter, ONNX the package onnx. All artefacts of a bundle are one encoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from fer_edge.bundle import Bundle, artefact_files
from fer_edge.errors import importable
from fer_edge.manifest import Artefact

Shape = Sequence[int]


def count_macs(bundle: Bundle) -> int | None:
    """MACs of one inference: convolutions and matrix products, nothing else. None when no artefact can be read here.

    Whatever is wrong with a file is said where it is measured; here it is no reason to lose the measurement."""
    for runtime in _READERS:
        for artefact in bundle.manifest.general_artefacts:
            if artefact.runtime == runtime and (found := macs_by_operator(bundle, artefact)) is not None:
                return sum(found.values())
    return None


def macs_by_operator(bundle: Bundle, artefact: Artefact) -> Mapping[str, int] | None:
    """MACs by the operator's name in the artefact's file (LiteRT: its place); None when the file cannot be read here."""
    if artefact.runtime not in _READERS or artefact.target is not None:
        return None
    read, package = _READERS[artefact.runtime]
    if package is not None and not importable(package):
        return None
    try:
        return dict(read(artefact_files(bundle, artefact)[0]))
    except Exception:  # an altered file, an operator of a vendor's: another artefact may be readable
        return None


def product(output: Shape, inner: int) -> int:
    """A matrix product whose output has this shape, summed over ``inner`` numbers."""
    return math.prod(output) * inner


def _openvino(file: Path) -> Iterator[tuple[str, int]]:
    """Weights of a convolution are [O, I, ...], of a group convolution [G, O/G, I/G, ...] (OpenVINO IR)."""
    for layer in ElementTree.parse(file).iter("layer"):
        kind = layer.get("type")
        if kind not in ("Convolution", "GroupConvolution", "MatMul", "ScaledDotProductAttention"):
            continue
        name = layer.get("name", "")
        first, second, *_ = ([int(d.text or 0) for d in port.iter("dim")] for port in layer.find("input") or ())
        (output,) = ([int(d.text or 0) for d in port.iter("dim")] for port in layer.find("output") or ())
        if kind == "ScaledDotProductAttention":  # queries (..., L, E) and keys (..., S, E), then scores and values
            yield name, product(first, second[-2]) + product(output, second[-2])
            continue
        if kind == "MatMul":
            data = layer.find("data")
            turned = data is not None and data.get("transpose_a", "false").lower() in ("true", "1")
            yield name, product(output, first[-2] if turned and len(first) > 1 else first[-1])
        else:
            yield name, product(output, math.prod(second[1 if kind == "Convolution" else 2 :]))


def _litert(file: Path) -> Iterator[tuple[str, int]]:
    """Weights of CONV_2D are [O, kh, kw, I], of DEPTHWISE_CONV_2D [1, kh, kw, O], of FULLY_CONNECTED [O, I] (TFLite's
    builtin operators)."""
    from ai_edge_litert.interpreter import Interpreter

    engine: Any = Interpreter(model_path=str(file))
    shapes: dict[int, list[int]] = {d["index"]: d["shape"].tolist() for d in engine.get_tensor_details()}
    for op in engine._get_ops_details():
        kind, inputs, name = op["op_name"], op["inputs"], str(op["index"])
        output = [n for i in op["outputs"][:1] for n in shapes.get(i, [])]
        if kind in ("CONV_2D", "FULLY_CONNECTED"):
            yield name, product(output, math.prod(shapes[inputs[1]][1:]))
        elif kind == "DEPTHWISE_CONV_2D":
            yield name, product(output, math.prod(shapes[inputs[1]][1:3]))
        elif kind == "BATCH_MATMUL":
            # (B, M, K) x (B, K, N), either of them turned: the first one has B M K numbers.
            yield name, product(output, math.prod(shapes[inputs[0]]) // math.prod(output[:-1]))


def _onnx(file: Path) -> Iterator[tuple[str, int]]:
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    shapes = {t.name: list(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        shapes.setdefault(value.name, [d.dim_value for d in value.type.tensor_type.shape.dim])
    for node in graph.node:
        if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
            weights = node.input[3 if node.op_type == "QLinearConv" else 1]
            yield node.name, product(shapes[node.output[0]], math.prod(shapes[weights][1:]))
        elif node.op_type in ("MatMul", "MatMulInteger", "Gemm"):
            turned = node.op_type == "Gemm" and any(a.name == "transA" and a.i for a in node.attribute)
            first = shapes[node.input[0]]
            yield node.name, product(shapes[node.output[0]], first[0] if turned else first[-1])


_READERS = {"openvino": (_openvino, None), "litert": (_litert, "ai_edge_litert"), "onnxruntime": (_onnx, "onnx")}
"""Runtime -> (reader, the package that it needs)."""
