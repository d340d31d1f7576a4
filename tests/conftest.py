"""Shared fixtures: the embedded bundle, the real faces, the shipped portrait, small CLIPs with random weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fer_edge.classifier import DEFAULT_BUNDLE

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real faces (FER_EDGE_DATA, default ../shared/data)."""
    folder = Path(os.environ.get("FER_EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fer2013" / "public_test.npz").is_file():
        pytest.skip(f"no real faces at {folder}; set FER_EDGE_DATA")
    return folder


@pytest.fixture(scope="session")
def portrait() -> Path:
    """The astronaut's portrait, 512 x 512; her face is at PORTRAIT_BOX."""
    return ROOT / "examples" / "astronaut.png"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A writable copy of the embedded bundle."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))
