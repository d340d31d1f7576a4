"""Live sources against real servers on loopback: what they give, how they are lost and come back, what they never tell."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from test_sources_live import FFMPEG, far, ffmpeg, frames, moving, needs_ffmpeg, refused  # noqa: F401  # moving is a fixture

import fer_edge
from fer_edge.live import decoder, streams
from fer_edge.live.decoder import Backlog, Decoded, Decoder
from fer_edge.live.frames import Frame, Gap, Source
from fer_edge.live.sources import open_source
from fer_edge.live.streams import LiveSource, Patience, public_address
from lab.streams import KINDS, Server, cuts, free_port, lacks

av = pytest.importorskip("av")


def need(kind: str) -> None:
    """Skip where the server cannot run here."""
    if missing := lacks(kind):
        pytest.skip(f"needs {missing}")


@contextmanager
def limit(source: Source, seconds: float = 30.0) -> Iterator[None]:
    """Whatever goes wrong, the test ends: the source is closed then."""
    timer = threading.Timer(seconds, source.close)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        source.close()


def some(source: Source, count: int) -> list[Frame]:
    """The first frames of a live source that is not lost."""
    given = []
    with limit(source):
        for item in source:
            assert isinstance(item, Frame), item
            given.append(item)
            if len(given) == count:
                break
    assert len(given) == count
    return given


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_gives_its_newest_frames(kind: str) -> None:
    need(kind)
    with Server(kind) as server:
        source = open_source(server.address)
        given = some(source, 15)
    assert source.live
    assert {frame.size for frame in given} == {(320, 240)}
    assert all(a.number < b.number and a.time < b.time for a, b in pairwise(given))
    assert given[0].time < 1
    assert any(far(a.pixels, given[0].pixels) > 0.01 for a in given[1:]), "the picture moves"
    assert given[-1].pixels.max() > 200, "it is no black picture"
    assert given[-1].number + 1 - len(given) <= source.dropped <= given[-1].number + 2 - len(given)


@pytest.mark.parametrize("kind", ["tcp", "rtsp"])
def test_who_is_slow_gets_the_newest_frame_and_the_others_are_counted(kind: str) -> None:
    need(kind)
    with Server(kind) as server:
        source, given, ages = open_source(server.address), list[Frame](), list[float]()
        with limit(source):
            for item in source:
                assert isinstance(item, Frame)
                ages.append(time.monotonic() - item.arrived)
                given.append(item)
                time.sleep(0.2)
                if len(given) == 10:
                    break
    assert given[-1].number >= 20, "30 frames a second come, 5 are taken"
    assert max(ages[1:]) < 1, "a queue would be two seconds long"
    assert source.dropped > 20
    delivered = len(given) + source.dropped
    assert given[-1].number < delivered < given[-1].number + 15, "what came after the last one counts as well"


class SlowBox(Decoder):
    """A decoder on a box that takes three times as long as pictures are apart. ``late``: how much later each was read than
    the first."""

    late: ClassVar[list[float]] = []

    def _decode(self, packet: object) -> list[object]:
        time.sleep(0.1)
        return super()._decode(packet)

    def pictures(self) -> Iterator[Decoded]:
        first = None
        for picture in super().pictures():
            assert picture.time is not None
            first = first or picture.arrived - picture.time
            self.late.append(picture.arrived - picture.time - first)
            yield picture


def test_a_box_too_slow_to_decode_everything_stays_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes faster than it is decoded is left out up to a key frame, and counted."""
    need("tcp")
    monkeypatch.setattr(decoder, "MOST_LATE", 1.0)
    SlowBox.late.clear()
    with Server("tcp") as server:
        source = LiveSource("slow", lambda wait, turns, over: SlowBox(server.address, "slow", wait=wait), Patience())
        given = list[Frame]()
        with limit(source, 60):
            for item in source:
                assert isinstance(item, Frame)
                given.append(item)
                if item.number >= 100:
                    break
    assert max(SlowBox.late) < 2.5, "100 pictures come in 3.3 seconds, and take 10 to decode"
    assert source.dropped >= 15
    assert len(given) + source.dropped == pytest.approx(given[-1].number + 1, abs=2)


def stream(rate: float, speed: float, seconds: float, group: int = 30, late: float = 0.0) -> tuple[list[float], int]:
    """(how late each picture was that was decoded, how many were left out) of a stream at 30 a second. ``rate``: of its time
    stamps; ``speed``: pictures a second that this box decodes; ``late``: seconds that it stops at 2 s and stays late."""
    backlog, clock, seen, out = Backlog(), 0.0, list[float](), 0
    for number in range(int(30 * seconds)):
        sent = number / 30 + (late if number > 60 else 0.0)
        clock = max(clock, sent)
        if backlog.leaves_out(number / rate, clock, number % group == 0):
            out += 1
            continue
        seen.append(clock - sent)
        clock += 1 / speed
    return seen, out


def test_what_is_left_out_is_what_comes_too_late() -> None:
    seen, out = stream(30, 1000, 60)
    assert (len(seen), out) == (1800, 0)
    seen, out = stream(30, 20, 120)
    assert max(seen) < 3.1
    assert out < 3600 / 3 + 60, "a third cannot be decoded"
    assert max(stream(30, 20, 120, group=300)[0]) < 2.1
    seen, out = stream(30, 1000, 60, late=4)
    assert out < 60, "a stream that is late by itself is left alone"
    for rate in (10, 25, 60):
        assert stream(rate, 1000, 120)[1] < 100, "and one whose time stamps are invented"


CUTS = {"rtsp": 5, "udp": 2, "mjpeg": 2}


@pytest.mark.parametrize("kind", CUTS)
def test_a_stream_that_is_cut_comes_back(kind: str) -> None:
    """Within three seconds of its return, with one gap each time; ``python -m lab.streams`` cuts it 20 times."""
    need(kind)
    server = Server(kind)
    server.start()
    try:
        source = open_source(server.address, stall=0.7)
        with limit(source, 90):
            found = list(cuts(server, source, CUTS[kind], away=(0.2, 1.2), shown=0.3))
    finally:
        server.stop()
    assert len(found) == CUTS[kind]
    assert max(cut.back for cut in found) < 3
    assert len({cut.threads for cut in found}) == 1
    assert max(cut.descriptors for cut in found[1:]) <= found[0].descriptors + 1, "a thread's end may be seen late"
    assert found[-1].resident_kb < found[1].resident_kb * 1.02 + 2000


def test_a_server_that_stands_still_is_a_loss(tmp_path: Path) -> None:
    """Its connection stays; it says nothing. And when it goes on, frames come again, at the time of the clock."""
    need("rtsp")
    with Server("rtsp") as server:
        source = open_source(server.address, stall=1)
        gap, after, seen = None, None, 0
        with limit(source):
            for item in source:
                if isinstance(item, Gap):
                    assert gap is None, "one gap for one loss"
                    gap = item
                    server.signal(signal.SIGCONT)
                    continue
                seen += 1
                if seen == 10:
                    stopped = item.time
                    server.signal(signal.SIGSTOP)
                if gap is not None:
                    after = item
                    break
    assert gap is not None
    assert after is not None
    assert stopped + 0.9 < gap.time < stopped + 4
    assert gap.time <= after.time < gap.time + 5
    assert gap.reason == "no picture for 1 s"


@contextmanager
def mute() -> Iterator[int]:
    """A server that takes connections and never says a word; yields its port."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("scheme", ["rtsp", "http", "tcp"])
def test_a_source_that_never_delivers_is_one_error(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "OPENING", 1.0)  # of the thread that hangs
    with mute() as port:
        began = time.monotonic()
        with pytest.raises(
            fer_edge.SourceError, match=rf"^{scheme}://127.0.0.1:{port}/x: .*no frame within 0.5 s"
        ) as caught:
            list(open_source(f"{scheme}://127.0.0.1:{port}/x", wait=0.5))
        assert 0.4 < time.monotonic() - began < 3
        assert "\n" not in str(caught.value)
    with pytest.raises(fer_edge.SourceError, match=r"Connection refused \(no frame within 0.3 s\)"):
        list(open_source(f"{scheme}://127.0.0.1:{free_port()}/x", wait=0.3))


def test_a_source_can_be_closed_while_its_connect_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "OPENING", 1.5)
    threads = threading.active_count()
    with mute() as port:
        source = open_source(f"rtsp://127.0.0.1:{port}/x")
        closer = threading.Timer(0.3, source.close)
        closer.start()
        began = time.monotonic()
        assert list(source) == []
        assert time.monotonic() - began < 0.3 + 1.5
        closer.join()
        for _ in range(100):
            if threading.active_count() == threads:
                break
            time.sleep(0.05)
        assert threading.active_count() == threads, "the thread has ended by itself"
    assert list(source) == [], "what is closed stays closed"


def test_a_source_that_stays_away_is_given_up() -> None:
    need("tcp")
    server = Server("tcp")
    server.start()
    try:
        source, kinds = open_source(server.address, give_up=1), list[str]()
        threading.Timer(2, server.stop).start()
        with limit(source), pytest.raises(fer_edge.SourceError, match=r"did not come back within 1 s"):
            kinds.extend(type(item).__name__ for item in source)
    finally:
        server.stop()
    assert kinds.count("Gap") == 1
    assert kinds[-1] == "Gap"


@needs_ffmpeg
def test_sound_that_goes_on_hides_no_picture_that_stands_still(tmp_path: Path) -> None:
    pictures = "-f lavfi -t 1 -i testsrc=size=160x120:rate=25 -f lavfi -t 8 -i sine"
    ffmpeg(
        *pictures.split(),
        *["-c:v", "libx264", "-g", "5", "-bf", "0", "-pix_fmt", "yuv420p", "-c:a", "mp2"],
        tmp_path / "a.ts",
    )
    port = free_port()
    copying = "-c copy -max_interleave_delta 1 -f mpegts"  # else the muxer would wait for a picture, too
    command = f"{FFMPEG} -v error -nostdin -re -i {tmp_path}/a.ts {copying} tcp://127.0.0.1:{port}?listen=1"
    with subprocess.Popen(command.split(), stderr=subprocess.DEVNULL) as process:
        source = open_source(f"tcp://127.0.0.1:{port}", stall=1)
        try:
            with limit(source):
                gap = next(item for item in source if isinstance(item, Gap))
        finally:
            process.kill()
    assert gap.reason == "no picture for 1 s"


def test_what_no_waiting_mends_is_told_at_once() -> None:
    need("rtsp")
    with Server("rtsp", account=("joe", "open-sesame")) as server:
        place = server.address.removeprefix("rtsp://")
        cases = {
            f"rtsp://joe:wrong-word@{place}": "401 Unauthorized",
            f"rtsp://{place}": "401 Unauthorized",
            f"rtsp://joe:open-sesame@{place}/none": "404 Not Found",
        }
        for address, reason in cases.items():
            began = time.monotonic()
            with pytest.raises(fer_edge.SourceError, match=reason) as caught:
                list(open_source(address))
            assert time.monotonic() - began < 5
            assert "\n" not in str(caught.value)
    try:
        av.open("srt://127.0.0.1:9", timeout=1)
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.ProtocolNotFoundError):  # by how its FFmpeg was built
            with pytest.raises(fer_edge.SourceError, match="does not know this kind of address"):
                list(open_source("srt://127.0.0.1:9"))


def test_an_account_is_used_and_never_told() -> None:
    """Not in names, errors, tracebacks, gaps or threads."""
    need("rtsp")
    user, secret, told = "j" + "oe", "open" + "-sesame", list[str]()  # tracebacks show these lines, too
    with Server("rtsp", account=(user, secret)) as server:
        place = server.address.removeprefix("rtsp://")
        source = open_source(f"rtsp://{user}:{secret}@{place}", give_up=0.5)
        told += [source.name, repr(source), repr(vars(source)["_thread"])]

        def listen() -> None:
            for number, item in enumerate(source):
                told.extend([repr(item), str(getattr(item, "reason", ""))])
                if number == 3:
                    told.extend(thread.name for thread in threading.enumerate())
                    server.stop()

        with limit(source), pytest.raises(fer_edge.SourceError) as caught:
            listen()
        told += ["".join(traceback.format_exception(caught.value))]
        server.start()
        with pytest.raises(fer_edge.SourceError) as caught:
            list(open_source(f"rtsp://{user}:{secret}x@{place}"))
        told += [str(caught.value), "".join(traceback.format_exception(caught.value))]
    assert sum(place in text for text in told) >= 5
    assert not [text for text in told if secret in text or user in text]


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("rtsp://joe:pw@host:554/stream1", "rtsp://host:554/stream1"),
        ("rtsp://joe:p%40w@[::1]:8554/a", "rtsp://[::1]:8554/a"),
        ("http://host/video?user=joe&password=pw#pw", "http://host/video"),
        ("rtsp://host/user=joe_password=pw_channel=1", "rtsp://host/user=joe_password=..._channel=1"),
        ("rtsp://joe:12/pw@host/a", "rtsp://..."),
        ("rtsp://joe:12#pw@host/a", "rtsp://..."),
        ("udp://@239.0.0.1:1234", "udp://239.0.0.1:1234"),
        ("RTSP://Host/A", "rtsp://host/A"),
    ],
)
def test_what_is_shown_of_an_address(address: str, public: str) -> None:
    assert public_address(address) == public


def test_an_address_that_is_none_is_told_without_its_password() -> None:
    for address in ("rtsp://joe:p/w@host", "rtsp://host:pw/x", "http://[::1/x"):
        with pytest.raises(fer_edge.UsageError, match="is no address") as caught:
            open_source(address)
        assert "p" not in str(caught.value).removeprefix("rtsp").removeprefix("http").replace("port", "")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


@needs_ffmpeg
def test_a_file_behind_http_is_a_recording(moving: Path, tmp_path: Path) -> None:  # noqa: F811
    """Every frame, at its own time, and an end."""
    ffmpeg("-framerate", 10, "-i", moving / "%03d.png", "-c:v", "libx264", tmp_path / "a.mkv")
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            source = open_source(f"http://127.0.0.1:{server.server_port}/a.mkv")
            given = []
            for frame in source:
                assert isinstance(frame, Frame)
                given.append(frame)
                time.sleep(0.02)
            local = frames(open_source(tmp_path / "a.mkv"))
        finally:
            server.shutdown()
    assert [frame.time for frame in given] == [frame.time for frame in local]
    assert (source.dropped, source.live, source.seconds) == (0, False, pytest.approx(1.2))
    for one, other in zip(given, local, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_standard_input_as_a_camera() -> None:
    """The newest frame wins, at the time of the clock, and the end is the end."""
    code = """
import time
from fer_edge.live.sources import open_source
source = open_source("-", raw="64x48:gray8@30", live=True)
for frame in source:
    print(frame.number, round(frame.time, 2), int(frame.pixels[0, 0, 0]), source.dropped, flush=True)
    time.sleep(0.25)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for value in range(30):
            process.stdin.write(bytes([value]) * 64 * 48)
            process.stdin.flush()
            time.sleep(0.05)
        process.stdin.close()
        rows = [line.split() for line in process.stdout.read().decode().splitlines()]
    assert process.returncode == 0
    assert 4 <= len(rows) <= 12
    assert all(row[0] == row[2] for row in rows), "the number counts what was dropped, too"
    assert int(rows[-1][0]) >= 28
    assert int(rows[-1][3]) >= 15
    assert float(rows[-1][1]) > 0.4


def test_a_camera_that_is_not_there_is_told_at_once() -> None:
    refused("/dev/video97", r"/dev/video97 does not exist; cameras of this box: ")
    refused(97, r"/dev/video97 does not exist")
    refused("97", r"/dev/video97 does not exist", size=(640, 480), fps=30)


CAMERA = """
import gc, json, os, sys
from pathlib import Path
from fer_edge.live.sources import open_source
kept = []
Path.exists = lambda self: os.path.exists(self) or str(self) == "/dev/video9"
for options in json.loads(sys.argv[1]):
    size, end = options.pop("size", None), options.pop("end", 3)
    try:
        for number, item in enumerate(open_source(9, size=size and tuple(size), **options)):
            kept.append(item)
            told = ["gap", item.reason] if hasattr(item, "reason") else ["frame", *item.size, *item.pixels[0, 0].tolist()]
            print(json.dumps(told), flush=True)
            if number == end:
                break
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]), flush=True)
gc.collect()
print(json.dumps(["kept", len({item.picture.rgb().tobytes() for item in kept})]))  # what a closed camera gave is still there
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a camera that is none: lab/camera.c."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler (apt-get install gcc libc6-dev)")
    folder = tmp_path_factory.mktemp("camera")
    source = Path(__file__).parent.parent / "lab" / "camera.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", folder / "camera.so", source, "-ldl"], check=True)
    Image.new("RGB", (1280, 720), (200, 40, 40)).save(folder / "1280x720.jpg")
    Image.new("RGB", (640, 480), (200, 40, 40)).save(folder / "640x480.jpg")
    return folder


@contextmanager
def camera(driver: Path, *uses: dict[str, object]) -> Iterator[Iterator[list[object]]]:
    """What a process tells of the driver's camera, used with some options, then with others."""
    (driver / "plugged").touch()
    environment = {**os.environ, "LD_PRELOAD": str(driver / "camera.so"), "FOLDER": str(driver)}
    command = [sys.executable, "-c", CAMERA, json.dumps(uses)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(60, process.kill)
        timer.start()
        try:
            yield (json.loads(line) for line in process.stdout)
        finally:
            timer.cancel()
            process.kill()


def test_a_cameras_driver_is_spoken_to(driver: Path) -> None:
    """FFmpeg's own way through Video4Linux, against a driver that is played."""
    fine = ({}, {"size": (320, 240), "fps": 30}, {"size": (1280, 720), "fps": 30})
    with camera(driver, *fine, {"size": (800, 600)}, {"fps": 60}) as told:
        items = list(told)
    plain, small, large, refusals, kept = items[:4], items[4:8], items[8:12], items[12:-1], items[-1]
    assert [item[:3] for item in plain] == [["frame", 640, 480]] * 4
    assert [item[:3] for item in small] == [["frame", 320, 240]] * 4
    assert small[-1][3] == small[-1][4] == small[-1][5], "a gray that grows"
    assert small[-1][3] > small[0][3]  # type: ignore[operator]
    assert [item[:3] for item in large] == [["frame", 1280, 720]] * 4
    assert np.abs(np.array([item[3:] for item in large]) - (200, 40, 40)).max() < 6, "MJPEG: raw it has 10 a second"
    assert refusals == [
        ["RefusedError", "/dev/video9 has no 800 x 600 pixels; the nearest it has are 640 x 480"],
        ["RefusedError", "/dev/video9 gives 30 frames a second at this size, and not 60"],
    ]
    assert kept[0] == "kept"
    assert kept[1] >= 6, "frames that were made later are others"  # type: ignore[operator]
    (driver / "busy").touch()
    with camera(driver, {}) as told:
        assert next(told) == ["RefusedError", "/dev/video9: Device or resource busy"]
    (driver / "busy").unlink()


def test_a_camera_that_is_pulled_out_or_stalls_comes_back(driver: Path) -> None:
    with camera(driver, {"end": 10_000, "stall": 0.5}) as told:
        assert next(told)[0] == "frame"
        for event, reason in (("plugged", "No such device"), ("stalled", "no picture for 0.75 s")):
            (driver / "plugged").unlink() if event == "plugged" else (driver / "stalled").touch()
            assert next(item for item in told if item[0] == "gap") == ["gap", reason]
            (driver / "plugged").touch() if event == "plugged" else (driver / "stalled").unlink()
            assert next(told)[0] == "frame"


def test_options_that_make_no_sense_are_refused() -> None:
    stream = "rtsp://127.0.0.1/x"
    refused(stream, "asked of a camera", fer_edge.UsageError, size=(640, 480))
    refused(stream, "for a camera", fer_edge.UsageError, fps=5.0)
    refused(stream, "through standard input", fer_edge.UsageError, raw="64x48:gray8@30")
    refused(stream, "for standard input", fer_edge.UsageError, live=True)
    refused("-", "only a camera or a stream comes back", fer_edge.UsageError, give_up=3, live=True)
    refused("-", "can be lost", fer_edge.UsageError, stall=3)
    for name in ("wait", "stall", "give_up"):
        for value in (0, -1, float("nan"), float("inf")):
            refused(stream, f"{name} must be a number of seconds above 0", fer_edge.UsageError, **{name: value})
    for size in ((0, 480), (640, 1 << 16)):
        refused("0", "size must be", fer_edge.UsageError, size=size)


def test_sources_leave_nothing_behind() -> None:
    """Neither threads nor descriptors, of sources that were closed early or never begun."""
    need("tcp")
    open_source("rtsp://127.0.0.1:9/x").close()
    for round_ in range(2):
        with Server("tcp") as server:
            some(open_source(server.address), 2)
        if round_ == 0:
            threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
