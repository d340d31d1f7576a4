"""The figures section of a model card, in Markdown that also reads well in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from ..evaluate import Evaluation
from .tables import SPOILT_HEAD, spoilt_line, spoilt_rows

SHADES = ((0.75, "███"), (0.5, "▓▓▓"), (0.25, "▒▒▒"), (0.05, "░░░"), (0.0, ""))


def figures_section(evaluations: Sequence[Evaluation]) -> str:
    """A table of all evaluations; recalls with intervals, the confusion picture, and spoilt faces where they were looked at,
    of the first one."""
    first = evaluations[0]
    lines = [
        "| engine | precision | WAR (95% interval) | UAR (95% interval) |",
        "|---|---|---|---|",
        *map(_row, evaluations),
        "",
        f"By class, {first.runtime} {first.precision}, {first.n} faces. Intervals: bootstrap over faces.",
        "",
        "| class | faces | recall | 95% interval |",
        "|---|---|---|---|",
    ]
    for label in first.labels:
        recall, span = first.per_class_recall[label], first.intervals.per_class_recall[label]
        shown = "- | -" if recall is None or span is None else f"{recall:.0%} | {_span(span, 0)}"
        lines.append(f"| {label} | {first.per_class_count[label]} | {shown} |")
    return "\n".join([*lines, "", "```text", *confusion_picture(first), "```", *_spoilt(first)])


def _spoilt(first: Evaluation) -> list[str]:
    if first.robustness is None:
        return []
    found = first.robustness
    head = f"Spoilt faces, {first.runtime} {first.precision} ({found.pixels} pixels); {spoilt_line(found)}."
    return [
        "",
        *wrap(head, 120),
        "",
        f"| {' | '.join(SPOILT_HEAD)} |",
        f"|{'---|' * len(SPOILT_HEAD)}",
        *(f"| {' | '.join(row)} |" for row in spoilt_rows(found)),
    ]


def confusion_picture(result: Evaluation) -> list[str]:
    """Rows are the truth, columns the answer; percent of the row, shaded from 5, 25, 50 and 75% on."""
    width = max(len(label) for label in result.labels)
    lines = [" " * width + " " + "".join(f"{label[:7]:>8}" for label in result.labels)]
    for label, row in zip(result.labels, result.confusion, strict=True):
        cells = ""
        for count in row:
            share = count / max(1, sum(row))
            shade = next(mark for least, mark in SHADES if share >= least)
            cells += f"{shade:>4}{share:4.0%}" if count else f"{'.':>8}"
        lines.append(f"{label:>{width}} {cells}")
    return lines


def _row(e: Evaluation) -> str:
    war, uar = f"{e.war:.1%} ({_span(e.intervals.war)})", f"{e.uar:.1%} ({_span(e.intervals.uar)})"
    return f"| {e.runtime} | {e.precision} | {war} | {uar} |"


def _span(interval: tuple[float, float], digits: int = 1) -> str:
    low, high = (f"{100 * value:.{digits}f}" for value in interval)
    return f"{low} to {high}"
