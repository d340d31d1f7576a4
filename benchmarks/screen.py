"""Tables of the benchmarks room."""

from __future__ import annotations

from .evaluate import Evaluation


def evaluation_text(result: Evaluation) -> str:
    """What ``evaluate`` prints for people."""
    corner = "truth (rows)"
    width = max(map(len, (corner, *result.labels)))
    ran = f"{result.runtime} {result.precision} on {result.device}"
    skipped = sum(result.skipped_classes.values())
    war, uar = ("{:.1%} to {:.1%}".format(*pair) for pair in (result.intervals.war, result.intervals.uar))
    lines = [
        f"{result.n} faces: WAR {result.war:.2%}, UAR {result.uar:.2%} ({ran}, labels {result.label_set})",
        f"95% intervals: WAR {war}, UAR {uar}",
        f"left out: {result.left_out} without a label, {skipped} of unknown classes, {len(result.unreadable)} unreadable",
        "",
        f"{corner:<{width}}  recall  " + " ".join(f"{label[:9]:>9}" for label in result.labels),
    ]
    for label, row in zip(result.labels, result.confusion, strict=True):
        recall = result.per_class_recall[label]
        shown = f"{recall:6.1%}" if recall is not None else "     -"
        lines.append(f"{label:<{width}}  {shown}  " + " ".join(f"{count:>9}" for count in row))
    return "\n".join(lines)
