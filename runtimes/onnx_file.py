"""Whether a file is an ONNX model, and all of it. Its fields (onnx.proto3; protobuf's "Encoding") are read by hand: a device
has no package onnx."""

from __future__ import annotations

from collections.abc import Iterator

_PARTS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
"""Message -> field -> message in it: every way to a tensor."""
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
_ORT_FORMAT = b"ORTM"
"""Bytes 4 to 8 of onnxruntime's own format, which it opens whatever the file is called."""


def check_format(content: bytes) -> None:
    """Raise ValueError for what is no ONNX model, and for one that keeps tensors in other files: nobody listed or hashed
    those."""
    # The first field is the version of the format, number 1; every writer puts fields in the order of their numbers.
    if content[:1] != b"\x08" or content[4:8] == _ORT_FORMAT:
        raise ValueError("it is no ONNX model")
    waiting = [("model", memoryview(content))]
    while waiting:
        kind, message = waiting.pop()
        name, external = "", False
        for number, value in _fields(message):
            if isinstance(value, memoryview) and (part := _PARTS[kind].get(number)):
                waiting.append((part, value))
            elif kind == "tensor" and number == _TENSOR_NAME and isinstance(value, memoryview):
                name = bytes(value).decode("utf-8", "replace")
            elif kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value)):
                external = True
        if external:
            raise ValueError(f"its tensor {name!r} lies in another file; write the model with its data inside")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """(number, value) of every field of a message; numbers of 4 and 8 bytes are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
        elif wire == _LENGTH:
            length, at = _varint(message, at)
            if at + length > len(message):
                raise ValueError("it is no ONNX model, or cut short")
            yield number, message[at : at + length]
            at += length
        elif wire in (_EIGHT_BYTES, _FOUR_BYTES):
            at += 8 if wire == _EIGHT_BYTES else 4
        else:
            raise ValueError("it is no ONNX model")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """(value, where the next field begins) of a number in base 128, the lowest seven bits first."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise ValueError("it is no ONNX model, or cut short")
