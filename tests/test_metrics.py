"""``watch --metrics``: what a real watch counts, as Prometheus' own parser reads it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge.cli import main

pytest.importorskip("cv2")
pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from fer_edge.live import metrics as room
from fer_edge.live.events import Event, Summary
from fer_edge.live.faces import FaceFinder
from fer_edge.live.metrics import LATENCIES, Box, Metrics, processor_seconds
from fer_edge.live.outputs import Setup
from fer_edge.live.server import address_of
from fer_edge.live.sources import Frame, Gap
from fer_edge.live.watch import watch

SETUP = Setup("clip", True, ("happiness", "sadness"), "two", "default", "ab12", "openvino", "CPU", "int8", "yunet")


def metrics(setup: Setup = SETUP) -> Metrics:
    return Metrics(address_of("0", "--metrics"), setup)


def fetched(url: str, accept: str = "text/plain") -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        return str(answer.read().decode())


def samples(text: str, parse: Callable[[str], Any] = text_string_to_metric_families) -> dict[str, float]:
    """Sample -> value; labels in the sample's name, as Prometheus writes them."""
    found = {}
    for family in parse(text):
        for sample in family.samples:
            labels = ",".join(f'{k}="{v}"' for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


class Camera:
    """A live source of ready frames, which calls ``between`` before the frame of that number; a Gap is passed on."""

    name, live, dropped = "camera", True, 0

    def __init__(self, items: list[np.ndarray | Gap], between: dict[int, Callable[[], None]]) -> None:
        self.items, self.between = items, between

    def __iter__(self) -> Iterator[Frame | Gap]:
        number = 0
        for place, item in enumerate(self.items):
            self.between.get(place, lambda: None)()
            if isinstance(item, Gap):
                yield item
                continue
            yield Frame(number, number / 25, item, time.monotonic())
            number, self.dropped = number + 2, self.dropped + 1

    def close(self) -> None:
        """Nothing is held."""


def test_a_watch_is_counted(portrait: Path, yunet: Path) -> None:
    """Of a camera that delivers a face, is lost and comes back: every number is that of the events themselves."""
    face = np.asarray(Image.open(portrait).convert("RGB"))
    nobody = np.full_like(face, 90)
    seen: list[dict[str, float]] = []
    with fer_edge.load(threads=1) as clf, FaceFinder(yunet) as finder:
        output = metrics()

        def scrape() -> None:
            seen.append(samples(fetched(output.url)))

        camera = Camera(
            [*[face] * 10, *[nobody] * 5, Gap(0.6, "cut"), Gap(0.7, "still cut"), *[face] * 10],
            {0: scrape, 10: scrape, 15: scrape, 17: scrape},
        )
        events: list[Event | Summary] = []
        for event in watch(camera, clf, finder, outputs=[output]):
            events.append(event)
            if event.event == "end" and len(events) > 2 and not isinstance(events[-1], Summary):
                scrape()
    start, ten, dark, lost, last = seen[0], seen[1], seen[2], seen[3], seen[-1]

    assert (
        start["fer_edge_frames_total"] == start["fer_edge_source_up"] == start['fer_edge_events_total{event="appear"}'] == 0
    )
    assert ten["fer_edge_frames_total"] == 10
    assert ten["fer_edge_frames_dropped_total"] == 9  # of the tenth frame's step
    assert ten["fer_edge_faces"] == ten["fer_edge_source_up"] == ten["fer_edge_tracks_total"] == 1
    assert dark["fer_edge_faces"] == 0
    assert (lost["fer_edge_source_up"], lost["fer_edge_source_lost_total"]) == (0, 1), "two notices of one loss are one"
    assert lost["fer_edge_source_reconnections_total"] == 0
    assert last["fer_edge_source_reconnections_total"] == 1
    assert last["fer_edge_frames_total"] == 25
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert last["fer_edge_tracks_total"] == summary.tracks == 2
    kinds = [event.event for event in events if isinstance(event, Event)]
    for kind in ("appear", "change", "end"):
        assert last[f'fer_edge_events_total{{event="{kind}"}}'] == kinds.count(kind), kind
    labels = [event.label for event in events if isinstance(event, Event) and event.event != "end"]
    for label in {*labels, *SETUP.labels}:
        assert last[f'fer_edge_labels_total{{label="{label}"}}'] == labels.count(label)
    assert last["fer_edge_latency_seconds_count"] == 25
    assert last['fer_edge_latency_seconds_bucket{le="+Inf"}'] == 25
    assert 0 < last["fer_edge_latency_seconds_sum"] < 25


def test_stages_add_up_to_the_latency(portrait: Path, yunet: Path) -> None:
    face = np.asarray(Image.open(portrait).convert("RGB"))
    seen: list[dict[str, float]] = []
    with fer_edge.load(threads=1) as clf, FaceFinder(yunet) as finder:
        output = metrics()
        for event in watch(Camera([face] * 10, {}), clf, finder, outputs=[output]):
            if event.event == "end":
                seen.append(samples(fetched(output.url)))
    names = ("find", "track", "crop", "engine", "judge", "event")
    total = sum(seen[0][f'fer_edge_stage_seconds_sum{{stage="{name}"}}'] for name in names)
    assert 0.5 < total / seen[0]["fer_edge_latency_seconds_sum"] <= 1
    assert seen[0]['fer_edge_stage_seconds_count{stage="find"}'] == 10


def test_names_follow_the_conventions() -> None:
    output = metrics()
    try:
        text, strict = fetched(output.url), fetched(output.url, "application/openmetrics-text; version=1.0.0")
    finally:
        output.close()
    made = re.compile("_created($|{)")
    assert {name for name in samples(strict, openmetrics) if not made.search(name)} == {
        name for name in samples(text) if not made.search(name)
    }
    families = list(text_string_to_metric_families(text))
    assert all(family.documentation for family in families)
    names = [family.name for family in families]
    assert all(re.match("fer_edge_|process_", name) for name in names), "its own registry, not everybody's"
    for family in families:
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples), family.name
        assert not re.search("milli|_ms|percent", family.name)
    found = samples(text)
    for ms in LATENCIES:
        assert f'fer_edge_latency_seconds_bucket{{le="{ms / 1000}"}}' in found
    info = next(name for name in found if name.startswith("fer_edge_info{"))
    assert f'version="{fer_edge.__version__}"' in info
    for fact in (
        'bundle="default"',
        'digest="ab12"',
        'source="clip"',
        'runtime="openvino"',
        'device="CPU"',
        'precision="int8"',
        'detector="yunet"',
    ):
        assert fact in info
    assert found["process_cpu_seconds_total"] > 0
    assert found["process_open_fds"] > 0


def test_a_dead_source_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The age of the last frame grows although nothing happens; before the first frame too."""
    now = [100.0]
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now[0]))
    output = metrics()
    try:
        ages = []
        for now[0] in (100.0, 160.0, 400.0):
            ages.append(samples(fetched(output.url))["fer_edge_last_frame_age_seconds"])
        assert ages == [0, 60, 300]
    finally:
        output.close()


def test_labels_of_a_bundle_are_escaped() -> None:
    wild = ('a"b', "c\\d", "<script>", "e{f}=,g")
    output = metrics(Setup("s", False, wild, "x", 'b"\n', "d", "r", "d", "p", "y"))
    try:
        families = list(text_string_to_metric_families(fetched(output.url)))
    finally:
        output.close()
    labels = next(family for family in families if family.name == "fer_edge_labels")
    assert sorted(sample.labels["label"] for sample in labels.samples) == sorted(wild)


def test_processor_time_of_the_box(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    stat = tmp_path / "proc/stat"
    assert processor_seconds(tmp_path) == {}
    stat.write_text("cpu  100 2 300 4000 50 6 70 8 9 10\ncpu0 1 2 3\n")
    tick = os.sysconf("SC_CLK_TCK")
    found = processor_seconds(tmp_path)
    assert found["idle"] == 4000 / tick
    assert list(found) == ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal"]
    stat.write_text("cpu  100 x\n")
    assert processor_seconds(tmp_path) == {}


def test_the_box_is_read_at_a_scrape(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu-thermal\n")
    registry = CollectorRegistry()
    registry.register(Box(tmp_path))
    assert samples(generate_latest(registry).decode()) == {}, "without a sensor, nothing"
    for degrees in ("48500", "61000"):
        (zone / "temp").write_text(degrees)
        found = samples(generate_latest(registry).decode())
        assert found == {'fer_edge_box_temperature_celsius{sensor="cpu-thermal"}': int(degrees) / 1000}


def test_prometheus_own_checker_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool (Debian's prometheus) on this machine")
    output = metrics()
    try:
        text = fetched(output.url)
    finally:
        output.close()
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_left_of_it() -> None:
    """Threads and descriptors are back where they were; the port is free; close may be called twice."""
    metrics().close()  # what a first use imports
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    output = metrics()
    port = int(output.url.split(":")[2].split("/")[0])
    fetched(output.url)
    output.close()
    output.close()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, descriptors)
    with socket.socket() as again, pytest.raises(ConnectionRefusedError):
        again.connect(("127.0.0.1", port))


def test_only_metrics_are_there() -> None:
    output = metrics()
    try:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetched(output.url.replace("/metrics", "/etc/passwd"))
    finally:
        output.close()


@pytest.mark.parametrize(
    ("named", "part"),
    [
        ("", "--metrics is empty"),
        ("x", "give a port"),
        ("70000", "give a port"),
        ("-1", "give a port"),
        ("1.2.3.4.5:80", "1.2.3.4.5 is no address of this box"),
        ("192.0.2.1:8000", "this box has no such address"),
        ("http://a:1", "give a port"),
        ("taken", "is in use there; name another one"),
    ],
)
def test_a_wrong_address_is_one_line(
    named: str, part: str, portrait: Path, yunet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before the first frame."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        if named == "taken":
            named = str(other.getsockname()[1])
        with pytest.raises(SystemExit) as end:
            main(["watch", str(portrait), "--detector", str(yunet), "--metrics", named])
    told = capsys.readouterr()
    assert end.value.code == 2
    assert told.out == ""
    assert part in told.err
    assert told.err.count("\n") == 1


def test_no_address_is_opened_unasked() -> None:
    assert room.open_output({"metrics": None}, SETUP) is None


def test_the_command_tells_where(portrait: Path, yunet: Path, tmp_path: Path) -> None:
    """A real ``watch`` of a clip, scraped while it runs, then ended by SIGTERM."""
    import av

    clip = tmp_path / "clip.mkv"
    face = np.asarray(Image.open(portrait).convert("RGB"))
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 512, 512, "yuv420p"
        frame = av.VideoFrame.from_ndarray(face, format="rgb24")
        for frame.pts in range(600):
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    command = [sys.executable, "-m", "fer_edge", "watch", str(clip), "--detector", str(yunet), "--json", "--metrics", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        url = next(line.split()[1] for line in process.stderr if line.startswith("Metrics: "))  # OpenCV may warn before
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/metrics", url)
        process.stdout.readline()
        found = samples(fetched(url))
        process.terminate()
        _, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert found['fer_edge_events_total{event="appear"}'] == 1
    assert any('runtime="openvino"' in name and 'digest="' in name for name in found)
