"""What this box is and has: processor features that decide how fast int8 is, engines, devices, and what is missing."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import runtime as rt
from .engines import RUNTIMES
from .errors import FerEdgeError, MissingExtraError, importable

_X86 = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
}
_ARM = {"neon": "NEON", "asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm", "fphp": "fp16", "bf16": "BF16", "sve": "SVE"}
"""Flags of /proc/cpuinfo -> the name engineers use (Linux arch/x86/include/asm/cpufeatures.h,
Documentation/arch/arm64/elf_hwcaps.rst; 32-bit ARM calls asimd neon)."""

_EXTRA_PACKAGES = {
    "convert": ("torch", "transformers", "nncf", "litert_torch", "onnxscript"),
    "bench": ("rich", "matplotlib"),
}


@dataclass(frozen=True)
class Engine:
    """One runtime: whether its engine is installed and imports, its devices, and the command that mends what is wrong."""

    runtime: str
    ready: bool
    engine: str
    devices: tuple[str, ...]
    cure: str


@dataclass(frozen=True)
class Diagnosis:
    """The box. ``features``: those of the processor that matter for inference; ``note``: what they mean, in words;
    ``missing_extras``: extra -> command."""

    fer_edge: str
    python: str
    system: str
    cpu: str
    cores: int
    usable_cores: int
    features: tuple[str, ...]
    note: str
    engines: tuple[Engine, ...]
    missing_extras: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def diagnose(version: str) -> Diagnosis:
    """Look at this box; imports every installed engine."""
    model, features = cpu()
    usable = rt.usable_processors()
    missing = {e: f"pip install 'fer-edge[{e}]'" for e, names in _EXTRA_PACKAGES.items() if not all(map(importable, names))}
    engines = tuple(_engine(name) for name in RUNTIMES)
    system = f"{platform.system()} {platform.machine()}"
    return Diagnosis(
        version,
        platform.python_version(),
        system,
        model,
        os.cpu_count() or 1,
        usable,
        features,
        _note(features),
        engines,
        missing,
    )


def cpu(info: Path = Path("/proc/cpuinfo")) -> tuple[str, tuple[str, ...]]:
    """(model name, features that matter) from Linux' cpuinfo; (platform's name, none) elsewhere."""
    try:
        lines = info.read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine(), ()
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    names = _ARM if "features" in fields and "flags" not in fields else _X86
    model = fields.get("model name") or fields.get("model") or fields.get("hardware") or platform.machine()
    return model, tuple(name for flag, name in names.items() if flag in flags)


def saturates(features: tuple[str, ...]) -> bool:
    """Whether the engines' int8 kernels add two products in 16 bits on this processor: weights that use all 8 bits then
    overflow, unseen (ONNX Runtime's documentation, "Quantize ONNX models"; the AVX2 instruction vpmaddubsw)."""
    return "AVX2" in features and not any("VNNI" in f or f == "AMX int8" for f in features)


def _note(features: tuple[str, ...]) -> str:
    if any("VNNI" in f or f in ("dotprod", "i8mm", "AMX int8") for f in features):
        return "int8 products run at full speed"
    if saturates(features):
        return "no VNNI: int8 gains less, and weights of 8 bits may overflow; run fer-edge verify"
    if not features:
        return "nothing is known of its int8 instructions: int8 may be slower than fp32, measure both"
    return "no int8 dot-product instructions: int8 may be slower than fp32, measure both"


def _engine(name: str) -> Engine:
    try:
        adapter = rt.load_runtime(name)
        return Engine(name, True, adapter.engine(), adapter.devices(), "")
    except MissingExtraError as error:
        return Engine(name, False, "", (), str(error))
    except Exception as error:  # whatever a sick engine raises: a doctor that dies of it helps nobody
        problem = str(error) if isinstance(error, FerEdgeError) else f"{name} is installed but fails: {rt.one_line(error)}"
        return Engine(name, False, "", (), f"{problem}; try: pip install --force-reinstall 'fer-edge[{name}]'")
