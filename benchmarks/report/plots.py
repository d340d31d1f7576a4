"""Plots of a run, by matplotlib. Every plot answers one question, which is its title."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_edge.engines import ENGINES
from fer_edge.page import INK

from ..results import Results, Row, several_bundles
from .tables import accuracy_of, several_devices, without_threads

WIDTH = 5.2
"""Inches: at 100% a phone's screen is about as wide, and the text stays legible when it is not enlarged."""
SOFT, ACCENT, WRONG = "#9aa5b1", "#0b7285", "#c92a2a"
COLORS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#1864ab", "#a61e4d", "#5c940d")
STAGES = {"decode": SOFT, "crop_resize": "#748ffc", "engine": ACCENT, "scoring": "#e8590c"}
CAMERA_STAGES = {
    **{"decode": SOFT, "find": "#5f3dc4", "track": "#2b8a3e", "crop": "#748ffc", "engine": ACCENT},
    **{"judge": "#e8590c", "event": "#c2255c"},
}
"""Stage -> colour, in the order in which they come."""
MOST_POINTS = 1500
"""Of one line: more makes the file large and nothing clearer."""


def plots(results: Results) -> list[tuple[str, str, Figure]]:
    """(anchor, title, figure) of every plot that the run has something to show in."""
    rows = {scenario: [row for row in results.rows if row.scenario == scenario] for scenario in ("single-stream", "camera")}
    single, found = rows["single-stream"], []
    whole = single or list(results.rows)
    if single:
        found.append(
            ("distributions", "How long does one inference take?", _figure(len(single), _distributions, results, single))
        )
    if rows["camera"]:
        camera = _figure(len(rows["camera"]), _distributions, results, rows["camera"])
        found.append(("camera", "How old is the answer when frames come from a camera?", camera))
        frame = _figure(len(rows["camera"]), _frame_stages, results, rows["camera"])
        found.append(("frame", "Where does the time of a frame go?", frame))
    staged = [row for row in whole if row.stages_ms and row.scenario != "camera"]
    if staged:
        found.append(
            ("stages", "Where does the time go, from file to scores?", _figure(len(staged), _stages, results, staged))
        )
    if whole:
        found.append(("quality", "What do speed and size cost in answers?", _figure(6, _quality, results, whole)))
        metered = [row for row in whole if row.energy_mj is not None]
        if metered:
            found.append(("energy", "What does an answer cost in energy?", _figure(6, _energy, results, metered)))
        found.append(("series", "Did the speed change while it was measured?", _figure(5, _series, results, whole)))
    if "sustained" in results.extras:
        found.append(("sustained", "What does heat do?", _sustained(results.extras["sustained"])))
    for i, entry in enumerate(results.extras.get("interleaved", ())):
        title = f"In turns: B against A, {entry['name']}"
        found.append((f"interleaved-{i}", title, _figure(4, _interleaved, results, [entry])))
    return found


def label(row: Row, results: Results) -> str:
    """A row's name in a plot."""
    bundle = f"{row.bundle_name} " if several_bundles(results) else ""
    c = row.configuration
    device = f" {row.device}" if several_devices(results) else ""
    return f"{bundle}{c.runtime} {row.precision_text}{device} x{c.threads}"


def color(row: Row) -> str:
    """One colour per runtime; a wrong answer is red."""
    if row.parity.get("status") == "miss":
        return WRONG
    names = tuple(ENGINES)
    name = row.configuration.runtime
    return COLORS[names.index(name) if name in names else 4 + sum(map(ord, name)) % 4]


def _figure(bars: int, draw: Callable[[Axes, Results, Any], None], results: Results, rows: Sequence[Any]) -> Figure:
    figure = Figure(figsize=(WIDTH, 1.3 + 0.38 * max(bars, 3)), layout="constrained")
    axes = figure.add_subplot()
    draw(axes, results, rows)
    return figure


def _distributions(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    """Box: the middle half; line: the median; whiskers: 1% to 99%; point: the 99.9th percentile."""
    for k, row in enumerate(reversed(rows)):
        every = np.concatenate(row.samples) if row.samples else np.array([row.latency_ms.p50])
        low, first, middle, third, high, last = np.percentile(every, (1, 25, 50, 75, 99, 99.9))
        stats = {"whislo": low, "q1": first, "med": middle, "q3": third, "whishi": high, "fliers": [last]}
        box = axes.bxp([stats], positions=[k], orientation="horizontal", widths=0.55, patch_artist=True)
        box["boxes"][0].set(facecolor=color(row), alpha=0.75, edgecolor=color(row))
        box["medians"][0].set(color=INK, linewidth=1.5)
        box["fliers"][0].set(marker=".", markersize=4, markeredgecolor=SOFT)
        axes.annotate(f"{middle:.3g}", (third, k), xytext=(4, 8), textcoords="offset points", fontsize=7, color=INK)
    axes.set_yticks(range(len(rows)), [label(row, results) for row in reversed(rows)])
    axes.set_xlabel("ms (box: middle half, whiskers: 1% to 99%, point: 99.9%)", fontsize=8, color=INK)
    axes.set_xlim(left=0)


def _stages(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    _stacked(axes, results, rows, STAGES)


def _frame_stages(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    _stacked(axes, results, rows, CAMERA_STAGES)


def _stacked(axes: Axes, results: Results, rows: Sequence[Row], stages: Mapping[str, str]) -> None:
    left = np.zeros(len(rows))
    for name, shade in stages.items():
        values = np.array([row.stages_ms.get(name, 0.0) for row in reversed(rows)])
        axes.barh(range(len(rows)), values, left=left, color=shade, label=name.replace("_", " and "), height=0.6)
        left += values
    axes.set_yticks(range(len(rows)), [label(row, results) for row in reversed(rows)])
    axes.set_xlabel("median ms", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))


def _quality(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    _against(axes, results, rows, [row.latency_ms.p50 for row in rows], "median ms of an inference")


def _energy(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    _against(axes, results, rows, [row.energy_mj or 0.0 for row in rows], "mJ of an inference")


def _against(axes: Axes, results: Results, rows: Sequence[Row], costs: Sequence[float], cost: str) -> None:
    """Accuracy where it was measured, agreement with the float reference otherwise; the area is the file's size."""
    measured = {key: entry["war"] for key, entry in accuracy_of(results).items()}
    if measured:
        known = [(row, measured.get(without_threads(vars(row.configuration)))) for row in rows]
        axes.set_ylabel("WAR", fontsize=8, color=INK)
    else:
        known = [(row, row.parity.get("centred_cosine")) for row in rows]
        axes.set_ylabel("centred cosine with the reference", fontsize=8, color=INK)
    points = [(row, value, at) for (row, value), at in zip(known, costs, strict=True) if value is not None]
    for k, (row, value, at) in enumerate(points):
        marker = "osD^vPX*"[k % 8]
        style = {"s": 20 + 40 * np.sqrt(row.artefact_mb), "marker": marker, "color": color(row), "alpha": 0.6}
        axes.scatter(at, value, label=label(row, results), **style)
    if points and max(at for *_, at in points) > 10 * min(at for *_, at in points) > 0:
        axes.set_xscale("log")
    axes.set_xlabel(f"{cost} (area: size of the artefact)", fontsize=8, color=INK)
    axes.margins(0.15)
    if points:
        legend = axes.legend(fontsize=6.5, frameon=False, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        for handle in legend.legend_handles:
            handle.set_sizes([24.0])  # type: ignore[union-attr]


def _series(axes: Axes, results: Results, rows: Sequence[Row]) -> None:
    for row in rows:
        start = 0
        for part in row.samples:
            step = max(1, len(part) * len(row.samples) // MOST_POINTS)
            blocks = [float(np.median(part[i : i + step])) for i in range(0, len(part), step)]
            at = start + np.arange(len(blocks)) * step
            axes.plot(at, blocks, linewidth=0.6, color=color(row), label=label(row, results) if start == 0 else None)
            start += len(part)
    axes.set_xlabel("inference, one process after the other", fontsize=8, color=INK)
    axes.set_ylabel("ms", fontsize=8, color=INK)
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=6.5, frameon=False, ncols=2)


def _sustained(found: Mapping[str, Any]) -> Figure:
    """Latency, clock and temperature over time, as far as the box has sensors for them."""
    points = found["points"]
    minutes = [p["at"] / 60 for p in points]
    curves = (("p50_ms", "median ms"), ("mhz", "MHz"), ("celsius", "hottest, degrees C"), ("resident_mb", "memory, MB"))
    shown = [(name, unit) for name, unit in curves if any(p.get(name) is not None for p in points)]
    figure = Figure(figsize=(WIDTH, 0.8 + 1.5 * len(shown)), layout="constrained")
    for k, (name, unit) in enumerate(shown):
        axes = figure.add_subplot(len(shown), 1, k + 1)
        axes.plot(minutes, [np.nan if p.get(name) is None else p[name] for p in points], color=COLORS[k], linewidth=1)
        axes.set_ylabel(unit, fontsize=8, color=INK)
        if name == "p50_ms":
            axes.set_ylim(bottom=0)
        if found["throttled_after_s"] is not None:
            axes.axvline(found["throttled_after_s"] / 60, color=WRONG, linewidth=0.8, linestyle="--")
    figure.axes[-1].set_xlabel("minutes", fontsize=8, color=INK)
    return figure


def _interleaved(axes: Axes, results: Results, entries: Sequence[Mapping[str, Any]]) -> None:
    entry = entries[0]
    floor = entry["floor"]
    axes.axvspan(1 - floor, 1 + floor, color=SOFT, alpha=0.25, label="noise")
    axes.plot(entry["noise"], np.full(len(entry["noise"]), 0.0), "o", color=SOFT, label="A / A")
    axes.plot(entry["rounds"], np.full(len(entry["rounds"]), 1.0), "o", color=ACCENT, label="B / A")
    axes.plot(entry["interval"], (1.4, 1.4), color=INK, linewidth=2, label="95% interval")
    axes.set_yticks([])
    axes.set_ylim(-0.6, 2.2)
    axes.set_xlabel("ratio of medians, a point for each round of fresh processes", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="upper center")
