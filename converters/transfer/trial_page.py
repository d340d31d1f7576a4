"""The pilot's verdict for people who decide: one HTML file with pictures and plots."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fer_edge.errors import ConversionError, ImageError
from fer_edge.page import bullets, page, table

from .features import Faces
from .trial import Accuracy, Pilot

THUMB = 88
"""Pixels of a face on the contact sheet."""


_PIXELS = (
    '<p class="soft">Here plain CLIP sees the pixels of this cache, value / 255 as for the released heads, and not its own '
    "mean and std. On labelled faces it sees those.</p>"
)


def report(found: Pilot, faces: Faces, known: Mapping[str, str]) -> str:
    """The whole page. ``known``: name -> sha256 of the cache's faces. Those that are gone, cannot be read any more, or are
    other pictures by now are named instead of shown."""
    parts = [
        "<h1>Knowledge transfer: the pilot</h1>",
        f'<p class="soft">{escape(found.image["source"])}, taught by {escape(found.llm["source"])}; '
        f"method {escape(str(found.recipe['method']))}</p>",
        bullets(verdict(found)),
        "<h2>Would more faces help?</h2>",
        _picture(_curve(found), "learning curve"),
        "<h2>What changes against plain CLIP, under the same prompts</h2>",
        *([_PIXELS] if found.image["settings"].get("pixels") != "clip" else []),
        _picture(_balance(found), "class balance"),
        table(
            ["from", "to", "faces"],
            [[a, b, str(n)] for a, b, n in found.flows[:10]],
            texts=("from", "to"),
        ),
    ]
    if found.before and found.after:
        parts += ["<h2>On labelled faces</h2>", _accuracy(found.before, found.after, found.labels)]
    parts += ["<h2>Faces nearest to each label, and farthest from it</h2>", _sheet(found, faces, known)]
    prompts = [[label, " / ".join(some)] for label, some in found.prompts.items()]
    parts += ["<h2>Prompts</h2>", table(["label", "prompts"], prompts, texts=("label", "prompts"))]
    return page("Knowledge transfer: the pilot", parts)


def verdict(found: Pilot) -> list[str]:
    """What was found, in sentences."""
    chance = 1 / found.among
    learned = "The projection has learned something" if found.retrieval > 3 * chance else "That is hardly more than chance"
    lines = [
        f"{found.faces} faces ({found.left_out} left out, {found.repeated} repeated), {found.held_out} of them held out.",
        f"Of the held-out faces {found.retrieval:.1%} find their LLM features among {found.among} (chance: {chance:.1%}).",
        f"{learned}. Against plain CLIP {found.flips:.1%} of the faces change their label.",
    ]
    lines.append(_more_faces(found, learned.startswith("The")))
    if found.before and found.after:
        lines.append(_gain(found.labelled or 0, found.before, found.after))
    else:
        lines.append("No labelled faces were given, so nothing is said of accuracy: --labelled FOLDER.")
    for name, count in found.skipped.items():
        lines.append(f"{count} faces of the class {name!r} were left out: it is no label here.")
    return lines


def _more_faces(found: Pilot, learned: bool) -> str:
    """Nothing is said where nothing was learned, or where the curve has no two points far enough apart."""
    if not learned:
        return "Whether more faces would help cannot be said while nothing is learned: first other settings, or another LLM."
    before, last = next((p for p in found.curve[::-1] if p.faces <= found.curve[-1].faces / 1.5), None), found.curve[-1]
    if before is None:
        return f"Whether more faces would help cannot be said from {last.faces}: give some batches more."
    rises = last.retrieval - before.retrieval > 0.1 * last.retrieval
    more = "it still rises: more faces are likely to help" if rises else "it has flattened: more such faces will help little"
    shares = f"from {before.retrieval:.1%} to {last.retrieval:.1%}"
    return f"Between {before.faces} and {last.faces} faces, in as many steps, retrieval goes {shares}; {more}."


def _gain(faces: int, a: Accuracy, b: Accuracy) -> str:
    apart = b.uar_interval[0] > a.uar or b.uar_interval[1] < a.uar
    span = f"{b.uar_interval[0]:.1%} to {b.uar_interval[1]:.1%}"
    end = "." if apart else ": within what so few faces can tell."
    uar, war = f"UAR goes from {a.uar:.1%} to {b.uar:.1%} ({span})", f"WAR from {a.war:.1%} to {b.war:.1%}"
    return f"On {faces} labelled faces {uar}, {war}{end}"


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


def _sheet(found: Pilot, faces: Faces, known: Mapping[str, str]) -> str:
    rows = []
    for label, ends in found.ends.items():
        for name, some in (("nearest", ends.nearest), ("farthest", ends.farthest)):
            cells = "".join(f"<td>{_face(faces, path, known[path])}<br>{cosine:.3f}</td>" for path, cosine in some)
            rows.append(f"<tr><td class=text>{escape(label)}, {name}</td>{cells}</tr>")
    return f'<div class="wide"><table>{"".join(rows)}</table></div>'


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
    return f'<img {named} src="data:image/jpeg;base64,{_base64(stream)}">'


def _base64(stream: io.BytesIO) -> str:
    return base64.b64encode(stream.getvalue()).decode()


def _picture(figure: Figure, alt: str) -> str:
    FigureCanvasAgg(figure)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140)
    style = 'style="max-width:100%;height:auto"'
    return f'<figure><img alt="{alt}" {style} src="data:image/png;base64,{_base64(stream)}"></figure>'


def _curve(found: Pilot) -> Figure:
    figure = Figure(figsize=(5.6, 3.2), layout="constrained")
    axes = figure.subplots()
    at = [p.faces for p in found.curve]
    axes.plot(at, [p.retrieval * 100 for p in found.curve], "o-", label="retrieval, held out")
    for name in ("uar", "war"):
        values = [getattr(p, name) for p in found.curve]
        if all(v is not None for v in values):
            axes.plot(at, [v * 100 for v in values], "o-", label=name.upper())
    axes.axhline(100 / found.among, color="0.6", linewidth=0.8, linestyle="--", label="chance of retrieval")
    axes.set(xlabel="faces learned from", ylabel="percent", xscale="log", ylim=(0, None))
    axes.set_xticks(at, [str(n) for n in at])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _balance(found: Pilot) -> Figure:
    figure = Figure(figsize=(5.6, 0.8 + 0.4 * len(found.labels)), layout="constrained")
    axes = figure.subplots()
    places = range(len(found.labels))
    for shift, name, shares in ((-0.2, "plain CLIP", found.balance_before), (0.2, "projected", found.balance_after)):
        axes.barh([p + shift for p in places], [shares[label] * 100 for label in found.labels], height=0.38, label=name)
    axes.set_yticks(list(places), list(found.labels))
    axes.invert_yaxis()
    axes.set_xlabel("percent of the unlabelled faces")
    axes.legend(fontsize=8)
    return figure
