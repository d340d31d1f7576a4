"""``fer-edge student``: data, sentences and training of the small encoder behind the embedded default."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fer_edge.console import Rooms, common, emit, fraction, need_extra, say

from ..cli import hushed


@click.group(cls=Rooms)
def student() -> None:
    """Train the small encoder behind the embedded default."""


@student.command()
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


@student.command()
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
    result = {"file": str(target), "sentences": len(table.texts), "sha256": table.sha256}
    emit(result) if as_json else say(f"{len(table.texts)} sentences written to {target}")


@student.command()
@click.argument("faces", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The checkpoint to write (safetensors, fp16).",
)
@click.option(
    "--validation",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="npz whose WAR and UAR are logged every epoch.",
)
@click.option(
    "--work",
    default="runs/student",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for the state and log.csv; go on from it.",
)
@click.option("--epochs", type=click.IntRange(min=1), default=25, show_default=True, help="Passes over the faces.")
@click.option("--batch", type=click.IntRange(min=2), default=128, show_default=True, help="Faces per step.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed gives the same run.")
@click.option("--threads", type=click.IntRange(min=1), help="Default: torch's own.")
@common
def train(
    faces: Path,
    output: Path,
    validation: Path | None,
    work: Path,
    epochs: int,
    batch: int,
    seed: int,
    threads: int | None,
    as_json: bool,
) -> None:
    """Train on FACES (npz with FER+ votes) against class constants made from sentences."""
    need_extra("torch", "safetensors", "rich", extra="convert")
    import torch

    from fer_edge.labels import LABEL_SETS

    from .faces import load_faces
    from .sentences import descriptions, stored_sentences
    from .student import StudentConfig, save_student
    from .train import EpochReport, Recipe, TrainingData, train_student

    if threads:
        torch.set_num_threads(threads)
    labels = LABEL_SETS["ferplus8"]
    recipe = Recipe(epochs=epochs, batch=batch, seed=seed)

    def line(report: EpochReport) -> None:
        scores = f"loss {report.loss:.4f}  WAR {report.war:.4f}  UAR {report.uar:.4f}"
        say(f"epoch {report.epoch}/{report.epochs}  {scores}  {report.seconds:.0f} s")

    known = load_faces(validation, labels) if validation else None
    material = TrainingData(load_faces(faces, labels), known, stored_sentences(), descriptions(), labels)
    with fraction(sys.stderr, "training") as progress:
        checkpoint = train_student(material, StudentConfig(), recipe, work, line, progress)
    save_student(output, checkpoint)
    emit({"checkpoint": str(output), "work": str(work)}) if as_json else say(
        f"Written: {output}; now: fer-edge convert {output} -o BUNDLE"
    )
