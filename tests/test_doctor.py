"""The doctor: what it reads of a processor, and what it says of engines that are missing or sick."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
from absence import replaced, without

from fer_edge import doctor
from fer_edge.cli import main
from fer_edge.engines import RUNTIMES
from fer_edge.report import diagnosis_text

VNNI = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8488C
flags		: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 amx_int8 amx_tile

processor	: 1
model		: 143
model name	: the second processor, which must not be taken
flags		: fpu
"""
ALDER_LAKE_N = """\
processor	: 0
model		: 190
model name	: Intel(R) N100
flags		: fpu sse4_2 avx avx2 avx_vnni
"""
AVX2_ONLY = """\
processor	: 0
model		: 60
model name	: Intel(R) Core(TM) i5-4570 CPU @ 3.20GHz
flags		: fpu sse4_2 avx avx2
"""
OLD_ATOM = """\
processor	: 0
model name	: Intel(R) Atom(TM) CPU D525
flags		: fpu sse2 ssse3
"""
CORTEX_A76 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer	: 0x41
CPU part	: 0xd0b

Model		: Raspberry Pi 5 Model B Rev 1.0
"""
GRAVITON = """\
processor	: 0
BogoMIPS	: 2100.00
Features	: fp asimd fphp asimdhp asimddp sve i8mm bf16
CPU implementer	: 0x41
"""
RASPBERRY_4 = """\
processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd evtstrm crc32 cpuid
CPU implementer	: 0x41
CPU part	: 0xd08

Hardware	: BCM2835
Revision	: c03114
Model		: Raspberry Pi 4 Model B Rev 1.4
"""
RASPBERRY_3_32_BIT = """\
processor	: 0
model name	: ARMv7 Processor rev 4 (v7l)
Features	: half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32

Hardware	: BCM2835
"""

FAST = "int8 products run at full speed"


@pytest.mark.parametrize(
    ("text", "model", "features", "note"),
    [
        (
            VNNI,
            "Intel(R) Xeon(R) Platinum 8488C",
            ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX int8"),
            FAST,
        ),
        (ALDER_LAKE_N, "Intel(R) N100", ("AVX2", "AVX-VNNI"), FAST),
        (AVX2_ONLY, "Intel(R) Core(TM) i5-4570 CPU @ 3.20GHz", ("AVX2",), "no VNNI"),
        (OLD_ATOM, "Intel(R) Atom(TM) CPU D525", (), "nothing is known"),
        (CORTEX_A76, "Raspberry Pi 5 Model B Rev 1.0", ("NEON", "dotprod", "fp16"), FAST),
        (GRAVITON, platform.machine(), ("NEON", "dotprod", "i8mm", "fp16", "BF16", "SVE"), FAST),
        (RASPBERRY_4, "Raspberry Pi 4 Model B Rev 1.4", ("NEON",), "no int8 dot-product"),
        (RASPBERRY_3_32_BIT, "ARMv7 Processor rev 4 (v7l)", ("NEON",), "no int8 dot-product"),
        ("", platform.machine(), (), "nothing is known"),
    ],
    ids=["VNNI", "AVX-VNNI", "AVX2", "Atom", "Pi 5", "Graviton", "Pi 4", "Pi 3, 32 bit", "empty file"],
)
def test_cpu(text: str, model: str, features: tuple[str, ...], note: str, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    found = doctor.cpu(tmp_path / "cpuinfo")
    assert (found[0], set(found[1]), len(found[1])) == (model, set(features), len(features))
    assert note in doctor._note(found[1])


def test_cpu_where_there_is_no_cpuinfo(tmp_path: Path) -> None:
    model, features = doctor.cpu(tmp_path / "missing")
    assert model == (platform.processor() or platform.machine())
    assert features == ()


def test_a_missing_engine_comes_with_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = list(RUNTIMES)
    without(monkeypatch, engines[0])
    found = doctor.diagnose("0")
    engine = next(e for e in found.engines if e.runtime == engines[0])
    assert (engine.ready, engine.engine, engine.devices) == (False, "", ())
    assert f"pip install 'fer-edge[{engines[0]}]'" in engine.cure
    assert len(engine.cure.splitlines()) == 1
    assert engine.cure in diagnosis_text(found)

    for name in engines:
        without(monkeypatch, name)
    with pytest.raises(SystemExit) as stop:
        main(["doctor"])
    assert stop.value.code == 1, "a box without any engine is not well"
    out = capsys.readouterr().out
    assert all(f"pip install 'fer-edge[{name}]'" in out for name in engines)


@pytest.mark.parametrize(
    "source",
    [
        "raise ImportError('libengine.so: cannot open shared object file')",
        "raise ImportError",
        "raise OSError('libengine.so: cannot open\\nshared object file')",
        "def engine(): return '1'\ndef devices(): raise RuntimeError('no driver')",
    ],
)
def test_a_sick_engine_does_not_kill_the_doctor(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"sick_adapter_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "litert", adapter=name, imports=(name,))
    engine = next(e for e in doctor.diagnose("0").engines if e.runtime == "litert")
    assert not engine.ready
    assert "litert" in engine.cure
    assert "pip install --force-reinstall 'fer-edge[litert]'" in engine.cure
    assert len(engine.cure.splitlines()) == 1


def test_missing_extras_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._EXTRA_PACKAGES, "convert", ("no_such_package",))
    found = doctor.diagnose("0")
    assert found.missing_extras["convert"] == "pip install 'fer-edge[convert]'"
    assert "pip install 'fer-edge[convert]'" in diagnosis_text(found)


def test_features_are_shown_even_when_there_are_none() -> None:
    bare = doctor.Diagnosis("0", "3.11", "Linux", "a chip", 1, 1, (), doctor._note(()), (), {})
    assert "none that matter: nothing is known" in diagnosis_text(bare)
