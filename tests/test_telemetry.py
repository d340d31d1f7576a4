"""Nothing calls home, and nothing is left in it, for as long as a process lives. Engines send what they gathered later, and
some only where no CI is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fer_edge.engines import ENGINES, RUNTIMES, Engine, installed, silence

LIFE = """
import sys, time
import numpy as np
import fer_edge
end = time.monotonic() + float(sys.argv[2])
with fer_edge.load(runtime=sys.argv[1], threads=1) as clf:
    while clf.predict(np.zeros((48, 48), np.uint8)) and time.monotonic() < end:
        time.sleep(0.5)
print("good")
"""
SECONDS = 25
HERE = tuple(filter(installed, RUNTIMES))


def surroundings(home: Path) -> dict[str, str]:
    """As on a device: no CI, no pytest (nncf is silent under it anyway), and no engine was told anything before."""
    told = ("CI", "GITHUB_ACTIONS", "TF_BUILD", *(name for engine in ENGINES.values() for name, _ in engine.environment))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "XDG_")) and k not in told}
    return {**kept, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}


def test_a_process_that_lives_calls_nobody_and_writes_nothing(tmp_path: Path) -> None:
    """One process for each engine, all at once; every thread is watched. And one whose HOME cannot be written."""
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "-qq", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("no strace, or it may not watch processes here")
    calls = "trace=%network,open,openat,creat,mkdir,mkdirat"
    running = []
    for name in HERE:
        home = tmp_path / name
        home.mkdir()
        command = [strace, "-f", "-qq", "-e", calls, "-o", str(home) + ".trace", sys.executable, "-c", LIFE, name]
        for started, where in ((command, home), (command[command.index(sys.executable) :], Path("/proc"))):
            seconds = str(SECONDS if where == home else 1)
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            running.append(subprocess.Popen([*started, seconds], env=surroundings(where), text=True, **pipes))  # type: ignore[call-overload]
    for process in running:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, out) == (0, "good\n"), err
        said = [line for line in err.splitlines() if line != "INFO: Created TensorFlow Lite XNNPACK delegate for CPU."]
        assert said == []
    for name in HERE:
        assert list((tmp_path / name).iterdir()) == [], f"{name} left something in HOME"
        lines = (tmp_path / f"{name}.trace").read_text().splitlines()
        assert any('"/' in line and "O_RDONLY" in line for line in lines), "the trace shows what it should"
        sockets = [line for line in lines if re.search(r"\b(socket|connect|sendto|sendmsg)\(", line)]
        assert sockets == [], name
        files = [line for line in lines if re.search(r"O_WRONLY|O_RDWR|O_CREAT|\bcreat\(|\bmkdir(at)?\(", line)]
        assert [line for line in files if '"/dev/null"' not in line] == [], name


def test_telemetry_is_off_even_after_an_application_imported_engines(tmp_path: Path) -> None:
    """Of telemetry that is loaded already the messages are dropped."""
    pytest.importorskip("nncf")
    code = """
import openvino, onnxruntime, fer_edge
import os, sys
sent = []
loaded = sys.modules.get("openvino_telemetry")
if loaded is not None:
    loaded.Telemetry.send_event(sent)
import nncf.telemetry.wrapper as wrapper
print(type(wrapper.telemetry).__name__, os.environ["ORT_DISABLE_TELEMETRY"])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=surroundings(tmp_path)
    )
    assert done.stdout.split() == ["MagicMock", "1"], "nncf's stub is a MagicMock; its real telemetry is NNCFTelemetry"


def test_every_way_to_an_engine_passes_the_silence(root: Path) -> None:
    """Rooms and workers import fer_edge before anything of theirs, and that is where it is."""
    code = "import fer_edge.{}, os, sys; print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'])"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    for module in ("runtimes.run_null", "benchmarks.worker", "converters", "isolated"):
        done = subprocess.run([sys.executable, "-c", code.format(module)], capture_output=True, text=True, env=environment)
        assert done.stdout.split() == ["1", "None"], done.stderr


def test_what_a_line_of_the_table_names_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Telemetry:
        def send_event(self, *event: str) -> None:
            raise AssertionError("sent")

    class Loaded:
        pass

    Loaded.Telemetry = Telemetry  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "its_telemetry", Loaded)  # type: ignore[arg-type]
    monkeypatch.setenv("ITS_TELEMETRY", "on")
    engine = Engine("new", "", "", "", environment=(("ITS_TELEMETRY", "off"),), stubs=("its_telemetry",))
    for _ in range(2):
        silence([engine])
        assert os.environ["ITS_TELEMETRY"] == "off"
        assert sys.modules["its_telemetry"] is None
        Telemetry().send_event("a", "b")
