"""Runs where rknn-toolkit2 is installed, and nothing of fer-edge need be: builds a float graph for a chip, and shows the
golden crops to the simulator.

Called with a folder: task.json, float.onnx (float NCHW, 0 to 255, in), golden.npy and calibration.npy (uint8 NHWC) in;
model.rknn, features0.npy, features1.npy, told.json and the parts of the simulator out."""

import json
import os
import sys
from importlib import metadata
from typing import Any

import numpy as np


def main() -> None:
    """The worker's side."""
    os.chdir(sys.argv[1])
    with open("task.json", encoding="utf-8") as stream:
        task = json.load(stream)
    from rknn.api import RKNN

    rknn = RKNN(verbose=False)
    pixels = {"mean_values": [[0] * task["channels"]], "std_values": [[1] * task["channels"]]}
    done(rknn.config(target_platform=task["target"], **pixels), "config")
    done(rknn.load_onnx(model="float.onnx"), "load_onnx")
    if task["precision"] == "int8":
        with open("faces.txt", "w", encoding="utf-8") as faces:
            for i, crop in enumerate(np.load("calibration.npy")):
                np.save(f"face{i}.npy", crop[None].transpose(0, 3, 1, 2).astype(np.float32))
                faces.write(f"face{i}.npy\n")
        # In two steps, because what lies between them holds the ranges, so that others can simulate it without the faces.
        done(rknn.hybrid_quantization_step1(dataset="faces.txt", proposal=False), "hybrid_quantization_step1")
        rknn.release()
        rknn = RKNN(verbose=False)
        parts = {"model": "float.model", "data": "float.data", "ranges": "float.quantization.cfg"}
        inputs = {"model_input": parts["model"], "data_input": parts["data"], "model_quantization_cfg": parts["ranges"]}
        done(rknn.hybrid_quantization_step2(**inputs), "hybrid_quantization_step2")
    else:
        parts = {"graph": "float.onnx"}
        done(rknn.build(do_quantization=False), "build")
    done(rknn.export_rknn("model.rknn"), "export_rknn")
    done(rknn.init_runtime(), "init_runtime")
    for i in (0, 1):
        np.save(f"features{i}.npy", features(rknn, np.load("golden.npy")))
    rknn.release()
    for name, file in parts.items():
        os.replace(file, name) if name != file else None
    told = {"compiler": f"rknn-toolkit2 {metadata.version('rknn-toolkit2')}", "parts": sorted(parts)}
    with open("told.json", "w", encoding="utf-8") as stream:
        json.dump(told, stream)


def features(rknn: Any, crops: Any) -> Any:
    """(N, H, W, C) uint8 -> (N, D) float32."""
    rows = [rknn.inference(inputs=[crop[None]], data_format=["nhwc"])[0][0] for crop in crops]
    return np.asarray(rows, np.float32)


def done(code: int, step: str) -> None:
    """End the process, with a line that tells where, unless a step of the toolkit went well."""
    if code != 0:
        print(f"Error: {step} ended with {code}", file=sys.stderr, flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
