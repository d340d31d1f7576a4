"""Rockchip's NPUs, by RKNN-Toolkit2. It pins libraries that the converter has in newer versions, and so lives in an
environment of its own; ``rknn_worker.py`` is run there.

An artefact is a .rknn, which gives ``feature``, and an npz: the class constants, so that ``logits`` are computed in float,
and what the toolkit needs to simulate the artefact again (its simulator takes no .rknn)."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np

from fer_edge.bundle import artefact_contents
from fer_edge.errors import ConversionError, MissingExtraError, UsageError
from fer_edge.extras import present
from fer_edge.manifest import FOR_COMPILERS

from .target import Compiled, Job, ask

TARGETS = ("rk3588", "rk3576", "rk3566", "rv1126b")
RUNTIME = "rknn"
PRECISIONS = ("int8", "fp16")
CALIBRATES = True
_WORKER = Path(__file__).with_name("rknn_worker.py")


def compile(job: Job) -> Compiled:
    """Compile the float graph that ``convert --for-targets`` keeps, and ask the toolkit's simulator about the golden
    crops, twice."""
    graph = next((a for a in job.bundle.manifest.artefacts if a.target == FOR_COMPILERS), None)
    if graph is None:
        raise UsageError(
            f"{job.bundle.folder} keeps no float graph, which {job.target} is compiled from; convert it with --for-targets"
        )
    python = _python(job)
    content = next(iter(artefact_contents(job.bundle, graph).values()))
    (job.work / "float.onnx").write_bytes(content)
    np.save(job.work / "golden.npy", job.golden.crops)
    np.save(job.work / "calibration.npy", job.calibration)
    channels = job.bundle.manifest.input.channels
    task = {"target": job.target, "precision": job.precision, "channels": channels}
    (job.work / "task.json").write_text(json.dumps(task), encoding="utf-8")
    ask([python, "-I", _WORKER, job.work], "rknn-toolkit2", job.work)
    told = json.loads((job.work / "told.json").read_text(encoding="utf-8"))
    first, second = (np.load(job.work / f"features{i}.npy") for i in (0, 1))
    constants = job.labels.constants.astype(np.float64) * job.labels.logit_scale
    spec = job.bundle.manifest.input
    shape = np.array((1, *spec.size, spec.channels), np.int64)
    parts = {name: np.fromfile(job.work / name, np.uint8) for name in told["parts"]}
    head = io.BytesIO()
    np.savez_compressed(head, **parts, constants=constants.astype(np.float32), shape=shape)  # type: ignore[arg-type]
    unit = first / np.sqrt((first * first).sum(1, keepdims=True))
    return Compiled(
        {".rknn": (job.work / "model.rknn").read_bytes(), ".npz": head.getvalue()},
        first,
        unit @ constants.astype(np.float32).T,
        first.tobytes() == second.tobytes(),
        told["compiler"],
        f"the simulator of {told['compiler']}",
        {"mb": round((job.work / "model.rknn").stat().st_size / 1e6, 2)},
        job.calibrated_with if job.precision == "int8" else None,
    )


def _python(job: Job) -> Path:
    """An interpreter that has the toolkit. Raises MissingExtraError or ConversionError."""
    if job.python is None:
        if not present("rknn-toolkit2"):
            raise MissingExtraError("rknn-toolkit2, which wants an environment of its own (--python names it),", "rknn")
        return Path(sys.executable)
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('rknn') is None)"
    try:
        ask([job.python, "-c", probe], str(job.python), job.work)
    except ConversionError as error:
        raise MissingExtraError(f"rknn-toolkit2 in the environment of {job.python}", "rknn") from error
    return job.python
