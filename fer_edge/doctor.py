"""What this box is and has: processor features that decide how fast int8 is, engines, devices, and what is missing."""

from __future__ import annotations

import os
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import engines as table
from . import runtime as rt
from .errors import FerEdgeError
from .extras import IMPORT_NAMES, distributions_of, extras, requirements
from .extras import missing as missing_of
from .isolated import try_engine

_X86 = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
}
_ARM = {"neon": "NEON", "asimd": "NEON", "asimddp": "dotprod", "i8mm": "i8mm", "fphp": "fp16", "bf16": "BF16", "sve": "SVE"}
"""Flags of /proc/cpuinfo -> the name engineers use (Linux arch/x86/include/asm/cpufeatures.h,
Documentation/arch/arm64/elf_hwcaps.rst; 32-bit ARM calls asimd neon)."""


@dataclass(frozen=True)
class Engine:
    """One runtime: whether its engine is installed, imports and runs somewhere; the devices that start; those that it lists
    and that do not, with the reason; and the command that mends what is wrong."""

    runtime: str
    ready: bool
    engine: str
    devices: tuple[str, ...]
    cure: str
    failing: dict[str, str]


@dataclass(frozen=True)
class Diagnosis:
    """The box. ``features``: those of the processor that matter for inference; ``note``: what they mean, in words;
    ``missing_extras``: extra -> command; ``warnings``: what will go wrong, and what to do."""

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
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def diagnose(version: str) -> Diagnosis:
    """Look at this box; every installed engine is tried in a process of its own."""
    model, features = cpu()
    usable = rt.usable_processors()
    every = [
        *(e for e in table.ENGINES.values() if e.name in table.RUNTIMES or (e.imports and e.installed)),
        *table.offered().values(),
    ]
    packages = dict.fromkeys([*(name for engine in every for name in engine.imports), *IMPORT_NAMES.values()])
    with ThreadPoolExecutor() as pool:
        engines = tuple(pool.map(_engine, every))
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
        missing_extras(),
        tuple(filter(None, map(_two_distributions, packages))),
    )


def missing_extras() -> dict[str, str]:
    """Extra -> the command that installs it, of those that are not all here; engines are looked at one by one."""
    others = (extra for extra in extras() if extra not in table.ENGINES)
    return {extra: f"pip install 'fer-edge[{extra}]'" for extra in others if missing_of(extra)}


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


def _engine(engine: table.Engine) -> Engine:
    name = engine.name
    try:
        table.installed_engine(name)
        trial = try_engine(engine)
    except FerEdgeError as error:
        return Engine(name, False, "", (), str(error), {})
    failing = dict(trial.failing)
    if trial.devices:
        return Engine(name, True, trial.engine, trial.devices, "", failing)
    problem = trial.problem or "; ".join(f"{device}: {why}" for device, why in failing.items()) or "it finds no device"
    return Engine(
        name, False, trial.engine, (), f"{name} is installed but fails: {problem}; {_cure(engine, problem)}", failing
    )


def _cure(engine: table.Engine, problem: str) -> str:
    """The command that installs the same again: the extra's own wheel laid over a GPU's would leave the CPU alone."""
    if "SIGILL" in problem:
        return "try an older release of it, or build it on this box"
    names = [d.metadata["Name"] for package in engine.imports for d in distributions_of(package)]
    others = [name for name in names if name not in requirements(engine.extra)]
    return f"try: pip install --force-reinstall {' '.join(others) or repr(f'fer-edge[{engine.extra}]')}"


def _two_distributions(package: str) -> str:
    versions = [f"{d.metadata['Name']} {d.version}" for d in distributions_of(package)]
    if len(versions) < 2:
        return ""
    names = " ".join(version.split()[0] for version in versions)
    return (
        f"{' and '.join(versions)} both bring the package {package}, and the one that was installed last lies over the "
        f"other: pip uninstall {names}, then install the one that this box needs"
    )
