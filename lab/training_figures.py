"""The figures of the language side and of teaching, each by one command:
``python -m lab.training_figures --help``. They print one line of JSON."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

import fer_edge
from fer_edge.accuracy import war_uar
from fer_edge.bundle import label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit, say
from fer_edge.converters.compile_labels import add_labels
from fer_edge.converters.student.faces import Faces, load_faces, load_pictures
from fer_edge.converters.student.language import default_constants, sentence_groups
from fer_edge.converters.student.network import StudentCheckpoint, save_student
from fer_edge.converters.student.plan import plan_training
from fer_edge.converters.student.recipe import EpochReport, TrainingPlan
from fer_edge.converters.student.run import unit_features
from fer_edge.converters.student.sentences import descriptions, stored_sentences
from fer_edge.converters.student.teachers import Teacher, open_teacher
from fer_edge.converters.student.train import train_student
from fer_edge.labels import LABEL_SETS

from .commands import Figures
from .pruning_figures import lighter
from .transfer_figures import face_cost, fit_speed, planted_table

LABELS = LABEL_SETS["ferplus8"]
HELD_OUT: Mapping[str, tuple[str, ...]] = {
    "first": ("joy", "grief", "calm", "rage", "shock", "revulsion", "terror", "scorn"),
    "second": ("delight", "sorrow", "serenity", "fury", "astonishment", "loathing", "dread", "disdain"),
    "adjectives": ("joyful", "sorrowful", "calm", "furious", "astonished", "revolted", "terrified", "scornful"),
}
"""Words, in the order of LABELS, that stand nowhere in words.toml or descriptions.toml, nor do others of their stems."""
TEMPLATES = {
    "word": "{}",
    "P2": "an expression of {}.",
    "P3": "a photo of a face with an expression of {}.",
    "other": "someone who looks full of {}",
}
"""Ways to put a held-out word; "other" is not among the templates of training."""

file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Figures)
def figures() -> None:
    """Reproduce the figures of the language side and of teaching. Every command prints one line of JSON."""


@figures.command()
@click.argument("faces", type=file)
@click.option("--text-encoder", required=True, help="The folder of the bundle's text encoder.")
@click.option("-b", "--bundle", type=click.Path(exists=True, path_type=Path), default=DEFAULT_BUNDLE)
@click.option("--runtime", default="openvino", show_default=True)
def synonyms(faces: Path, text_encoder: str, bundle: Path, runtime: str) -> None:
    """WAR and UAR of label sets that ``labels add`` makes of words never used in training, against the trained label set,
    on FACES (npz with FER+ votes), int8."""
    known = load_faces(faces, LABELS)
    assert known.labels is not None
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(bundle, Path(folder) / "bundle"))
        for which, words in HELD_OUT.items():
            for way, template in TEMPLATES.items():
                prompts = {word: template.format(word) for word in words}
                (Path(folder) / "labels.json").write_text(json.dumps(prompts))
                add_labels(copy, Path(folder) / "labels.json", text_encoder, f"{which}-{way}")
        with fer_edge.load(copy, runtime=runtime) as clf:
            features = clf.features(known.pictures)
        opened = open_bundle(copy)

        def score(name: str) -> tuple[float, float]:
            return war_uar(label_set(opened, name).logits(features).argmax(1), known.labels)  # type: ignore[arg-type]

        trained = score("ferplus8")
        found: dict[str, Any] = {}
        for which in HELD_OUT:
            for way in TEMPLATES:
                war, uar = score(f"{which}-{way}")
                found.setdefault(which, {})[way] = {
                    "war": round(war, 4),
                    "uar": round(uar, 4),
                    "share_of_trained": round(war / trained[0], 3),
                }
    emit({"figure": "synonyms", "trained": {"war": round(trained[0], 4), "uar": round(trained[1], 4)}, **found})


@figures.command("leave-one-out")
@click.argument("faces", type=file)
@click.argument("validation", type=file)
@click.option("--work", type=click.Path(path_type=Path), default="runs/leave-one-out", show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--label", "labels", multiple=True, default=("surprise", "sadness", "anger", "fear"), show_default=True)
def leave_one_out(faces: Path, validation: Path, work: Path, epochs: int, labels: tuple[str, ...]) -> None:
    """Train on FACES without one expression (in turn), add it from its description alone, and measure on VALIDATION: its
    recall, what the others lose, and the same schedule with every expression."""
    test = load_faces(validation, LABELS)
    found: dict[str, Any] = {}
    for left in (None, *labels):
        name = left or "everything"
        plan = plan_training(faces, (), validation, () if left is None else (left,), epochs=epochs)
        checkpoint = _trained(plan, work / name)
        found[name] = _with_all_labels(checkpoint, test, left)
    emit({"figure": "leave-one-out", "epochs": epochs, "chance": 1 / len(LABELS), **found})


def _trained(plan: TrainingPlan, work: Path) -> StudentCheckpoint:
    def line(report: EpochReport) -> None:
        say(f"{work.name}: epoch {report.epoch}/{report.epochs}, loss {report.loss:.4f}, {report.seconds:.0f} s")

    checkpoint = train_student(plan, work, line)
    save_student(work / "student.safetensors", checkpoint)
    return checkpoint


def _with_all_labels(checkpoint: StudentCheckpoint, test: Faces, left: str | None) -> dict[str, Any]:
    """Scores over all labels, the left-out one by its description; with and without it in the label set."""
    assert test.labels is not None
    groups = sentence_groups(stored_sentences(), descriptions(), LABELS)
    constants = default_constants(groups, checkpoint.text_projection)
    logits = (unit_features(checkpoint.student, test.images) @ constants.T).numpy()
    predicted = logits.argmax(1)
    war, uar = war_uar(predicted, test.labels)
    recall = {label: round(float((predicted[test.labels == k] == k).mean()), 4) for k, label in enumerate(LABELS)}
    result: dict[str, Any] = {"war": round(war, 4), "uar": round(uar, 4), "recall": recall}
    if left is not None:
        k = LABELS.index(left)
        others = np.where(test.labels == k, -1, test.labels)
        without = logits.copy()
        without[:, k] = -np.inf
        result["others_war_before"] = round(war_uar(without.argmax(1), others)[0], 4)
        result["others_war_after"] = round(war_uar(predicted, others)[0], 4)
        result["precision"] = round(float((test.labels[predicted == k] == k).mean()), 4) if (predicted == k).any() else None
    return result


@figures.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--teacher", required=True, help="The teacher: a bundle or a student checkpoint.")
@click.option("--other", required=True, help="Another of its kind, from another seed.")
@click.option("--work", type=click.Path(path_type=Path), default="runs/distil", show_default=True)
@click.option("--epochs", default=40, show_default=True)
def distil(folder: Path, teacher: str, other: str, work: Path, epochs: int) -> None:
    """Learn a teacher's features from the unlabelled photos of four in five people of FOLDER (files named PERSON_0001.jpg);
    on the fifth's: top-1 agreement of student and teacher, against that of the two teachers."""
    work.mkdir(parents=True, exist_ok=True)
    everyone = load_pictures(folder)
    persons = [Path(str(p)).stem.rpartition("_")[0] for p in everyone.pictures]
    held = set(np.random.default_rng(0).permutation(sorted(set(persons)))[: len(set(persons)) // 5].tolist())
    kept = np.array([person not in held for person in persons])
    one, two = open_teacher(teacher), open_teacher(other)
    seen, unseen = (_chosen(everyone, rows) for rows in (kept, ~kept))
    shape = plan_training(folder, (one,), epochs=epochs)
    plan = replace(shape, data=replace(shape.data, train=seen))
    checkpoint = _trained(plan, work)
    said = {name: _top1(t, unseen) for name, t in (("teacher", one), ("other", two))}
    constants = torch.from_numpy(one.constants(LABELS)[0])
    student = (unit_features(checkpoint.student, unseen.images) @ constants.T).argmax(1).numpy()
    with_teacher, between = (float((said["teacher"] == x).mean()) for x in (student, said["other"]))
    counts = {"people": len(set(persons)), "people_held_out": len(held), "faces": int(kept.sum()), "held_out": len(student)}
    emit(
        {
            "figure": "distil",
            **counts,
            "student_with_teacher": round(with_teacher, 4),
            "two_teachers": round(between, 4),
            "ratio": round(with_teacher / between, 4),
        }
    )


def _chosen(faces: Faces, rows: NDArray[np.bool_]) -> Faces:
    return Faces([faces.pictures[int(i)] for i in np.flatnonzero(rows)], faces.images[rows])


def _top1(teacher: Teacher, faces: Faces) -> NDArray[np.int64]:
    from fer_edge.converters.student.augment import Strength, view
    from fer_edge.converters.student.teachers import ask

    unit = ask(teacher, faces.pictures, view(len(faces.pictures), Strength(), 0, 0))
    answer: NDArray[np.int64] = (unit @ teacher.constants(LABELS)[0].T).argmax(1)
    return answer


@figures.command()
@click.argument("faces", type=file)
@click.argument("validation", type=file)
@click.option("--work", type=click.Path(path_type=Path), default="runs/repeat", show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--seed", default=1, show_default=True)
def repeat(faces: Path, validation: Path, work: Path, epochs: int, seed: int) -> None:
    """The same training twice, from one seed: WAR and UAR of both, and whether their weights are equal bit by bit."""
    test = load_faces(validation, LABELS)
    runs = [_trained(plan_training(faces, (), validation, epochs=epochs, seed=seed), work / name) for name in ("a", "b")]
    found = [_with_all_labels(run, test, None) for run in runs]
    first, second = (run.student.state_dict() for run in runs)
    equal = all(torch.equal(value, second[name]) for name, value in first.items())
    scores = {name: [f[name] for f in found] for name in ("war", "uar")}
    emit({"figure": "repeat", "epochs": epochs, **scores, "weights_equal": equal})


for command in (lighter, planted_table, fit_speed, face_cost):
    figures.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    figures(arguments, prog_name=f"{Path(sys.executable).name} -m lab.training_figures")


if __name__ == "__main__":
    main()
