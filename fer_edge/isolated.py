"""Engines in a process of their own: a wheel that was built for another processor, or a driver, may end the process that
imports it, and a diagnosis must not die with its patient."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from .engines import Engine
from .errors import EngineError, FerEdgeError
from .runtime import one_line

PATIENCE = 120.0
"""Seconds for one process: graphics drivers take tens of them to start."""
BUILDING = 3600.0
"""Seconds for one that opens a bundle on another device than the CPU: TensorRT builds for minutes."""
_CHILD = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from fer_edge.isolated import main; main()"
_MARK = "\x1e"
"""Stands in stderr before what is printed while a device is tried."""


@dataclass(frozen=True)
class Trial:
    """``engine``: name and version, "" when it does not import; ``devices``: those that start; ``failing``: devices that the
    engine lists and that do not start -> why; ``problem``: why it does not import."""

    engine: str = ""
    devices: tuple[str, ...] = ()
    failing: tuple[tuple[str, str], ...] = ()
    problem: str = ""


def try_engine(engine: Engine) -> Trial:
    """Import an engine and run a model of one operator on each of its devices, elsewhere."""
    trial = Trial()
    while True:  # once, and once more for each device that takes its process with it
        tried = [*trial.devices, *(name for name, _ in trial.failing)]
        lines, printed, end = _ask({"adapter": engine.adapter, "tried": tried})
        trying = ""
        for line in lines:
            trying = line.get("trying", trying)
            if "problem" in line:
                return replace(trial, problem=line["problem"])
            if "engine" in line:
                trial = replace(trial, engine=line["engine"])
            elif "starts" in line:
                trial = replace(trial, devices=(*trial.devices, line["starts"]))
                trying = ""
            elif "why" in line:
                # onnxruntime prints why a provider did not start, and raises nothing.
                why = "; ".join(filter(None, (line["why"], printed.get(trying, ""))))
                trial = replace(trial, failing=(*trial.failing, (trying, why)))
                trying = ""
        if not end:
            return trial
        if not trying:
            return replace(trial, problem=end)
        trial = replace(trial, failing=(*trial.failing, (trying, end)))


def crash_of(bundle: str, runtime: str, **options: Any) -> str:
    """How a process ends that opens a bundle as :func:`fer_edge.load` does and looks at one crop: "" when it ends well, even
    with an error of our tree."""
    return _ask({"bundle": bundle, "runtime": runtime, **options})[2]


def _ask(task: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, str], str]:
    """(what the child said, device -> what was printed while it was tried, how the child ended: "" is well)."""
    if getattr(sys, "frozen", False) or not sys.executable:  # an application in one file would start itself
        lines: list[dict[str, Any]] = []
        if "adapter" in task:
            _try_devices(**task, say=lambda **line: lines.append(line))
        return lines, {}, ""
    command = [sys.executable, "-c", _CHILD, json.dumps(list(map(str, sys.path))), json.dumps(task)]
    patience = PATIENCE if task.get("device") in (None, "CPU") else BUILDING
    try:
        done = subprocess.run(command, capture_output=True, timeout=patience, stdin=subprocess.DEVNULL)
        answers, errors, end = done.stdout, done.stderr, ""
    except subprocess.TimeoutExpired as error:
        answers, errors, end = error.stdout or b"", error.stderr or b"", f"no answer within {patience:g} s"
    except OSError as error:
        raise EngineError(f"{sys.executable} does not start: {error.strerror}") from error
    before, *parts = errors.decode("utf-8", "replace").split(_MARK)
    printed = {name: _telling(text) for name, _, text in (part.partition("\n") for part in parts)}
    if not end and done.returncode:
        end = _ending(done.returncode, _telling(parts[-1] if parts else before))
    return [json.loads(line) for line in answers.splitlines()], printed, end


def _telling(text: str) -> str:
    """The end of the line that names an error, else of the last one."""
    lines = [" ".join(re.sub(r"\x1b\[[0-9;]*m", "", line).split()) for line in text.splitlines()]
    line = next((line for line in lines if "error: " in line), next(filter(None, reversed(lines)), ""))
    return line if len(line) <= 240 else f"... {line[-240:].partition(' ')[2]}"


def _ending(code: int, printed: str) -> str:
    if code > 0:
        return f"its process ended with {code}: {printed or 'it printed nothing'}"
    known = {number.value: number.name for number in signal.Signals}
    name = known.get(-code, f"signal {-code}")
    meaning = {"SIGILL": " (it was built for a newer processor than this one)", "SIGKILL": " (perhaps for want of memory)"}
    return f"its process was ended by {name}{meaning.get(name, '')}"


def main() -> None:
    """The child's side."""
    task = json.loads(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever engines print is no answer

    def say(**line: object) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    _try_devices(**task, say=say) if "adapter" in task else _open(**task)
    os._exit(0)  # a sick engine may not survive an ordinary end, and what was asked is answered


def _try_devices(adapter: str, tried: list[str], say: Callable[..., None]) -> None:
    try:
        module: Any = import_module(adapter)
        say(engine=module.engine())
        devices = module.devices()
    except Exception as error:  # a sick engine raises what it likes
        say(problem=one_line(error))
        return
    for device in devices:
        if device in tried:
            continue
        say(trying=device)
        os.write(2, f"{_MARK}{device}\n".encode())
        try:
            if hasattr(module, "try_device"):  # an adapter of another package may be older than this question
                module.try_device(device)
        except Exception as error:
            say(why=one_line(error))
        else:
            say(starts=device)


def _open(bundle: str, runtime: str, **options: Any) -> None:
    import numpy as np

    from .classifier import load

    try:
        with load(bundle, runtime=runtime, **options) as clf:
            clf.features([np.zeros(clf.bundle.manifest.input.size, np.uint8)])
    except FerEdgeError:
        return
