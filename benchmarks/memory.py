"""Memory of this process, and bytes on disk: of an artefact, of an engine as it is installed."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path

from fer_edge.engines import engine_of
from fer_edge.extras import distributions_of


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
    for name in engine_of(runtime).imports:
        if found := distributions_of(name):
            files = {Path(str(d.locate_file(file))) for d in found for file in d.files or ()}
            return tuple(path for path in files if path.is_file())
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
