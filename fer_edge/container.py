"""What the kernel tells in small files, and what of this box a container may use."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_NO_LIMIT = 2**60
"""cgroup v1 writes "no limit" as the largest multiple of the page size in 63 bits."""


def container_limits(root: Path = Path("/")) -> tuple[float | None, int | None]:
    """(processors, bytes) that the control groups of this process allow, None without a limit.

    The tightest of the group and all above it, in cgroup v2 (Documentation/admin-guide/cgroup-v2.rst) and v1
    (Documentation/scheduler/sched-bwc.rst, admin-guide/cgroup-v1/memory.rst), at the usual mount points."""
    cpus: list[float] = []
    memory: list[int] = []
    for group in _groups(root):
        quota, _, period = (text_of(group / "cpu.max") or "").partition(" ")
        pairs = [
            (_whole(quota), _whole(period)),
            (number_of(group / "cpu.cfs_quota_us"), number_of(group / "cpu.cfs_period_us")),
        ]
        cpus += [q / p for q, p in pairs if q is not None and p is not None and q > 0 and p > 0]
        limits = [number_of(group / "memory.max"), number_of(group / "memory.limit_in_bytes")]
        memory += [limit for limit in limits if limit is not None and 0 < limit < _NO_LIMIT]
    return min(cpus, default=None), min(memory, default=None)


def _groups(root: Path) -> Iterator[Path]:
    """Folders of this process's control groups and of all groups above. A path that is not there (in a container, v1 shows
    the host's) leaves its mount point, which is then the container's own group."""
    top = root / "sys/fs/cgroup"
    for line in (text_of(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        names = {"cpu", "memory"} & set(controllers.split(","))
        mounts = [top / controllers, *(top / name for name in names)] if names and "/" not in controllers else []
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for mount in mounts if controllers else [top, top / "unified"]:
            yield from (mount.joinpath(*parts[:depth]) for depth in range(len(parts), -1, -1))


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None


def text_of(path: Path) -> str | None:
    """A file's text without surrounding blanks and NULs; None when it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \t\r\n")
    except (OSError, ValueError):  # ValueError: the path comes from a file and holds a NUL
        return None


def number_of(path: Path) -> int | None:
    """The whole number that a file holds; None when it holds something else or cannot be read."""
    text = text_of(path)
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,19}", text) else None
