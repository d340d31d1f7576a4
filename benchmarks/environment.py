"""The state of the box when a measurement begins, so that a figure can be judged, and repeated, later."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fer_edge
from fer_edge import doctor
from fer_edge import runtime as rt
from fer_edge.container import container_limits, number_of, text_of
from fer_edge.engines import ENGINES, RUNTIMES
from fer_edge.errors import importable
from fer_edge.extras import distributions_of
from fer_edge.sensors import temperatures

from . import sensors

ASK_JTOP = """\
import json
from jtop import jtop
with jtop() as jetson:
    mode = jetson.nvpmodel
    print()
    print(json.dumps(None if mode is None else f"{mode.name} (mode {mode.id})"))
"""
"""The interface of jetson-stats 4 to 7. It runs in a process of its own: the client starts threads that would go on beside
the measurement, and waits without end for a service that is stuck."""

UNTESTED = "the reader follows the documents and is untested on real hardware"


WORDS = {
    "cpu": "processor",
    "features": "features",
    "board": "board",
    "system": "system",
    "usable_cores": "cores in use",
    "cpu_limit": "container's processors",
    "memory_mb": "memory MB",
    "governors": "governor",
    "frequencies_mhz": "MHz at the start",
    "temperatures_c": "degrees C at the start",
    "power_mode": "power mode",
    "clocks_held": "clocks held (jetson_clocks)",
    "load_average": "load at the start",
    "engines": "engines",
    "energy": "energy from",
    "no_energy": "energy",
    "python": "Python",
    "fer_edge": "fer-edge",
}
"""Fields of :class:`Environment`, for people."""


@dataclass(frozen=True)
class Environment:
    """``time``: UTC; ``features``: the processor's that matter for inference; ``usable_cores``: those of this process;
    ``cpu_limit`` (processors) and ``memory_limit_mb``: the container's; ``load_average``: over the last minute, before the
    measurement; ``power_mode``: a Jetson's, and ``clocks_held``, whether jetson_clocks holds them; ``engines``: by runtime,
    not imported; ``energy``: the names of the sources, and ``no_energy`` the reason when there is none; ``notes``: what an
    engineer should know before trusting a figure.

    MB are 2**20 bytes. What cannot be read is None or empty."""

    time: str
    fer_edge: str
    python: str
    system: str
    board: str
    cpu: str
    features: tuple[str, ...]
    cores: int
    usable_cores: int
    cpu_limit: float | None
    memory_mb: int | None
    available_memory_mb: int | None
    memory_limit_mb: int | None
    governors: tuple[str, ...]
    frequencies_mhz: tuple[float, ...]
    frequency_limits_mhz: tuple[float, float] | None
    temperatures_c: dict[str, float]
    load_average: float | None
    power_mode: str | None
    engines: dict[str, str]
    energy: tuple[str, ...]
    no_energy: str
    notes: tuple[str, ...] = ()
    clocks_held: bool | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def in_words(name: str, value: object) -> str:
    """A field's value, from the JSON of a run too."""
    if isinstance(value, Mapping):
        return ", ".join(f"{v}" if name == "engines" else f"{k} {v}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(f"{v:.0f}" if isinstance(v, float) else str(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def environment(root: Path = Path("/")) -> Environment:
    """Look at this box, or at what the tree ``root`` shows of another one's /proc and /sys; versions, system and cores are
    always this box's. Takes milliseconds and imports no engine; where jetson-stats is installed, it takes seconds."""
    model, features = _cpu(root)
    cpus, memory = container_limits(root)
    mode, complaint = power_mode(root)
    sources = sensors.energy_sources(root)
    found = Environment(
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        fer_edge=fer_edge.__version__,
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()} {platform.release()}",
        board=text_of(root / "proc/device-tree/model") or text_of(root / "sys/class/dmi/id/product_name") or "",
        cpu=model,
        features=features,
        cores=os.cpu_count() or 1,
        usable_cores=rt.usable_processors(),
        cpu_limit=cpus,
        memory_mb=_meminfo(root, "MemTotal"),
        available_memory_mb=_meminfo(root, "MemAvailable"),
        memory_limit_mb=None if memory is None else memory // 2**20,
        governors=sensors.governors(root),
        frequencies_mhz=sensors.frequencies(root),
        frequency_limits_mhz=sensors.frequency_limits(root),
        temperatures_c=temperatures(root),
        load_average=_load(root),
        power_mode=mode,
        clocks_held=held_clocks(root),
        engines=engines(),
        energy=tuple(source.name for source in sources),
        no_energy=sensors.no_energy_reason(root),
    )
    kinds = {source.kind for source in sources}
    unread = sensors.unreadable(root) if sources else ()  # without a source, no_energy says the same
    return replace(found, notes=(*_warnings(found), *([complaint] if complaint else []), *unread, *_untested(found, kinds)))


def power_mode(root: Path = Path("/"), patience: float = 10.0) -> tuple[str | None, str]:
    """(a Jetson's power mode or None, what went wrong or ""): by jetson-stats where it is installed, else as nvpmodel wrote
    its number down ("pmode:0000"), by the name that /etc/nvpmodel.conf gives it."""
    written = _named_mode(root)
    if find_spec("jtop") is None:
        return written, ""
    if not os.path.exists(root / "run/jtop.sock"):
        return written, "jetson-stats is installed, but its service does not run: sudo systemctl restart jtop.service"
    command = [sys.executable, "-c", ASK_JTOP]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=patience, check=True)
        mode = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return written, f"jetson-stats did not answer within {patience:g} s: sudo systemctl restart jtop.service"
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return written, f"jetson-stats did not tell the power mode: {said[:200]}"
    except (OSError, ValueError, IndexError):
        return written, "jetson-stats did not tell the power mode: its answer is not understood"
    return (mode, "") if isinstance(mode, str) else (written, "")


def _named_mode(root: Path) -> str | None:
    """Lines of nvpmodel.conf: "< POWER_MODEL ID=2 NAME=MAXN_SUPER >" (NVIDIA's Jetson Linux Developer Guide, "Power Mode
    Controls")."""
    written = text_of(root / "var/lib/nvpmodel/status") or None
    number = re.match(r"pmode:0*([0-9]{1,4})\b", written or "")
    lines = text_of(root / "etc/nvpmodel.conf") or ""
    names = dict(re.findall(r"^<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=(\w{1,60})", lines, re.M))
    return f"{names[number[1]]} (mode {number[1]})" if number and number[1] in names else written


def held_clocks(root: Path = Path("/")) -> bool | None:
    """Whether a Jetson's clocks are held at their highest, as jetson_clocks does: the lowest frequency that the governors of
    processor and GPU may choose is the highest one. None on a box that is no Jetson, or does not tell."""
    if not (text_of(root / "var/lib/nvpmodel/status") or text_of(root / "etc/nv_tegra_release")):
        return None
    limits = [sensors.frequency_limits(root)]
    for gpu in sorted((root / "sys/class/devfreq").glob("*gpu*")):
        pair = (number_of(gpu / "min_freq"), number_of(gpu / "max_freq"))
        limits.append(None if None in pair else pair)  # type: ignore[arg-type]
    known = [pair for pair in limits if pair is not None]
    return all(low == high for low, high in known) if known else None


def engines() -> dict[str, str]:
    """Distribution and version of every runtime that is installed, and of LoadGen; nothing is imported."""
    found = {}
    for name, imports in [*((name, ENGINES[name].imports) for name in RUNTIMES), ("loadgen", ("mlperf_loadgen",))]:
        versions = [f"{d.name} {d.version}" for package in imports for d in distributions_of(package)]
        if not versions and any(map(importable, imports)):
            versions = [f"{name} of unknown version"]
        if versions:
            found[name] = ", ".join(versions)
    return found


def _cpu(root: Path) -> tuple[str, tuple[str, ...]]:
    try:
        return doctor.cpu(root / "proc/cpuinfo")
    except ValueError:  # bytes that are no text
        return platform.processor() or platform.machine(), ()


def _meminfo(root: Path, key: str) -> int | None:
    """MB of a line of /proc/meminfo, which is in KiB (Documentation/filesystems/proc.rst)."""
    match = re.search(rf"^{key}:\s+([0-9]{{1,15}}) kB$", text_of(root / "proc/meminfo") or "", re.M)
    return int(match.group(1)) // 1024 if match else None


def _load(root: Path) -> float | None:
    match = re.match(r"[0-9]{1,6}\.[0-9]{1,6}\b", text_of(root / "proc/loadavg") or "")
    return float(match.group()) if match else None


def _warnings(e: Environment) -> Iterator[str]:
    slow = [governor for governor in e.governors if governor != "performance"]
    if slow:
        yield (
            f"the clock governor is {' and '.join(slow)}: short runs are slower than long ones; for steady figures: "
            "sudo cpupower frequency-set -g performance"
        )
    if not e.governors:
        yield "the clock governor cannot be read (a virtual machine, or no Linux): whether the clock was steady is unknown"
    if e.load_average is not None and e.load_average > 0.5:
        yield f"the load average was {e.load_average:.2f} at the start: other programs took part of the processor"
    if e.cpu_limit is not None and e.cpu_limit < e.usable_cores:
        yield (
            f"the container may use {e.cpu_limit:g} of {e.usable_cores} processors: more threads than that are made to "
            "wait, which shows in the slowest times"
        )
    if e.memory_limit_mb is not None and e.memory_mb is not None and e.memory_limit_mb < e.memory_mb:
        yield f"the container may use {e.memory_limit_mb} of {e.memory_mb} MB of memory"


def _untested(e: Environment, kinds: Collection[str]) -> Iterator[str]:
    if "counter" in kinds:
        yield f"energy by RAPL is that of processor and memory, not of the board; {UNTESTED}: check it against a meter"
    if "power" in kinds:
        yield f"energy by INA power monitors ({', '.join(e.energy)}): {UNTESTED}: check it against a meter"
    if e.power_mode is not None:
        yield f"the power mode ({e.power_mode}): {UNTESTED}"
    if e.clocks_held is False:
        yield "the clocks follow the load; for steady figures: sudo jetson_clocks"
