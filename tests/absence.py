"""An engine that is not installed, or another one in its place, for one test."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fer_edge.engines import ENGINES


def without(monkeypatch: pytest.MonkeyPatch, runtime: str) -> None:
    """The engine of a runtime is not here."""
    replaced(monkeypatch, runtime, imports=("no_such_engine",))


def replaced(monkeypatch: pytest.MonkeyPatch, runtime: str, **facts: object) -> None:
    """The engine of a runtime with other facts in its line of the table."""
    monkeypatch.setitem(ENGINES, runtime, replace(ENGINES[runtime], **facts))  # type: ignore[arg-type]
