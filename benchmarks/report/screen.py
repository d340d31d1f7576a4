"""What the benchmarks room shows on a terminal, whatever its width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from fer_edge.console import printable
from fer_edge.folders import ignored_lines

from ..calibrate import Figures as CalibrationFigures
from ..calibrate import SetCalibration
from ..compare import Comparison
from ..evaluate import Evaluation
from ..results import Results
from ..robustness import Robustness
from .tables import (
    PROFILE_HEAD,
    SPOILT_HEAD,
    accuracy_lines,
    comparison_rows,
    profiles,
    remarks,
    rows_of,
    spoilt_line,
    spoilt_rows,
    verdict_texts,
    where_lines,
)

IDENTITY = ("bundle", "runtime", "precision", "device", "threads", "scenario", "configuration", "operator")
"""Columns that say what a row is about."""
TEXTS = (*(name for name in IDENTITY if name != "threads"), "answers", "verdict", "kind", "on")
GAP = 2


def evaluation_text(result: Evaluation) -> str:
    """What ``evaluate`` prints for people."""
    corner = "truth (rows)"
    width = max(map(len, (corner, *result.labels)))
    ran = f"{result.runtime} {result.precision} on {result.device}"
    skipped = sum(result.skipped_classes.values())
    unlabelled = result.left_out - len(result.ignored)
    what, lost = ("photos", ["no face"]) if result.not_found else ("faces", [])
    war, uar = ("{:.1%} to {:.1%}".format(*pair) for pair in (result.intervals.war, result.intervals.uar))
    lines = [
        f"{result.n} {what}: WAR {result.war:.2%}, UAR {result.uar:.2%} ({ran}, labels {result.label_set})",
        f"95% intervals: WAR {war}, UAR {uar}",
        f"calibration error {result.calibration_error:.1%}; wrong of the surest 80%: {result.error_at_coverage['0.8']:.1%}; "
        + certain_text(result),
        *([missed_text(result)] if result.detector else ()),
        f"left out: {unlabelled} without a label, {skipped} of unknown classes, {len(result.unreadable)} unreadable"
        + (f", {result.named_out} by the list" if result.named_out else ""),
        *map(printable, ignored_lines(result.ignored)),
        "",
        f"{corner:<{width}}  recall  " + " ".join(f"{label[:9]:>9}" for label in (*result.labels, *lost)),
    ]
    for label, row in zip(result.labels, result.confusion, strict=True):
        recall = result.per_class_recall[label]
        shown = f"{recall:6.1%}" if recall is not None else "     -"
        row = [*row, result.not_found[label]] if result.not_found else row
        lines.append(f"{label:<{width}}  {shown}  " + " ".join(f"{count:>9}" for count in row))
    return "\n".join([*lines, *(_spoilt_lines(result.robustness) if result.robustness else ())])


def missed_text(result: Evaluation) -> str:
    """How many photos have no face that could be judged, and what they count as."""
    count = len(result.missed or ())
    return f"the largest face of each photo, by {result.detector}; {count} without a face that can be judged count as wrong"


def certain_text(result: Evaluation) -> str:
    """How many answers count as certain, and how many of them are wrong."""
    wrong = "" if result.certain_error is None else f", {result.certain_error:.1%} of them wrong"
    return f"certain: {result.certain:.1%}{wrong}"


def _spoilt_lines(found: Robustness) -> list[str]:
    rows = [SPOILT_HEAD, *spoilt_rows(found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = [
        "  ".join([f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    return ["", f"the same faces, spoilt ({found.pixels} pixels, median of their longer sides):", *table, spoilt_line(found)]


def calibration_text(found: Sequence[SetCalibration], ran: str) -> str:
    """What ``calibrate`` prints for people."""
    head = ("", "faces", "error", "calibration error", "loss", "error at 80%", "certain", "of these wrong")
    texts = []
    for entry in found:
        low, high = entry.temperature_interval or (entry.temperature, entry.temperature)
        span = f" ({low:.3f} to {high:.3f})" if entry.temperature_interval else ""
        rows = {
            "before": entry.before,
            "after": entry.after,
            "cross-validated": entry.cross_validated,
            "evaluation, before": entry.evaluation_before,
            "evaluation, after": entry.evaluation_after,
        }
        cells = [head, *(_calibration_cells(name, figures) for name, figures in rows.items() if figures is not None)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            f"{entry.label_set} ({ran}): temperature {entry.temperature_before:.3f} -> {entry.temperature:.3f}{span}, "
            f"threshold {entry.threshold_before:.3f} -> {entry.threshold:.3f}, "
            f"least length {entry.least_length_before:.3g} -> {entry.least_length:.3g}",
            *("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells),
        ]
        if entry.cross_validated is None:
            lines.append("not cross-validated: four fifths of the faces are too few for this rule")
        if entry.skipped_classes:
            lines.append(f"left out: {sum(entry.skipped_classes.values())} faces of classes that are no label of the set")
        if entry.background_uncertain is not None:
            lines.append(f"pictures without a face: {entry.background_uncertain:.1%} get no certain answer")
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def _calibration_cells(name: str, figures: CalibrationFigures) -> tuple[str, ...]:
    wrong = "-" if figures.certain_error is None else f"{figures.certain_error:.1%}"
    shares = (figures.error, figures.calibration_error)
    return (
        name,
        str(figures.n),
        *(f"{share:.1%}" for share in shares),
        f"{figures.loss:.3f}",
        f"{figures.error_at_80:.1%}",
        f"{figures.certain:.1%}",
        wrong,
    )


def bench_text(results: Results, screen: TextIO) -> None:
    """What ``bench`` prints for people."""
    console = _console(screen)
    if results.rows:
        head, rows = rows_of(results)
        _table(console, head, rows, wrong=[row[-1] == "WRONG" for row in rows])
    for text in where_lines(results):
        console.print(f"Where: {printable(text)}")
    for text in (*accuracy_lines(results), *verdict_texts(results)):
        console.print(printable(text))
    for title, rows in profiles(results):
        console.print(f"\n{printable(title)}")
        _table(console, PROFILE_HEAD, rows, wrong=[False] * len(rows))
    for note in remarks(results):
        console.print(f"Note: {printable(note)}")


def comparison_text(
    found: Sequence[Comparison],
    tolerance: float,
    gone: Sequence[str],
    bad: Sequence[str],
    notes: Sequence[str],
    screen: TextIO,
) -> None:
    """What ``compare`` prints for people."""
    console = _console(screen)
    head, *rows = comparison_rows(found, tolerance)
    answers = [c.answer(tolerance) for c in found]
    if rows:
        _table(console, head, rows, wrong=[answer == "regression" for answer in answers])
        console.print("A and B: the median of the processes' medians; bench's p50 is that of all samples.")
        for line in _conclusions(found, tolerance, whole=not (gone or bad)):
            console.print(line)
    else:
        console.print("Nothing to compare: B failed in what A measured.")
    for line in gone:
        console.print(f"Lost in B: {printable(line)}", style="bold red")
    for line in bad:
        console.print(f"Wrong answers in B: {printable(line)}", style="bold red")
    for line in notes:
        console.print(f"Note: {printable(line)}")


def _conclusions(found: Sequence[Comparison], tolerance: float, whole: bool) -> list[str]:
    answers = [c.answer(tolerance) for c in found]
    slower, unknown = answers.count("regression"), answers.count("inconclusive")
    allowed, lines = f"the tolerance of {tolerance:.0%}", []
    if slower:
        lines.append(f"Regression: {slower} of {len(found)} are slower beyond noise and {allowed}.")
    if unknown:
        largest = max(c.noise for c, answer in zip(found, answers, strict=True) if answer == "inconclusive")
        lines.append(
            f"Inconclusive: in {unknown} of {len(found)} noise of up to {largest:.1%} is larger than {allowed}. Measure on "
            "a quieter machine, longer (--seconds), in more processes (--rounds) or in turns (bench --interleave), or "
            "allow more with --tolerance."
        )
    if not lines:
        lines.append(f"{'No regression' if whole else 'Of what both measured'}: none is slower beyond noise and {allowed}.")
    return lines


def fitting(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> tuple[str, list[list[int]]]:
    """(what all rows have in common, the columns of each table): one table of everything where it fits; else several, each
    with what tells the rows apart, and the verdict in the first."""
    widths = [max(len(head[i]), *(len(row[i]) for row in rows)) + GAP for i in range(len(head))]
    if sum(widths) - GAP <= width:
        return "", [list(range(len(head)))]
    same = [i for i, name in enumerate(head) if name in IDENTITY and len({row[i] for row in rows}) == 1]
    who = [i for i, name in enumerate(head) if name in IDENTITY and i not in same]
    values = [i for i, name in enumerate(head) if name not in IDENTITY]
    room = width - sum(widths[i] for i in who)
    tables: list[list[int]] = [[]]
    for i in [values[-1], *values[:-1]]:
        if tables[-1] and sum(widths[k] for k in tables[-1]) + widths[i] - GAP > room:
            tables.append([])
        tables[-1].append(i)
    return ", ".join(f"{head[i]} {rows[0][i]}" for i in same), [[*who, *table] for table in tables]


def _console(screen: TextIO) -> Any:
    from rich.console import Console

    # A file or a pipe has no width: nothing is cut there.
    return Console(file=screen, highlight=False, markup=False, soft_wrap=True, width=None if screen.isatty() else 1000)


def _table(console: Any, head: Sequence[str], rows: Sequence[Sequence[str]], wrong: Sequence[bool]) -> None:
    from rich.table import Table

    rows = [[printable(cell) for cell in row] for row in rows]
    common, tables = fitting(head, rows, console.width)
    if common:
        console.print(f"All rows: {common}")
    for columns in tables:
        table = Table(box=None, pad_edge=False, padding=(0, GAP // 2), header_style="bold")
        for i in columns:
            table.add_column(head[i], justify="left" if head[i] in TEXTS else "right", overflow="fold")
        for row, bad in zip(rows, wrong, strict=True):
            table.add_row(*(row[i] for i in columns), style="bold red" if bad else None)
        console.print(table)
