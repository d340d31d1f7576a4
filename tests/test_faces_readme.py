"""What README.md and devices.md show of faces, done as a reader does it; the picture at the top is what it says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_docs import Block, commands, of_language

pytest.importorskip("cv2")
pytest.importorskip("platformdirs")


def blocks(page: Path, language: str) -> list[Block]:
    """The page's blocks that this file runs."""
    return [b for b in of_language(page, language) if b.mark == ("run by", "tests/test_faces_readme.py")]


@pytest.fixture
def reader(tmp_path: Path, yunet: Path, root: Path) -> tuple[Path, dict[str, str]]:
    """A folder with examples/, and an environment in whose cache the detector lies."""
    (tmp_path / "examples").symlink_to(root / "examples")
    place = tmp_path / "cache" / "fer-edge" / "detectors" / yunet.name
    place.parent.mkdir(parents=True)
    shutil.copy(yunet, place)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    environment = {"PATH": path, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(root)}
    return tmp_path, environment


@pytest.mark.parametrize("name", ["README.md", "docs/devices.md"])
def test_console_blocks_run(name: str, reader: tuple[Path, dict[str, str]], root: Path) -> None:
    folder, environment = reader
    (block,) = blocks(root / name, "console")
    script = 'set -euo pipefail\nfer-edge() { python -m fer_edge "$@"; }\n' + commands(block.text)
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if name == "README.md":
        with Image.open(folder / "labelled.jpg") as made, Image.open(root / "docs" / "two-faces.jpg") as shown:
            assert made.size == shown.size
            difference = np.abs(np.asarray(made).astype(int) - np.asarray(shown))
        assert difference.mean() < 2, "the picture at the top of the page is what the command draws"
        assert os.path.getsize(root / "docs" / "two-faces.jpg") < 200_000
    else:
        faces = json.loads(done.stdout.splitlines()[0])["faces"]
        assert [face["label"] for face in faces] == ["happiness"] * 2
        assert len(list((folder / "labelled").iterdir())) == 2


def test_python_blocks_run(reader: tuple[Path, dict[str, str]], root: Path) -> None:
    folder, environment = reader
    (block,) = blocks(root / "docs" / "devices.md", "python")
    command = [sys.executable, "-W", "error", "-c", block.text]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def test_the_photo_is_the_portrait_twice(root: Path, tmp_path: Path) -> None:
    made = tmp_path / "two.jpg"
    subprocess.run([sys.executable, "-m", "lab.readme_photo", "-o", made], cwd=root, check=True)
    with Image.open(made) as one, Image.open(root / "examples" / "two-faces.jpg") as other:
        assert np.abs(np.asarray(one).astype(int) - np.asarray(other)).mean() < 2
