"""Other people's toolchains, each in an environment of its own: ``make test-targets`` sets them up."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def toolchain(distribution: str) -> str:
    """The Python of the environment that has a distribution; skips where there is none."""
    python = _python(distribution)
    if not python:
        pytest.skip(f"{distribution} is not set up: make test-targets")
    return python


@cache
def _python(distribution: str) -> str:
    code = "import sys; from importlib import metadata; metadata.distribution(sys.argv[1])"
    for python in sorted(ROOT.glob(".venv-target-*/bin/python")):
        if subprocess.run([python, "-c", code, distribution], capture_output=True).returncode == 0:
            return str(python)
    return ""


def installed(distribution: str) -> bool:
    """Whether a distribution is in this environment."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
