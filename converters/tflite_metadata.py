"""TensorFlow Lite's metadata in a .tflite: labels, normalisation and licence, as Netron, Android Studio and the Task Library
read them.

Format: tensorflow_lite_support/metadata/metadata_schema.fbs of tflite-support 0.4.4, a flatbuffer in the model's metadata
``TFLITE_METADATA``, and the files that it names in a zip behind the model. The slots below are the fields' places in it."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flatbuffers
from ai_edge_litert import schema_py_generated as schema

from . import tflite_graph
from .about import About

LABELS = "labels.txt"
_IDENTIFIER, _PARSER = b"M001", "1.0.0"
_RGB, _GRAYSCALE = 1, 2  # ColorSpaceType
_IMAGE_PROPERTIES = 2  # of the union ContentProperties
_NORMALIZATION = 1  # of the union ProcessUnitOptions
_TENSOR_AXIS_LABELS = 2  # AssociatedFileType


def describe(file: Path, about: About) -> None:
    """Write into a model file what it is."""
    model = tflite_graph.read(file)
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(_metadata(about, [name.decode() for name in _outputs(model)]))
    model.buffers.append(buffer)
    entry.name, entry.buffer = b"TFLITE_METADATA", len(model.buffers) - 1
    model.metadata = [*(model.metadata or []), entry]
    tflite_graph.write(model, file)
    labels = io.BytesIO()
    with zipfile.ZipFile(labels, "w") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(about.labels) + "\n")  # ZipInfo's own date: equal bytes
    with file.open("ab") as stream:
        stream.write(labels.getvalue())


def _outputs(model: Any) -> list[bytes]:
    """The signature's names of the outputs, in the graph's order."""
    names = {end.tensorIndex: end.name for end in model.signatureDefs[0].outputs}
    return [names[place] for place in model.subgraphs[0].outputs]


def _metadata(about: About, outputs: list[str]) -> bytes:
    builder = flatbuffers.Builder(1024)
    spec = about.spec
    size = _table(builder, 2, {0: (spec.width, "Uint32"), 1: (spec.height, "Uint32")})
    color = _RGB if spec.color == "rgb" else _GRAYSCALE
    picture = _table(builder, 2, {0: (color, "Int8"), 1: (size, "UOffsetTRelative")})
    content = _table(builder, 3, {0: (_IMAGE_PROPERTIES, "Uint8"), 1: (picture, "UOffsetTRelative")})
    # Of the numbers that are handed over, not of what the model then does with them.
    mean, std = (_vector(builder, [number], builder.PrependFloat32) for number in (0.0, 1.0))
    pixels = _table(builder, 2, {0: (mean, "UOffsetTRelative"), 1: (std, "UOffsetTRelative")})
    unit = _table(builder, 2, {0: (_NORMALIZATION, "Uint8"), 1: (pixels, "UOffsetTRelative")})
    labels = _table(
        builder,
        5,
        {**_texts(builder, {0: LABELS, 1: about.logits}), 2: (_TENSOR_AXIS_LABELS, "Uint8")},
    )
    image = _table(
        builder,
        7,
        {
            **_texts(builder, {0: "image", 1: f"{about.image}; {about.normalisation}"}),
            3: (content, "UOffsetTRelative"),
            4: (_vector(builder, [unit], builder.PrependUOffsetTRelative), "UOffsetTRelative"),
        },
    )
    ends = []
    for name in outputs:
        fields = _texts(builder, {0: name, 1: getattr(about, name)})
        if name == "logits":
            fields[6] = (_vector(builder, [labels], builder.PrependUOffsetTRelative), "UOffsetTRelative")
        ends.append(_table(builder, 7, fields))
    graph = _table(
        builder,
        10,
        {
            2: (_vector(builder, [image], builder.PrependUOffsetTRelative), "UOffsetTRelative"),
            3: (_vector(builder, ends, builder.PrependUOffsetTRelative), "UOffsetTRelative"),
        },
    )
    subgraphs = _vector(builder, [graph], builder.PrependUOffsetTRelative)
    what = f"Facial expressions of a face crop: {', '.join(about.labels)}."
    texts = {0: about.name, 1: what, 2: about.version, 5: about.licence, 7: _PARSER}
    root = _table(builder, 8, {**_texts(builder, texts), 3: (subgraphs, "UOffsetTRelative")})
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


def _table(builder: Any, slots: int, fields: Mapping[int, tuple[int, str]]) -> int:
    builder.StartObject(slots)
    for slot, (value, kind) in fields.items():
        getattr(builder, f"Prepend{kind}Slot")(slot, value, 0)
    return int(builder.EndObject())


def _texts(builder: Any, texts: Mapping[int, str]) -> dict[int, tuple[int, str]]:
    return {slot: (builder.CreateString(text), "UOffsetTRelative") for slot, text in texts.items()}


def _vector(builder: Any, items: list[Any], prepend: Callable[[Any], None]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        prepend(item)
    return int(builder.EndVector())
