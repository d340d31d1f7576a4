"""What ``evaluate`` found as one HTML file."""

from __future__ import annotations

from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_edge.folders import ignored_lines
from fer_edge.page import INK, bullets, page, plot, table

from ..evaluate import Evaluation
from ..robustness import Robustness, SpoiltFigures
from .plots import ACCENT, SOFT, WIDTH, WRONG
from .screen import certain_text, missed_text
from .tables import SPOILT_HEAD, spoilt_line, spoilt_rows

RECALL_HEAD = ("class", "faces", "recall", "95% interval")


def evaluation_page(result: Evaluation) -> str:
    """The whole page."""
    war, uar = ("{:.1%} to {:.1%}".format(*pair) for pair in (result.intervals.war, result.intervals.uar))
    ran = f"{result.runtime} {result.precision} on {result.device}, labels {result.label_set}"
    what = "photos" if result.detector else "faces"
    notes = [
        f"{result.n} {what}: WAR {result.war:.1%} ({war}), UAR {result.uar:.1%} ({uar}); 95% intervals",
        *([missed_text(result)] if result.detector else ()),
        f"calibration error {result.calibration_error:.1%}; {certain_text(result)}",
        *ignored_lines(result.ignored),
    ]
    if result.unreadable:
        notes.append(f"{len(result.unreadable)} images could not be read and count nowhere")
    parts = [
        "<h1>fer-edge evaluation</h1>",
        f'<p class="soft">{escape(ran)}</p>',
        bullets(notes),
        '<h2 id="recall">How many of each class are found?</h2>',
        table(RECALL_HEAD, _recalls(result), ("class",)),
        '<h2 id="confusion">What is taken for what?</h2>',
        plot(_confusion(result), "What is taken for what?"),
        '<h2 id="certainty">Does it know when it is wrong?</h2>',
        plot(_certainty(result), "Does it know when it is wrong?"),
    ]
    if result.robustness is not None:
        title = "How does it stand faces that cameras spoil?"
        parts += [
            f'<h2 id="robustness">{title}</h2>',
            bullets([spoilt_line(result.robustness), f"pictures of {result.robustness.pixels} pixels (median)"]),
            plot(_robustness(result.robustness, result.war), title),
            table(SPOILT_HEAD, spoilt_rows(result.robustness), ("spoilt",)),
        ]
    return page("fer-edge evaluation", parts)


def _recalls(result: Evaluation) -> list[list[str]]:
    rows = []
    for label in result.labels:
        recall, span = result.per_class_recall[label], result.intervals.per_class_recall[label]
        shown = ["-", "-"] if recall is None or span is None else [f"{recall:.0%}", "{:.0%} to {:.0%}".format(*span)]
        rows.append([label, str(result.per_class_count[label]), *shown])
    return rows


def _confusion(result: Evaluation) -> Figure:
    """Shares of each row, the truth; blank where a class has no face."""
    counts = np.array(result.confusion, float)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    k = len(result.labels)
    figure = Figure(figsize=(WIDTH, 1.0 + 0.42 * k), layout="constrained")
    axes = figure.add_subplot()
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1)
    axes.invert_yaxis()
    axes.set_xticks(np.arange(k) + 0.5, result.labels, rotation=40, ha="right")
    axes.set_yticks(np.arange(k) + 0.5, result.labels)
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        shade = "white" if share > 0.5 else INK
        axes.text(column + 0.5, row + 0.5, f"{share:.0%}", ha="center", va="center", fontsize=7, color=shade)
    axes.set_xlabel("answer", fontsize=8, color=INK)
    axes.set_ylabel("truth", fontsize=8, color=INK)
    return figure


def _certainty(result: Evaluation) -> Figure:
    """Left: the share of right answers among those about equally probable (the area: how many). Right: the share of wrong
    answers among the surest."""
    figure = Figure(figsize=(WIDTH, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = result.reliability
    left.plot((0, 1), (0, 1), color=SOFT, linewidth=0.8, linestyle="--")
    sizes = [4 + 120 * entry.faces / result.n for entry in bins]
    left.scatter([b.confidence for b in bins], [b.right for b in bins], s=sizes, color=ACCENT)
    left.set(xlim=(0, 1), ylim=(0, 1))
    left.set_xlabel("probability of the answer", fontsize=8, color=INK)
    left.set_ylabel("share of right answers", fontsize=8, color=INK)
    shares = [float(share) for share in result.error_at_coverage]
    right.plot(shares, list(result.error_at_coverage.values()), color=ACCENT)
    if result.certain_error is not None and result.certain < 1:
        right.plot([result.certain], [result.certain_error], "o", color=WRONG, label="certain")
        right.legend(fontsize=7, frameon=False)
    right.set(xlim=(0, 1))
    right.set_ylim(bottom=0)
    right.set_xlabel("share of the faces, the surest first", fontsize=8, color=INK)
    right.set_ylabel("share of wrong answers", fontsize=8, color=INK)
    return figure


def _robustness(found: Robustness, clean: float) -> Figure:
    """WAR against how sure the classifier says it is: a red line between them is trust that is not earned."""
    rows = list(reversed(found.rows))
    figure = Figure(figsize=(WIDTH, 1.0 + 0.2 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    _spans(axes, rows)
    axes.axvline(clean, color=SOFT, linewidth=0.8, linestyle="--", label="WAR, clean")
    axes.set_yticks(range(len(rows)), [row.text + (" *" if row.standard else "") for row in rows])
    axes.set_xlim(0, 1)
    axes.set_xlabel("fraction of 1", fontsize=8, color=INK)
    axes.legend(fontsize=7, frameon=False, ncols=4, loc="lower center", bbox_to_anchor=(0.4, 1.0))
    return figure


def _spans(axes: Axes, rows: list[SpoiltFigures]) -> None:
    at = range(len(rows))
    colours = [WRONG if row.mean_confidence > row.war else SOFT for row in rows]
    axes.hlines(
        at, [row.war for row in rows], [row.mean_confidence for row in rows], colors=colours, linewidth=1.5, alpha=0.6
    )
    axes.plot([row.war for row in rows], at, "o", color=ACCENT, markersize=5, label="WAR")
    axes.plot([row.uar for row in rows], at, "d", color=ACCENT, markersize=4, fillstyle="none", label="UAR")
    axes.plot([row.mean_confidence for row in rows], at, "|", color=INK, markersize=8, label="mean confidence")
