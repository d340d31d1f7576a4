"""A fresh process for every measurement: what one engine leaves behind (memory, threads, caches) is not the next one's.

Parent and child speak JSON, an object a line: a job goes in, progress and one answer come out. Between them stands
nothing but the standard library; the child's own stdout is kept for the answer, engines' prints go to its stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from fer_edge.errors import EngineError, FerEdgeError
from fer_edge.manifest import digest_of

from .measure import Job, Part, open_configuration, parity, run_job
from .memory import memory_mb
from .peak import peak_gmacs_per_s
from .placement import Where, look, where_of
from .results import Configuration, Latency
from .traffic import Load, Traffic

START = """\
import sys, runpy
sys.path[:] = [folder for folder in sys.path if folder]
runpy.run_module("fer_edge.benchmarks.worker", run_name="__main__")
"""
"""Starts a worker. The current folder must not count: it may be a checkout, and the python another build's."""


def run_isolated(job: Job, on_progress: Callable[[str], None] = lambda text: None) -> Part:
    """Measure in a fresh process. Raises EngineError with the child's own words, or the signal that ended it."""
    with _child(sys.executable) as (send, receive):
        send({"job": asdict(job)})
        while True:
            said = receive()
            if "part" in said:
                return _part(said["part"])
            on_progress(said["progress"])


def isolated_peak(configuration: Configuration) -> float | None:
    """:func:`.peak.peak_gmacs_per_s` in a process of its own, which a vendor's driver may bring down."""
    try:
        with _child(sys.executable) as (send, receive):
            send({"peak": asdict(configuration)})
            peak: float | None = receive()["peak"]
            return peak
    except EngineError:
        return None


def isolated_placement(configuration: Configuration, calls: int = 0) -> Where:
    """:func:`.placement.look` in a process of its own. Raises EngineError with the child's own words."""
    with _child(sys.executable) as (send, receive):
        send({"place": asdict(configuration), "calls": calls})
        return where_of(receive()["where"])


def isolated_accuracy(configuration: Configuration, data: Sequence[Any]) -> dict[str, Any]:
    """n, WAR and UAR with intervals of a configuration on labelled faces: ``data`` as :func:`~fer_edge.labelled.read_faces`
    takes it. Raises EngineError with the child's own words."""
    with _child(sys.executable) as (send, receive):
        send({"accuracy": asdict(configuration), "data": [str(data[0]), *data[1:]]})
        found: dict[str, Any] = receive()["accuracy"]
        return found


class Served:
    """A configuration open in a process of its own, that answers on request: for measuring two in turns.

    ``python``: the interpreter, so of another build's environment too."""

    def __init__(self, configuration: Configuration, python: str = sys.executable) -> None:
        self._stack = _child(python)
        self._send, self._receive = self._stack.__enter__()
        self._send({"serve": asdict(configuration)})
        self.ready: Mapping[str, Any] = self._receive()["ready"]

    def block(self, count: int, meanwhile: Callable[[], None] = lambda: None) -> list[float]:
        """Milliseconds of ``count`` inferences, one after the other. ``meanwhile`` is called while they run."""
        self._send({"count": count})
        meanwhile()
        samples: list[float] = self._receive()["samples"]
        return samples

    def resident_mb(self) -> float | None:
        """Memory of the process now; None where another build's process does not say."""
        self._send({"count": 0, "memory": True})
        resident: float | None = self._receive().get("resident_mb")
        return resident

    def close(self) -> None:
        """End the process."""
        self._stack.__exit__(None, None, None)


@contextmanager
def _child(python: str) -> Iterator[tuple[Callable[[Any], None], Callable[[], dict[str, Any]]]]:
    """(send, receive) of a worker process, which is ended when the block ends.

    Its temporary files go with it. Its stderr goes to a file: nobody reads it while the process works, and a full pipe
    would stop an engine that talks."""
    pipe, environment = subprocess.PIPE, dict(os.environ)
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)  # it names this build's folders, not the other one's
    command = [python, "-c", START]
    with ExitStack() as stack:
        # A process that is ended cannot clear away what LoadGen wrote.
        environment["TMPDIR"] = stack.enter_context(tempfile.TemporaryDirectory(prefix="fer-edge-"))
        errors = stack.enter_context(tempfile.TemporaryFile())
        try:
            started = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True, env=environment)
        except OSError as error:  # no program, or one for another processor
            raise EngineError(f"{python} does not start: {error.strerror}") from error
        child = stack.enter_context(started)
        assert child.stdin is not None
        assert child.stdout is not None
        into, out = child.stdin, child.stdout

        def send(value: Any) -> None:
            with suppress(BrokenPipeError):  # it has ended; receive says why
                into.write(json.dumps(value) + "\n")
                into.flush()

        def receive() -> dict[str, Any]:
            try:
                said: dict[str, Any] = json.loads(out.readline())
            except ValueError:  # nothing, or half a line
                said = {"error": _ending(child, errors)}
            if not isinstance(said, dict):
                raise EngineError(f"{python} answers, but not as fer-edge does: {said!r:.80}")
            if "error" in said:
                raise EngineError(said["error"])
            return said

        try:
            yield send, receive
        finally:
            child.kill()
            with suppress(OSError):  # what a process that has ended did not read any more
                into.close()


def _ending(child: subprocess.Popen[str], errors: IO[bytes]) -> str:
    """Why a process ended without an answer."""
    try:
        code = child.wait(timeout=5)
    except subprocess.TimeoutExpired:  # it lives, but what it wrote is no answer
        child.kill()
        code = child.wait()
    errors.seek(0)
    said = errors.read().decode("utf-8", "replace").strip().splitlines()
    last = (said or ["it printed nothing"])[-1][:300]
    how = signal.Signals(-code).name if code < 0 else f"exit status {code}"
    return f"the measuring process ended with {how}: {last}"


def _part(value: Mapping[str, Any]) -> Part:
    traffic = {
        name: Traffic(
            **{
                **t,
                "samples": tuple(t["samples"]),
                "statistics": Latency(**t["statistics"]) if t["statistics"] else None,
            }
        )
        for name, t in value["traffic"].items()
    }
    return Part(**{**value, "traffic": traffic})


def _job(value: Mapping[str, Any]) -> Job:
    plain = {**value, "configuration": Configuration(**value["configuration"]), "load": Load(**value["load"])}
    return Job(**{**plain, "scenarios": tuple(value["scenarios"])})


def _serve(wanted: Configuration, lines: IO[str], say: Callable[[Any], None]) -> None:
    """Answer requests for blocks of inferences until stdin ends."""
    import fer_edge
    from fer_edge.bundle import golden_set

    opened = open_configuration(wanted)
    answer = opened.answer(golden_set(opened.bundle).crops)
    answer(0)
    session = opened.session
    checked = parity(opened, golden_set(opened.bundle))
    where, digest = str(Path(fer_edge.__file__).parent), digest_of(opened.bundle.manifest)
    ready = {"engine": session.engine, "device": session.device, "fer_edge": fer_edge.__version__, "where": where}
    say({"ready": {**ready, "digest": digest, "answers": checked["status"], "problem": checked["problem"]}})
    for line in lines:
        wanted_now, samples = json.loads(line), []
        for i in range(wanted_now["count"]):
            began = time.perf_counter()
            answer(i)
            samples.append((time.perf_counter() - began) * 1e3)
        say({"samples": samples, **({"resident_mb": memory_mb()[0]} if wanted_now.get("memory") else {})})


def _accuracy(wanted: Configuration, data: Sequence[Any]) -> dict[str, Any]:
    from fer_edge.classifier import load
    from fer_edge.labelled import read_faces

    from .evaluate import evaluate

    precision = None if wanted.runtime == "null" else wanted.precision
    opened = load(
        wanted.bundle,
        runtime=wanted.runtime,
        precision=precision,
        device=wanted.device,
        threads=wanted.threads,
        execution_precision=wanted.execution_precision,
    )
    with opened as clf:
        result = evaluate(clf, read_faces(Path(data[0]), *data[1:]))
    intervals = {"war_interval": list(result.intervals.war), "uar_interval": list(result.intervals.uar)}
    ignored = [asdict(entry) for entry in result.ignored]
    counts = {"n": result.n, "left_out": result.left_out, "ignored": ignored, "unreadable": result.unreadable}
    return {**counts, "war": result.war, "uar": result.uar, **intervals}


def _end_with(parent: int) -> None:
    """A parent that was killed can end nobody: see every second whether it is still there, and go with it."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main() -> None:
    """The child's side."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    private = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(value: Any) -> None:
        private.write(json.dumps(value) + "\n")
        private.flush()

    try:
        wanted = json.loads(sys.stdin.readline())
        if "peak" in wanted:
            say({"peak": peak_gmacs_per_s(Configuration(**wanted["peak"]))})
        elif "serve" in wanted:
            _serve(Configuration(**wanted["serve"]), sys.stdin, say)
        elif "place" in wanted:
            say({"where": look(Configuration(**wanted["place"]), wanted["calls"]).as_json()})
        elif "accuracy" in wanted:
            say({"accuracy": _accuracy(Configuration(**wanted["accuracy"]), wanted["data"])})
        else:
            say({"part": asdict(run_job(_job(wanted["job"]), lambda text: say({"progress": text})))})
    except FerEdgeError as error:
        say({"error": str(error)})


if __name__ == "__main__":
    main()
