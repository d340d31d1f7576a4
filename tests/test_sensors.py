"""The readers of temperatures, clocks and energy, and the state of the box, on trees made up after the kernel's documents:
sysfs-class-thermal, sysfs-devices-system-cpu, sysfs-class-powercap, hwmon/sysfs-interface.rst, hwmon/ina3221.rst."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from absence import replaced, without
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fer_edge
from fer_edge import runtime as rt
from fer_edge.benchmarks import environment as surroundings
from fer_edge.benchmarks.environment import engines, environment, held_clocks, power_mode
from fer_edge.benchmarks.sensors import (
    NO_SENSOR,
    EnergyMeter,
    EnergySource,
    energy_sources,
    frequencies,
    frequency_limits,
    governors,
    joules,
    no_energy_reason,
    reading,
    unreadable,
)
from fer_edge.container import container_limits
from fer_edge.engines import RUNTIMES, installed
from fer_edge.errors import UsageError
from fer_edge.sensors import temperatures

UNREADABLE = None
"""In a tree: a folder in the file's place, because the tests may run as root, for whom no file is closed."""

CPU, RAPL, HWMON, THERMAL = "sys/devices/system/cpu", "sys/class/powercap", "sys/class/hwmon", "sys/class/thermal"

LAPTOP: dict[str, str | None] = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i7-1165G7\nflags\t\t: fpu avx2 avx512f avx512_vnni\n",
    "proc/meminfo": "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n",
    "proc/loadavg": "0.08 0.10 0.12 1/800 12345\n",
    "proc/self/cgroup": "0::/user.slice/session-2.scope\n",
    "sys/class/dmi/id/product_name": "20XW\n",
    f"{CPU}/online": "0-3\n",
    f"{CPU}/cpufreq/policy0/scaling_cur_freq": "1\n",
    f"{THERMAL}/thermal_zone0/type": "acpitz\n",
    f"{THERMAL}/thermal_zone0/temp": "27800\n",
    f"{THERMAL}/thermal_zone1/type": "x86_pkg_temp\n",
    f"{THERMAL}/thermal_zone1/temp": "51000\n",
    f"{THERMAL}/cooling_device0/type": "Processor\n",
    f"{HWMON}/hwmon0/name": "coretemp\n",
    f"{HWMON}/hwmon0/temp1_input": "99000\n",
    f"{RAPL}/intel-rapl/enabled": "1\n",
    f"{RAPL}/intel-rapl:0/name": "package-0\n",
    f"{RAPL}/intel-rapl:0/energy_uj": "1000000\n",
    f"{RAPL}/intel-rapl:0/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:0/intel-rapl:0:0/name": "core\n",
    f"{RAPL}/intel-rapl:0/intel-rapl:0:0/energy_uj": "600000\n",
    f"{RAPL}/intel-rapl:0:0/name": "core\n",
    f"{RAPL}/intel-rapl:0:0/energy_uj": "600000\n",
    f"{RAPL}/intel-rapl:0:0/max_energy_range_uj": "262143328850\n",
    f"{RAPL}/intel-rapl:0:1/name": "uncore\n",
    f"{RAPL}/intel-rapl:0:1/energy_uj": "50000\n",
    f"{RAPL}/intel-rapl:1/name": "psys\n",
    f"{RAPL}/intel-rapl:1/energy_uj": "9000000\n",
    f"{RAPL}/intel-rapl-mmio/enabled": "1\n",
    f"{RAPL}/intel-rapl-mmio:0/name": "package-0\n",
    f"{RAPL}/intel-rapl-mmio:0/energy_uj": "1000000\n",
    **{f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": f"{2_800_000 + n}\n" for n in range(4)},
    **{f"{CPU}/cpu{n}/cpufreq/scaling_min_freq": "400000\n" for n in range(4)},
    **{f"{CPU}/cpu{n}/cpufreq/scaling_max_freq": "4700000\n" for n in range(4)},
    **{f"{CPU}/cpu{n}/cpufreq/scaling_governor": "powersave\n" for n in range(4)},
}


def ina3221(chip: str, *rails: tuple[str, int, int]) -> dict[str, str | None]:
    """An INA3221 as its driver shows it, with (label, mV, mA) of each channel, the shunt voltages and the sums."""
    files: dict[str, str | None] = {f"{HWMON}/{chip}/name": "ina3221\n"}
    for n, (label, millivolts, milliamperes) in enumerate(rails, 1):
        files |= {
            f"{HWMON}/{chip}/in{n}_label": f"{label}\n",
            f"{HWMON}/{chip}/in{n}_enable": "1\n",
            f"{HWMON}/{chip}/in{n}_input": f"{millivolts}\n",
            f"{HWMON}/{chip}/curr{n}_input": f"{milliamperes}\n",
            f"{HWMON}/{chip}/in{n + 3}_input": "777\n",
        }
    total = sum(milliamperes for _, _, milliamperes in rails)
    return files | {
        f"{HWMON}/{chip}/in7_label": "sum of shunt voltages\n",
        f"{HWMON}/{chip}/in7_input": "2331\n",
        f"{HWMON}/{chip}/curr4_input": f"{total}\n",
    }


ORIN_NANO: dict[str, str | None] = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU implementer\t: 0x41\n",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
    "proc/loadavg": "1.93 0.80 0.30 2/500 999\n",
    "var/lib/nvpmodel/status": "pmode:0000\n",
    f"{THERMAL}/thermal_zone0/type": "cpu-thermal\n",
    f"{THERMAL}/thermal_zone0/temp": "47562\n",
    f"{THERMAL}/thermal_zone1/type": "gpu-thermal\n",
    f"{THERMAL}/thermal_zone1/temp": UNREADABLE,
    f"{THERMAL}/thermal_zone2/type": "cv0-thermal\n",
    f"{THERMAL}/thermal_zone2/temp": "-256000\n",
    **{f"{CPU}/cpu{n}/cpufreq/scaling_governor": "schedutil\n" for n in range(6)},
    **ina3221("hwmon3", ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 300), ("VDD_SOC", 4990, 250)),
}
AGX_ORIN = {
    **ina3221("hwmon3", ("VDD_GPU_SOC", 20000, 200), ("VDD_CPU_CV", 20000, 100), ("VIN_SYS_5V0", 4968, 953)),
    **ina3221("hwmon4", ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4968, 80), ("NC", 0, 0)),
}
AGX_XAVIER = {
    **ina3221("hwmon1", ("GPU", 19000, 100), ("CPU", 19000, 200), ("SOC", 19000, 50)),
    **ina3221("hwmon2", ("CV", 19000, 10), ("VDDRQ", 19000, 20), ("SYS5V", 5000, 300)),
}
INA238 = {
    f"{HWMON}/hwmon5/name": "ina238\n",
    f"{HWMON}/hwmon5/in0_input": "3\n",
    f"{HWMON}/hwmon5/in1_input": "20000\n",
    f"{HWMON}/hwmon5/curr1_input": "1150\n",
    f"{HWMON}/hwmon5/power1_input": "23000000\n",
}
THOR = {
    **ina3221("hwmon3", ("VDD_GPU", 20000, -20), ("VDD_CPU_SOC_MSS", 20000, 325), ("VIN_SYS_5V0", 5000, 1304)),
    **INA238,
}


def built(root: Path, files: Mapping[str, str | None]) -> Path:
    """The tree in ``root``."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if text is UNREADABLE else path.write_text(text)
    return root


def rails(root: Path) -> dict[str, float | None]:
    return {source.name: reading(source) for source in energy_sources(root)}


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def as_nobody() -> Iterator[None]:
    """Without root's right to read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(autouse=True)
def no_jetson_stats(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if it were not installed, whether it is or not."""
    monkeypatch.setattr(surroundings, "find_spec", lambda name: None)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


# Temperatures and clocks.


def test_thermal_zones(tmp_path: Path) -> None:
    assert temperatures(built(tmp_path, LAPTOP)) == {"acpitz": 27.8, "x86_pkg_temp": 51.0}


def test_a_zone_that_is_no_sensor_is_left_out(tmp_path: Path) -> None:
    """A Jetson Nano's PMIC-Die says 100 degrees whatever happens, and would be the hottest for ever."""
    zones = {"thermal_zone0": ("CPU-therm", "52000"), "thermal_zone1": ("PMIC-Die", "100000")}
    files = {
        f"sys/class/thermal/{zone}/{name}": text
        for zone, pair in zones.items()
        for name, text in zip(("type", "temp"), pair, strict=True)
    }
    assert temperatures(built(tmp_path, files)) == {"CPU-therm": 52.0}


def test_zones_that_are_off_are_left_out(tmp_path: Path) -> None:
    assert temperatures(built(tmp_path, ORIN_NANO)) == {"cpu-thermal": 47.562}


@pytest.mark.parametrize(
    ("written", "degrees"),
    [("-60000", -60.0), ("-60001", None), ("200000", 200.0), ("200001", None), ("0", 0.0), ("", None), ("hot", None)],
)
def test_what_no_thermometer_says(written: str, degrees: float | None, tmp_path: Path) -> None:
    built(tmp_path, {f"{THERMAL}/thermal_zone0/type": "zone\n", f"{THERMAL}/thermal_zone0/temp": written})
    assert temperatures(tmp_path) == ({} if degrees is None else {"zone": degrees})


def test_zones_of_one_type_keep_their_names_when_one_goes_off(tmp_path: Path) -> None:
    zones = ["pch", "acpitz", "acpitz", "acpitz 2", "acpitz"]
    for n, kind in enumerate(zones):
        built(tmp_path, {f"{THERMAL}/thermal_zone{n}/type": kind, f"{THERMAL}/thermal_zone{n}/temp": f"{n}000"})
    assert temperatures(tmp_path) == {"pch": 0.0, "acpitz": 1.0, "acpitz 3": 2.0, "acpitz 2": 3.0, "acpitz 4": 4.0}
    (tmp_path / THERMAL / "thermal_zone1/temp").unlink()
    assert temperatures(tmp_path) == {"pch": 0.0, "acpitz 3": 2.0, "acpitz 2": 3.0, "acpitz 4": 4.0}


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    built(tmp_path, {f"{THERMAL}/thermal_zone0/temp": "1000"})
    (tmp_path / THERMAL / "thermal_zone0/type").write_bytes(b"zone\xff\x1b[31m\n")
    assert temperatures(tmp_path) == {"zone\N{REPLACEMENT CHARACTER}[31m": 1.0}


def test_hwmon_where_there_is_no_zone(tmp_path: Path) -> None:
    chips: dict[str, str | None] = {
        f"{THERMAL}/cooling_device0/type": "Fan\n",
        f"{HWMON}/hwmon10/name": "nvme\n",
        f"{HWMON}/hwmon10/temp1_input": "38850\n",
        f"{HWMON}/hwmon10/temp1_label": "Composite\n",
        f"{HWMON}/hwmon2/name": "k10temp\n",
        f"{HWMON}/hwmon2/temp1_input": "61250\n",
        f"{HWMON}/hwmon2/temp1_label": "Tctl\n",
        f"{HWMON}/hwmon2/temp3_input": "55500\n",
        f"{HWMON}/hwmon2/temp4_input": UNREADABLE,
        f"{HWMON}/hwmon2/temp1_max": "90000\n",
    }
    expected = {"k10temp Tctl": 61.25, "k10temp temp3": 55.5, "nvme Composite": 38.85}
    assert temperatures(built(tmp_path, chips)) == expected
    assert list(temperatures(tmp_path)) == list(expected), "hwmon2 comes before hwmon10"


def test_processors_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for n in (10, 2, 0, 1, 11):
        built(tmp_path, {f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": f"{1_000_500 + 1000 * n}\n"})
    assert frequencies(tmp_path) == (1000.5, 1001.5, 1002.5, 1010.5, 1011.5)


def test_offline_processors_count_nowhere(tmp_path: Path) -> None:
    for n, online in enumerate(["1", "0", "1"]):
        built(
            tmp_path,
            {
                f"{CPU}/cpu{n}/online": online,
                f"{CPU}/cpu{n}/cpufreq/scaling_cur_freq": f"{1_000_000 * (n + 1)}",
                f"{CPU}/cpu{n}/cpufreq/scaling_min_freq": "100000" if online == "0" else "300000",
                f"{CPU}/cpu{n}/cpufreq/scaling_max_freq": "9000000" if online == "0" else "3000000",
                f"{CPU}/cpu{n}/cpufreq/scaling_governor": "userspace" if online == "0" else "performance",
            },
        )
    assert (frequencies(tmp_path), frequency_limits(tmp_path)) == ((1000.0, 3000.0), (300.0, 3000.0))
    assert governors(tmp_path) == ("performance",)


def test_clock_of_a_virtual_machine(tmp_path: Path) -> None:
    lines = "processor\t: 0\ncpu MHz\t\t: 2596.132\n\nprocessor\t: 1\ncpu MHz\t\t: 1400\nprocessor : 2\ncpu MHz : fast\n"
    assert frequencies(built(tmp_path, {"proc/cpuinfo": lines})) == (2596.132, 1400.0)
    built(tmp_path, {f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1800000"})
    assert frequencies(tmp_path) == (1800.0,), "cpufreq goes before cpuinfo"
    (tmp_path / CPU / "cpu0/cpufreq/scaling_cur_freq").write_text("<unknown>")
    assert frequencies(tmp_path) == (2596.132, 1400.0)


def test_limits_of_big_and_little_processors(tmp_path: Path) -> None:
    little, big = f"{CPU}/cpu0/cpufreq", f"{CPU}/cpu4/cpufreq"
    built(tmp_path, {f"{little}/scaling_min_freq": "408000", f"{little}/scaling_max_freq": "1800000"})
    built(tmp_path, {f"{big}/cpuinfo_min_freq": "600000", f"{big}/cpuinfo_max_freq": "2400000"})
    built(tmp_path, {f"{little}/scaling_governor": "schedutil\n", f"{big}/scaling_governor": "performance\n"})
    assert frequency_limits(tmp_path) == (408.0, 2400.0)
    assert governors(tmp_path) == ("schedutil", "performance")
    (tmp_path / big / "scaling_max_freq").write_text("2000000")
    assert frequency_limits(tmp_path) == (408.0, 2000.0), "the governor's limit goes before the hardware's"


# Where energy comes from.


def test_only_the_package_of_a_laptop_counts(tmp_path: Path) -> None:
    """Not its parts, not psys that contains it, not the same package by MMIO."""
    (source,) = energy_sources(built(tmp_path, LAPTOP))
    assert (source.name, source.kind, source.max_range) == ("package-0", "counter", pytest.approx(262143.32885))
    assert source.paths == (tmp_path / RAPL / "intel-rapl:0/energy_uj",)
    assert reading(source) == pytest.approx(1.0)
    assert unreadable(tmp_path) == ()
    assert no_energy_reason(tmp_path) == ""


def test_dram_of_a_server_counts_beside_its_packages(tmp_path: Path) -> None:
    names = {"0": "package-0", "0:0": "dram", "1": "package-1", "1:0": "core", "1:1": "dram", "10": "package-2-die-1"}
    for zone, name in names.items():
        built(tmp_path, {f"{RAPL}/intel-rapl:{zone}/name": f"{name}\n", f"{RAPL}/intel-rapl:{zone}/energy_uj": "5\n"})
    expected = ["package-0", "package-0 dram", "package-1", "package-1 dram", "package-2-die-1"]
    assert [source.name for source in energy_sources(tmp_path)] == expected


def test_the_total_rail_is_counted_alone(tmp_path: Path) -> None:
    assert rails(built(tmp_path, ORIN_NANO)) == {"VDD_IN": pytest.approx(6.0)}


def test_rails_of_agx_orin(tmp_path: Path) -> None:
    """VIN_SYS_5V0 is no total, and feeds the memory's rail."""
    expected = {"VDD_GPU_SOC": 4.0, "VDD_CPU_CV": 2.0, "VIN_SYS_5V0": 4.968 * 0.953}
    assert rails(built(tmp_path, AGX_ORIN)) == pytest.approx(expected)


def test_rails_of_agx_xavier(tmp_path: Path) -> None:
    found = rails(built(tmp_path, AGX_XAVIER))
    assert found == pytest.approx({"GPU": 1.9, "CPU": 3.8, "SOC": 0.95, "CV": 0.19, "VDDRQ": 0.38, "SYS5V": 1.5})


def test_thor_has_its_total_on_another_chip(tmp_path: Path) -> None:
    """The INA238 gives power itself, and carries no label."""
    assert rails(built(tmp_path, THOR)) == {"VIN": pytest.approx(23.0)}


def test_an_idle_rail_may_be_a_little_below_zero(tmp_path: Path) -> None:
    files = {name: text for name, text in THOR.items() if "hwmon5" not in name}
    assert rails(built(tmp_path, files))["VDD_GPU"] == pytest.approx(-0.4)


def test_a_lone_power_monitor(tmp_path: Path) -> None:
    assert rails(built(tmp_path / "a", INA238)) == {"ina238": pytest.approx(23.0)}
    assert rails(built(tmp_path / "b", {**INA238, f"{HWMON}/hwmon5/label": "SOLAR\n"})) == {"SOLAR": pytest.approx(23.0)}


def test_channels_that_are_off_or_of_other_chips_are_no_rails(tmp_path: Path) -> None:
    files = ina3221("hwmon0", ("A", 5000, 100), ("B", 5000, 200), ("C", 5000, 300))
    files[f"{HWMON}/hwmon0/in2_enable"] = "0\n"
    files[f"{HWMON}/hwmon0/curr3_input"] = ""
    files |= {f"{HWMON}/hwmon1/name": "amdgpu\n", f"{HWMON}/hwmon1/power1_input": "9000000\n"}
    assert rails(built(tmp_path, files)) == {"A": pytest.approx(0.5)}


def test_rails_of_one_label_stay_apart(tmp_path: Path) -> None:
    files = {**ina3221("hwmon0", ("5V", 5000, 100)), **ina3221("hwmon1", ("5V", 5000, 200))}
    assert rails(built(tmp_path, files)) == pytest.approx({"5V": 0.5, "5V 2": 1.0})


def test_an_unreadable_counter_comes_with_the_cure(open_folder: Path) -> None:
    built(open_folder, LAPTOP)
    file = open_folder / RAPL / "intel-rapl:0/energy_uj"
    file.chmod(0o400 if os.geteuid() == 0 else 0)
    with as_nobody():
        (sentence,) = unreadable(open_folder)
        assert energy_sources(open_folder) == ()
        assert no_energy_reason(open_folder) == sentence
        state = environment(open_folder)
    assert sentence.startswith("package-0 ")
    assert "run as root" in sentence
    assert sentence.endswith(f"sudo chmod a+r {file}")
    assert (state.energy, state.no_energy) == ((), sentence)
    assert sentence not in state.notes, "it is said once"


def test_a_broken_counter_is_named(tmp_path: Path) -> None:
    built(tmp_path, {**LAPTOP, f"{RAPL}/intel-rapl:0/energy_uj": UNREADABLE})
    (sentence,) = unreadable(tmp_path)
    assert "package-0" in sentence
    assert "Is a directory" in sentence
    assert no_energy_reason(tmp_path) == sentence
    assert len(sentence.splitlines()) == 1


def test_an_unreadable_total_leaves_the_parts_and_says_so(tmp_path: Path) -> None:
    files = {**ORIN_NANO, f"{HWMON}/hwmon3/curr1_input": UNREADABLE}
    assert rails(built(tmp_path, files)) == pytest.approx({"VDD_CPU_GPU_CV": 1.5, "VDD_SOC": 4.99 * 0.25})
    (sentence,) = unreadable(tmp_path)
    assert "VDD_IN" in sentence
    assert sentence in environment(tmp_path).notes


# How it is added up.


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (1_000_000, 3_500_000, 2.5),
        (999_000_000, 500_000, 1.5),
        (7, 7, 0.0),
        (999_999_999, 0, 1e-6),
    ],
)
def test_a_counter_that_starts_again(first: int, last: int, expected: float, tmp_path: Path) -> None:
    """The range is 1,000 J here."""
    zone = f"{RAPL}/intel-rapl:0"
    files = {f"{zone}/name": "package-0", f"{zone}/max_energy_range_uj": "1000000000", f"{zone}/energy_uj": str(first)}
    clock = Clock()
    with EnergyMeter(energy_sources(built(tmp_path, files)), clock=clock) as meter:
        (tmp_path / zone / "energy_uj").write_text(str(last))
        clock.now += 4
    assert meter.joules == {"package-0": pytest.approx(expected, abs=1e-9)}
    assert (meter.seconds, meter.missing, meter.samples) == (4.0, (), {"package-0": 2})


def test_a_counter_that_was_set_back_has_no_joules() -> None:
    source = EnergySource("package-0", "counter", (), 262143.0)
    assert joules(source, [(0, 262000.0), (1, 7.0)]) == pytest.approx(150.0)
    assert joules(source, [(0, 5000.0), (1, 1.0)]) is None, "257 kW are no wrap-around"
    assert joules(EnergySource("package-0", "counter", ()), [(0, 5.0), (100, 1.0)]) is None, "a range that is not known"


def test_readings_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("-5\n")
    assert reading(EnergySource("package-0", "counter", (tmp_path / "file",))) is None
    assert reading(EnergySource("rail", "power", (tmp_path / "file",))) == pytest.approx(-5e-6)
    (tmp_path / "file").write_text("10000000001\n")
    assert reading(EnergySource("rail", "power", (tmp_path / "file",))) is None, "more than 10 kW"


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        ([(0.0, 1), (1.0, 2), (2.0, 3), (3.0, 4)], 7.5),
        ([(0.0, 0), (0.5, 1), (2.0, 4), (3.0, 6)], 9.0),
        ([(0.0, 5), (0.25, 5), (8.0, 5)], 40.0),
        ([(0.0, 0), (1.0, 10), (2.0, 0)], 10.0),
    ],
    ids=["1 W more each second", "2t W at uneven times", "5 W", "a tooth"],
)
def test_a_power_ramp(ramp: list[tuple[float, int]], expected: float, tmp_path: Path) -> None:
    """Joules by hand: the area under the straight lines between the points."""
    file, clock = tmp_path / HWMON / "hwmon5/power1_input", Clock()
    built(tmp_path, INA238)
    file.write_text(f"{ramp[0][1]}000000\n")
    with EnergyMeter(energy_sources(tmp_path), period=3600, clock=clock) as meter:
        for at, watts in ramp[1:-1]:
            clock.now = 100 + at
            file.write_text(f"{watts}000000\n")
            meter.sample()
        clock.now = 100 + ramp[-1][0]
        file.write_text(f"{ramp[-1][1]}000000\n")
    assert meter.joules == {"ina238": pytest.approx(expected)}
    assert (meter.seconds, meter.samples) == (ramp[-1][0], {"ina238": len(ramp)})


def test_a_gap_is_bridged_and_a_missing_end_is_not(tmp_path: Path) -> None:
    watts = EnergySource("rail", "power", ())
    assert joules(watts, [(0, 2.0), (1, None), (2, 4.0)]) == pytest.approx(6.0)
    assert joules(watts, [(0, None), (1, 2.0), (2, 4.0)]) is None
    assert joules(watts, [(0, 2.0), (1, 2.0), (2, None)]) is None
    assert joules(watts, [(0, 2.0)]) is None
    assert joules(watts, []) is None

    built(tmp_path, {**LAPTOP, **AGX_XAVIER})
    with EnergyMeter(energy_sources(tmp_path), period=3600) as meter:
        (tmp_path / RAPL / "intel-rapl:0/energy_uj").unlink()
        (tmp_path / HWMON / "hwmon1/curr2_input").unlink()
        time.sleep(0.01)
    assert set(meter.missing) == {"package-0", "CPU"}
    assert meter.joules.keys() == {"GPU", "SOC", "CV", "VDDRQ", "SYS5V"}


def meter_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "energy meter"]


def test_the_sampling_thread(tmp_path: Path) -> None:
    (source,) = energy_sources(built(tmp_path, ORIN_NANO))
    with EnergyMeter([source], period=0.005) as meter:
        (thread,) = meter_threads()
        assert thread.daemon
        patience = time.monotonic() + 10
        while len(meter._readings[source]) < 4 and time.monotonic() < patience:
            time.sleep(0.005)
    assert meter_threads() == []
    taken = [at for at, _ in meter._readings[source]]
    assert taken == sorted(taken)
    assert meter.samples == {"VDD_IN": len(taken)}
    assert len(taken) >= 5
    assert meter.joules["VDD_IN"] == pytest.approx(6.0 * (taken[-1] - taken[0]))
    assert meter.seconds <= taken[-1] - taken[0]
    meter.sample()
    assert len(meter._readings[source]) == len(taken), "nothing is read after the end"


def test_the_thread_ends_with_an_error_of_the_body(tmp_path: Path) -> None:
    meter = EnergyMeter(energy_sources(built(tmp_path, ORIN_NANO)), period=0.005)
    with pytest.raises(KeyError), meter:
        raise KeyError("the body's")
    assert meter_threads() == []
    assert meter.joules.keys() == {"VDD_IN"}


def test_counters_need_no_thread(tmp_path: Path) -> None:
    with EnergyMeter(energy_sources(built(tmp_path, LAPTOP))) as meter:
        assert meter_threads() == []
    assert meter.joules == {"package-0": 0.0}
    with EnergyMeter(()) as meter:
        assert meter_threads() == []
    assert (meter.joules, meter.missing) == ({}, ())


@pytest.mark.parametrize("period", [0.0, -1.0, float("nan"), float("inf")])
def test_a_period_that_is_none(period: float) -> None:
    with pytest.raises(UsageError, match="period"):
        EnergyMeter((), period=period)


# The container.


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, (1.5, None)),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, (None, None)),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/a/b/memory.max": "1073741824\n",
                "sys/fs/cgroup/a/memory.max": "2147483648\n",
                "sys/fs/cgroup/memory.max": "max\n",
            },
            (2.0, 2**30),
        ),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/other/cpu.max": "1000 100000\n"}, (None, None)),
        (
            {
                "proc/self/cgroup": "0::/../x\n",
                "sys/fs/cgroup/cpu.max": "50000 100000\n",
                "sys/fs/x/cpu.max": "1000 100000\n",
            },
            (0.5, None),
        ),
        ({"proc/self/cgroup": "0::/x\n", "sys/fs/cgroup/unified/x/memory.max": "4096\n"}, (None, 4096)),
        (
            {
                "proc/self/cgroup": "5:memory:/docker/f00\n4:cpu,cpuacct:/docker/f00\n1:name=systemd:/docker/f00\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/f00/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/docker/f00/memory.limit_in_bytes": "536870912\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
                "sys/fs/cgroup/systemd/docker/f00/memory.limit_in_bytes": "1\n",
            },
            (2.5, 2**29),
        ),
        (
            {
                "proc/self/cgroup": "2:cpu:/docker/f00\n3:memory:/docker/f00\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            (2.0, None),
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "70000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            (0.7, None),
        ),
        ({"sys/fs/cgroup/cpu.max": "150000 100000\n"}, (None, None)),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 0\n"}, (None, None)),
    ],
    ids=[
        "v2",
        "v2 without a limit",
        "v2: the tightest of the groups above",
        "v2: another's group",
        "v2: outside of the namespace",
        "v2 beside v1",
        "v1",
        "v1 in a container that sees the host's path",
        "v1: controllers mounted together under the name of one",
        "no /proc/self/cgroup",
        "a period of 0",
    ],
)
def test_container_limits(files: dict[str, str], expected: tuple[float | None, int | None], tmp_path: Path) -> None:
    assert container_limits(built(tmp_path, files)) == expected


# The whole box.


def test_a_laptop(tmp_path: Path) -> None:
    state = environment(built(tmp_path, LAPTOP))
    assert (state.board, state.cpu) == ("20XW", "Intel(R) Core(TM) i7-1165G7")
    assert state.features == ("AVX2", "AVX-512", "AVX-512 VNNI")
    assert (state.memory_mb, state.available_memory_mb) == (15625, 7812)
    assert (state.governors, state.frequency_limits_mhz) == (("powersave",), (400.0, 4700.0))
    assert state.frequencies_mhz == (2800.0, 2800.001, 2800.002, 2800.003)
    assert (state.load_average, state.cpu_limit, state.memory_limit_mb) == (0.08, None, None)
    assert (state.energy, state.no_energy, state.power_mode) == (("package-0",), "", None)
    assert state.temperatures_c == {"acpitz": 27.8, "x86_pkg_temp": 51.0}
    governor, rapl = state.notes
    assert "powersave" in governor
    assert "RAPL" in rapl
    assert "untested on real hardware" in rapl


def test_a_jetson(tmp_path: Path) -> None:
    state = environment(built(tmp_path, ORIN_NANO))
    assert state.board == "NVIDIA Jetson Orin Nano Developer Kit"
    assert (state.features, state.energy, state.power_mode) == (("NEON", "dotprod"), ("VDD_IN",), "pmode:0000")
    governor, load, ina, mode = state.notes
    assert "schedutil" in governor
    assert "1.93" in load
    assert "INA" in ina
    assert "VDD_IN" in ina
    assert "untested on real hardware" in ina
    assert "untested on real hardware" in mode


def test_a_steady_box_has_nothing_to_be_warned_of(tmp_path: Path) -> None:
    files = {"proc/loadavg": "0.50 0.1 0.1 1/1 1\n", f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n"}
    assert environment(built(tmp_path, files)).notes == ()


def test_a_container_smaller_than_the_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "proc/self/cgroup": "0::/\n",
        "proc/meminfo": "MemTotal:       4194304 kB\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "1073741824\n",
        f"{CPU}/cpu0/cpufreq/scaling_governor": "performance\n",
    }
    monkeypatch.setattr(rt, "usable_processors", lambda: 4)
    state = environment(built(tmp_path, files))
    assert (state.cpu_limit, state.memory_limit_mb, state.memory_mb) == (1.5, 1024, 4096)
    cpus, memory = state.notes
    assert "1.5 of 4 processors" in cpus
    assert "1024 of 4096 MB" in memory
    monkeypatch.setattr(rt, "usable_processors", lambda: 1)
    assert environment(tmp_path).notes == (memory,)
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("4294967296\n")
    assert environment(tmp_path).notes == ()


def test_a_box_that_shows_nothing(tmp_path: Path) -> None:
    """As on macOS and Windows."""
    state = environment(tmp_path / "nothing")
    assert state.no_energy == NO_SENSOR
    assert "virtual machine" in "".join(state.notes)
    empty = {key: value for key, value in state.as_json().items() if value in (None, "", (), {})}
    always = {"time", "fer_edge", "python", "system", "cpu", "cores", "usable_cores", "engines", "no_energy", "notes"}
    assert state.as_json().keys() - empty.keys() == always
    assert temperatures(tmp_path) == {}
    assert frequencies(tmp_path) == governors(tmp_path) == energy_sources(tmp_path) == unreadable(tmp_path) == ()
    assert frequency_limits(tmp_path) is None


def test_this_box() -> None:
    state = environment()
    shown = json.loads(json.dumps(state.as_json(), allow_nan=False))
    assert shown["fer_edge"] == fer_edge.__version__
    assert shown["python"] == ".".join(map(str, sys.version_info[:3]))
    assert shown["time"].endswith("+00:00")
    assert 1 <= shown["usable_cores"] <= shown["cores"]
    assert bool(shown["energy"]) != bool(shown["no_energy"])
    with EnergyMeter(energy_sources(), period=0.01) as meter:
        time.sleep(0.05)
    assert meter.seconds >= 0.05
    assert all(-1 < energy < 1e5 for energy in meter.joules.values())


def test_engines_are_named_as_their_adapters_name_them() -> None:
    """And found without importing them, so the adapters are asked afterwards."""
    found = engines()
    assert found.keys() - {"loadgen"} == set(filter(installed, RUNTIMES))
    for name in found.keys() - {"loadgen"}:
        engine = rt.load_runtime(name).engine().replace("_", "-")
        assert engine == found[name]


def test_an_engine_without_a_distribution_is_not_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bare_engine.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "openvino", imports=("bare_engine",))
    assert engines()["openvino"] == "openvino of unknown version"
    without(monkeypatch, "openvino")
    assert "openvino" not in engines()


# jetson-stats, played by a module of the same interface.

JTOP = """
class Mode:
    name, id = "MAXN_SUPER", 2
class jtop:
    nvpmodel = Mode()
    def __enter__(self):
        {}
        return self
    def __exit__(self, *exception):
        pass
"""


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with jtop's socket and nvpmodel's note, and an empty folder "site" that modules are imported from."""
    monkeypatch.setattr(surroundings, "find_spec", find_spec)
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    return built(tmp_path, {"run/jtop.sock": "", "var/lib/nvpmodel/status": "pmode:0002\n"})


def test_power_mode_by_jetson_stats(jetson: Path) -> None:
    (jetson / "site/jtop.py").write_text(JTOP.format("print('chatter')"))
    assert power_mode(jetson) == ("MAXN_SUPER (mode 2)", "")
    assert environment(jetson).power_mode == "MAXN_SUPER (mode 2)"


@pytest.mark.parametrize(
    ("trouble", "word"),
    [
        ("raise RuntimeError('The jtop.service is not active')", "The jtop.service is not active"),
        ("import time; time.sleep(60)", "did not answer within 1 s"),
        ("import os; os._exit(3)", "no message"),
        ("import os; os._exit(0)", "not understood"),
    ],
)
def test_jetson_stats_in_trouble(trouble: str, word: str, jetson: Path) -> None:
    (jetson / "site/jtop.py").write_text(JTOP.format(trouble))
    began = time.monotonic()
    mode, complaint = power_mode(jetson, patience=1.0)
    assert time.monotonic() - began < 20
    assert mode == "pmode:0002"
    assert word in complaint
    assert len(complaint.splitlines()) == 1


def test_a_board_without_power_modes(jetson: Path) -> None:
    (jetson / "site/jtop.py").write_text(JTOP.format("self.nvpmodel = None"))
    assert power_mode(jetson) == ("pmode:0002", "")


CONF = """\
# the modes
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""


def test_a_mode_has_the_name_of_nvpmodels_table(tmp_path: Path) -> None:
    root = built(tmp_path, {"var/lib/nvpmodel/status": "pmode:0002 fmode:fanNull\n", "etc/nvpmodel.conf": CONF})
    assert power_mode(root) == ("MAXN_SUPER (mode 2)", "")
    root = built(tmp_path, {"var/lib/nvpmodel/status": "pmode:0007\n"})
    assert power_mode(root) == ("pmode:0007", "")


def test_whether_jetson_clocks_holds_the_clocks(tmp_path: Path) -> None:
    """Processor and GPU both: the lowest that may be chosen is the highest."""
    devfreq = "sys/class/devfreq/17000000.gpu"
    assert held_clocks(built(tmp_path / "none", {f"{CPU}/cpu0/cpufreq/scaling_min_freq": "7\n"})) is None
    files = {"var/lib/nvpmodel/status": "pmode:0002\n"}
    assert held_clocks(built(tmp_path / "mute", files)) is None
    for number, (cpu, gpu, held) in enumerate([("1728000", "1020000000", True), ("729600", "1020000000", False)]):
        frequencies = {"scaling_min_freq": f"{cpu}\n", "scaling_max_freq": "1728000\n"}
        files |= {f"{CPU}/cpu{n}/cpufreq/{name}": value for n in range(2) for name, value in frequencies.items()}
        files |= {f"{devfreq}/min_freq": f"{gpu}\n", f"{devfreq}/max_freq": "1020000000\n"}
        root = built(tmp_path / str(number), files)
        assert held_clocks(root) is held
        state = environment(root)
        assert state.clocks_held is held
        assert any("sudo jetson_clocks" in note for note in state.notes) is not held
    files[f"{devfreq}/min_freq"] = "306000000\n"
    files |= {f"{CPU}/cpu{n}/cpufreq/scaling_min_freq": "1728000\n" for n in range(2)}
    assert held_clocks(built(tmp_path / "gpu", files)) is False


def test_jetson_stats_without_its_service(jetson: Path) -> None:
    (jetson / "site/jtop.py").write_text("raise AssertionError('must not be imported')")
    (jetson / "run/jtop.sock").unlink()
    mode, complaint = power_mode(jetson)
    assert (mode, "sudo systemctl restart jtop.service" in complaint) == ("pmode:0002", True)
    assert complaint in environment(jetson).notes


# Whatever stands in a file.

EVERYTHING: dict[str, str | None] = {
    **LAPTOP,
    **ORIN_NANO,
    **THOR,
    f"{CPU}/cpu0/online": "1\n",
    f"{HWMON}/hwmon7/name": "nvme\n",
    f"{HWMON}/hwmon7/temp1_input": "38850\n",
    f"{HWMON}/hwmon7/temp1_label": "Composite\n",
    "proc/self/cgroup": "0::/a\n4:cpu,cpuacct:/a\n",
    "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
    "sys/fs/cgroup/a/memory.max": "100000\n",
    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "150000\n",
    "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us": "150000\n",
}
FILES = sorted(name for name, text in EVERYTHING.items() if text is not UNREADABLE)
ODD = st.sampled_from(["nan", "-inf", "1e999", "1_0", "٣", "0x7", "--1", "9" * 400, "9" * 5000])
NUMBERS = st.one_of(st.integers(-(10**25), 10**25), st.floats(), ODD)
NASTY = st.one_of(st.binary(max_size=60), st.text(max_size=20).map(str.encode), NUMBERS.map(lambda n: str(n).encode()))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Which engines are installed is asked once: it does not depend on the box, and takes longer than all that does."""
    installed_engines = engines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surroundings, "engines", lambda: installed_engines)
        yield built(tmp_path_factory.mktemp("box"), EVERYTHING)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.dictionaries(st.sampled_from(FILES), NASTY, min_size=1, max_size=4))
def test_no_file_makes_a_reader_fail(box: Path, changes: dict[str, bytes]) -> None:
    try:
        for name, content in changes.items():
            (box / name).write_bytes(content)
        shown = json.dumps(environment(box).as_json(), allow_nan=False)
        assert json.loads(shown)["time"]
        with EnergyMeter(energy_sources(box), period=3600) as meter:
            pass
        json.dumps([meter.joules, meter.seconds], allow_nan=False)
        assert all(isinstance(sentence, str) for sentence in unreadable(box))
    finally:
        for name in changes:
            (box / name).write_text(str(EVERYTHING[name]))


@pytest.mark.parametrize("instead", ["nothing", "a folder", "a link to nowhere"])
def test_no_missing_file_makes_a_reader_fail(box: Path, instead: str) -> None:
    for name in FILES:
        path = box / name
        path.unlink()
        try:
            if instead == "a folder":
                path.mkdir()
            elif instead == "a link to nowhere":
                path.symlink_to("nowhere")
            json.dumps(environment(box).as_json(), allow_nan=False)
        finally:
            path.rmdir() if instead == "a folder" else path.unlink(missing_ok=True)
            path.write_text(str(EVERYTHING[name]))
