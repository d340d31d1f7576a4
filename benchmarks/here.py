"""``fer-edge info --here``: which unit of this box computes how much of each artefact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fer_edge import runtime as rt
from fer_edge.bundle import Bundle
from fer_edge.engines import installed
from fer_edge.errors import FerEdgeError

from .results import Configuration, units_text
from .worker import isolated_placement


def here(bundle: Bundle, on_row: Callable[[str], None] = lambda name: None) -> list[dict[str, Any]]:
    """For each artefact: "runtime", "precision", "units", "note" (what the engine does not tell, or why it does not run),
    and "text" with the same for people. Each is opened in a process of its own."""
    rows = []
    for artefact in bundle.manifest.general_artefacts:
        name = f"{artefact.runtime} {artefact.precision}"
        on_row(name)
        row: dict[str, Any] = {"runtime": artefact.runtime, "precision": artefact.precision, "units": [], "note": ""}
        if not installed(artefact.runtime):
            row["note"] = "its engine is not installed here"
        else:
            try:
                configuration = Configuration(
                    str(bundle.folder), artefact.runtime, artefact.precision, None, rt.default_threads()
                )
                found = isolated_placement(configuration)
                row |= {"units": [asdict(unit) for unit in found.units], "note": found.note}
                row["text"] = f"{name} runs {units_text(found.units)}" if found.units else ""
            except FerEdgeError as error:
                row["note"] = str(error)
        rows.append(row | {"text": row.get("text") or f"{name}: {row['note']}"})
    return rows
