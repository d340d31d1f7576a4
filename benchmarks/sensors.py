"""What a Linux box tells of itself while it works, beside its temperatures (fer_edge/sensors.py): clock frequencies and
energy, read from /sys and /proc.

Every reader takes ``root``: a copied or made-up tree is read like the box itself. What is missing, switched off or says
nonsense is left out; no reader raises, and none makes a value up.
"""

from __future__ import annotations

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from fer_edge.container import number_of, text_of
from fer_edge.errors import UsageError
from fer_edge.sensors import distinct, name_in, numbered

TOTAL_RAILS = ("VIN", "VDD_IN", "POM_5V_IN", "5V_IN")
"""Jetson rails that feed all others, the widest first: VIN is Thor's input, carrier board included; VDD_IN the module's on
TX1, TX2, Xavier NX and Orin NX and Nano; POM_5V_IN is Nano's (5V_IN in NVIDIA's documents). VIN_SYS_5V0 is none: on AGX Orin
and Thor it feeds peripherals and memory, beside the rails of processor and GPU."""
PARTS = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rail -> the rail that feeds it: NVIDIA counts AGX Orin's memory in VIN_SYS_5V0, so adding both would count it twice."""
NO_SENSOR = "no energy sensor: this box shows neither RAPL (/sys/class/powercap) nor an INA power monitor (hwmon)"

_OFF = (errno.ENODATA, errno.EINVAL, errno.ENXIO, errno.EAGAIN)  # drivers' answers for a channel that is switched off
_MOST_WATTS = 10_000


@dataclass(frozen=True)
class EnergySource:
    """A counter of microjoules, or a power sensor: one file of microwatts, or one of millivolts and one of milliamperes,
    whose product is microwatts. ``max_range``: the joules at which a counter starts again from 0; 0: not known."""

    name: str
    kind: Literal["counter", "power"]
    paths: tuple[Path, ...]
    max_range: float = 0.0


def frequencies(root: Path = Path("/")) -> tuple[float, ...]:
    """Current MHz of every processor that is online, in the order of their numbers; () when nothing says.

    scaling_cur_freq in kHz (Documentation/admin-guide/pm/cpufreq.rst), else "cpu MHz" of /proc/cpuinfo, which virtual
    machines have too; online as in Documentation/ABI/testing/sysfs-devices-system-cpu."""
    known = _megahertz(root, "scaling_cur_freq")
    if not known:  # only then, because reading cpuinfo interrupts every processor
        lines = re.findall(r"^cpu MHz\s*:\s*([0-9]{1,5}(?:\.[0-9]{1,6})?)\s*$", text_of(root / "proc/cpuinfo") or "", re.M)
        known = [float(mhz) for mhz in lines if float(mhz) > 0]
    return tuple(known)


def frequency_limits(root: Path = Path("/")) -> tuple[float, float] | None:
    """(lowest, highest) MHz that the governors may choose, over all processors; the hardware's where the kernel sets none.
    Documentation/admin-guide/pm/cpufreq.rst."""
    low = _megahertz(root, "scaling_min_freq", "cpuinfo_min_freq")
    high = _megahertz(root, "scaling_max_freq", "cpuinfo_max_freq")
    return (min(low), max(high)) if low and high else None


def governors(root: Path = Path("/")) -> tuple[str, ...]:
    """The distinct clock governors of the processors that are online. Documentation/admin-guide/pm/cpufreq.rst."""
    return tuple(dict.fromkeys(g for g in (name_in(p / "scaling_governor") for p in _policies(root)) if g))


def energy_sources(root: Path = Path("/")) -> tuple[EnergySource, ...]:
    """What can be read here and may be added up: no source is a part of another one.

    RAPL: the packages and, beside them, their DRAM, which no package contains; the zones core and uncore are parts of the
    package, psys contains it, and the control type intel-rapl-mmio shows the same package again. AMD's packages appear under
    the name intel-rapl too. INA rails: the total alone where there is one (TOTAL_RAILS), else every rail."""
    found = [source for source in _candidates(root) if reading(source) is not None]
    rails = [source.name for source in found if source.kind == "power"]
    total = next((name for name in TOTAL_RAILS if name in rails), None)
    counted = [total] if total else [name for name in rails if PARTS.get(name) not in rails]
    return tuple(source for source in found if source.kind == "counter" or source.name in counted)


def reading(source: EnergySource) -> float | None:
    """Joules on a counter, watts at a power sensor; None when it does not answer, or with what cannot be."""
    value = 1e-6
    for path in source.paths:
        number = number_of(path)
        if number is None:
            return None
        value *= number
    plausible = value >= 0 if source.kind == "counter" else abs(value) <= _MOST_WATTS
    return value if plausible else None


def unreadable(root: Path = Path("/")) -> tuple[str, ...]:
    """A sentence for every energy source that is there and cannot be read, with the cure.

    RAPL is for root alone since CVE-2020-8694: its counter gives away what other programs compute."""
    return tuple(text for source in _candidates(root) for path in source.paths if (text := _trouble(source.name, path)))


def no_energy_reason(root: Path = Path("/")) -> str:
    """Why no energy is given, for people; "" when it is given."""
    return "" if energy_sources(root) else "; ".join(unreadable(root)) or NO_SENSOR


def joules(source: EnergySource, samples: Sequence[tuple[float, float | None]]) -> float | None:
    """Energy from the first to the last of the (seconds, reading); None when one is missing, or the counter was set back.

    A counter is taken to have started again at most once, which is right for ``max_range`` / power: the usual 262,144 J of
    a package last 44 minutes at 100 W and 4.9 hours at 15 W. After that the energy comes out too small. Power is integrated
    by the trapezoid rule, over a missing reading in a straight line."""
    known = [(at, value) for at, value in samples if value is not None]
    if len(known) < 2 or samples[0][1] is None or samples[-1][1] is None:
        return None
    if source.kind == "power":
        return sum((later - at) * (watts + then) / 2 for (at, watts), (later, then) in pairwise(known))
    (began, first), (ended, last) = known[0], known[-1]
    spent = last - first if last >= first else last - first + source.max_range
    return spent if 0 <= spent <= _MOST_WATTS * (ended - began) else None


class EnergyMeter:
    """``with EnergyMeter(energy_sources()) as meter: ...``, once; then ``meter.joules`` by source and ``meter.seconds``.

    Power sensors are read at the start, at the end and every ``period`` seconds between, by a daemon thread; ``samples``
    counts the readings of each source. Counters need no thread. Measure a second or more: RAPL counts once a millisecond,
    and an INA averages. A source that was silent at the start or at the end is named in ``missing`` and has no joules."""

    def __init__(
        self, sources: Iterable[EnergySource], period: float = 0.1, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        if not 0 < period <= threading.TIMEOUT_MAX:
            raise UsageError(f"period must be a number of seconds above 0; got {period}")
        self.period = period
        self.joules: dict[str, float] = {}
        self.samples: dict[str, int] = {}
        self.missing: tuple[str, ...] = ()
        self.seconds = 0.0
        self._clock = clock
        self._readings: dict[EnergySource, list[tuple[float, float | None]]] = {source: [] for source in sources}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._sample_on, name="energy meter", daemon=True)

    def __enter__(self) -> EnergyMeter:
        self._take(self._readings)
        if any(source.kind == "power" for source in self._readings):
            self._thread.start()
        self._began = self._clock()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        with self._lock:
            self.seconds = self._clock() - self._began
            self._take(self._readings)
        if self._thread.is_alive():
            self._thread.join()
        found = {source.name: joules(source, taken) for source, taken in self._readings.items()}
        self.joules = {name: energy for name, energy in found.items() if energy is not None}
        self.missing = tuple(name for name, energy in found.items() if energy is None)
        self.samples = {s.name: sum(v is not None for _, v in taken) for s, taken in self._readings.items()}

    def sample(self) -> None:
        """Read every power sensor once, now."""
        with self._lock:
            if not self._stop.is_set():  # the last reading is that of the end
                self._take(source for source in self._readings if source.kind == "power")

    def _sample_on(self) -> None:
        while not self._stop.wait(self.period):
            self.sample()

    def _take(self, sources: Iterable[EnergySource]) -> None:
        for source in sources:
            self._readings[source].append((self._clock(), reading(source)))


def _candidates(root: Path) -> list[EnergySource]:
    found = [*_rapl(root), *_rails(root)]
    return [replace(s, name=name) for name, s in zip(distinct([s.name for s in found]), found, strict=True)]


def _rapl(root: Path) -> list[EnergySource]:
    """Documentation/ABI/testing/sysfs-class-powercap, Documentation/power/powercap/powercap.rst."""
    zones = numbered(root / "sys/class/powercap", r"intel-rapl:([0-9]+)")
    found = []
    for zone, package in [(z, name) for z in zones if (name := name_in(z / "name")).startswith("package")]:
        parts = numbered(zone.parent, re.escape(zone.name) + r":([0-9]+)")
        for name, folder in [(package, zone), *((f"{package} dram", p) for p in parts if name_in(p / "name") == "dram")]:
            if os.path.exists(folder / "energy_uj"):
                most = max(0, number_of(folder / "max_energy_range_uj") or 0)
                found.append(EnergySource(name, "counter", (folder / "energy_uj",), most * 1e-6))
    return found


def _rails(root: Path) -> list[EnergySource]:
    """Documentation/hwmon/ina3221.rst, ina2xx.rst, ina238.rst; Documentation/ABI/testing/sysfs-class-hwmon (label).

    Of an INA3221 channels 1 to 3 are rails: curr4 is their sum, in4 to in7 are shunt voltages. The JetPack 4 driver, which
    shows its rails through iio, is not read."""
    monitors = numbered(root / "sys/class/hwmon", r"hwmon([0-9]+)")
    chips = [(c, kind) for c in monitors if re.fullmatch(r"ina[0-9]{3,4}x?", kind := name_in(c / "name"))]
    jetson = any(kind.startswith("ina3221") for _, kind in chips)
    found = []
    for chip, kind in chips:
        three = kind.startswith("ina3221")
        for n in (1, 2, 3) if three else (1,):
            power, volts, amperes = chip / f"power{n}_input", chip / f"in{n}_input", chip / f"curr{n}_input"
            paths = (power,) if os.path.exists(power) else (volts, amperes)
            unlabelled = "VIN" if kind == "ina238" and jetson else f"{kind} channel {n}" if three else kind
            name = name_in(chip / f"in{n}_label") or ("" if three else name_in(chip / "label")) or unlabelled
            connected = name != "NC" and number_of(chip / f"in{n}_enable") != 0
            if connected and all(map(os.path.exists, paths)):
                found.append(EnergySource(name, "power", paths))
    return found


def _trouble(name: str, path: Path) -> str:
    try:
        path.read_bytes()
        why = "" if number_of(path) is not None else "it holds no number"
    except PermissionError:
        return f"{name} is for root alone here; run as root or, until the next boot: sudo chmod a+r {path}"
    except OSError as error:
        why = "" if error.errno in _OFF else str(error.strerror)
    return f"{name} cannot be read ({path}: {why}); dmesg may say more" if why else ""


def _policies(root: Path) -> list[Path]:
    cpus = numbered(root / "sys/devices/system/cpu", r"cpu([0-9]+)")
    return [cpu / "cpufreq" for cpu in cpus if number_of(cpu / "online") != 0]  # cpu0 often has no such file


def _megahertz(root: Path, *files: str) -> list[float]:
    """Of every processor that is online, the first of the files that holds kHz."""
    read = [[number_of(policy / file) or 0 for file in files] for policy in _policies(root)]
    found = [next((khz for khz in row if 0 < khz < 100_000_000), None) for row in read]
    return [khz / 1000 for khz in found if khz is not None]
