"""``fer-edge student``: data, sentences and training of the small encoder behind the embedded default."""

from __future__ import annotations

import sys
from datetime import timedelta
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import Finite, Numbers, Rooms, common, emit, fraction, need_extra, say
from fer_edge.errors import UsageError
from fer_edge.files import check_target

from ..cli import hushed

if TYPE_CHECKING:
    from .recipe import EpochReport


@click.group(cls=Rooms, examples=("fer-edge student train faces.npz -o student.safetensors --teacher clip-b32/",))
def student() -> None:
    """Train the small encoder behind the embedded default."""


@student.command(examples=("fer-edge student data fer2013.csv fer2013new.csv -o faces/",))
@click.argument("fer2013", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("ferplus", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder for train.npz, public_test.npz, private_test.npz.",
)
@common
def data(fer2013: Path, ferplus: Path, output: Path, as_json: bool) -> None:
    """Build the npz files from the public FER2013 (fer2013.csv) and FER+ (fer2013new.csv) tables."""
    from .fer2013 import build

    counts = build(fer2013, ferplus, output)
    emit(counts) if as_json else say("\n".join(f"{name}: {count} faces" for name, count in counts.items()))


@student.command(
    examples=(
        "fer-edge student split my-faces/ -o data/",
        "fer-edge student split my-faces/ -o data/ --person '(.+)_[0-9]+'",
    )
)
@click.argument("faces", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder for train, validation and test."
)
@click.option("--validation", type=Finite(0, 1), default=0.1, show_default=True, help="Share of the faces to choose by.")
@click.option("--test", type=Finite(0, 1), default=0.1, show_default=True, help="Share of the faces to test on, at the end.")
@click.option("--person", metavar="REGEX", help="Files whose names agree in its group stay together; photos of one person.")
@click.option("--size", type=click.IntRange(min=16, max=256), default=48, show_default=True, help="Pixels of a face's side.")
@click.option("--skip-unknown", is_flag=True, help="Leave out folders that are none of the eight expressions.")
@common
def split(faces: Path, output: Path, as_json: bool, **options: Any) -> None:
    """Make train.npz, validation.npz and test.npz of your own labelled FACES, a folder for each expression.

    Photos of one scene, cut or compressed differently, go to one of the three. The expressions are happiness, sadness,
    neutral, anger, surprise, disgust, fear and contempt.
    """
    need_extra("rich", extra="convert")
    from .own import split as run

    with fraction(sys.stderr, "reading faces") as progress:
        made = run(faces, output, on_picture=progress, **options)
    totals = {name: sum(counts.values()) for name, counts in made.counts.items()}
    if as_json:
        emit({"folder": str(output), "faces": made.counts, "left_out": made.left_out, "together": made.together})
        return
    for name, counts in made.counts.items():
        say(f"{name}: {totals[name]} faces ({', '.join(f'{label} {count}' for label, count in counts.items() if count)})")
    if made.together:
        say(f"{made.together} faces stayed with another one: a twin, or a photo of the same person")
    if made.left_out:
        say(f"left out: {', '.join(f'{count} of {name}' for name, count in made.left_out.items())}")


@student.command(examples=("fer-edge student sentences --text-encoder all-MiniLM-L6-v2/ -o sentences.npz",))
@click.option("--text-encoder", required=True, help="sentence-transformers/all-MiniLM-L6-v2, or a folder that holds it.")
@click.option(
    "--source-name",
    default="sentence-transformers/all-MiniLM-L6-v2",
    show_default=True,
    help="The name that bundles will show.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: the table in this checkout.")
@common
def sentences(text_encoder: str, source_name: str, output: Path | None, as_json: bool) -> None:
    """Turn descriptions.toml into the sentence vectors that training uses."""
    need_extra("torch", "transformers", extra="convert")
    with hushed():
        from dataclasses import replace

        from ..text import sentence_encoder
        from .sentences import write_sentences

        target = output or Path(__file__).with_name("sentences.npz")
        table = write_sentences(replace(sentence_encoder(text_encoder), source=source_name), target)
    result = {"file": str(target), "sentences": len(table.texts), "sha256": table.text.sha256}
    emit(result) if as_json else say(f"{len(table.texts)} sentences written to {target}")


@student.command(
    examples=(
        "fer-edge student train faces/train.npz -o student.safetensors \\",
        "  --validation faces/public_test.npz",
        "fer-edge student train crops/ -o student.safetensors --teacher clip-b32/",
    ),
    needs={"keep_twins": "validation"},
)
@click.argument("faces", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The checkpoint to write (safetensors, fp16)."
)
@click.option(
    "--validation",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="npz with FER+ votes, whose WAR and UAR are logged every epoch.",
)
@click.option(
    "--apart",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="More faces to test on, a folder or an npz: what shows a photo of them is not learned. Repeatable.",
)
@click.option("--keep-twins", is_flag=True, help="Learn from faces that show a photo of --validation too.")
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    help="Learn from it: a bundle, a student checkpoint, or a CLIP folder or id. Repeatable for faces with votes.",
)
@click.option(
    "--projection", type=click.Path(exists=True, path_type=Path), help="The Exp-CLIP head of a teacher that is a CLIP."
)
@click.option(
    "--work",
    default="runs/student",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for state, log.csv and curve.png; go on from it.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=150, show_default=True, help="Passes over the faces.")
@click.option("--batch", type=click.IntRange(min=2), default=128, show_default=True, help="Faces per step.")
@click.option("--lr", type=Finite(min=0, min_open=True), default=0.1, show_default=True, help="Highest learning rate.")
@click.option(
    "--strength",
    type=Finite(0, 2),
    default=1.0,
    show_default=True,
    help="How hard faces are turned, relit, erased and mixed; less for short trainings without a teacher.",
)
@click.option("--views", type=click.IntRange(min=1), default=16, show_default=True, help="Views of a face a teacher sees.")
@click.option("--size", type=click.IntRange(min=16, max=256), default=48, show_default=True, help="Pixels of a face's side.")
@click.option("--widths", type=Numbers(), default="16,32,96,192", show_default=True, help="Channels of each stage.")
@click.option("--depths", type=Numbers(), default="1,2,3,3", show_default=True, help="Convolutions of each stage.")
@click.option("--without", multiple=True, help="Leave this expression out: its faces and its sentences. Repeatable.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: torch's own.")
@click.option("--bf16/--no-bf16", default=None, help="Products in bf16, else fp32. Default: bf16 where this machine has it.")
@common
def train(
    faces: Path,
    output: Path,
    work: Path,
    teachers: tuple[str, ...],
    projection: Path | None,
    threads: int | None,
    bf16: bool | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Train a small encoder on FACES, alone or from teachers.

    FACES: an npz with FER+ votes (see 'fer-edge student data'), or, with one --teacher, any folder of face crops: the
    student then learns the teacher's features and takes its labels over. A GPU is used when torch sees one.
    """
    need_extra("torch", "transformers", "safetensors", "rich", "matplotlib", extra="convert")
    import torch

    if threads:
        torch.set_num_threads(threads)
    check_target(output, make_folder=True)
    with hushed():
        from .device import native_bf16, training_device
        from .network import save_student
        from .plan import plan_training
        from .teachers import open_teacher
        from .train import train_student

        device = training_device()
        bf16 = native_bf16(device) if bf16 is None else bf16
        heads = [None if Path(t).is_file() or Path(t, "manifest.json").is_file() else projection for t in teachers]
        if projection is not None and projection not in heads:
            raise UsageError("--projection goes with a --teacher that is a CLIP")
        known = tuple(open_teacher(t, head, device, bf16=bf16) for t, head in zip(teachers, heads, strict=True))
        plan = plan_training(faces, known, bf16=bf16, **options)
    ran = {"device": device, "arithmetic": "bf16" if bf16 else "fp32"}
    for note in (note for teacher in known for note in teacher.notes):
        say(f"Note: {note}")
    count = f"{len(known)} teacher{'' if len(known) == 1 else 's'}"
    if plan.data.twins:
        say(f"Left out: {plan.data.twins} faces that show a photo to be tested on ('fer-edge twins' lists them)")
    say(f"{len(plan.data.train.images)} faces, {count}, on {device} in {ran['arithmetic']}")
    with fraction(sys.stderr, "training") as progress:
        checkpoint = train_student(plan, work, _say_epoch, progress)
    save_student(output, checkpoint)
    emit({"checkpoint": str(output), "work": str(work), **ran}) if as_json else say(
        f"Written: {output}; now: fer-edge convert {output} -o BUNDLE"
    )


def _say_epoch(report: EpochReport) -> None:
    known = "" if isnan(report.war) else f"  WAR {report.war:.4f}  UAR {report.uar:.4f}"
    left = timedelta(seconds=round(report.seconds * (report.epochs - report.epoch)))
    say(f"epoch {report.epoch}/{report.epochs}  loss {report.loss:.4f}{known}  {report.seconds:.0f} s, {left} left")
