"""The doctor: what it reads of a processor, and what it says of engines that are missing or sick."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from absence import replaced, without

from fer_edge import doctor, extras
from fer_edge.cli import main
from fer_edge.console import need_extra
from fer_edge.engines import RUNTIMES, installed
from fer_edge.errors import MissingExtraError
from fer_edge.report import diagnosis_text
from fer_edge.runtime import load_runtime

VNNI = """\
processor	: 0
vendor_id	: GenuineIntel
cpu family	: 6
model		: 143
model name	: Intel(R) Xeon(R) Platinum 8488C
flags		: fpu sse4_2 avx avx2 avx512f avx512_vnni avx512_bf16 amx_bf16 amx_int8 amx_tile

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
            ("AVX2", "AVX-512", "AVX-512 VNNI", "AVX-512 BF16", "AMX int8", "AMX bf16"),
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


SICK = r"""
import os, signal, sys
def engine(): return "sick 1"
def devices(): return ("CPU", "CUDA", "NPU", "TPU")
def try_device(device):
    if device == "CUDA":
        print("\x1b[1;31m[E:sick " + "x " * 200 + "error: libcuda.so.1: cannot open shared object file", file=sys.stderr)
        print("\x1b[mFalling back", file=sys.stderr)
        raise RuntimeError("it falls back to the CPU")
    if device == "NPU":
        os.kill(os.getpid(), signal.SIGSEGV)
    print("what an engine prints is no answer")
"""


def test_each_device_is_tried_and_says_why_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends its process takes none of the others with it."""
    (tmp_path / "sick_devices.py").write_text(SICK)
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "litert", adapter="sick_devices", imports=("sick_devices",))
    found = doctor.diagnose("0")
    engine = next(e for e in found.engines if e.runtime == "litert")
    assert (engine.ready, engine.engine, engine.devices, engine.cure) == (True, "sick 1", ("CPU", "TPU"), "")
    assert engine.failing == {
        "CUDA": "it falls back to the CPU; ... " + "x " * 94 + "error: libcuda.so.1: cannot open shared object file",
        "NPU": "its process was ended by SIGSEGV",
    }
    text = diagnosis_text(found)
    assert "litert: CUDA is listed, and does not start: it falls back to the CPU; ... x x" in text
    assert found.as_json()["engines"][1]["failing"] == engine.failing


@pytest.mark.parametrize("name", [*filter(installed, RUNTIMES)])
def test_a_device_that_is_not_there_does_not_start(name: str) -> None:
    adapter = load_runtime(name)
    adapter.try_device("CPU")
    if name != "litert":  # whose delegates are named by their files, and tried with an artefact
        with pytest.raises(Exception, match=r"NoSuchDevice|falls back"):
            adapter.try_device("NoSuchDevice")


def test_an_engine_whose_import_ends_the_process_takes_nobody_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    """A wheel built for a newer processor dies of SIGILL: doctor and verify name it and go on."""
    package = tmp_path / "ai_edge_litert"
    package.mkdir()
    (package / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def told(command: str) -> tuple[int, dict[str, Any]]:
        start = [sys.executable, "-c", "from fer_edge.cli import main; main()", command, "--json"]
        done = subprocess.run(start, capture_output=True, text=True, env=environment)
        return done.returncode, json.loads(done.stdout)

    code, found = told("doctor")
    engines = {engine["runtime"]: engine for engine in found["engines"]}
    assert not engines["litert"]["ready"]
    assert "ended by SIGILL (it was built for a newer processor" in engines["litert"]["cure"]
    assert "pip install" not in engines["litert"]["cure"], "the same wheel would die again"
    others = {name for name in RUNTIMES if name != "litert" and installed(name)}
    assert all(engines[name]["ready"] for name in others)
    assert code == (0 if others else 1)

    code, report = told("verify")
    assert code == 1
    for row in report["artefacts"]:
        assert row["status"] == (
            "refused" if row["runtime"] == "litert" else "ok" if row["runtime"] in others else "no engine"
        )
        assert row["runtime"] != "litert" or "ended by SIGILL" in row["problem"]


def distribution(folder: Path, name: str, package: str, requires: str = "") -> None:
    """Metadata of an installed distribution that brings a package."""
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{requires}")
    (info / "RECORD").write_text(f"{package}/__init__.py,,\n")


def test_two_distributions_of_one_engine_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's wheel of onnxruntime lies over the GPU's, and leaves the CPU alone."""
    (tmp_path / "an_engine.py").write_text("def engine(): return ''\ndef devices(): raise RuntimeError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    replaced(monkeypatch, "onnxruntime", adapter="an_engine", imports=("an_engine",))
    distribution(tmp_path, "an-engine-gpu", "an_engine")
    found = doctor.diagnose("0")
    assert found.warnings == ()
    cure = next(e.cure for e in found.engines if e.runtime == "onnxruntime")
    assert cure.endswith("no driver; try: pip install --force-reinstall an-engine-gpu"), "not the extra, which is the CPU's"
    distribution(tmp_path, "an-engine", "an_engine")
    found = doctor.diagnose("0")
    (warning,) = found.warnings
    assert "an-engine 1.0" in warning
    assert "an-engine-gpu 1.0" in warning
    assert "pip uninstall" in warning
    assert f"Warning: {warning}" in diagnosis_text(found)


def test_missing_extras_come_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the commands refuse what doctor calls missing, and nothing else: both ask the package's metadata."""
    names = extras.requirements("bench")
    assert names
    assert {*extras.requirements("convert")} >= {"torch", "ai-edge-quantizer", "litert-torch"}
    for missing in names:
        with monkeypatch.context() as patch:
            patch.setattr(extras, "present", lambda name, missing=missing: name != missing)
            assert doctor.missing_extras()["bench"] == "pip install 'fer-edge[bench]'"
            with pytest.raises(MissingExtraError, match=missing):
                need_extra(extra="bench")
    monkeypatch.setattr(extras, "present", lambda name: name not in extras.requirements("convert"))
    found = doctor.diagnose("0")
    assert found.missing_extras["convert"] == "pip install 'fer-edge[convert]'"
    assert "pip install 'fer-edge[convert]'" in diagnosis_text(found)


def test_features_are_shown_even_when_there_are_none() -> None:
    bare = doctor.Diagnosis("0", "3.11", "Linux", "a chip", 1, 1, (), doctor._note(()), (), {})
    assert "none that matter: nothing is known" in diagnosis_text(bare)
