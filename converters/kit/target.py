"""The boxes that kits are for, by the words of Python's packaging standards."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from fer_edge.errors import UsageError

MACHINES = {"linux-aarch64": "aarch64", "linux-armv7l": "armv7l", "linux-x86_64": "x86_64"}
"""Target -> the machine's name, as uname(2) and wheels have it."""

GLIBC = "2.35"
"""Of Ubuntu 22.04 and so of JetPack 6; Debian 12, whose Python is 3.11, has 2.36."""

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
"""Minor version of glibc 2 -> its old name (PEP 600)."""


@dataclass(frozen=True)
class Target:
    """A box: ``name`` (of MACHINES), ``python`` ("3.11"), ``glibc`` ("2.35"): the newest symbols that it has."""

    name: str
    python: str
    glibc: str = GLIBC

    def __post_init__(self) -> None:
        if self.name not in MACHINES:
            raise UsageError(f"no target {self.name!r}; there are {', '.join(MACHINES)}")
        if not re.fullmatch(r"3\.[1-9]\d", self.python):
            raise UsageError(f"no Python {self.python!r}; name one from 3.10 on, as 3.11")
        if not re.fullmatch(r"2\.[1-9]\d?", self.glibc):
            raise UsageError(f"no glibc {self.glibc!r}; name one as 2.35 ('ldd --version' on the box shows it)")

    @property
    def machine(self) -> str:
        """As uname(2) has it."""
        return MACHINES[self.name]

    @property
    def words(self) -> str:
        """For messages."""
        return f"{self.name}, Python {self.python} and glibc {self.glibc}"

    def platforms(self) -> tuple[str, ...]:
        """The platform tags that the box takes, the best first (PEP 600; ``linux_...``: wheels that were built on one)."""
        tags = []
        for minor in range(int(self.glibc.partition(".")[2]), 4, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY:
                tags.append(f"{_LEGACY[minor]}_{self.machine}")
        return (*tags, f"linux_{self.machine}")

    def environment(self) -> dict[str, str]:
        """Environment markers as they are on the box (PyPA's "Dependency specifiers"). pip's own are those of the machine
        that it runs on, whatever it is asked to download for."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.python}.0",
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.python}.0",
            "python_version": self.python,
            "sys_platform": "linux",
        }


def least_glibc(wheels: Iterable[str]) -> str:
    """The oldest glibc on which all these wheels (file names) run; each runs on the oldest of its own tags."""
    least = 5
    for wheel in wheels:
        tags = wheel.removesuffix(".whl").rpartition("-")[2].split(".")
        minors = [int(match[1]) for tag in tags if (match := re.match(r"manylinux_2_(\d+)_", tag))]
        minors += [minor for minor, name in _LEGACY.items() for tag in tags if tag.startswith(f"{name}_")]
        least = max(least, min(minors, default=0))
    return f"2.{least}"
