"""Text and JSON of bundles, boxes and verdicts, for the command line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .bundle import Bundle
from .classifier import artefact_name
from .console import printable
from .doctor import Diagnosis
from .golden import is_upper
from .manifest import digest_of
from .verify import Report


def table(rows: Iterable[Sequence[str]]) -> str:
    """Rows as aligned columns."""
    rows = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def summary(bundle: Bundle) -> dict[str, Any]:
    """What ``info --json`` prints."""
    m = bundle.manifest
    return {
        "bundle": str(bundle.folder),
        "name": m.name,
        "version": m.version,
        "licence": m.licence,
        "digest": digest_of(m),
        "encoder": {"source": m.encoder.source, "sha256": m.encoder.sha256},
        "projection": None if m.projection is None else {"source": m.projection.source, "sha256": m.projection.sha256},
        "input": {
            "height": m.input.height,
            "width": m.input.width,
            "color": m.input.color,
            "mean": list(m.input.mean),
            "std": list(m.input.std),
            "crop": {"scale": m.input.crop.scale},
        },
        "feature_dim": m.feature_dim,
        "default_labels": m.default_labels,
        "label_sets": {ref.name: list(ref.labels) for ref in m.label_sets},
        "artefacts": [
            {
                "runtime": a.runtime,
                "precision": a.precision,
                "target": a.target,
                "bytes": sum(f.bytes for f in a.files),
                "parity": dict(a.parity),
                "calibration": a.calibration,
                "drift_allowed": a.drift_allowed,
            }
            for a in m.artefacts
        ],
        "text_encoder": {"kind": m.text_encoder.kind, "source": m.text_encoder.source, "sha256": m.text_encoder.sha256},
        "card": m.card,
        "tools": dict(m.tools),
    }


def describe(bundle: Bundle) -> str:
    """What ``info`` prints."""
    m = bundle.manifest
    pixels = "value / 255" if not any(m.input.mean) else f"value / 255, mean {m.input.mean}, std {m.input.std}"
    facts = [
        ["bundle", f"{m.name} version {m.version} ({bundle.folder})"],
        ["licence", m.licence],
        ["encoder", m.encoder.source],
        ["projection", m.projection.source if m.projection else "none"],
        ["text encoder", f"{m.text_encoder.source} ({m.text_encoder.kind})"],
        ["input", f"{m.input.color} {m.input.width} x {m.input.height}, {pixels}"],
        ["crop", f"a square of {m.input.crop.scale:g} times the longer side of a face's box"],
        ["feature", f"{m.feature_dim} numbers"],
        [
            "label sets",
            "; ".join(
                f"{r.name}{' (default)' if r.name == m.default_labels else ''}: {', '.join(r.labels)}" for r in m.label_sets
            ),
        ],
    ]
    rows = [["artefact", "MB", "centred cosine", "top-1 agreement", "calibrated with"]]
    for a in m.artefacts:
        size = f"{sum(f.bytes for f in a.files) / 1e6:.2f}"
        drift = " (drift allowed)" if a.drift_allowed else ""
        rows.append(
            [
                artefact_name(a) + drift,
                size,
                f"{a.parity['centred_cosine']:.4f}" if "centred_cosine" in a.parity else "-",
                f"{a.parity['top1_agreement']:.3f}" if "top1_agreement" in a.parity else "-",
                a.calibration or "-",
            ]
        )
    return f"{table(facts)}\n\n{table(rows)}"


_PURPOSE = {
    "convert": "convert models, on a host",
    "bench": "measure speed and accuracy",
    "ray": "transfer on a cluster",
    "ethos-u": "compile for Arm's NPUs",
}


def diagnosis_text(found: Diagnosis) -> str:
    """What ``doctor`` prints."""
    facts = [
        ["fer-edge", f"{found.fer_edge}, Python {found.python}, {found.system}"],
        ["processor", f"{found.cpu}, {found.usable_cores} of {found.cores} cores usable"],
        ["features", f"{', '.join(found.features) or 'none that matter'}: {found.note}"],
    ]
    rows = [["runtime", "engine", "devices"]]
    rows += [[e.runtime, e.engine or "not ready", ", ".join(e.devices) or e.cure] for e in found.engines]
    notes = [
        f"{e.runtime}: {device} is listed, and does not start: {why}"
        for e in found.engines
        for device, why in e.failing.items()
        if e.ready
    ]
    notes += [f"Warning: {warning}" for warning in found.warnings]
    notes += [
        f"Not here, and not needed to predict or verify: the extra '{name}' ({_PURPOSE.get(name, name)}): {command}"
        for name, command in found.missing_extras.items()
    ]
    return "\n".join([table(facts), "", table(rows), *(["", *notes] if notes else [])])


def verdict_text(report: Report) -> str:
    """What ``verify`` prints."""
    lines = list(report.files)
    if report.rows:
        rows = [["artefact", "verdict", "centred cosine", "self-retrieval", "top-1", "score diff", "computed in", "engine"]]
        for row in report.rows:
            p = row.parity
            numbers = (
                [
                    f"{p.centred_cosine:.4f}",
                    f"{p.self_retrieval:.3f}",
                    f"{p.top1_agreement:.3f}",
                    f"{p.score_difference:.1e}",
                ]
                if p
                else ["-"] * 4
            )
            rows.append(
                [
                    f"{row.runtime} {row.precision}",
                    row.status,
                    *numbers,
                    row.execution_precision or "-",
                    row.engine or "-",
                ]
            )
        lines.append(table(rows))
        lines += [
            f"{row.runtime} {row.precision}: {row.problem}" for row in report.rows if row.problem not in ("", *report.files)
        ]
    held = report.bars.items()
    lines += [f"Bars of {p}: {', '.join(_bar(name, bar) for name, bar in bars.items())}." for p, bars in held]
    return "\n".join([*lines, _verdict(report)])


def _bar(name: str, bar: float) -> str:
    return f"{name.replace('_', ' ')} {'at most' if is_upper(name) else 'at least'} {bar:g}"


def _verdict(report: Report) -> str:
    """The last line of ``verify``: what it means, and what to do."""
    states = [row.status for row in report.rows]
    if report.ok:
        counts = [f"{states.count('ok')} of {len(states)} artefacts give the reference's answer on this box"]
        if "drift allowed" in states:
            counts.append(f"{states.count('drift allowed')} miss it, as was allowed at conversion")
        if "no engine" in states:
            counts.append(f"{states.count('no engine')} not checked for want of an engine")
        return f"Good: all files are intact, {', '.join(counts)}."
    if report.files:
        return "Failed: files of the bundle are not those that were written. Copy it to this box again, then verify again."
    if all(state == "no engine" for state in states):
        why = "no engine for these artefacts is installed here" if states else "the bundle holds no artefact"
        return f"Failed: nothing could be checked, because {why}."
    return "Failed: do not use the artefacts above that are neither ok nor drift allowed on this box."
