"""What a model file says of itself, read without its engine: whether it has the format of its ending, and whether it wants
data beyond the files that the manifest lists with it. Endings that are not known here are the engine's own affair."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from .errors import BundleError

Bytes = bytes | mmap.mmap
_MAX_FIELDS = 1 << 21
"""Of an ONNX file that is looked through: a model has some ten thousand."""


def check_model_file(file: Path, stream: BinaryIO, listed: Collection[str]) -> None:
    """As :func:`check_model`, of an open file that need not lie in memory."""
    if os.fstat(stream.fileno()).st_size == 0:  # which cannot be mapped
        check_model(file, b"", listed)
        return
    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        check_model(file, data, listed)


def check_model(file: Path, data: Bytes, listed: Collection[str]) -> None:
    """Check a model file's content by its ending. ``listed``: names of the artefact's files that lie in its folder. Raises
    BundleError."""
    check = _CHECKS.get(file.suffix.lower())
    if check is None:
        return
    try:
        problem = check(file, data, listed) if len(data) else "is not of the format that its ending names"
    except (ValueError, IndexError, struct.error):
        problem = "is not of the format that its ending names"
    if problem:
        raise BundleError(f"{file} {problem}")


def _openvino(file: Path, data: Bytes, listed: Collection[str]) -> str:
    """OpenVINO IR: XML with the root ``net``; its weights lie beside it, under the same name with the ending .bin."""
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"<net") and not (start.startswith(b"<?xml") and b"<net" in start):
        return "is not an OpenVINO model, as its ending says"
    weights = file.with_suffix(".bin").name
    return "" if weights in listed else f"takes its weights from {weights}, which the manifest does not list"


def _litert(file: Path, data: Bytes, listed: Collection[str]) -> str:
    """A flatbuffer of the schema TFL3 (tensorflow/compiler/mlir/lite/schema/schema.fbs); the fields external_buffer_groups
    and external_buffers of ``Model`` name files of weights."""
    if data[4:8] != b"TFL3":
        return "is not a TensorFlow Lite model, as its ending says"
    (root,) = struct.unpack_from("<I", data, 0)
    table = root - struct.unpack_from("<i", data, root)[0]
    (size,) = struct.unpack_from("<H", data, table)
    for slot in (20, 22):
        (offset,) = struct.unpack_from("<H", data, table + slot) if size > slot else (0,)
        if offset:
            at = root + offset
            (length,) = struct.unpack_from("<I", data, at + struct.unpack_from("<I", data, at)[0])
            if length:
                return "keeps weights outside of itself, in files that the manifest does not list"
    return ""


_MESSAGES: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {},
}
"""onnx.proto: message -> field -> the message in it, as far as tensors lie there."""


def _onnx(file: Path, data: Bytes, listed: Collection[str]) -> str:
    """A protobuf of onnx.proto. A tensor's ``external_data`` names a file by an entry with the key "location", which stands
    in the bytes as it is: where it does not, nothing has to be looked through."""
    if data[4:8] == b"ORTM":
        return "is not an ONNX model, as its ending says"
    if data.find(b"EPContext") >= 0:
        return "holds a model that a vendor's compiler made, which may name files of its own; it is not opened"
    if data.find(b"location") < 0:
        return ""
    for place in _locations(data):
        if place not in listed or place == file.name:
            return f"keeps weights outside of itself, in {place[:100]!r}, which the manifest does not list"
    return ""


def _locations(data: Bytes) -> Iterator[str]:
    """Where the external data of an ONNX model's tensors lie. Raises ValueError for what is no such file."""
    waiting = [("model", 0, len(data))]
    seen = 0
    while waiting:
        message, start, end = waiting.pop()
        texts: dict[int, bytes] = {}
        for number, first, last in _fields(data, start, end):
            seen += 1
            if seen > _MAX_FIELDS:
                raise ValueError("more fields than any model has")
            inner = _MESSAGES[message].get(number)
            if inner is not None:
                waiting.append((inner, first, last))
            elif message == "external":
                texts[number] = data[first:last]
        if texts.get(1) == b"location":
            yield texts.get(2, b"").decode("utf-8", "replace")


def _fields(data: Bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, first byte, end) of a message's length-delimited fields (Protocol Buffers, "Encoding")."""
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field is longer than its message")
            yield key >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError("no field of this kind is in ONNX")


def _varint(data: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number without an end")


_CHECKS: Mapping[str, Callable[[Path, Bytes, Collection[str]], str]] = {
    ".xml": _openvino,
    ".tflite": _litert,
    ".onnx": _onnx,
}
