"""Real streams on loopback that can be cut: RTSP by GStreamer's server, HTTP, TCP and UDP by ffmpeg. And how a source stands
being cut.

``python -m lab.streams --kind rtsp --cuts 20``: the server is killed and started anew so many times while a source reads it;
one line of JSON. Debian has what it needs: apt-get install ffmpeg python3-gi gir1.2-gst-rtsp-server-1.0
gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click

from fer_edge.console import emit, fraction
from fer_edge.errors import UsageError
from fer_edge.live.frames import Frame, Gap, Source
from fer_edge.live.sources import open_source

PYTHON = "/usr/bin/python3"
"""The system's, which has Debian's python3-gi."""

PACKAGES = "ffmpeg python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"

_PICTURES = "-re -f lavfi -i testsrc=size=320x240:rate=30"
_H264 = "-c:v libx264 -preset ultrafast -tune zerolatency -g 15 -pix_fmt yuv420p"
_SERVERS = {
    "mjpeg": f"{_PICTURES} -c:v mjpeg -q:v 5 -f mpjpeg -listen 1 http://127.0.0.1:PORT/camera",
    "http": f"{_PICTURES} {_H264} -f mpegts -listen 1 http://127.0.0.1:PORT/camera",
    "tcp": f"{_PICTURES} {_H264} -f mpegts tcp://127.0.0.1:PORT?listen=1",
    "udp": f"{_PICTURES} {_H264} -f mpegts udp://127.0.0.1:PORT?pkt_size=1316",
}
KINDS = ("rtsp", *_SERVERS)


@cache
def lacks(kind: str) -> str:
    """What a kind of server needs and this box has not; empty where it can run."""
    if kind != "rtsp":
        return "" if shutil.which("ffmpeg") else "ffmpeg (apt-get install ffmpeg)"
    script = [PYTHON, str(Path(__file__).with_name("rtsp_server.py")), "try"]
    there = Path(PYTHON).exists() and not subprocess.run(script, capture_output=True).returncode
    return "" if there else f"GStreamer's RTSP server (apt-get install {PACKAGES})"


def free_port(kind: int = socket.SOCK_STREAM) -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server that can be killed and started anew, on the same port. ``account``: (user, password) that RTSP asks for."""

    def __init__(self, kind: str, account: tuple[str, str] | None = None) -> None:
        self.kind, self._account = kind, account
        self.port = free_port(socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM)
        self._process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        """Where a client finds it, without an account."""
        scheme = "http" if self.kind == "mjpeg" else self.kind
        path = {"rtsp": "/ball", "mjpeg": "/camera", "http": "/camera"}.get(self.kind, "")
        return f"{scheme}://127.0.0.1:{self.port}{path}"

    def start(self) -> None:
        """It listens when this returns (a server by ffmpeg: a moment later)."""
        if self.kind == "rtsp":
            command = [PYTHON, str(Path(__file__).with_name("rtsp_server.py")), str(self.port), *(self._account or ())]
        else:
            command = ["ffmpeg", "-v", "error", "-nostdin", *_SERVERS[self.kind].replace("PORT", str(self.port)).split()]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self._process.stdout is not None
        if self.kind == "rtsp" and self._process.stdout.readline() != "ready\n":
            raise UsageError(f"no RTSP server on port {self.port}")

    def stop(self) -> None:
        """As a camera whose plug is pulled."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def signal(self, number: int) -> None:
        """Send a signal to it: SIGSTOP, SIGCONT."""
        if self._process is not None:
            self._process.send_signal(number)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Cut:
    """One loss. ``noticed``: seconds from the kill to the gap; ``back``: from the server's start to the next frame;
    ``threads``, ``descriptors``, ``resident_kb`` of this process at that frame."""

    noticed: float
    back: float
    threads: int
    descriptors: int
    resident_kb: int


def cuts(server: Server, source: Source, count: int, away: tuple[float, float], shown: float = 0.5) -> Iterator[Cut]:
    """Cut a stream so many times: ``shown`` seconds of frames, then ``away`` (from, to) seconds without a server, by chance.
    The source is closed at the end."""
    chance = random.Random(0)
    killed = started = None
    noticed = 0.0
    begin: float | None = None

    def revive() -> None:
        nonlocal started
        server.start()
        started = time.monotonic()

    revival = threading.Thread(target=revive)
    try:
        for item in source:
            now = time.monotonic()
            if isinstance(item, Gap):
                noticed = now - (killed or now)
                time.sleep(chance.uniform(*away))
                revival = threading.Thread(target=revive)
                revival.start()
                continue
            assert isinstance(item, Frame)
            if started is not None and killed is not None:
                revival.join()
                yield Cut(noticed, now - started, threading.active_count(), len(os.listdir("/proc/self/fd")), _resident())
                killed = started = begin = None
                count -= 1
                if count == 0:
                    return
            begin = begin or now
            if killed is None and now - begin > shown:
                server.stop()
                killed = time.monotonic()
    finally:
        source.close()
        revival.join() if revival.ident else None


def _resident() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def _spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"least": round(ordered[0], 3), "median": round(ordered[len(ordered) // 2], 3), "most": round(ordered[-1], 3)}


@click.command()
@click.option("--kind", type=click.Choice(KINDS), default="rtsp", show_default=True)
@click.option("--cuts", "count", type=click.IntRange(min=1), default=20, show_default=True)
@click.option(
    "--away", nargs=2, type=float, default=(0.2, 6.0), show_default=True, help="Seconds without a server, from and to."
)
def main(kind: str, count: int, away: tuple[float, float]) -> None:
    """Cut a real stream, and say how the source came back."""
    if missing := lacks(kind):
        raise click.ClickException(f"needs {missing}")
    found: list[Cut] = []
    with Server(kind) as server, fraction(sys.stderr, "cuts") as tell:
        source = open_source(server.address, stall=2)
        for cut in cuts(server, source, count, away):
            found.append(cut)
            tell(len(found) / count)
    figures: dict[str, Any] = {
        "kind": kind,
        "cuts": len(found),
        "noticed_s": _spread([cut.noticed for cut in found]),
        "back_s": _spread([cut.back for cut in found]),
        "threads": sorted({cut.threads for cut in found}),
        "descriptors": sorted({cut.descriptors for cut in found}),
        "resident_kb": [found[0].resident_kb, found[-1].resident_kb],
        "dropped": source.dropped,
    }
    emit(figures)


if __name__ == "__main__":
    main()
