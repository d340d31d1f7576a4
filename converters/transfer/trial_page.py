"""The trial of a cache for people who decide: one HTML file with pictures and plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from fer_edge.accuracy import DIFFERENCE_LEVEL, Difference, differs
from fer_edge.console import printable
from fer_edge.errors import ConversionError, ImageError
from fer_edge.folders import ignored_lines
from fer_edge.page import bullets, page, plot, table

from .features import Faces
from .trial import Accuracy, TransferTrial

THUMB = 88
"""Pixels of a face on the contact sheet."""


_PIXELS = (
    '<p class="soft">Here plain CLIP sees the pixels of this cache, value / 255 as for the released heads, and not its own '
    "mean and std. On labelled faces it sees those.</p>"
)


def report(trial: TransferTrial, faces: Faces, known: Mapping[str, str]) -> str:
    """The whole page. ``known``: name -> sha256 of the cache's faces. Those that are gone, cannot be read any more, or are
    other pictures by now are named instead of shown."""
    parts = [
        "<h1>Knowledge transfer: a trial</h1>",
        f'<p class="soft">{escape(trial.image["source"])}, taught by {escape(trial.llm["source"])}; '
        f"method {escape(str(trial.recipe['method']))}</p>",
        bullets(verdict(trial)),
        "<h2>Would more faces help?</h2>",
        plot(_learning_curve(trial), "learning curve"),
        "<h2>What changes against plain CLIP, under the same prompts</h2>",
        *([_PIXELS] if trial.image["settings"].get("pixels") != "clip" else []),
        plot(_class_balance(trial), "class balance"),
        table(
            ["from", "to", "faces"],
            [[a, b, str(n)] for a, b, n in trial.flows[:10]],
            texts=("from", "to"),
        ),
    ]
    if trial.before and trial.after:
        parts += ["<h2>On labelled faces</h2>", _accuracy(trial.before, trial.after, trial.labels)]
    parts += ["<h2>Faces nearest to each label, and farthest from it</h2>", _sheet(trial, faces, known)]
    prompts = [[label, " / ".join(some)] for label, some in trial.prompts.items()]
    parts += ["<h2>Prompts</h2>", table(["label", "prompts"], prompts, texts=("label", "prompts"))]
    return page("Knowledge transfer: a trial", parts)


def verdict(trial: TransferTrial) -> list[str]:
    """What was trial, in sentences."""
    chance = 1 / trial.among
    learned = "The projection has learned something" if trial.retrieval > 3 * chance else "That is hardly more than chance"
    lines = [
        f"{trial.faces} faces ({trial.left_out} left out, {trial.repeated} repeated), {trial.held_out} of them held out.",
        f"Of the held-out faces {trial.retrieval:.1%} find their LLM features among {trial.among} (chance: {chance:.1%}).",
        f"{learned}. Against plain CLIP {trial.flips:.1%} of the faces change their label.",
    ]
    lines.append(_more_faces(trial, learned.startswith("The")))
    if trial.before and trial.after and trial.gain:
        lines.append(_gain(trial.labelled or 0, trial.before, trial.after, trial.gain))
    else:
        lines.append("No labelled faces were given, so nothing is said of accuracy: --labelled FOLDER.")
    for name, count in trial.skipped.items():
        lines.append(f"{count} faces of the class {name!r} were left out: it is no label here.")
    return [*lines, *(f"Of the labelled faces' folder {printable(line)}." for line in ignored_lines(trial.ignored))]


def _more_faces(trial: TransferTrial, learned: bool) -> str:
    """Nothing is said where nothing was learned, or where the curve has no two points far enough apart."""
    if not learned:
        return "Whether more faces would help cannot be said while nothing is learned: first other settings, or another LLM."
    before, last = next((p for p in trial.curve[::-1] if p.faces <= trial.curve[-1].faces / 1.5), None), trial.curve[-1]
    if before is None:
        return f"Whether more faces would help cannot be said from {last.faces}: give some batches more."
    rises = last.retrieval - before.retrieval > 0.1 * last.retrieval
    more = "it still rises: more faces are likely to help" if rises else "it has flattened: more such faces will help little"
    shares = f"from {before.retrieval:.1%} to {last.retrieval:.1%}"
    return f"Between {before.faces} and {last.faces} faces, in as many steps, retrieval goes {shares}; {more}."


def _gain(faces: int, before: Accuracy, after: Accuracy, gain: Difference) -> str:
    end = "." if differs(gain.uar_interval) else ": within what so few faces can tell."
    low, high = (f"{100 * value:+.1f}" for value in gain.uar_interval)
    return (
        f"On {faces} labelled faces UAR goes from {before.uar:.1%} to {after.uar:.1%} (by {low} to {high} points, "
        f"{DIFFERENCE_LEVEL:.0%} interval over the same faces), WAR from {before.war:.1%} to {after.war:.1%}{end}"
    )


def _accuracy(before: Accuracy, after: Accuracy, labels: Sequence[str]) -> str:
    def percent(value: float | None, span: tuple[float, float] | None = None) -> str:
        text = "-" if value is None else f"{value:.1%}"
        return text if span is None else f"{text} ({span[0]:.1%} to {span[1]:.1%})"

    rows = [
        ["UAR", percent(before.uar, before.uar_interval), percent(after.uar, after.uar_interval)],
        ["WAR", percent(before.war, before.war_interval), percent(after.war, after.war_interval)],
        *([f"recall of {name}", percent(before.recall[name]), percent(after.recall[name])] for name in labels),
    ]
    return table(["", "plain CLIP", "projected"], rows)


def _sheet(trial: TransferTrial, faces: Faces, known: Mapping[str, str]) -> str:
    parts = []
    for label, ends in trial.ends.items():
        for name, some in (("nearest", ends.nearest), ("farthest", ends.farthest)):
            shown = "".join(f"<span>{_face(faces, path, known[path])}<br>{cosine:.3f}</span>" for path, cosine in some)
            parts.append(f'<p>{escape(label)}, {name}</p><div class="faces">{shown}</div>')
    return "".join(parts)


def _face(faces: Faces, name: str, sha256: str) -> str:
    try:
        picture, now = faces.read(name)
    except (ImageError, ConversionError):
        return f"{escape(name)}: cannot be read"
    if now != sha256:
        return f"{escape(name)}: another picture by now"
    picture = picture.convert("RGB").resize((THUMB, THUMB))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    named = f'alt="{escape(name)}" title="{escape(name)}" width="{THUMB}"'
    return f'<img {named} src="data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}">'


def _learning_curve(trial: TransferTrial) -> Figure:
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    at = [p.faces for p in trial.curve]
    axes.plot(at, [p.retrieval * 100 for p in trial.curve], "o-", label="retrieval, held out")
    for name in ("uar", "war"):
        values = [getattr(p, name) for p in trial.curve]
        if all(v is not None for v in values):
            axes.plot(at, [v * 100 for v in values], "o-", label=name.upper())
    axes.axhline(100 / trial.among, color="0.6", linewidth=0.8, linestyle="--", label="chance of retrieval")
    axes.set(xlabel="faces learned from", ylabel="percent", xscale="log", ylim=(0, None))
    axes.set_xticks(at, [str(n) for n in at])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _class_balance(trial: TransferTrial) -> Figure:
    figure = Figure(figsize=(5.6, 0.8 + 0.4 * len(trial.labels)), layout="constrained")
    axes = figure.subplots()
    places = range(len(trial.labels))
    for shift, name, shares in ((-0.2, "plain CLIP", trial.balance_before), (0.2, "projected", trial.balance_after)):
        axes.barh([p + shift for p in places], [shares[label] * 100 for label in trial.labels], height=0.38, label=name)
    axes.set_yticks(list(places), list(trial.labels))
    axes.invert_yaxis()
    axes.set_xlabel("percent of the unlabelled faces")
    axes.legend(fontsize=8)
    return figure
