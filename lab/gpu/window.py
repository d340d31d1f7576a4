"""Teachers side by side, their answers, then students side by side, within so many minutes; ``python -m lab.gpu.window
--help``.

Every training is a process of its own, that measures its speed beside the others, chooses its number of epochs and logs
it. The teachers are then asked about a number of views of all faces and of their mirror images, once for all students.
What is written to OUTPUT is complete at any moment: networks every two minutes, and one file with the logs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from fer_edge.converters.student.augment import mirrored, view
from fer_edge.converters.student.language import default_constants, sentence_groups
from fer_edge.converters.student.sentences import descriptions, stored_sentences

from .course import (
    COURSES,
    STUDENTS,
    TEACHERS,
    VIEW_SEED,
    Clock,
    Course,
    Material,
    learn,
    restore,
    scores,
    view_strength,
    views_scores,
    war_uar,
)
from .pack import LABELS, Packed, unpack
from .robustness import WAYS

PHASES = (0.46, 0.55, 0.93)
"""When teachers, their answers and students must be done, as shares of the whole."""
START = time.time()
WORSE = 0.03
"""A teacher whose accuracy on held-out faces is so much below the best one's is not asked."""
Sets = Mapping[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]


def main() -> None:
    """Run all, or one training (what this starts itself)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("runs/gpu-in"), help="what lab.gpu.pack wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder on a local disk")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, help="of every training, instead of what the clock allows")
    parser.add_argument("--views", type=int, help="instead of what the clock allows (at most 32)")
    parser.add_argument("--faces", type=int, help="only so many, to try things out")
    parser.add_argument("--probe", type=float, default=5.0, help="seconds in which a training measures its speed")
    parser.add_argument("--teachers", default=",".join(c.name for c in TEACHERS))
    parser.add_argument("--students", default=",".join(c.name for c in STUDENTS))
    parser.add_argument("--batch", type=int, help="instead of the courses' own")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        one(options)
    else:
        everything(options)


def everything(options: argparse.Namespace) -> None:
    """All phases, whatever happens to one of them."""
    end = START + 60 * options.minutes
    deadlines = [START + share * 60 * options.minutes for share in PHASES]
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    summary: dict[str, Any] = {
        "minutes": options.minutes,
        "torch": torch.__version__,
        "machine": machine(),
        "argv": [word for word in sys.argv[1:] if "/" not in word],
    }
    packed = limited(unpack(options.input), options.faces)
    save_arrays(options.work / "packed.npz", {f.name: getattr(packed, f.name) for f in fields(Packed)})
    log("unpacked", faces=len(packed.images), learnable=len(packed.learnable()), twins=int(packed.twin.sum()),
        held_out=int(packed.held_out.sum()), photos=len(packed.photos))  # fmt: skip
    teachers, students = options.teachers.split(","), options.students.split(",")
    running = start(options, teachers, deadlines[0])
    sets = test_sets(packed)
    named: dict[str, NDArray[Any]] = {}
    for name, (images, labels) in sets.items():
        named |= {f"{name}|x": images, f"{name}|y": labels}
    save_arrays(options.work / "sets.npz", named)
    log("sets", names=list(sets))
    finish(running, deadlines[0] + 10, options, summary)
    try:
        good = chosen(options, teachers, sets, summary)
        answered(options, good, packed, deadlines[1], summary)
        finish(start(options, students, deadlines[2]), deadlines[2] + 10, options, summary)
    except Exception as error:  # what has been trained so far must come back
        log("failed", error=f"{type(error).__name__}: {error}")
        summary["failed"] = f"{type(error).__name__}: {error}"
    for name in students:
        file = options.work / f"scores-{name}.npz"
        if file.exists():
            with np.load(file) as z:
                summary.setdefault("results", {})[name] = {key: war_uar(z[key], sets[key][1]) for key in z.files}
            log("result", name=name, **summary["results"][name])
    summary["seconds"] = time.time() - START
    collect(options, summary)
    log(
        "end",
        seconds=time.time() - START,
        left=end - time.time(),
        files=[f"{p.name} {p.stat().st_size}" for p in options.output.iterdir()],
    )


def machine() -> str:
    """What this runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPUs"


def log(event: str, **values: Any) -> None:
    """One line of JSON, with the seconds since the start."""
    print(json.dumps({"t": round(time.time() - START, 1), "event": event, **values}), flush=True)


def limited(packed: Packed, count: int | None) -> Packed:
    """The first faces and photos only."""
    if count is None:
        return packed
    parts = {f.name: getattr(packed, f.name)[:count] for f in fields(Packed)}
    return Packed(**parts)


def test_sets(packed: Packed) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """Faces to measure on: the validation split, as it is and spoilt in every way, and the training faces that no
    training sees."""
    kept = packed.held_out
    sets = {"clean": (packed.test_images, packed.test_labels), "held out": (packed.images[kept], packed.labels[kept])}
    return sets | {name: (spoil(packed.test_images), packed.test_labels) for name, spoil in WAYS.items()}


def start(options: argparse.Namespace, names: Sequence[str], deadline: float) -> dict[str, subprocess.Popen[bytes]]:
    """One process per training."""
    for file in options.work.glob("ready-*"):
        file.unlink()
    (options.work / "beside").write_text(str(len(names)))
    running = {}
    for name in names:
        command = [sys.executable, "-m", "lab.gpu.window", *sys.argv[1:], "--only", name, "--deadline", str(deadline)]
        with (options.work / f"log-{name}.jsonl").open("wb") as file:
            running[name] = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    log("started", names=list(names), seconds_left=deadline - time.time())
    return running


def finish(
    running: Mapping[str, subprocess.Popen[bytes]], deadline: float, options: argparse.Namespace, summary: dict[str, Any]
) -> None:
    """Wait for all; end those that overrun."""
    told = time.time()
    while any(process.poll() is None for process in running.values()) and time.time() < deadline:
        time.sleep(0.2)
        if time.time() - told > 20:
            told = time.time()
            collect(options, summary)
            log("at", **{name: last_line(options.work / f"log-{name}.jsonl") for name in running})
    for name, process in running.items():
        if process.poll() is None:
            log("overrun", name=name)
            process.kill()
            process.wait()
        lines = (options.work / f"log-{name}.jsonl").read_text().splitlines()
        log(
            "finished",
            name=name,
            code=process.returncode,
            last=[line[:600] for line in lines[-2:] if process.returncode == 0] or lines[-12:],
        )
    collect(options, summary)


def last_line(path: Path) -> str:
    """Of a log, cut."""
    lines = path.read_text().splitlines()
    return lines[-1][:160] if lines else ""


def collect(options: argparse.Namespace, summary: Mapping[str, Any]) -> None:
    """One file with the summary and all logs."""
    logs = {
        path.stem.removeprefix("log-"): path.read_text().splitlines() for path in sorted(options.work.glob("log-*.jsonl"))
    }
    part = options.output / "summary.json.part"
    part.write_text(json.dumps({**summary, "courses": {n: asdict(c) for n, c in COURSES.items()}, "logs": logs}, indent=1))
    part.replace(options.output / "summary.json")
    students = {name: options.work / f"student-{name}.safetensors" for name in options.students.split(",")}
    join({name: path for name, path in students.items() if path.exists()}, options.output / "students.safetensors")


def join(networks: Mapping[str, Path], output: Path) -> None:
    """Several networks in one file, their tensors as NAME/TENSOR, their headers as NAME."""
    if not networks or (
        output.exists() and output.stat().st_mtime > max(path.stat().st_mtime for path in networks.values())
    ):
        return
    state: dict[str, torch.Tensor] = {}
    headers: dict[str, str] = {}
    for name, path in networks.items():
        with safe_open(path, framework="pt") as file:
            headers[name] = json.dumps(file.metadata())
            state |= {f"{name}/{key}": file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    part = output.with_name(output.name + ".part")
    save_file(state, part, metadata=headers)
    part.replace(output)


def network_file(options: argparse.Namespace, course: Course) -> Path:
    """Where a training's network goes: students are small, and joined to one file."""
    if course.share:
        return Path(options.work / f"student-{course.name}.safetensors")
    return Path(options.output / f"teacher-{course.name}.safetensors")


def with_options(course: Course, options: argparse.Namespace) -> Course:
    """The course, with another batch if one is asked for."""
    if not options.batch:
        return course
    photos = course.photos * options.batch // course.batch
    return Course(**{**asdict(course), "batch": options.batch, "photos": photos})


def one(options: argparse.Namespace) -> None:
    """One training, in a process of its own."""
    torch.set_num_threads(max(1, min(3, (os.cpu_count() or 2) // 4)))
    torch.backends.cudnn.benchmark = True
    course = with_options(COURSES[options.only], options)
    with np.load(options.work / "packed.npz") as z:
        packed = Packed(**{name: z[name] for name in z.files})
    answers = np.load(options.work / "answers.npy") if course.share else None
    beside = int((options.work / "beside").read_text())

    def barrier() -> None:
        (options.work / f"ready-{course.name}").touch()
        until = min(time.time() + 40, time.time() + 0.3 * (options.deadline - time.time()))
        while len(list(options.work.glob("ready-*"))) < beside and time.time() < until:
            time.sleep(0.05)
        log("beside", others=len(list(options.work.glob("ready-*"))))

    @lru_cache(maxsize=1)
    def sets() -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
        return load_sets(options.work)

    def two() -> Sets:
        return {name: sets()[name] for name in ("clean", "held out")} if (options.work / "sets.npz").exists() else {}

    clock = Clock(options.deadline, options.epochs, options.probe)
    learner = learn(
        course,
        packed,
        options.input / "identity.safetensors",
        clock,
        log,
        network_file(options, course),
        answers,
        barrier,
        two,
    )
    results = {name: scores(learner.mean, course, images, learner.material.device) for name, (images, _) in sets().items()}
    save_arrays(options.work / f"scores-{course.name}.npz", results)
    log("done", **{name: war_uar(results[name], labels) for name, (_, labels) in sets().items()})


def load_sets(work: Path) -> dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """What :func:`test_sets` made, once it is there."""
    until = time.time() + 60
    while not (work / "sets.npz").exists() and time.time() < until:
        time.sleep(0.2)
    with np.load(work / "sets.npz") as z:
        names = [key.removesuffix("|x") for key in z.files if key.endswith("|x")]
        return {name: (z[f"{name}|x"], z[f"{name}|y"]) for name in names}


def save_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An npz file that is there whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    part.replace(path)


def chosen(options: argparse.Namespace, names: Sequence[str], sets: Sets, summary: dict[str, Any]) -> list[Course]:
    """The teachers that are asked, and what each and all of them reach."""
    results = {}
    for name in names:
        file = options.work / f"scores-{name}.npz"
        if file.exists():
            with np.load(file) as z:
                results[name] = {key: z[key] for key in z.files}
    trained = [name for name in names if network_file(options, COURSES[name]).exists()]
    reached = {name: {key: war_uar(s, sets[key][1]) for key, s in result.items()} for name, result in results.items()}
    summary["results"] = reached
    for name, result in reached.items():
        log("result", name=name, **result)
    if results:
        best = max(result["held out"][0] for result in reached.values())
        good = [name for name in results if reached[name]["held out"][0] >= best - WORSE]
        together = {key: war_uar(np.mean([results[name][key] for name in good], axis=0), sets[key][1]) for key in sets}
        summary["results"]["teachers together"] = together
        log("result", name="teachers together", teachers=good, **together)
    else:
        good = trained  # cut off before they were measured
    if not good:
        raise RuntimeError("no teacher came through")
    summary["asked"] = good
    return [COURSES[name] for name in good]


@torch.inference_mode()
def answered(
    options: argparse.Namespace, courses: Sequence[Course], packed: Packed, deadline: float, summary: dict[str, Any]
) -> None:
    """Write answers.npy (views, N, K): the mean scores of the teachers for each view of every face and photo, and its
    mirror image."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    material = Material(packed, device, photos=True)
    nets = [(course, restore(network_file(options, course), course, device)) for course in courses]
    groups = [group.to(device) for group in sentence_groups(stored_sentences(), descriptions(), LABELS)]
    texts = [default_constants(groups, net.text_projection) for _, net in nets]
    total, views, number = len(material.images), [], 0
    most = options.views or 32
    while number < most:
        began = time.time()
        maps = view(total, view_strength(), VIEW_SEED, 1 + number)
        sides = [side.to(device) for side in (maps, mirrored(maps))]
        rows = []
        for part in torch.arange(total, device=device).split(1024):  # type: ignore[no-untyped-call]
            said = torch.zeros(len(part), len(LABELS), device=device)
            for side in sides:
                faces = material.faces(part, side[part])
                for (course, net), text in zip(nets, texts, strict=True):
                    said += views_scores(net, course, faces, text)
            rows.append(said / (len(sides) * len(nets)))
        views.append(torch.cat(rows).cpu().numpy().astype(np.float16))
        number += 1
        if options.views is None and time.time() + 1.2 * (time.time() - began) > deadline:
            break
    np.save(options.work / "answers.npy", np.stack(views))
    summary["views"] = number
    log(
        "asked",
        views=number,
        teachers=[course.name for course in courses],
        last_view_s=time.time() - began,
        left=deadline - time.time(),
    )
    del nets, material
    if device == "cuda":
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
