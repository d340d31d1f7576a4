"""examples/java: the crop that Android is given is Python's to the bit. The rest needs Android's libraries."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from fer_edge.image import to_input


@pytest.fixture(scope="module")
def classes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("no javac here: apt-get install default-jdk-headless")
    folder = tmp_path_factory.mktemp("java")
    command = ["javac", "-Xlint:all", "-Werror", "-d", str(folder), str(root / "examples" / "java" / "FaceCrop.java")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(
    ("box", "scale", "side"),
    [
        ((10.5, 20.5, 40, 40), 1.0, 48),
        ((-20, -13.2, 60, 80.7), 1.0, 48),
        ((90, 70, 55, 31), 1.3, 48),
        ((30, 30, 48, 48), 1.0, 48),
        ((5, 5, 7, 3), 0.9, 64),
    ],
)
def test_the_crop_is_pythons(
    classes: Path, tmp_path: Path, box: tuple[float, float, float, float], scale: float, side: int
) -> None:
    pixels = np.random.default_rng(side).integers(0, 256, (97, 120, 3), np.uint8)
    (tmp_path / "rgb").write_bytes(pixels.tobytes())
    numbers = [*map(str, (120, 97, *box, scale, side))]
    command = ["java", "-Xshare:auto", "-cp", str(classes), "FaceCrop", str(tmp_path / "rgb"), *numbers]
    found = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    expected = to_input(pixels, (side, side), "gray", box, scale=scale)
    assert (found.reshape(side, side) == expected[:, :, 0]).all()


def test_a_box_outside_is_refused(classes: Path, tmp_path: Path) -> None:
    (tmp_path / "rgb").write_bytes(bytes(300))
    command = ["java", "-cp", str(classes), "FaceCrop", str(tmp_path / "rgb"), *map(str, (10, 10, 20, 0, 5, 5, 1, 48))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "lies outside the picture" in done.stderr


def test_the_engines_side_compiles_against_a_stub(classes: Path, root: Path, tmp_path: Path) -> None:
    """Its types and names alone: nothing of LiteRT is here."""
    stub = tmp_path / "org" / "tensorflow" / "lite" / "Interpreter.java"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        "package org.tensorflow.lite;\n"
        "public class Interpreter implements AutoCloseable {\n"
        "  public static class Options { public Options setNumThreads(int threads) { return this; } }\n"
        "  public Interpreter(java.nio.ByteBuffer model, Options options) {}\n"
        "  public void runSignature(java.util.Map<String, Object> in, java.util.Map<String, Object> out) {}\n"
        "  @Override public void close() {}\n"
        "}\n"
    )
    command = ["javac", "-Xlint:all", "-Werror", "-cp", str(classes), "-d", str(tmp_path), str(stub)]
    done = subprocess.run([*command, str(root / "examples" / "java" / "FaceLabels.java")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
