"""Figures of the camera's way: what a frame costs, against another loop, how large the detector's picture must be, and
whether an hour leaves anything behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

import click
import numpy as np
from numpy.typing import NDArray

import fer_edge
from fer_edge.benchmarks.camera import write_clip
from fer_edge.console import emit, say
from fer_edge.live.detectors import open_detector
from fer_edge.live.pipeline import LONGEST, STAGES, Step

SIZES = {"one face": ((640, 480), 1), "four faces": ((640, 480), 4), "1080p": ((1920, 1080), 1)}
WARM = 2000
"""Frames after which memory must stand still."""


class Steps:
    """An output that keeps what a frame took."""

    name = "figures"

    def __init__(self) -> None:
        self.stages: dict[str, list[float]] = {}
        self.latency: list[float] = []
        self.faces = 0

    def step(self, step: Step) -> None:
        for stage in STAGES:  # a frame without a face has fewer
            self.stages.setdefault(stage, []).append(step.stages.get(stage, 0.0))
        self.latency.append(sum(step.stages.values()))
        self.faces += len(step.tracks)

    def event(self, event: Any) -> None:
        """The caller has them."""

    def lost(self, gap: Any) -> None:
        """Files have none."""

    def close(self) -> None:
        """Nothing is held."""


class TimedDetector:
    """A detector, and how long each of its answers took, in ms: the rest of a frame is ours."""

    def __init__(self, detector: Path | None) -> None:
        self._inner, self.times = open_detector(detector, 0.6), list[float]()

    def detect(self, pixels: NDArray[np.uint8]) -> NDArray[np.floating[Any]]:
        began = time.perf_counter()
        found = self._inner.detect(pixels)
        self.times.append((time.perf_counter() - began) * 1e3)
        return found

    def close(self) -> None:
        self._inner.close()


def _single_thread() -> None:
    import cv2

    cv2.setNumThreads(1)


_detector = click.option("--detector", type=click.Path(path_type=Path), help="Default: the installed one.")


@click.command()
@_detector
@click.option("--rounds", default=5, show_default=True, help="Of each clip, in turns.")
@click.option("--runtime", default="openvino", show_default=True)
def camera(detector: Path | None, rounds: int, runtime: str) -> None:
    """A frame from decoding to its events, int8, one thread, p50 and p99 in ms: of 640 x 480 with one face, with four, and
    of 1920 x 1080, in turns; by stage; what is neither detector nor engine; and the ratios to the first."""
    _single_thread()
    found, detected = {name: Steps() for name in SIZES}, {name: list[float]() for name in SIZES}
    timed = TimedDetector(detector)
    with tempfile.TemporaryDirectory() as folder, fer_edge.load(runtime=runtime, threads=1) as clf:
        clips = {name: write_clip(Path(folder) / f"{name}.mp4", faces, size) for name, (size, faces) in SIZES.items()}
        with fer_edge.FaceFinder(timed, longest=LONGEST) as finder:
            for clip in clips.values():
                list(fer_edge.watch(clip, clf, finder, frames=10))
            for _ in range(rounds):
                for name, clip in clips.items():
                    timed.times = []
                    list(fer_edge.watch(clip, clf, finder, outputs=[found[name]]))
                    detected[name] += timed.times
    rows = {name: _row(steps, detected[name]) for name, steps in found.items()}
    base = rows["one face"]["p50_ms"]
    emit({"figure": "camera", "clips": rows, "ratio": {name: round(row["p50_ms"] / base, 3) for name, row in rows.items()}})


def _row(steps: Steps, detected: Sequence[float]) -> dict[str, Any]:
    """``rest``: neither detector nor engine; ``own``: of that, what is not the decoding."""
    latency, engine, decode = (np.array(v) for v in (steps.latency, steps.stages["engine"], steps.stages["decode"]))
    rest = latency - np.array(detected) - engine

    def spread(values: NDArray[np.float64]) -> list[float]:
        return [round(float(np.percentile(values, share)), 3) for share in (50, 99)]

    p50, p99 = spread(latency)
    return {
        "p50_ms": p50,
        "p99_ms": p99,
        "rest_ms": spread(rest),
        "own_ms": spread(rest - decode),
        "detector_ms": spread(np.array(detected)),
        "stages_p50_ms": {stage: spread(np.array(values))[0] for stage, values in steps.stages.items()},
        "faces_a_frame": round(steps.faces / len(steps.latency), 3),
    }


@click.command("camera-agreement")
@click.argument("clip", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_detector
@click.option("--rounds", default=3, show_default=True)
@click.option("--fps", default=60.0, show_default=True)
def camera_agreement(clip: Path, detector: Path | None, rounds: int, fps: float) -> None:
    """CLIP by ``fer-edge watch`` and by ``fer-edge bench --scenario camera``, in turns, one thread: the work of a frame by
    both (p50, ms), and the ratio of the medians."""
    named = ["--detector", str(detector)] if detector else []
    common = [*named, "--runtime", "openvino", "--threads", "1", "--json"]
    paced = ["--precision", "int8", "--scenario", "camera", "--clip", str(clip), "--fps", str(fps), "--rounds", "1"]
    found: dict[str, list[float]] = {"watch": [], "bench": []}
    for _ in range(rounds):
        lines = _fer_edge("watch", str(clip), *common).splitlines()
        found["watch"].append(json.loads(lines[-1])["latency_ms"]["p50"])
        (row,) = json.loads(_fer_edge("bench", *common, *paced, "--seconds", "10"))["results"]
        found["bench"].append(row["details"]["summary"]["latency_ms"]["p50"])
    ms = {name: round(median(values), 3) for name, values in found.items()}
    emit({"figure": "camera-agreement", "fps": fps, "p50_ms": found, "ratio": round(ms["bench"] / ms["watch"], 3)})


def _fer_edge(*arguments: str) -> str:
    command = [sys.executable, "-m", "fer_edge", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


@click.command("camera-rival")
@click.argument("model", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("clip", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@_detector
@click.option("--rounds", default=5, show_default=True)
@click.option("--runtime", default="openvino", show_default=True)
def camera_rival(model: Path, clip: Path, detector: Path | None, rounds: int, runtime: str) -> None:
    """CLIP by ``watch``, and by a loop of OpenCV (VideoCapture, YuNet on pictures of the same size) with another package's
    MODEL (TFLite: ``fer``'s, gray, 64 x 64, cut as it cuts), and the same with YuNet on whole frames, one thread each, in
    turns: ms a frame, and the ratios of medians."""
    _single_thread()
    with (
        fer_edge.load(runtime=runtime, threads=1) as clf,
        fer_edge.FaceFinder(detector, longest=LONGEST) as finder,
        fer_edge.FaceFinder(detector, longest=1 << 14) as whole,
    ):
        same, full = rival_loop(model, finder), rival_loop(model, whole)

        def ours() -> int:
            steps = Steps()
            for _ in fer_edge.watch(clip, clf, finder, outputs=[steps]):
                pass
            return len(steps.latency)

        ways: dict[str, Callable[[], int]] = {"watch": ours, "same size": lambda: same(clip), "whole": lambda: full(clip)}
        took: dict[str, list[float]] = {name: [] for name in ways}
        counts = {name: way() for name, way in ways.items()}
        if len(set(counts.values())) != 1:
            raise click.ClickException(f"the two do not see the same frames: {counts}")
        for turn in range(rounds):
            for name in sorted(ways, reverse=bool(turn % 2)):
                began = time.perf_counter()
                ways[name]()
                took[name].append((time.perf_counter() - began) * 1e3 / counts[name])
    ms = {name: round(median(values), 3) for name, values in took.items()}
    ratio = {name: round(ms["watch"] / value, 3) for name, value in ms.items() if name != "watch"}
    emit({"figure": "camera-rival", "frames": counts["watch"], "ms_a_frame": ms, "ratio": ratio})


def rival_loop(model: Path, finder: fer_edge.FaceFinder) -> Callable[[Path], int]:
    """A clip by the other loop; returns the frames that it saw. The crop is that of ``fer`` 25.10: the box with 10 pixels on
    every side, gray, 64 x 64, values from -1 to 1."""
    import cv2
    from ai_edge_litert.interpreter import Interpreter

    engine = Interpreter(str(model), num_threads=1)
    engine.allocate_tensors()
    (into,), out = engine.get_input_details(), engine.get_output_details()[0]["index"]
    high, wide = (int(n) for n in into["shape"][1:3])

    def loop(clip: Path) -> int:
        count, capture = 0, cv2.VideoCapture(str(clip), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        while True:
            more, frame = capture.read()
            if not more:
                capture.release()
                return count
            count += 1
            faces = finder.find_rgb(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            gray = cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)
            for face in faces:
                x, y, w, h = map(round, face.box)
                cut = gray[max(0, y - 10) : y + h + 10, max(0, x - 10) : x + w + 10]
                if cut.size:
                    crop = cv2.resize(cut, (wide, high)).astype(np.float32) / 127.5 - 1
                    engine.set_tensor(into["index"], crop[None, :, :, None].astype(into["dtype"]))
                    engine.invoke()
                    engine.get_tensor(out).argmax()

    return loop


@click.command("detector-size")
@click.argument("clips", type=click.Path(exists=True, path_type=Path), nargs=-1, required=True)
@_detector
@click.option("--sizes", default="160,240,320,480,640", show_default=True)
def detector_size(clips: Sequence[Path], detector: Path | None, sizes: str) -> None:
    """Faces found in CLIPS, and the detector's median ms, by the longer side of what it looks at; one thread."""
    from fer_edge.live.sources import Frame, open_source

    _single_thread()
    found: dict[str, dict[str, float]] = {}
    for size in map(int, sizes.split(",")):
        faces, times, frames = 0, [], 0
        with fer_edge.FaceFinder(detector, longest=size) as finder:
            for clip in clips:
                for item in open_source(str(clip)):
                    if isinstance(item, Frame):
                        began = time.perf_counter()
                        faces += len(finder.find_rgb(item.pixels))
                        times.append((time.perf_counter() - began) * 1e3)
                        frames += 1
        found[str(size)] = {"faces": faces, "frames": frames, "find_ms": round(median(times), 2)}
    emit({"figure": "detector-size", "sizes": found})


@click.command()
@click.option("--frames", default=100_000, show_default=True)
@click.option("--clip", type=click.Path(exists=True, path_type=Path), help="Default: our own, one face.")
@_detector
@click.option("--every", default=2000, show_default=True, help="Frames between two looks at the process.")
def endurance(frames: int, clip: Path | None, detector: Path | None, every: int) -> None:
    """FRAMES frames of a looped clip through ``fer-edge watch --json`` as fast as it goes, ended by SIGTERM: resident
    memory, threads and descriptors on the way, and whether the last events and the summary were written."""
    with tempfile.TemporaryDirectory() as folder:
        long = repeated(clip or write_clip(Path(folder) / "clip.mp4", 1), Path(folder) / "long.mkv", frames + 5000)
        emit({"figure": "endurance", **watched(long, frames, detector, every)})


def repeated(clip: Path, target: Path, frames: int) -> Path:
    """A clip again and again, as it is encoded, in one file of at least so many frames."""
    import av

    count, offset = 0, 0
    with av.open(str(target), "w") as output:
        stream = None
        while count < frames:
            with av.open(str(clip)) as container:
                video = container.streams.video[0]
                stream = stream or output.add_stream_from_template(video)
                assert video.average_rate is not None
                assert video.time_base is not None
                step, end = round(1 / (video.average_rate * video.time_base)), 0
                for packet in container.demux(video):
                    if packet.dts is None or packet.pts is None:
                        continue
                    end = max(end, packet.pts + step)
                    packet.dts, packet.pts, packet.stream = packet.dts + offset, packet.pts + offset, stream
                    output.mux(packet)
                    count += 1
                offset += end
    return target


def watched(clip: Path, frames: int, detector: Path | None, every: int, warm: int = WARM) -> dict[str, Any]:
    """What a process of ``watch`` held on its way through so many frames, and how it ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    named = ["--detector", str(detector)] if detector else []
    command = [sys.executable, "-m", "fer_edge", "watch", str(clip), "--json", "--metrics", str(port), *named]
    with tempfile.TemporaryFile("w+") as lines, tempfile.TemporaryFile("w+") as words:
        began = time.monotonic()
        with subprocess.Popen(command, stdout=lines, stderr=words) as child:
            looks: list[dict[str, float]] = []
            seen = 0
            while seen < frames and child.poll() is None:
                time.sleep(0.2)
                held = _held(child.pid)  # before the question, which is a connection itself
                with suppress(OSError):
                    seen = _counted(port)
                if seen >= every * (len(looks) + 1):
                    looks.append({"frames": seen, **held})
                    say(f"{seen} frames: {looks[-1]}")
            child.send_signal(signal.SIGTERM)
            status = child.wait(timeout=60)
        seconds = time.monotonic() - began
        lines.seek(0)
        events = [json.loads(line) for line in lines]
    later = [look for look in looks if look["frames"] >= warm]
    tracks = [{event["track"] for event in events if event["event"] == kind} for kind in ("appear", "end")]
    resident = [look["resident_mb"] for look in later]
    return {
        "frames": events[-1]["frames"],
        "seconds": round(seconds, 1),
        "exit_status": status,
        "last": [event["event"] for event in events[-2:]],
        "every_track_ended": tracks[0] == tracks[1],
        "resident_mb": resident,
        "growth": round(max(resident) / resident[0] - 1, 4) if resident else None,
        "threads": sorted({look["threads"] for look in later}),
        "descriptors": sorted({look["descriptors"] for look in later}),
    }


def _counted(port: int) -> int:
    """Frames until now, as the process tells."""
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith("fer_edge_frames_total "))))


def _held(pid: int) -> dict[str, float]:
    """Resident MB, threads and open descriptors of a process (proc_pid_status(5))."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    resident = int(status["VmRSS"].split()[0]) * 1024 / 1e6
    return {
        "resident_mb": round(resident, 2),
        "threads": int(status["Threads"]),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
    }
