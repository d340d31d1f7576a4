"""Results as tables and words: Markdown, CSV with every number, what the verdicts mean."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fer_edge.folders import IgnoredFile, ignored_lines

from ..compare import Comparison
from ..results import Configuration, Results, Row, named, several_bundles, units_text
from ..robustness import Robustness

HEAD = (
    "runtime",
    "precision",
    "device",
    "threads",
    "scenario",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "per second",
    "load ms",
    "cached ms",
    "first ms",
    "model MB",
    "file MB",
    "CPU",
    "of peak",
    "mJ",
    "answers",
)


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits without an exponent, "-" for None."""
    if value is None:
        return "-"
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e" in text or abs(value) >= 10**digits else text


def cells(row: Row) -> list[str]:
    """A row under HEAD."""
    c, t, s, m = row.configuration, row.latency_ms, row.start, row.memory
    computed = row.precision_text
    return [
        c.runtime,
        computed,
        row.device,
        str(c.threads),
        row.scenario,
        *(number(v) for v in (t.p50, t.p90, t.p99, row.throughput_per_s, s.load_ms, s.cached_load_ms, s.first_ms)),
        number(m.model_mb),
        number(row.artefact_mb),
        f"{row.cpu_share:.0%}",
        "-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}",
        number(row.energy_mj),
        answers(row),
    ]


def answers(row: Row) -> str:
    """Parity in a word: a fast wrong answer is shown as wrong."""
    status = str(row.parity.get("status", "not checked"))
    return {"ok": "right", "miss": "WRONG", "drift allowed": "drift", "no model": "no model"}.get(status, status)


def dropped_frames(row: Row) -> str:
    """Of a camera: "3 of 40"; "-" of other scenarios."""
    return f"{row.details['dropped']} of {row.details['frames']}" if "dropped" in row.details else "-"


def several_devices(results: Results) -> bool:
    """Whether rows need to say which device they ran on: some runtime ran on more than one."""
    ran = {(row.configuration.runtime, row.device) for row in results.rows}
    return len(ran) > len({runtime for runtime, _ in ran})


def rows_of(results: Results) -> tuple[list[str], list[list[str]]]:
    """(head, cells of every row), with the bundle's name first when there are several, a camera's dropped frames, and WAR
    where it was measured."""
    head, rows = list(HEAD), [cells(row) for row in results.rows]
    if any(row.scenario == "camera" for row in results.rows):
        head.insert(-1, "dropped")
        for row, texts in zip(results.rows, rows, strict=True):
            texts.insert(-1, dropped_frames(row))
    measured = accuracy_of(results)
    if measured:
        head.insert(-1, "WAR")
        for row, texts in zip(results.rows, rows, strict=True):
            entry = measured.get(without_threads(vars(row.configuration)))
            texts.insert(-1, f"{entry['war']:.1%}" if entry else "-")
    if several_bundles(results):
        head.insert(0, "bundle")
        for row, texts in zip(results.rows, rows, strict=True):
            texts.insert(0, row.bundle_name)
    return head, rows


def accuracy_of(results: Results) -> dict[tuple[Any, ...], Mapping[str, Any]]:
    """What ``--accuracy`` found, by :func:`without_threads`."""
    return {without_threads(entry): entry for entry in results.extras.get("accuracy", {}).get("of", ())}


def without_threads(named: Mapping[str, Any]) -> tuple[Any, ...]:
    """What answers depend on, of a configuration's fields."""
    return tuple(named.get(name) for name in ("bundle", "runtime", "precision", "device", "execution_precision"))


SPOILT_HEAD = ("spoilt", "WAR", "UAR", "confidence", "calibration error", "certain", "of these wrong")


def spoilt_rows(found: Robustness) -> list[list[str]]:
    """Cells under SPOILT_HEAD; the standard ways are marked by a star."""
    return [
        [
            row.text + (" *" if row.standard else ""),
            *(f"{value:.1%}" for value in (row.war, row.uar, row.mean_confidence, row.calibration_error, row.certain)),
            "-" if row.certain_error is None else f"{row.certain_error:.1%}",
        ]
        for row in found.rows
    ]


def spoilt_line(found: Robustness) -> str:
    """The standard ways in a sentence."""
    low = found.lowest
    return (
        f"mean of the {len(found.standard)} marked by a star: WAR {found.war_mean:.1%}, UAR {found.uar_mean:.1%}; "
        f"lowest: {low.text}, WAR {low.war:.1%} at a mean confidence of {low.mean_confidence:.1%}"
    )


def markdown(results: Results) -> str:
    """A table, and what could not be measured or is wrong."""
    parts: list[str] = []
    if results.rows:
        head, rows = rows_of(results)
        lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
        parts.append("\n".join(lines))
    texts = [*where_lines(results), *accuracy_lines(results), *verdict_texts(results)]
    for title, rows in profiles(results):
        table = [f"| {' | '.join(row)} |" for row in (PROFILE_HEAD, *rows)]
        parts.append("\n".join([f"{title}:", "", table[0], f"|{'---|' * len(PROFILE_HEAD)}", *table[1:]]))
    parts += [f"- {text}" if "\n" not in text else f"```\n{text}\n```" for text in texts]
    parts.append("\n".join(f"- {note}" for note in remarks(results)))
    return "\n\n".join(filter(None, parts)) + "\n"


def accuracy_lines(results: Results) -> list[str]:
    """WAR with its interval, and UAR, of each configuration that they were measured for."""
    lines = []
    for entry in results.extras.get("accuracy", {}).get("of", ()):
        low, high = entry["war_interval"]
        name = f"{Path(entry['bundle']).name}, {entry['runtime']} {entry['precision']}"
        lines.append(
            f"{name}: WAR {entry['war']:.1%} ({low:.1%} to {high:.1%}), UAR {entry['uar']:.1%} on {entry['n']} faces"
        )
        lines += [f"{name}: {text}" for text in ignored_lines([IgnoredFile(**e) for e in entry.get("ignored", ())])]
        if entry.get("unreadable"):
            first = entry["unreadable"][0]["error"]
            count = len(entry["unreadable"])
            lines.append(f"{name}: {count} images could not be read and count nowhere; the first: {first}")
    for entry in results.extras.get("accuracy", {}).get("failed", ()):
        lines.append(
            f"{Path(entry['bundle']).name}, {entry['runtime']} {entry['precision']}: no accuracy, {entry['problem']}"
        )
    return lines


def where_lines(results: Results) -> list[str]:
    """Where each configuration ran, threads aside."""
    lines: dict[str, None] = {}
    for row in results.rows:
        c = replace(row.configuration, threads=1)
        name = named(c, results).rsplit(", ", 1)[0]
        if row.units:
            lines[f"{name} ran {units_text(row.units)}"] = None
        if row.where_note:
            lines[f"{name}: {row.where_note}"] = None
    return list(lines)


PROFILE_HEAD = ("operator", "kind", "on", "ms", "of the call")
SLOWEST = 10


def profiles(results: Results) -> list[tuple[str, list[list[str]]]]:
    """(title, rows under PROFILE_HEAD: the slowest, then the others together) of each configuration that was profiled."""
    found: dict[Configuration, tuple[str, list[list[str]]]] = {}
    for row in results.rows:
        if row.profile is None:
            continue
        p, rows = row.profile, []
        for cost in p.operators[:SLOWEST]:
            rows.append([cost.name, cost.kind, cost.unit, number(cost.ms), f"{cost.share:.1%}"])
        others = p.operators[SLOWEST:]
        if others:
            spent = sum(cost.ms for cost in others)
            rows.append([f"{len(others)} others", "", "", number(spent), f"{spent / p.call_ms:.1%}"])
        rows.append(["between operators", "", "", number(p.between_ms), f"{p.between_ms / p.call_ms:.1%}"])
        name = named(row.configuration, results)
        spent = sum(cost.ms for cost in p.operators)
        plain = (
            f", {spent / row.latency_ms.p50:.0%} of the p50 without the profiler" if row.scenario == "single-stream" else ""
        )
        found.setdefault(
            row.configuration,
            (f"{name}: operators take {number(spent)} of {number(p.call_ms)} ms of a profiled call{plain}", rows),
        )
    return list(found.values())


def verdict_texts(results: Results) -> list[str]:
    """What ``--interleave`` and ``--sustained`` found."""
    texts = [interleaved_text(entry) for entry in results.extras.get("interleaved", ())]
    return [*texts, sustained_text(results.extras["sustained"])] if "sustained" in results.extras else texts


def remarks(results: Results) -> list[str]:
    """What a reader must know before he believes the table."""
    notes = [f"{named(f.configuration, results)} failed: {f.problem}" for f in results.failures]
    if results.extras.get("interrupted"):
        notes.append("interrupted: rows may rest on fewer processes than asked for, and some are missing")
    notes += [f"left out: {entry['problem']}" for entry in results.extras.get("skipped", ())]
    if results.extras.get("in_process"):
        notes.append("measured in one process, for debugging: loads are not cold, and memory is not a model's own")
    seen: set[tuple[Any, ...]] = set()
    for row in results.rows:
        key = (row.configuration, row.parity.get("problem"))
        if answers(row) in ("WRONG", "drift") and key not in seen:
            name, problem = named(row.configuration, results), row.parity.get("problem")
            notes.append(f"{name} gives other answers than the reference: {problem}")
        seen.add(key)
    if any(row.details.get("generator") == "plain timer" for row in results.rows):
        notes.append("MLPerf's LoadGen is not installed: single-stream and offline were timed by a plain timer")
    if any(row.details.get("dropped") for row in results.rows):
        notes.append(
            "camera: "
            + "; ".join(
                f"{named(row.configuration, results)} dropped {dropped_frames(row)} frames"
                for row in results.rows
                if row.details.get("dropped")
            )
        )
    official = [row for row in results.rows if row.details.get("official")]
    invalid = [
        f"{named(r.configuration, results)}, {r.scenario}" for r in official if not r.details.get("loadgen_valid", True)
    ]
    if invalid:
        notes.append(f"LoadGen calls these invalid by MLPerf's rules: {'; '.join(invalid)}")
    few = min((sum(map(len, row.samples)) for row in results.rows if row.samples), default=100)
    if few < 100:
        notes.append(f"the slowest percentiles are those of as few as {few} inferences: --seconds asks for more")
    if not results.environment.get("energy") and results.environment.get("no_energy"):
        notes.append(str(results.environment["no_energy"]))
    notes += [str(note) for note in results.environment.get("notes", ())]
    return notes


def flat_csv(results: Results) -> str:
    """Every number of every row but the raw samples, a column each; n, WAR and UAR too where they were measured."""
    measured = accuracy_of(results)
    flat = []
    for row in results.rows:
        entry = measured.get(without_threads(vars(row.configuration)), {})
        accuracy = {f"accuracy.{name}": entry.get(name) for name in ("n", "war", "uar")} if measured else {}
        values = {k: v for k, v in row.as_json().items() if k not in ("samples", "tried")}
        flat.append({**_flatten(values), **accuracy})
    columns = list(dict.fromkeys(name for row in flat for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        if isinstance(inner, dict):
            flat |= _flatten(inner, f"{prefix}{name}.")
        elif not isinstance(inner, (list, tuple)):
            flat[prefix + name] = inner
    return flat


def comparison_rows(found: Sequence[Comparison], tolerance: float) -> list[list[str]]:
    """Head and rows of ``compare``."""
    head = ["configuration", "scenario", "A process ms", "B process ms", "B / A", "95% interval", "noise", "verdict"]
    rows = []
    for c in found:
        what = c.configuration
        name = f"{what['runtime']} {what['precision']}, {what['device']}, threads {what['threads']}"
        interval = f"{c.interval[0]:.3f} to {c.interval[1]:.3f}"
        verdict = "inconclusive" if c.answer(tolerance) == "inconclusive" else c.verdict
        times = [number(c.a_ms), number(c.b_ms), f"{c.ratio:.3f}"]
        rows.append([name, c.scenario, *times, interval, f"{c.noise:.1%}", verdict])
    return [head, *rows]


def interleaved_text(found: Mapping[str, Any]) -> str:
    """One entry of ``interleaved``, in three lines."""
    low, high = found["interval"]
    times = f"A {number(found['a_ms'])} ms, B {number(found['b_ms'])} ms"
    notes = [
        f"\n{side} GIVES WRONG ANSWERS: {found[key]['problem']}"
        for side, key in (("A", "a"), ("B", "b"))
        if found[key].get("answers") == "miss"
    ]
    if found["a"].get("where") == found["b"].get("where") and not Path(found["other"]).is_dir():
        notes.append("\nA and B are one installation: the other python has this very fer-edge")
    return (
        f"A: {found['name']}, {found['a']['engine']}, fer-edge {found['a']['fer_edge']}; B: {found['other']}, "
        f"{found['b']['engine']}, fer-edge {found['b']['fer_edge']}\n"
        f"B takes {found['ratio']:.3f} times A's time (95% interval {low:.3f} to {high:.3f}): {found['verdict']}\n"
        f"{times}; differences below {found['floor']:.1%} are noise in this run{''.join(notes)}"
    )


def sustained_text(found: Mapping[str, Any]) -> str:
    """What ``--sustained`` found."""
    after = found["throttled_after_s"]
    end = "it never became slower for good" if after is None else f"it became slower for good after {after:.0f} s"
    bundles = {r.get("bundle", "") for r in found["ranking"]}

    def name(entry: Mapping[str, Any]) -> str:
        several = len(bundles) > 1
        return f"{Path(entry['bundle']).name}, {entry['configuration']}" if several else str(entry["configuration"])

    lines = [
        f"{name(found)} worked for {found['seconds']:.0f} s: {end}; "
        f"at the end it took {found['slowdown']:.2f} times as long as at the start",
        f"rank  {'at the start':<50}  when hot",
    ]
    if found.get("stopped"):
        lines.insert(1, f"IT STOPPED {found['stopped']}")
    starts = sorted(found["ranking"], key=lambda r: float(r["before_ms"]))
    ends = sorted((r for r in found["ranking"] if r["after_ms"] is not None), key=lambda r: float(r["after_ms"]))
    for k, (cold, hot) in enumerate(zip_longest(starts, ends), 1):
        first = f"{name(cold)}: {number(cold['before_ms'])} ms"
        last = "-" if hot is None else f"{name(hot)}: {number(hot['after_ms'])} ms"
        lines.append(f"{k:>4}  {first:<50}  {last}")
    lines += [f"not ranked when hot, {name(r)}: {r['problem']}" for r in found["ranking"] if r.get("problem")]
    lines += [f"{name(r)} GIVES WRONG ANSWERS: {r['wrong']}" for r in found["ranking"] if r.get("answers") == "miss"]
    return "\n".join(lines)
