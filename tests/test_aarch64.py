"""What the emulated root shows its programs; the root itself takes minutes and a network (lab/aarch64.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fer_edge import doctor
from lab.aarch64 import CARRIED, PROCESSORS, ROOT, cpuinfo, inside


@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_processor_is_one_of_arm(tmp_path: Path, processor: str) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo(processor))
    _, features = doctor.cpu(tmp_path / "cpuinfo")
    assert ("dotprod" in features) == (processor == "cortex-a76")
    assert not [name for name in features if "AVX" in name or "VNNI" in name]


def test_the_machines_own_processor_stays_outside(tmp_path: Path) -> None:
    command = inside(tmp_path, "cortex-a76", ["-c", "1"])
    assert "QEMU_CPU=cortex-a76" in command
    assert command[-3:] == ["/usr/bin/python3", "-c", "1"]
    if command[0] == "unshare":
        assert command[1:4] == ["--mount", "--propagation", "private"], "a bind over /proc/cpuinfo must not leave it"


def test_what_is_carried_is_there() -> None:
    assert [name for name in CARRIED if not (ROOT / name).exists()] == []
