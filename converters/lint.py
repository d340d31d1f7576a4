"""Which operators an artefact has, and which of them classes of devices take, by their makers' own lists.

A list says what a device may take; its compiler has the last word (shapes, strides and types count as well), and
``fer-edge compile`` asks it. OpenVINO's IR is opened by OpenVINO's own plug-ins alone, which decide at opening: its
operators are counted, and no list is held against them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fer_edge.bundle import Bundle
from fer_edge.classifier import artefact_name

_U55 = """ABS ADD ARG_MAX AVERAGE_POOL_2D BATCH_MATMUL CONCATENATION CONV_2D DEPTHWISE_CONV_2D ELU EXP EXPAND_DIMS
FULLY_CONNECTED GELU HARD_SWISH LEAKY_RELU LOG LOGISTIC MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG PACK PAD PADV2
PRELU QUANTIZE REDUCE_MAX REDUCE_MIN RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR
REVERSE_V2 RSQRT SLICE SOFTMAX SPLIT SPLIT_V SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM TANH TILE TRANSPOSE
TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK"""
_U85 = f"""{_U55} ASSIGN_VARIABLE CAST DIV EQUAL GATHER GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_NOT
LOGICAL_OR NOT_EQUAL READ_VARIABLE REDUCE_ALL REDUCE_ANY SCATTER_ND SELECT SELECT_V2"""
"""Vela 5.2, ``vela --supported-ops-report``."""
_RKNN = """Add ArgMax ArgMin AveragePool BatchNormalization Cast Clip Concat Constant ConstantOfShape Conv ConvTranspose
DepthToSpace DequantizeLinear Div Dropout Elu Equal Exp Flatten GRU Gather Gemm GlobalAveragePool GlobalMaxPool Greater
GreaterOrEqual HardSigmoid HardSwish Identity InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual LogSoftmax
LpNormalization MatMul Max MaxPool Min Mul PRelu Pad Pow QuantizeLinear ReduceMax ReduceMean ReduceMin ReduceSum Relu
Reshape Resize Shape Sigmoid Size Slice Softmax Softplus SpaceToDepth Split Sqrt Squeeze Sub Tanh Tile Transpose Unsqueeze
Where"""
"""rknn-toolkit2, doc/RKNNToolKit2_OP_Support-1.4.0.md, the last list that its makers published as text; newer releases take
more."""
_TENSORRT = """Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
ConvTranspose Cos CumSum DepthToSpace DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU
Gather GatherElements GatherND Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity
If InstanceNormalization LRN LSTM LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool
Mean Min Mul Neg Not Or PRelu Pad Pow QuantizeLinear RNN Range ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence Round Scan ScatterElements
ScatterND Selu Shape Sigmoid Sign Sin Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh
ThresholdedRelu Tile TopK Transpose Unsqueeze Where Xor"""
"""onnx-tensorrt, docs/operators.md, TensorRT 8.4; its note on zero points is looked at as well."""


@dataclass(frozen=True)
class Device:
    """A class of devices: which operators it takes, and what of an operator's tensors it wants beside that."""

    name: str
    ending: str
    operators: frozenset[str]
    wants: str


DEVICES = (
    Device("Ethos-U55/65", ".tflite", frozenset(_U55.split()), "integers"),
    Device("Ethos-U85", ".tflite", frozenset(_U85.split()), "integers"),
    Device("RKNN", ".onnx", frozenset(_RKNN.split()), "no uint8"),
    Device("TensorRT", ".onnx", frozenset(_TENSORRT.split()), "zero points of 0"),
)


@dataclass(frozen=True)
class Operators:
    """Of one artefact: ``counts`` by operator; device class -> operators that it leaves (empty: it takes all)."""

    artefact: str
    counts: Mapping[str, int]
    left: Mapping[str, Mapping[str, int]]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "artefact": self.artefact,
            "operators": dict(self.counts),
            "devices": {name: {"takes": self.taken(left), "leaves": dict(left)} for name, left in self.left.items()},
        }

    def taken(self, left: Mapping[str, int]) -> int:
        """How many operators a device takes that leaves these."""
        return sum(self.counts.values()) - sum(left.values())


def lint(bundle: Bundle) -> list[Operators]:
    """The operators of every artefact whose format is known here."""
    found = []
    for artefact in bundle.manifest.artefacts:
        file = bundle.folder / artefact.files[0].path
        if file.suffix in _READERS:
            ops = _READERS[file.suffix](file)
            left = {
                device.name: Counter(name for name, traits in ops if not _takes(device, name, traits))
                for device in DEVICES
                if device.ending == file.suffix
            }
            found.append(Operators(artefact_name(artefact), Counter(name for name, _ in ops), left))
    return found


def table(found: Sequence[Operators]) -> list[list[str]]:
    """Rows for people, the head first."""
    rows = [["operators", "all", *(device.name for device in DEVICES), "left by the first of these"]]
    for one in found:
        total = sum(one.counts.values())
        shares = [f"{one.taken(one.left[d.name])} of {total}" if d.name in one.left else "-" for d in DEVICES]
        first = next(iter(one.left.values()), {})
        rows.append([one.artefact, str(total), *shares, ", ".join(f"{n} {name}" for name, n in first.items()) or "-"])
    return rows


def _takes(device: Device, name: str, traits: frozenset[str]) -> bool:
    return name in device.operators and device.wants not in traits


def _tflite(file: Path) -> list[tuple[str, frozenset[str]]]:
    """(operator, what of it a device may mind)."""
    from ai_edge_litert import schema_py_generated as schema

    from . import tflite_graph

    model = tflite_graph.read(file)
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    graph, found = model.subgraphs[0], []
    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16)
    for op in graph.operators:
        types = {graph.tensors[i].type for i in (op.inputs[0], *op.outputs)}
        traits = frozenset({"integers"} if types & set(floats) else ())
        found.append((names[tflite_graph.kind_of(model, op)], traits))
    return found


def _onnx(file: Path) -> list[tuple[str, frozenset[str]]]:
    import numpy as np
    import onnx

    model = onnx.load(file)
    values = {item.name: onnx.numpy_helper.to_array(item) for item in model.graph.initializer}
    pixels = {item.name for item in model.graph.input if item.type.tensor_type.elem_type == onnx.TensorProto.UINT8}
    found = []
    for node in model.graph.node:
        traits = set()
        if pixels & set(node.input):
            traits.add("no uint8")
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            point = values.get(node.input[2]) if len(node.input) > 2 else None
            # An unsigned type without a point has the point 0, but TensorRT takes signed integers alone.
            if point is not None and (np.any(point != 0) or point.dtype == np.uint8):
                traits.add("zero points of 0")
        found.append((node.op_type, frozenset(traits)))
    return found


def _openvino(file: Path) -> list[tuple[str, frozenset[str]]]:
    from xml.etree import ElementTree

    layers = ElementTree.parse(file).getroot().iterfind("layers/layer")
    kinds = [layer.get("type", "") for layer in layers]
    return [(kind, frozenset()) for kind in kinds if kind not in ("Const", "Parameter", "Result")]


_READERS: Mapping[str, Callable[[Path], list[tuple[str, frozenset[str]]]]] = {
    ".tflite": _tflite,
    ".onnx": _onnx,
    ".xml": _openvino,
}
