"""One configuration, measured in the process that this runs in; ``worker.py`` gives it a fresh one."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fer_edge import runtime as rt
from fer_edge.bundle import Bundle, Golden, golden_set, label_set, open_bundle
from fer_edge.classifier import Classifier, choose_artefact, open_session
from fer_edge.golden import measure
from fer_edge.image import to_input
from fer_edge.labels import LabelSet
from fer_edge.manifest import Artefact, digest_of
from fer_edge.verify import judge

from . import loadgen
from .camera import camera
from .machine import handover_us, reference_ms
from .memory import engine_files, forget, megabytes, memory_mb
from .results import Configuration, Scenario
from .sensors import EnergyMeter, energy_sources
from .traffic import Answer, Load, Traffic, plain

WARM_UP = 5
"""Inferences before anything warm is timed."""
STAGE_ROUNDS = 60
PHOTO_SIDE = 256
"""Pixels of the picture whose decoding and resizing are timed when none is named: about a face in a 1080p frame."""


@dataclass(frozen=True)
class Job:
    """What one process does: ``cold`` forgets the files first; ``scenarios`` in this order (the server's own bound needs
    single-stream before it); ``full`` adds stages, memory and parity."""

    configuration: Configuration
    load: Load
    scenarios: tuple[Scenario, ...]
    cold: bool
    full: bool
    photo: str | None = None


@dataclass(frozen=True)
class Part:
    """What one process found."""

    digest: str
    engine: str
    device: str
    execution_precision: str
    load_ms: float
    first_ms: float
    memory_mb: Mapping[str, float]
    traffic: Mapping[str, Traffic]
    energy_mj: Mapping[str, float | None]
    stages_ms: Mapping[str, float]
    parity: Mapping[str, Any]
    artefact_mb: float
    engine_mb: float | None
    reference_ms: float
    handover_us: float | None


@dataclass(frozen=True)
class _Open:
    """As :func:`fer_edge.load` opens it, with the engine's session in reach."""

    bundle: Bundle
    artefact: Artefact | None
    session: rt.Session
    labels: LabelSet

    def answer(self, crops: NDArray[np.uint8]) -> Answer:
        """Inference on crop i, modulo their number; raises EngineError."""
        return lambda i: rt.run(self.session, crops[i % len(crops)][None])

    def classifier(self, wanted: Configuration) -> Classifier:
        """The same session, as an application has it. It is not this classifier's to close."""
        return Classifier(self.bundle, wanted.runtime, wanted.precision, wanted.threads, self.session, self.labels)


def open_configuration(wanted: Configuration) -> _Open:
    """Open what a configuration names. Raises FerEdgeError."""
    bundle = open_bundle(wanted.bundle)
    name, artefact = choose_artefact(bundle, wanted.runtime, wanted.precision if wanted.runtime != "null" else None)
    labels = label_set(bundle, bundle.manifest.default_labels)
    asked = (wanted.device, wanted.threads, wanted.execution_precision)
    # A CPU's start is measured in full; what takes minutes to build is built once.
    cache = False if wanted.device in (None, "CPU", "cpu") else None
    return _Open(bundle, artefact, open_session(bundle, name, artefact, *asked, cache), labels)


def run_job(job: Job, on_progress: Callable[[str], None] = lambda text: None) -> Part:
    """Measure. Raises FerEdgeError."""
    wanted = job.configuration
    # Found before the memory is read and the clock runs: none of it is the model's.
    bundle = open_bundle(wanted.bundle)
    golden = golden_set(bundle)
    files, engine = _files(bundle, wanted), engine_files(wanted.runtime)
    if job.cold:
        forget([*files, *engine])
    reference, hands = reference_ms(), [handover_us()]
    before = memory_mb()
    on_progress("loading")
    began = time.perf_counter()
    opened = open_configuration(wanted)
    loaded = time.perf_counter()
    answer = opened.answer(golden.crops)
    answer(0)
    first = time.perf_counter()
    for i in range(WARM_UP):
        answer(i)
    during = memory_mb()
    try:
        expected = _typical(answer)
        load = replace(job.load, expected_ms=expected)
        traffic: dict[str, Traffic] = {}
        energy: dict[str, float | None] = {}
        for scenario in job.scenarios:
            on_progress(scenario)
            traffic[scenario], energy[scenario] = _traffic(scenario, answer, opened, wanted, golden, load)
            if scenario == "single-stream" and load.latency_bound_ms is None:
                load = replace(load, latency_bound_ms=2 * traffic[scenario].latency.p90)
        if job.full:
            on_progress("stages and parity")
        hands.append(handover_us())
        stages = _stages(opened, job.photo, golden) if job.full else {}
        checked = parity(opened, golden) if job.full else {}
    finally:
        opened.session.close()
    session = opened.session
    return Part(
        digest_of(bundle.manifest),
        session.engine,
        session.device,
        session.execution_precision,
        (loaded - began) * 1e3,
        (first - loaded) * 1e3,
        {"before": before[0], "resident": during[0], "peak": during[1]},
        traffic,
        energy,
        stages,
        checked,
        megabytes(files),
        megabytes(engine) if engine else None,
        reference,
        None if None in hands else math.exp(sum(math.log(v) for v in hands if v is not None) / len(hands)),
    )


def _files(bundle: Bundle, wanted: Configuration) -> tuple[Path, ...]:
    """Files of the artefact, unchecked: their hashes are part of loading."""
    for artefact in bundle.manifest.general_artefacts:
        if (artefact.runtime, artefact.precision) == (wanted.runtime, wanted.precision):
            return tuple(bundle.folder / ref.path for ref in artefact.files)
    return ()


def _typical(answer: Answer) -> float:
    """About how many ms an inference takes."""
    times = []
    for i in range(3):
        began = time.perf_counter()
        answer(i)
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times)[1]


def _traffic(
    scenario: Scenario, answer: Answer, opened: _Open, wanted: Configuration, golden: Golden, load: Load
) -> tuple[Traffic, float | None]:
    """A scenario's traffic and the millijoules of an inference."""
    sources = energy_sources()
    with EnergyMeter(sources) if sources else nullcontext() as meter:
        if scenario == "camera":
            found = camera(opened.classifier(wanted), load)
        elif loadgen.installed():
            found = loadgen.traffic(scenario, answer, len(golden.crops), load)
        else:
            found = plain(scenario, answer, load)
    # A rail that fell silent would make the sum too small; a search for the server's rate is many runs.
    known = meter is not None and meter.joules and not meter.missing and scenario != "server"
    joules = sum(meter.joules.values()) if meter is not None and known else None
    return found, None if joules is None or not found.inferences else joules / found.inferences * 1e3


def _photo(golden: Golden, i: int) -> Image.Image:
    crop = golden.crops[i]
    picture = Image.fromarray(crop[:, :, 0] if crop.shape[2] == 1 else crop)
    return picture.resize((PHOTO_SIDE, PHOTO_SIDE), Image.Resampling.BICUBIC)


def _stages(opened: _Open, photo: str | None, golden: Golden) -> dict[str, float]:
    """Median ms of what a photo goes through: file in memory -> pixels -> crop -> feature -> scores."""
    if photo is None:
        stream = io.BytesIO()
        _photo(golden, 0).save(stream, "JPEG", quality=90)
        encoded = stream.getvalue()
    else:
        encoded = Path(photo).read_bytes()
    spec = opened.bundle.manifest.input
    rows = []
    for _ in range(STAGE_ROUNDS):
        times = [time.perf_counter()]
        picture = Image.open(io.BytesIO(encoded))
        picture.load()
        times.append(time.perf_counter())
        crop = to_input(picture, spec.size, spec.color)
        times.append(time.perf_counter())
        feature, _ = rt.run(opened.session, crop[None])
        times.append(time.perf_counter())
        opened.labels.score_one(feature)
        times.append(time.perf_counter())
        rows.append(np.diff(times) * 1e3)
    middle = np.median(rows, axis=0)
    return dict(zip(("decode", "crop_resize", "engine", "scoring"), map(float, middle), strict=True))


def parity(opened: _Open, golden: Golden) -> dict[str, Any]:
    """As ``fer-edge verify`` judges it; the null runtime echoes the reference, which proves nothing."""
    if opened.artefact is None:
        return {"status": "no model", "problem": "the null runtime answers from the golden set"}
    found = measure(partial(rt.run, opened.session), golden, opened.labels)
    status, misses = judge(opened.bundle, opened.artefact, found)
    return {"status": status, "problem": "; ".join(misses), **asdict(found)}
