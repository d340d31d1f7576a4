"""What came back from a GPU, on a machine that has the faces as they are: ``python -m lab.gpu.finish STUDENTS
NAME DATA OUTPUT [--prior P]`` fits the text side of one student and writes a checkpoint for ``fer-edge convert``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import torch

from fer_edge.accuracy import war_uar
from fer_edge.converters.student.faces import Faces, load_faces
from fer_edge.converters.student.network import StudentCheckpoint, StudentInTraining, save_student
from fer_edge.converters.student.recipe import Recipe, TrainingData, TrainingPlan
from fer_edge.converters.student.run import Run, unit_features
from fer_edge.converters.student.sentences import descriptions, phrases, stored_sentences
from fer_edge.converters.student.train import fit_text
from fer_edge.twins import near_duplicates

from .course import read_course, restore
from .pack import LABELS, held_out


def finish(students: Path, name: str, data: Path, output: Path, work: Path, prior: float | None = None) -> None:
    """Deploy the network, fit its text side to the faces that it learned from, and save. ``prior``: another strength of the
    logit adjustment than its course had; what it is more favours rare classes (``lab.prior_figures`` chooses)."""
    course, notes = read_course(students, name)
    train, test = (load_faces(data / f"{name}.npz", LABELS, course.size) for name in ("train", "public_test"))
    assert train.targets is not None
    assert train.labels is not None
    small = train if course.size == 48 else load_faces(data / "train.npz", LABELS)
    kept = ~held_out(small.images)
    tests = test if course.size == 48 else load_faces(data / "public_test.npz", LABELS)
    kept[near_duplicates(small.images, tests.images).first] = False
    faces = Faces(train.images[kept], train.images[kept], train.targets[kept], train.labels[kept])
    recipe = Recipe(
        epochs=notes["epochs"],
        batch=course.batch,
        lr=course.lr,
        dropout=course.dropout,
        mixup=course.mixup,
        prior=course.prior if prior is None else prior,
        teacher_share=course.share,
        bf16=False,
        seed=course.seed,
    )
    plan = TrainingPlan(
        TrainingData(faces, test, stored_sentences(), descriptions(), phrases(), LABELS), course.config(), recipe
    )
    run = Run(plan, work)
    run.mean_net.module.load_state_dict(restore(students, course, "cpu", f"{name}/").state_dict())
    learned = run.learned().eval()
    assert isinstance(learned, StudentInTraining)
    print("as it came:", *run._validate())
    deployed = learned.deployed()
    projection, scale = fit_text(run, deployed, lambda done: None)
    with torch.no_grad():
        learned.text_projection.copy_(projection)
    unit = unit_features(deployed, test.images)
    assert test.labels is not None
    print("with its text side:", *war_uar((unit @ run.class_constants().T).argmax(1).numpy(), test.labels))
    meta = {
        "recipe": {**asdict(recipe), "course": asdict(course)},
        "labels": list(LABELS),
        "faces": int(kept.sum()),
        "teachers": [],
    }
    save_student(output, StudentCheckpoint(deployed, projection, scale, stored_sentences().text, (), meta))
    print("written:", output)


def main() -> None:
    """Read the arguments, and finish."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, kind in (("students", Path), ("name", str), ("data", Path), ("output", Path)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--prior", type=float, help="of the text side's fit. Default: the course's")
    given = parser.parse_args()
    finish(given.students, given.name, given.data, given.output, given.output.with_suffix(".work"), given.prior)


if __name__ == "__main__":
    main()
