"""Arm's Ethos-U, by Vela, from the bundle's LiteRT int8 artefact.

Vela puts integer operators on the NPU and leaves the others to the CPU beside it. The NPU is made to compute what LiteRT's
reference kernels compute; so those judge the graph, and Vela's report says what of it runs where."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fer_edge.bundle import artefact_contents
from fer_edge.errors import ConversionError, MissingExtraError, UsageError, importable
from fer_edge.extras import present

from .target import Compiled, Job, ask

TARGETS = (
    *(f"ethos-u55-{n}" for n in (32, 64, 128, 256)),
    *(f"ethos-u65-{n}" for n in (256, 512)),
    *(f"ethos-u85-{n}" for n in (128, 256, 512, 1024, 2048)),
)
RUNTIME = "litert"
PRECISIONS = ("int8",)
CALIBRATES = False
_VELA = "import sys; from ethosu.vela.vela import main; sys.exit(main())"
_VERSION = "from importlib import metadata; print(metadata.version('ethos-u-vela'))"
HEAD = ("DEQUANTIZE", "MUL", "ADD", "L2_NORMALIZATION", "FULLY_CONNECTED")
"""Behind the integers of a student: back to float, and the class constants."""


def compile(job: Job) -> Compiled:
    """Compile the LiteRT int8 artefact. Raises ConversionError, too, where products or more than a twentieth of the
    operators before the head would stay on the CPU."""
    artefacts = job.bundle.manifest.general_artefacts
    artefact = next((a for a in artefacts if (a.runtime, a.precision) == ("litert", "int8")), None)
    if artefact is None:
        raise UsageError(
            f"{job.bundle.folder} has no litert int8 artefact, which {job.target} is compiled from; convert it with "
            "--runtime litert"
        )
    content = next(iter(artefact_contents(job.bundle, artefact).values()))
    features, logits, repeatable = _reference(content, job.golden.crops)
    python = _python(job)
    (job.work / "model.tflite").write_bytes(content)
    options = ["--accelerator-config", job.target, "--output-dir", "out", "--verbose-performance"]
    ask([python, "-c", _VELA, "model.tflite", *options], "vela", job.work)
    version = ask([python, "-c", _VERSION], "vela", job.work).split()[-1]
    report = _report(job.work / "out")
    _check(job, report)
    (compiled,) = (job.work / "out").glob("*_vela.tflite")
    return Compiled(
        {".tflite": compiled.read_bytes()},
        features,
        logits,
        repeatable,
        f"vela {version}",
        "LiteRT's reference kernels",
        report,
        artefact.calibration,
    )


def _reference(content: bytes, crops: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], bool]:
    """(features, logits, whether a second run gave the same) of LiteRT's reference kernels."""
    if not importable("ai_edge_litert"):
        raise MissingExtraError("ai-edge-litert, whose reference kernels judge what Vela makes,", "litert")
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    try:
        interpreter = Interpreter(model_content=content, experimental_op_resolver_type=OpResolverType.BUILTIN_REF)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"LiteRT's reference kernels refuse the model: {str(error).splitlines()[0]}") from error
    run = interpreter.get_signature_runner()
    first, second = ([run(image=crop[None]) for crop in crops] for _ in range(2))
    features, logits = (np.concatenate([answer[name] for answer in first]) for name in ("feature", "logits"))
    same = all(a[name].tobytes() == b[name].tobytes() for a, b in zip(first, second, strict=True) for name in a)
    return features, logits, same


def _python(job: Job) -> Path:
    if job.python is None:
        if not present("ethos-u-vela"):
            raise MissingExtraError("vela", "ethos-u")
        return Path(sys.executable)
    probe = "import importlib.util, sys; sys.exit(importlib.util.find_spec('ethosu') is None)"
    try:
        ask([job.python, "-c", probe], str(job.python), job.work)
    except ConversionError as error:
        raise MissingExtraError(f"vela in the environment of {job.python}", "ethos-u") from error
    return job.python


def _report(folder: Path) -> dict[str, Any]:
    """Vela's figures: operators and multiplications per unit, cycles, memory, estimated inferences a second."""
    (layers,), (summary,) = folder.glob("*_per-layer.csv"), folder.glob("*_summary_*.csv")
    rows, (total,) = _table(layers), _table(summary)
    # A row for each part that Vela makes of an operator: those of one name and kind in a row are one.
    ops = list(dict.fromkeys((_name(row["Original Operator"]), row["Target"], row["Name"]) for row in rows))
    cpu = [name for name, unit, _ in ops if unit == "CPU"]
    macs = {unit: sum(int(row["MAC Count"]) for row in rows if row["Target"] == unit) for unit in ("NPU", "CPU")}
    products = [name for name in cpu if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")]
    return {
        "operators_npu": sum(unit == "NPU" for _, unit, _ in ops),
        "operators_cpu": cpu,
        "before_head_cpu": _before_head(cpu),
        "products_before_head_cpu": _before_head(products),
        "macs": macs["NPU"],
        "cycles": sum(int(float(row["Op Cycles"])) for row in rows),
        "sram_kib": float(total["sram_memory_used"]),
        "off_chip_kib": float(total["off_chip_flash_memory_used"]) + float(total["dram_memory_used"]),
        "inferences_per_s": float(total["inferences_per_second"]),
        "system": total["system_config"],
        "memory": total["memory_mode"],
        "clock_mhz": float(total["core_clock"]) / 1e6,
    }


def _before_head(names: list[str]) -> list[str]:
    """What is left of operators on the CPU without one of each of the head's."""
    left = list(names)
    for name in HEAD:
        if name in left:
            left.remove(name)
    return left


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _name(vela: str) -> str:
    """Vela's "DepthwiseConv2D" as LiteRT's DEPTHWISE_CONV_2D."""
    known = {"L2Norm": "L2_NORMALIZATION", "FullyConnected": "FULLY_CONNECTED", "Conv2D": "CONV_2D"}
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", vela).upper().replace("CONV2D", "CONV_2D")
    return known.get(vela, parted)


def _check(job: Job, report: dict[str, Any]) -> None:
    left, on_npu = report["before_head_cpu"], report["operators_npu"]
    share = on_npu / max(1, on_npu + len(left))
    if report["products_before_head_cpu"] or share < 0.95:
        raise ConversionError(
            f"{job.target} would take {on_npu} of {on_npu + len(left)} operators before the head, and leave "
            f"{', '.join(dict.fromkeys(left))} to the CPU: it wants a graph of integers. Convert the student anew with this "
            "fer-edge (of a CLIP no such graph is made)"
        )
