"""Memory of this process, and bytes on disk: of an artefact, of an engine as it is installed."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "litert": ("ai-edge-litert", "tflite-runtime"),
    "onnxruntime": (
        "onnxruntime",
        "onnxruntime-gpu",
        "onnxruntime-openvino",
        "onnxruntime-directml",
        "onnxruntime-qnn",
    ),
    "loadgen": ("mlcommons-loadgen",),
}
"""Packages that an engine comes in; the first one installed counts."""


def memory_mb(status: Path = Path("/proc/self/status")) -> tuple[float, float]:
    """(resident now, highest so far) of this process in MB: VmRSS and VmHWM (Linux, man 5 proc_pid_status); elsewhere
    getrusage's highest for both.

    VmHWM starts anew with a program, so unlike getrusage's it does not count what the parent process had."""
    try:
        lines = (line.split(":") for line in status.read_text().splitlines() if ":" in line)
        fields = {name: value.split() for name, value, *_ in lines}
        return tuple(int(fields[name][0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError, IndexError):
        highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return highest, highest


def engine_files(runtime: str) -> tuple[Path, ...]:
    """Files of the engine's own package (not of the packages that it needs)."""
    for name in DISTRIBUTIONS.get(runtime, ()):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        return tuple(path for file in found.files or () if (path := Path(str(found.locate_file(file)))).is_file())
    return ()


def megabytes(files: Iterable[Path]) -> float:
    """Sum of sizes, MB."""
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def forget(files: Iterable[Path]) -> bool:
    """Ask the kernel to drop files from its cache (posix_fadvise), so that the next reader waits for the disk. What another
    process has mapped stays. Returns whether the kernel could be asked."""
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in files:
        if not file.is_file():  # whoever opens it says so better
            continue
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True
