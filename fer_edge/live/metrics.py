"""``watch --metrics``: counters of a watch, as Prometheus reads them.

Names and units follow Prometheus' conventions (prometheus.io/docs/practices/naming). ``process_*`` are the client library's
own: processor time, memory and descriptors of ``watch``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fer_edge import __version__
from fer_edge.console import need_extra, say
from fer_edge.container import text_of
from fer_edge.sensors import temperatures

from .events import Event, Summary
from .outputs import Setup
from .pipeline import Step
from .server import Address, Answer, Request, Server, address_of
from .sources import Gap

if TYPE_CHECKING:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

F = TypeVar("F", bound=Callable[..., Any])

LATENCIES = (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000)
"""Milliseconds, the upper ends of the histogram's buckets."""
MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""Of a processor's time, in the order of /proc/stat (proc_stat(5)); what follows there is counted in "user" already."""

NEEDS: dict[str, str] = {}


def output_options(command: F) -> F:
    """--metrics."""
    text = "Counters for Prometheus, on 127.0.0.1 unless an address is named."
    return click.option("--metrics", metavar="[HOST:]PORT", help=text)(command)


def open_output(options: dict[str, Any], setup: Setup) -> Metrics | None:
    """The counters, where they are asked for. Raises UsageError, MissingExtraError."""
    named = options.pop("metrics")
    if named is None:
        return None
    need_extra("prometheus-client", extra="live")
    output = Metrics(address_of(named, "--metrics"), setup)
    say(f"Metrics: {output.url}")
    return output


class Metrics:
    """Counts what a watch does, and tells it under ``url`` from the beginning on. Each has a registry of its own."""

    name = "metrics"

    def __init__(self, address: Address, setup: Setup) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
        from prometheus_client import Summary as Sum

        self._registry = registry = CollectorRegistry()
        self._frames = Counter("fer_edge_frames", "Frames looked at.", registry=registry)
        self._dropped = Counter("fer_edge_frames_dropped", "Frames of the source that nobody saw.", registry=registry)
        self._lost = Counter("fer_edge_source_lost", "How often the source was lost.", registry=registry)
        self._back = Counter("fer_edge_source_reconnections", "How often it has come back.", registry=registry)
        self._up = Gauge("fer_edge_source_up", "1 while frames come, else 0.", registry=registry)
        self._faces = Gauge("fer_edge_faces", "Faces in the last frame.", registry=registry)
        self._tracks = Counter("fer_edge_tracks", "Faces that were followed, each counted once.", registry=registry)
        self._events = Counter("fer_edge_events", "Events by kind.", ["event"], registry=registry)
        self._labels = Counter("fer_edge_labels", "How often a face took on a label.", ["label"], registry=registry)
        self._latency = Histogram(
            "fer_edge_latency_seconds",
            "From the arrival of a frame to its events.",
            buckets=[ms / 1000 for ms in LATENCIES],
            registry=registry,
        )
        self._stages = Sum("fer_edge_stage_seconds", "Time of a frame by stage.", ["stage"], registry=registry)
        self._of_stage: dict[str, Sum] = {}
        self._seen = time.monotonic()
        age = Gauge("fer_edge_last_frame_age_seconds", "Since the last frame came, or since the start.", registry=registry)
        age.set_function(lambda: time.monotonic() - self._seen)
        Info("fer_edge", "What is watched, and with what.", registry=registry).info(facts(setup))
        ProcessCollector(registry=registry)
        registry.register(Box())
        for event in ("appear", "change", "end"):
            self._events.labels(event)
        for label in setup.labels:
            self._labels.labels(label)
        self._before, self._last_track, self._is_lost = 0, 0, False
        self._server = Server(address, self._answer, any_name=not address.loopback)
        self.url = f"{self._server.url}metrics"

    def event(self, event: Event | Summary) -> None:
        """Count it."""
        if isinstance(event, Event):
            self._events.labels(event.event).inc()
            if event.event != "end" and event.label is not None:
                self._labels.labels(event.label).inc()
        else:
            self._up.set(0)
            self._faces.set(0)

    def step(self, step: Step) -> None:
        """Count the frame."""
        self._seen = step.frame.arrived
        self._frames.inc()
        self._dropped.inc(step.dropped - self._before)
        self._before = step.dropped
        if self._is_lost:
            self._back.inc()
            self._is_lost = False
        self._up.set(1)
        self._faces.set(len(step.tracks))
        fresh = [state.track for state in step.tracks if state.track > self._last_track]
        if fresh:
            self._tracks.inc(len(fresh))
            self._last_track = max(fresh)
        self._latency.observe(step.age)
        for stage, milliseconds in step.stages.items():
            if stage not in self._of_stage:
                self._of_stage[stage] = self._stages.labels(stage)
            self._of_stage[stage].observe(milliseconds / 1000)

    def lost(self, gap: Gap) -> None:
        """Count the loss, once until the next frame."""
        if not self._is_lost:
            self._lost.inc()
        self._is_lost = True
        self._up.set(0)
        self._faces.set(0)

    def close(self) -> None:
        """Nothing is told any more."""
        self._server.close()

    def _answer(self, request: Request) -> Answer:
        from prometheus_client.exposition import choose_encoder

        if request.path != "/metrics":
            return Answer("The counters are at /metrics.\n", status=HTTPStatus.NOT_FOUND)
        encode, kind = choose_encoder(request.headers.get("Accept", ""))
        return Answer(encode(self._registry), kind)


def facts(setup: Setup) -> dict[str, str]:
    """The labels of ``fer_edge_info``."""
    return {
        "version": __version__,
        "source": setup.source,
        "bundle": setup.bundle,
        "digest": setup.digest,
        "runtime": setup.runtime,
        "device": setup.device,
        "precision": setup.precision,
        "label_set": setup.label_set,
        "detector": setup.detector,
    }


class Box:
    """What the box's sensors say at a scrape; what it has no sensor for is left out."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        degrees = GaugeMetricFamily("fer_edge_box_temperature_celsius", "Of the box, by sensor.", labels=["sensor"])
        for sensor, value in temperatures(self._root).items():
            degrees.add_metric([sensor], value)
        yield degrees
        seconds = CounterMetricFamily("fer_edge_box_cpu_seconds", "Of all processors of the box, by mode.", labels=["mode"])
        for mode, value in processor_seconds(self._root).items():
            seconds.add_metric([mode], value)
        yield seconds


def processor_seconds(root: Path = Path("/")) -> dict[str, float]:
    """Seconds that all processors together have spent since the start of the box, by mode; {} where nothing says."""
    first, *counts = ((text_of(root / "proc/stat") or "").splitlines() or [""])[0].split() or [""]
    if first != "cpu" or not all(count.isdecimal() for count in counts):
        return {}
    return {mode: int(count) / os.sysconf("SC_CLK_TCK") for mode, count in zip(MODES, counts, strict=False)}
