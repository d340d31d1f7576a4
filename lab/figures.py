"""The figures that the documentation quotes, each by one command: ``python -m lab.figures --help``.

Two things are always measured in turns and compared by the ratio of their medians, because machines drift.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge.benchmarks.timing import interleaved, medians
from fer_edge.bundle import artefact_files, golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit, say

from .camera_figures import camera, camera_agreement, camera_rival, detector_size, endurance
from .commands import Figures
from .default_figures import agreement, card, rival
from .harness_figures import harness, noise
from .operations_figures import lighter, streams
from .steadiness_figures import steadiness

FER_EDGE = str(Path(sys.executable).with_name("fer-edge"))
BARE_LITERT = """\
import sys, numpy as np
from PIL import Image
from ai_edge_litert.interpreter import Interpreter
bundle, photo = sys.argv[1:]
engine = Interpreter(model_path=bundle + "/litert-int8.tflite", num_threads=2)
engine.allocate_tensors()
crop = np.asarray(Image.open(photo).convert("L").resize((48, 48), Image.Resampling.BILINEAR))
engine.set_tensor(engine.get_input_details()[0]["index"], crop[None, :, :, None])
engine.invoke()
logits = next(engine.get_tensor(d["index"]) for d in engine.get_output_details() if d["shape"][1] == 8)
print(np.load(bundle + "/labels/ferplus8.npz")["names"][logits.argmax()])
"""
THREE_LINES = """\
import sys, fer_edge
clf = fer_edge.load(threads=2)
print(clf.predict(sys.argv[2]).label)
"""


LAUNCH = """\
import json, os, sys, time
began = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
json.dump([time.perf_counter() - began, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)], open(sys.argv[1], "w"))
"""


def run_measured(command: Sequence[str], folder: str | None = None) -> tuple[float, float, str]:
    """(wall seconds, peak memory in MB, stdout) of a command; its failure ends this program.

    A small launcher starts it: a child's peak memory counts from its parent's, and this process is large."""
    with tempfile.TemporaryDirectory() as work:
        result = Path(work) / "result.json"
        launcher = [sys.executable, "-S", "-E", "-c", LAUNCH, str(result), *command]
        done = subprocess.run(launcher, capture_output=True, text=True, cwd=folder, check=True)
        wall, peak, status = json.loads(result.read_text())
    if status:
        raise click.ClickException(f"{command[0]} failed: {done.stderr[-500:]}")
    return wall, peak, done.stdout


@click.group(cls=Figures)
def figures() -> None:
    """Reproduce the documentation's figures on this machine. Every command prints one line of JSON."""


@figures.command("clip-convert")
@click.argument("work", type=click.Path(path_type=Path))
@click.option(
    "--faces",
    type=click.Path(exists=True, path_type=Path),
    help="Faces to calibrate with. Default: the shipped crop's augmentations.",
)
@click.option("--count", default=64, show_default=True)
def clip_convert(work: Path, faces: Path | None, count: int) -> None:
    """A B/32-sized CLIP of random weights to int8 for three runtimes: wall time and peak memory. Leaves both in WORK."""
    work.mkdir(parents=True, exist_ok=True)
    clip, bundle = work / "clip-b32", work / "clip-b32-int8"
    if not clip.exists():
        run_measured([sys.executable, "-m", "lab.random_clip", "B/32", str(clip)])
    calibration = ["--calibration", str(faces)] if faces else []
    options = ["--allow-drift", "--calibration-count", str(count), "--force", "--json", *calibration]
    wall, peak, out = run_measured([FER_EDGE, "convert", str(clip), "-o", str(bundle), *options])
    sizes = {a["runtime"]: round(a["bytes"] / 1e6, 1) for a in json.loads(out)["artefacts"]}
    emit({"figure": "clip-convert", "seconds": round(wall, 1), "peak_mb": round(peak), "artefact_mb": sizes})


@figures.command("clip-pipeline")
@click.argument("work", type=click.Path(exists=True, path_type=Path))
@click.option("--rounds", default=40, show_default=True)
def clip_pipeline(work: Path, rounds: int) -> None:
    """Image in, label out: int8 artefacts of clip-convert's WORK against eager torch fp32 with the text side precomputed."""
    calls: dict[str, Callable[[int], object]] = {"torch fp32": reference_pipeline(work / "clip-b32", work / "clip-b32-int8")}
    photos = [Image.fromarray(c) for c in golden_set(open_bundle(work / "clip-b32-int8")).crops]
    pictures = [p.resize((256, 256), Image.Resampling.BICUBIC) for p in photos]
    engines = {name: fer_edge.load(work / "clip-b32-int8", runtime=name) for name in ("openvino", "litert", "onnxruntime")}
    for name, clf in engines.items():
        calls[f"{name} int8"] = lambda i, clf=clf: clf.predict(pictures[i % len(pictures)])  # type: ignore[misc]
    reference = calls["torch fp32"]
    calls["torch fp32"] = lambda i: reference(pictures[i % len(pictures)])  # type: ignore[arg-type]
    ms = medians(interleaved(calls, rounds, warmup=3, pause=0.05))
    ratios = {name: round(ms["torch fp32"] / value, 2) for name, value in ms.items() if name != "torch fp32"}
    emit({"figure": "clip-pipeline", "median_ms": {k: round(v, 2) for k, v in ms.items()}, "times_faster": ratios})


def reference_pipeline(clip: Path, bundle: Path) -> Callable[[Any], str]:
    """The paper's test pipeline in eager torch fp32: Pillow resize, encoder, cosine with precomputed text features,
    softmax."""
    import torch
    from transformers import CLIPModel

    from fer_edge.bundle import label_set

    opened = open_bundle(bundle)
    labels = label_set(opened, opened.manifest.default_labels)
    text = torch.from_numpy(labels.constants)
    model = CLIPModel.from_pretrained(clip, local_files_only=True, dtype=torch.float32).eval()

    @torch.inference_mode()
    def label(picture: Image.Image) -> str:
        pixels = np.asarray(picture.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR))
        x = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        z = model.get_image_features(pixel_values=x).pooler_output
        scores = (labels.logit_scale * torch.nn.functional.normalize(z, dim=-1) @ text.T).softmax(-1)
        return labels.labels[int(scores.argmax())]

    return label


@figures.command()
@click.option("--rounds", default=3000, show_default=True)
def overhead(rounds: int) -> None:
    """``predict`` on a ready crop minus the bare OpenVINO call with a preset tensor: 1 thread, changing images, same
    precision."""
    import openvino as ov

    opened = open_bundle(DEFAULT_BUNDLE)
    (artefact,) = [a for a in opened.manifest.artefacts if (a.runtime, a.precision) == ("openvino", "int8")]
    crops = np.ascontiguousarray(golden_set(opened).crops)
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    request = ov.Core().compile_model(artefact_files(opened, artefact)[0], "CPU", config).create_infer_request()
    tensor, logits = request.get_input_tensor().data, request.get_tensor("logits").data

    def bare(i: int) -> NDArray[np.float32]:
        tensor[:] = crops[i % len(crops)]
        request.infer()
        result: NDArray[np.float32] = logits
        return result

    with fer_edge.load(runtime="openvino", threads=1) as clf:
        same_precision = clf.execution_precision
        samples = interleaved({"bare": bare, "predict": lambda i: clf.predict(crops[i % len(crops)])}, rounds, warmup=200)
    ms = medians(samples)
    extra = float(np.median(samples["predict"] - samples["bare"])) * 1000
    found = {
        "bare_us": round(ms["bare"] * 1e3, 1),
        "predict_us": round(ms["predict"] * 1e3, 1),
        "overhead_us": round(extra, 1),
    }
    emit({"figure": "overhead", **found, "computed_in": same_precision})


@figures.command()
@click.argument("package", default=".")
@click.option("--runs", default=15, show_default=True)
@click.option("--photo", type=click.Path(exists=True), default="examples/astronaut.png", show_default=True)
def start(package: str, runs: int, photo: str) -> None:
    """A fresh device install of PACKAGE[litert]: size; process start to first label against ten lines of the bare engine."""
    with tempfile.TemporaryDirectory() as folder:
        python = str(Path(folder) / "venv" / "bin" / "python")
        subprocess.run([sys.executable, "-m", "venv", str(Path(folder) / "venv")], check=True)
        empty = tree_mb(Path(folder) / "venv")
        subprocess.run([python, "-m", "pip", "install", "--quiet", f"{package}[litert]"], check=True)
        size = tree_mb(Path(folder) / "venv") - empty
        bundle = subprocess.run(
            [python, "-c", "import fer_edge.classifier as c; print(c.DEFAULT_BUNDLE)"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
        ).stdout.strip()
        picture = str(Path(photo).resolve())
        commands = {
            "fer-edge": [python, "-c", THREE_LINES, bundle, picture],
            "bare": [python, "-c", BARE_LITERT, bundle, picture],
        }
        answers = {name: run_measured(command, folder)[2].strip() for name, command in commands.items()}
        if len(set(answers.values())) != 1:
            raise click.ClickException(f"the two do not agree: {answers}")
        walls: dict[str, list[float]] = {name: [] for name in commands}
        peaks: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(runs):
            for name, command in commands.items():
                wall, peak, _ = run_measured(command, folder)
                walls[name].append(wall)
                peaks[name].append(peak)
    ms = {name: round(float(np.median(values)) * 1e3, 1) for name, values in walls.items()}
    mb = {name: round(float(np.median(values)), 1) for name, values in peaks.items()}
    ratio = round(ms["fer-edge"] / ms["bare"], 3)
    emit(
        {
            "figure": "start",
            "installed_mb": round(size, 1),
            "median_ms": ms,
            "ratio": ratio,
            "peak_mb": mb,
            "label": answers["bare"],
        }
    )


def tree_mb(folder: Path) -> float:
    """Megabytes (10^6) of the files below a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


OTHERS = (rival, agreement, card, harness, noise, lighter, streams)
for command in (*OTHERS, camera, camera_agreement, camera_rival, detector_size, endurance, steadiness):
    figures.add_command(command)


@figures.command("all")
@click.pass_context
def every(context: click.Context) -> None:
    """All of them, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        say("overhead of predict ...")
        context.invoke(overhead)
        say("fresh device install ...")
        context.invoke(start)
        say("conversion of a B/32-sized CLIP ...")
        context.invoke(clip_convert, work=Path(folder))
        say("image in, label out ...")
        context.invoke(clip_pipeline, work=Path(folder))


if __name__ == "__main__":
    figures()
