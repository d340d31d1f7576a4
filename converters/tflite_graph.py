"""What LiteRT's tools leave undone in a .tflite: a student's int8 graph is made of integers from the picture to ``feature``,
so that an NPU takes all of it.

Schema: tensorflow/compiler/mlir/lite/schema/schema.fbs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils as flatbuffer
from numpy.typing import NDArray

_OPERATOR = schema.BuiltinOperator


def read(file: Path) -> Any:
    """A model as objects that can be changed."""
    return flatbuffer.read_model(str(file))


def write(model: Any, file: Path) -> None:
    """A model's file, without tensors that nothing reads or makes: the quantizer wants the values of all of them. The
    tools' own writer does not tell when a disk is full."""
    _forget_tensors(model)
    file.write_bytes(bytes(flatbuffer.convert_object_to_bytearray(model)))


def pool_where_it_lies(model: Any) -> None:
    """Change a mean over the pixels of a transposed map into one over those of the map itself: (N, H, W, C) -> (N, C, H,
    W) -> (N, C) is (N, H, W, C) -> (N, C). NPUs have the second alone. What is left must lie in its order, and the axes may
    be those of other means too."""
    for transpose, mean in _pairs(model, _OPERATOR.TRANSPOSE, _OPERATOR.MEAN):
        order, axes = (_whole_numbers(model, op.inputs[1]) for op in (transpose, mean))
        left = np.delete(order, axes)
        if not mean.builtinOptions.keepDims and (np.diff(left) > 0).all():
            here = _added(model, order[axes], b"pool/axes")
            mean.inputs = [mean.inputs[0], here, *mean.inputs[2:]]
            _bypass(model, transpose, mean)


def take_pixels_as_integers(model: Any) -> None:
    """Change uint8 -> float -> int8 with a step of 1 at the beginning into uint8 -> int8: the same numbers, minus 128."""
    graph = model.subgraphs[0]
    for cast, quantize in _pairs(model, _OPERATOR.CAST, _OPERATOR.QUANTIZE):
        pixels, whole = graph.tensors[cast.inputs[0]], graph.tensors[quantize.outputs[0]]
        to = whole.quantization
        if pixels.type == schema.TensorType.UINT8 and whole.type == schema.TensorType.INT8 and list(to.scale) == [1.0]:
            pixels.quantization = schema.QuantizationParametersT()
            pixels.quantization.scale, pixels.quantization.zeroPoint = [1.0], [int(to.zeroPoint[0]) + 128]
            _bypass(model, cast, quantize)


def share_one_range(model: Any, name: str, low: NDArray[np.float32], high: NDArray[np.float32]) -> str:
    """Let the matrix product that makes the signature's output ``name`` (1, D) give every channel between -1 and 1, and undo
    that behind it: one step of 8 bits then fits all channels, which reach from ``low`` to ``high`` (D,). The name of the
    tensor between."""
    graph = model.subgraphs[0]
    (place,) = (end.tensorIndex for end in model.signatureDefs[0].outputs if end.name.decode() == name)
    ((at, product),) = ((i, op) for i, op in enumerate(graph.operators) if place in op.outputs)
    middle = (low + high) / 2
    reach = np.maximum((high - low) / 2, 1e-6 * np.abs(high).max()).astype(np.float32)
    weights = _array(model, product.inputs[1]).reshape(len(reach), -1)
    bias = _array(model, product.inputs[2]) if len(product.inputs) > 2 and product.inputs[2] >= 0 else np.zeros_like(reach)
    scaled = _added(model, weights / reach[:, None], b"share/weights")
    moved = _added(model, (bias - middle) / reach, b"share/bias")
    between, spread = (_like(model, place, f"{name}_{part}".encode()) for part in ("in_one_range", "in_its_range"))
    product.inputs, product.outputs = [product.inputs[0], scaled, moved], [between]
    factors, middles = _added(model, reach, b"share/reach"), _added(model, middle, b"share/middle")
    multiply = _operator(model, _OPERATOR.MUL, schema.BuiltinOptions.MulOptions, schema.MulOptionsT())
    multiply.inputs, multiply.outputs = [between, factors], [spread]
    add = _operator(model, _OPERATOR.ADD, schema.BuiltinOptions.AddOptions, schema.AddOptionsT())
    add.inputs, add.outputs = [spread, middles], [place]
    graph.operators[at + 1 : at + 1] = [multiply, add]
    return f"{name}_in_one_range"


def _pairs(model: Any, first: int, second: int) -> Iterator[tuple[Any, Any]]:
    """Operators of two kinds of which the second alone reads what the first makes."""
    graph = model.subgraphs[0]
    for op in list(graph.operators):
        readers = [other for other in graph.operators if op.outputs[0] in other.inputs]
        if kind_of(model, op) == first and len(readers) == 1 and kind_of(model, readers[0]) == second:
            yield op, readers[0]


def _bypass(model: Any, op: Any, reader: Any) -> None:
    """Take an operator out: ``reader`` reads its input."""
    reader.inputs = [op.inputs[0], *reader.inputs[1:]]
    model.subgraphs[0].operators.remove(op)


def _forget_tensors(model: Any) -> None:
    graph = model.subgraphs[0]
    touched = {int(i) for item in (graph, *graph.operators) for i in (*item.inputs, *item.outputs)}
    kept = sorted(touched - {-1})
    place = {-1: -1, **{old: new for new, old in enumerate(kept)}}
    graph.tensors = [graph.tensors[i] for i in kept]
    for item in (graph, *graph.operators):
        item.inputs, item.outputs = [place[i] for i in item.inputs], [place[i] for i in item.outputs]
    for end in (*model.signatureDefs[0].inputs, *model.signatureDefs[0].outputs):
        end.tensorIndex = place[end.tensorIndex]


def kind_of(model: Any, op: Any) -> int:
    """An operator's number in BuiltinOperator."""
    return int(flatbuffer.get_builtin_code_from_operator_code(model.operatorCodes[op.opcodeIndex]))


def _constant(model: Any, tensor: int) -> Any:
    return model.buffers[model.subgraphs[0].tensors[tensor].buffer]


def _array(model: Any, tensor: int) -> NDArray[np.float32]:
    return np.frombuffer(bytes(_constant(model, tensor).data), np.float32)


def _added(model: Any, array: NDArray[Any], name: bytes) -> int:
    """A new constant's place among the tensors; whole numbers are kept as int32, others as float32."""
    whole = np.issubdtype(array.dtype, np.integer)
    buffer, tensor = schema.BufferT(), schema.TensorT()
    buffer.data = np.ascontiguousarray(array, np.int32 if whole else np.float32).reshape(-1).view(np.uint8)
    model.buffers.append(buffer)
    kind = schema.TensorType.INT32 if whole else schema.TensorType.FLOAT32
    tensor.shape, tensor.type, tensor.name = list(array.shape), kind, name
    tensor.buffer = len(model.buffers) - 1
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _like(model: Any, place: int, name: bytes) -> int:
    """A new tensor's place, of the shape and type of another."""
    old, tensor = model.subgraphs[0].tensors[place], schema.TensorT()
    tensor.shape, tensor.shapeSignature, tensor.type, tensor.name = old.shape, old.shapeSignature, old.type, name
    model.subgraphs[0].tensors.append(tensor)
    return len(model.subgraphs[0].tensors) - 1


def _operator(model: Any, kind: int, options_type: int, options: Any) -> Any:
    code, op = schema.OperatorCodeT(), schema.OperatorT()
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 1
    model.operatorCodes.append(code)
    op.opcodeIndex, op.builtinOptionsType, op.builtinOptions = len(model.operatorCodes) - 1, options_type, options
    return op


def _whole_numbers(model: Any, tensor: int) -> NDArray[np.int32]:
    return np.frombuffer(bytes(_constant(model, tensor).data), np.int32)
