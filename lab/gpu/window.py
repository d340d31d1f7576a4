"""Teachers side by side, their answers, then students side by side, within so many minutes; ``python -m lab.gpu.window
--help``.

One process: all networks of a phase learn in turns on one device (see :mod:`.together`). The teachers are then asked
about a number of views of all faces and of their mirror images, once for all students. What is written to OUTPUT is
complete at any moment: networks every two minutes, and one file with all that happened."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fer_edge.converters.student.augment import mirrored, view
from fer_edge.converters.student.language import default_constants, sentence_groups
from fer_edge.converters.student.network import InTraining
from fer_edge.converters.student.sentences import descriptions, stored_sentences

from .course import (
    COURSES,
    STUDENTS,
    TEACHERS,
    VIEW_SEED,
    Course,
    Material,
    equal_parts,
    read_course,
    restore,
    retilted,
    save,
    scores,
    view_strength,
    views_scores,
    war_uar,
)
from .learner import Learner
from .pack import LABELS, Packed, unpack
from .robustness import WAYS
from .smoke import smoke
from .together import Clock, Lane, Maker, lanes_of, learn_together

PHASES = (0.62, 0.76, 0.985)
"""When teachers, their answers and students must be done, as shares of the whole."""
RESERVE_S = 9.0
"""To measure all networks of a phase, and to write them."""
CHECKPOINT_S = 110.0
MEASURED = 8
"""How often networks are measured while they learn."""
VIEWS = 24
START = time.time()
WORSE = 0.03
"""A teacher whose accuracy on held-out faces is so much below the best one's is not asked."""
Networks = Mapping[str, tuple[Course, InTraining]]


def main() -> None:
    """Read the options, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, default=Path("runs/gpu-in"), help="what lab.gpu.pack wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="a folder on a local disk")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--epochs", type=int, help="of every training, instead of what the clock allows")
    parser.add_argument("--views", type=int, help=f"instead of what the clock allows (at most {VIEWS})")
    parser.add_argument("--faces", type=int, help="only so many, to try things out")
    parser.add_argument("--teachers", default=",".join(c.name for c in TEACHERS))
    parser.add_argument("--students", default="s66b", help=f"of {', '.join(c.name for c in STUDENTS)}")
    parser.add_argument("--batch", type=int, help="instead of the courses' own")
    parser.add_argument("--teachers-from", type=Path, metavar="FOLDER", help="with teacher-*.safetensors: train none")
    parser.add_argument("--answers", type=Path, metavar="FILE", help="answers.npy of an earlier --work: ask no teacher")
    parser.add_argument("--start", type=Path, metavar="FILE", help="students.safetensors that students go on from")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the students' learning rates")
    parser.add_argument("--no-graphs", action="store_true", help="take every step kernel by kernel")
    parser.add_argument("--smoke", type=float, metavar="SECONDS", help="only try every network, and say how fast it is")
    options = parser.parse_args()
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 2) // 2)))
    torch.backends.cudnn.benchmark = True
    sys.setswitchinterval(5e-4)  # threads that make epochs must not hold up the one that queues steps
    if options.start:
        with safe_open(options.start, framework="pt") as file:
            missing = sorted(set(options.students.split(",")) - set(file.metadata()))
        if missing:
            parser.error(f"{options.start} holds no {', '.join(missing)}")
    everything(options)


@dataclass
class Run:
    """What is to be done, and what came of it."""

    options: argparse.Namespace
    packed: Packed
    material: Material
    aside: Future[dict[str, tuple[NDArray[np.uint8], NDArray[np.int64]]]]
    summary: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def sets(self) -> Mapping[str, tuple[Tensor, NDArray[np.int64]]]:
        """What :func:`test_sets` made, its faces on the device."""
        sets = self.aside.result()
        return {name: (torch.from_numpy(x).to(self.material.device), y) for name, (x, y) in sets.items()}

    def log(self, event: str, **values: Any) -> None:
        """One line of JSON, with the seconds since the start; kept for the summary."""
        entry = {"t": round(time.time() - START, 1), "event": event, **values}
        self.summary.setdefault("log", []).append(entry)
        print(json.dumps(entry), flush=True)


def everything(options: argparse.Namespace) -> None:
    """All phases, whatever happens to one of them."""
    deadlines = [START + share * 60 * options.minutes for share in PHASES]
    options.work.mkdir(parents=True, exist_ok=True)
    options.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    packed = limited(unpack(options.input), options.faces)
    with ThreadPoolExecutor(1) as aside:
        # Without the device, which no other thread may use while a graph is captured.
        sets = aside.submit(test_sets, packed)
        run = Run(options, packed, Material(packed, device, photos=True), sets)
        run.summary |= {
            "minutes": options.minutes,
            "torch": torch.__version__,
            "machine": torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPUs",
            "argv": [word for word in sys.argv[1:] if "/" not in word],
        }
        run.log("unpacked", faces=len(packed.images), learnable=len(packed.learnable()), twins=int(packed.twin.sum()),
                held_out=int(packed.held_out.sum()), photos=len(packed.photos))  # fmt: skip
        try:
            if options.smoke:
                smoke(courses(run, options.teachers), courses(run, options.students), run.material,
                      options.input / "identity.safetensors", START + options.smoke, run.log)  # fmt: skip
            else:
                phases(run, deadlines)
        except Exception as error:  # what has been trained so far must come back
            run.log("failed", error=f"{type(error).__name__}: {error}"[:2000])
            run.summary["failed"] = f"{type(error).__name__}: {error}"
        run.summary["seconds"] = time.time() - START
        run.log("end", seconds=round(time.time() - START, 1), left=round(START + 60 * options.minutes - time.time(), 1),
                files=[f"{p.name} {p.stat().st_size}" for p in sorted(options.output.iterdir())])  # fmt: skip
        collect(run)


def phases(run: Run, deadlines: Sequence[float]) -> None:
    """Teachers, answers, students."""
    options = run.options
    for course in (*courses(run, options.teachers), *courses(run, options.students)):
        check(course, run.material)
    if options.answers:
        said = np.load(options.answers)
        if said.shape[1] != len(run.material.images):
            raise SystemExit(f"{options.answers} is about {said.shape[1]} faces, and these are {len(run.material.images)}")
        answers = torch.from_numpy(said).to(run.material.device)
        run.log("answers", views=len(answers))
    else:
        if options.teachers_from:
            networks = finished_teachers(run)
            asked_by = time.time() + (deadlines[1] - deadlines[0])
        else:
            networks = train(run, courses(run, options.teachers), {}, deadlines[0])
            asked_by = deadlines[1]
        good = chosen(run, measured(run, networks))
        answers = answered(run, {name: networks[name] for name in good}, asked_by)
        np.save(options.work / "answers.npy", answers.cpu().numpy().astype(np.float16))
        del networks
        freed()
    students = courses(run, options.students)
    taught = {c.name: retilted(answers.float(), run.material.log_prior, c.prior) for c in students}
    measured(run, train(run, students, taught, deadlines[2]))


def check(course: Course, material: Material) -> None:
    """That there is a batch."""
    if material.labelled < course.batch - course.photos:
        raise SystemExit(f"{material.labelled} faces are fewer than one batch of {course.batch} of {course.name}")


def courses(run: Run, names: str) -> list[Course]:
    """By their names."""
    return [with_options(COURSES[name], run.options) for name in names.split(",") if name]


def freed() -> None:
    """Give back what is held for nothing."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


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


def train(
    run: Run, todo: Sequence[Course], taught: Mapping[str, Tensor], deadline: float
) -> dict[str, tuple[Course, InTraining]]:
    """Teach these side by side, write them from time to time and at the end; the averaged networks."""
    options, began, students = run.options, time.time(), bool(taught)
    start = options.start if students else None
    identity = options.input / "identity.safetensors"
    learners = [Learner(c, run.material, identity, (start, f"{c.name}/") if start else None) for c in todo]
    with Maker(run.material) as maker:
        lanes = lanes_of(learners, taught, maker, not options.no_graphs, run.log)
        run.log("ready", seconds=round(time.time() - began, 1), left=round(deadline - time.time(), 1),
                steps={lane.name: lane.learner.steps for lane in lanes.values()}, memory=memory())  # fmt: skip
        saved, marks = time.time(), 1

        def every(lanes: Mapping[str, Lane], done: float) -> None:
            nonlocal saved, marks
            if done * MEASURED >= marks and done < 1:
                marks = int(done * MEASURED) + 1
                report(run, lanes, done)
            if time.time() - saved > CHECKPOINT_S:
                write(run, lanes)
                saved = time.time()

        learn_together(
            lanes,
            maker,
            Clock(deadline - RESERVE_S, options.epochs),
            run.log,
            every,
            rate=options.rate if students else 1.0,
            warmup=0.01 if start else None,
        )
    write(run, lanes)
    if run.material.device == "cuda":
        torch.cuda.synchronize()
    return {name: (lane.learner.course, lane.learner.mean) for name, lane in lanes.items() if not lane.broken}


def memory() -> float | None:
    """The most GiB of the device that were in use."""
    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def report(run: Run, lanes: Mapping[str, Lane], done: float) -> None:
    """Measure on the way."""
    now = {}
    for name, lane in lanes.items():
        if lane.broken:
            continue
        with lane.learner.on_stream():
            marks = [
                war_uar(scores(lane.learner.mean, lane.learner.course, images, run.material.device), labels)
                for images, labels in (run.sets[key] for key in ("clean", "held out"))
            ]
        now[name] = [*lane.report().values(), *marks[0], *marks[1]]
    run.log("at", done=round(done, 3), **now)


def write(run: Run, lanes: Mapping[str, Lane]) -> None:
    """All networks that are sound, and the summary."""
    for lane in lanes.values():
        if lane.broken:  # what was written before it broke may stay
            continue
        with lane.learner.on_stream():
            notes = {"epoch": lane.epoch, "epochs": max(1, lane.epoch), "seconds": round(time.time() - START, 1)}
            save(lane.learner.mean, lane.learner.course, network_file(run.options, lane.learner.course), notes)
    collect(run)


def collect(run: Run) -> None:
    """One file with the summary, and one with all students."""
    options = run.options
    part = options.output / "summary.json.part"
    used = {c.name: asdict(c) for c in (*courses(run, options.teachers), *courses(run, options.students))}
    part.write_text(json.dumps({**run.summary, "courses": used}, indent=1))
    part.replace(options.output / "summary.json")
    students = {name: options.work / f"student-{name}.safetensors" for name in options.students.split(",")}
    # Files of an earlier run may lie in the same folder.
    join(
        {name: path for name, path in students.items() if path.exists() and path.stat().st_mtime >= START},
        options.output / "students.safetensors",
    )


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
    return replace(course, batch=options.batch, photos=course.photos * options.batch // course.batch)


def finished_teachers(run: Run) -> dict[str, tuple[Course, InTraining]]:
    """Those of an earlier run."""
    networks = {}
    for path in sorted(run.options.teachers_from.glob("teacher-*.safetensors")):
        course, _ = read_course(path)
        networks[course.name] = course, restore(path, course, run.material.device)
    if not networks:
        raise SystemExit(f"{run.options.teachers_from} holds no teacher-*.safetensors")
    return networks


def measured(run: Run, networks: Networks) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Scores on every set, by network; what they reach goes to the summary."""
    results = {}
    sets = run.sets
    for name, (course, net) in networks.items():
        results[name] = {key: scores(net, course, images, run.material.device) for key, (images, _) in sets.items()}
        reached = {key: war_uar(s, sets[key][1]) for key, s in results[name].items()}
        run.summary.setdefault("results", {})[name] = reached
        run.log("result", name=name, **reached)
    return results


def chosen(run: Run, results: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> list[str]:
    """The teachers that are asked, and what they reach together."""
    if not results:
        raise RuntimeError("no teacher came through")
    reached, sets = run.summary["results"], run.sets
    best = max(reached[name]["held out"][0] for name in results)
    good = [name for name in results if reached[name]["held out"][0] >= best - WORSE]
    together = {key: war_uar(np.mean([results[n][key] for n in good], axis=0), labels) for key, (_, labels) in sets.items()}
    run.summary["results"]["teachers together"] = together
    run.summary["asked"] = good
    run.log("result", name="teachers together", teachers=good, **together)
    return good


@torch.inference_mode()
def _views(run: Run, networks: Networks, deadline: float) -> Tensor:
    options, material, device = run.options, run.material, run.material.device
    groups = [group.to(device) for group in sentence_groups(stored_sentences(), descriptions(), LABELS)]
    texts = [default_constants(groups, net.text_projection) for _, net in networks.values()]
    total, views = len(material.images), list[Tensor]()
    most = options.views or VIEWS
    while len(views) < most:
        began = time.time()
        maps = view(total, view_strength(), VIEW_SEED, 1 + len(views))
        sides = [side.to(device) for side in (maps, mirrored(maps))]
        parts = []
        for part in equal_parts(total, 1024, device):
            said = torch.zeros(len(part), len(LABELS), device=device)
            for side in sides:
                faces = material.faces(part, side[part])
                for (course, net), text in zip(networks.values(), texts, strict=True):
                    said += views_scores(net, course, faces, text)
            parts.append(said / (len(sides) * len(networks)))
        views.append(torch.cat(parts)[:total].half())
        if device == "cuda":
            torch.cuda.synchronize()
        if options.views is None and time.time() + 1.2 * (time.time() - began) > deadline:
            break
    run.log("asked", views=len(views), teachers=list(networks), last_view_s=round(time.time() - began, 2),
            left=round(deadline - time.time(), 1))  # fmt: skip
    return torch.stack(views)


def answered(run: Run, networks: Networks, deadline: float) -> Tensor:
    """The mean scores (views, N, K) float16 of the teachers for each view of every face and photo, and its mirror
    image."""
    for _, net in networks.values():
        net.eval()
    views = _views(run, networks, deadline).clone()  # no longer a tensor of inference
    run.summary["views"] = len(views)
    return views


if __name__ == "__main__":
    main()
