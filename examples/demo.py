"""The main job, start to end, on the embedded default (``make demo``).

The shipped float checkpoint becomes int8 artefacts for OpenVINO, LiteRT and ONNX Runtime; each is checked against the float
reference; a photo is labelled on all three; their speeds are compared in turns.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

import fer_edge
from fer_edge.benchmarks.timing import interleaved, medians

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE.parent / "converters" / "student" / "student48.safetensors"
PHOTO, BOX = HERE / "astronaut.png", (168, 56, 112, 112)


def fer_edge_command(*arguments: str) -> str:
    """Run the command line as a user would, and return its stdout."""
    done = subprocess.run([str(Path(sys.executable).with_name("fer-edge")), *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"fer-edge {' '.join(arguments)} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def main() -> None:
    """Convert, verify, predict, compare; print one table."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        bundle = str(Path(folder) / "demo")
        console.print(f"1. convert {CHECKPOINT.name} to int8 for three engines (calibrated with augmentations of one face)")
        fer_edge_command("convert", str(CHECKPOINT), "-o", bundle, "--json")
        console.print("2. verify every artefact against the float reference")
        verdict = json.loads(fer_edge_command("verify", bundle, "--json"))
        console.print(f"3. label the face in {PHOTO.name}, and time the engines in turns, one thread each")
        names = [row["runtime"] for row in verdict["artefacts"]]
        engines = {name: fer_edge.load(bundle, runtime=name, threads=1) for name in names}
        photo = np.asarray(Image.open(PHOTO).convert("RGB"))
        answers = {name: clf.predict(photo, box=BOX) for name, clf in engines.items()}
        times = medians(
            interleaved({n: lambda i, c=clf: c.predict(photo, box=BOX) for n, clf in engines.items()}, rounds=200)
        )
        table = Table(
            title="The same face on three engines, int8",
            caption="cosine: centred, with the float reference; time: photo in, label out, one thread, median",
        )
        for column in ("engine", "cosine", "verdict", "label", "score", "time", "MB"):
            table.add_column(column, justify="left" if column in ("engine", "label", "verdict") else "right")
        for row in verdict["artefacts"]:
            clf, answer = engines[row["runtime"]], answers[row["runtime"]]
            size = sum(f.bytes for a in clf.bundle.manifest.artefacts if a.runtime == clf.runtime for f in a.files) / 1e6
            parity = f"{row['parity']['centred_cosine']:.4f}"
            score, speed = f"{answer.scores[answer.label]:.1%}", f"{times[clf.runtime]:.2f} ms"
            table.add_row(clf.engine, parity, row["status"], answer.label, score, speed, f"{size:.2f}")
        console.print(table)
        for clf in engines.values():
            clf.close()


if __name__ == "__main__":
    main()
