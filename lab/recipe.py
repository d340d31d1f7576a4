"""From data to the default bundle with its figures, as one command: ``python -m lab.recipe DATA OUTPUT --help``.

Each step is a command or two, which are said as they run, and leaves its work in OUTPUT. What is there already and came of
the same commands and the same files is not made again: an interrupted recipe goes on, and so does one after a change.

| step | what it leaves in OUTPUT |
|---|---|
| pack | ``packed/``: faces and the face-recognition network in little space (``--train``) |
| window | ``window-1/``, ``window-2/`` ...: teachers, then students (``--train``) |
| finish | ``student.safetensors``: the student with its text side (not with ``--checkpoint``) |
| convert | ``converted/``: int8 for every engine |
| held-out | ``held-out.npz``: training faces that no training saw |
| calibrate | ``bundle/``: the same with temperature, threshold and least length for both label sets |
| twins | ``twins.txt``: test faces that show a photo of the training split |
| figures | ``figures.json``, and ``figures.md`` for the model card |"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click

import fer_edge
from fer_edge.bundle import open_bundle
from fer_edge.console import fraction, say, show
from fer_edge.engines import RUNTIMES
from fer_edge.errors import UsageError
from fer_edge.files import write_text
from fer_edge.labelled import read_faces
from fer_edge.manifest import digest_of

from .commands import OneLine
from .prior_figures import RARE, wilson

ROOT = Path(__file__).resolve().parent.parent
MEMBERS = ("--truth", "ferplus_majority_labelcsv", "--classes", "ferplus_class_names")
LICENCE = "Apache-2.0; trained on FER2013, which is for research: see the card"
WINDOWS = (9.4, 4.3)
"""Minutes of one H200: the default of version 6 was trained so. A later window goes on with the students of the one before,
at half the learning rate, and asks no teacher anew."""
LATER_RATE = 0.5
STDERR = 2
"""File descriptor: standard output is for the figures."""
STEPS = ("pack", "window", "finish", "convert", "held-out", "calibrate", "twins", "figures")

Words = Sequence["str | Path"]


@dataclass(frozen=True)
class Step:
    """``made`` (files or folders) comes of ``given`` by ``run``; ``words`` are everything else that it hangs on."""

    name: str
    given: tuple[Path, ...]
    made: tuple[Path, ...]
    words: tuple[str, ...]
    run: Callable[[], None]


@dataclass(frozen=True)
class Options:
    """What a user names; see :func:`recipe`."""

    data: Path
    output: Path
    students: Path | None
    student: str
    checkpoint: Path | None
    photos: Path | None
    minutes: tuple[float, ...]
    epochs: tuple[int, ...]
    teachers: str | None
    few: int | None
    prior: float | None
    name: str
    version: str
    card: Path
    runtimes: tuple[str, ...]
    robustness: bool

    @property
    def train(self) -> Path:
        """The training split."""
        return self.data / "train.npz"

    @property
    def test(self) -> Path:
        """The split that figures are told of."""
        return self.data / "public_test.npz"


def command(words: Words, quiet: bool = False) -> None:
    """Say a command of this Python, and run it. Raises UsageError when it fails: its own last line says why."""
    said = [str(word) for word in words]
    say("$ " + " ".join(f"'{word}'" if " " in word else word for word in ["python", "-m", *said]))
    done = subprocess.run([sys.executable, "-m", *said], stdout=subprocess.DEVNULL if quiet else STDERR, check=False)
    if done.returncode:
        raise UsageError(f"the recipe stops: {said[0]} {said[1]} ended with {done.returncode}; see the line above")


def steps_of(o: Options) -> list[Step]:
    """All that is to be done, in order."""
    out = o.output
    steps: list[Step] = []
    words: tuple[str, ...]
    students, checkpoint = o.students, o.checkpoint
    if o.photos is not None:
        training, students = _training(o, o.photos)
        steps += training
    if checkpoint is None:
        assert students is not None
        checkpoint = out / "student.safetensors"
        words = ("lab.gpu.finish", str(students), o.student, str(o.data), str(checkpoint))
        words += () if o.prior is None else ("--prior", f"{o.prior:g}")
        steps.append(_simple("finish", (students, o.train, o.test), (checkpoint,), words))
    converted, bundle, held_out, twins = (out / name for name in ("converted", "bundle", "held-out.npz", "twins.txt"))
    words = ("fer_edge", "convert", str(checkpoint), "-o", str(converted), "--force", "--require-all", "--name", o.name)
    words += ("--version", o.version, "--licence", LICENCE, "--calibration", str(o.train), "--card", str(o.card))
    for runtime in o.runtimes:
        words += ("--runtime", runtime)
    steps.append(_simple("convert", (checkpoint, o.train, o.card), (converted,), words))
    words = ("lab.held_out", str(o.train), str(held_out))
    steps.append(_simple("held-out", (o.train,), (held_out,), words))
    rules = ("--error", "0.05", "--face-loss", "0.02", "--runtime", o.runtimes[0])
    # A bundle's manifest has the hashes of its files: other weights are as large as these.
    given = (converted / "manifest.json", held_out)
    steps.append(Step("calibrate", given, (bundle,), rules, partial(_calibrate, o, rules)))
    words = ("fer_edge", "twins", str(o.test), str(o.train), "-o", str(twins))
    steps.append(_simple("twins", (o.test, o.train), (twins,), words, quiet=True))
    made = (out / "figures.json", out / "figures.md")
    words = (*o.runtimes, "robustness" if o.robustness else "")
    steps.append(Step("figures", (bundle / "manifest.json", o.test, twins), made, words, partial(_figures, o)))
    return steps


def _simple(name: str, given: tuple[Path, ...], made: tuple[Path, ...], words: tuple[str, ...], quiet: bool = False) -> Step:
    return Step(name, given, made, words, partial(command, words, quiet))


def _training(o: Options, photos: Path) -> tuple[list[Step], Path]:
    words: tuple[str, ...]
    packed = o.output / "packed"
    files = (packed / "faces.npz", packed / "identity.safetensors")
    words = ("lab.gpu.pack", str(o.data), str(photos), str(packed))
    given: tuple[Path, ...]
    steps = [_simple("pack", (o.train, o.test, photos), files, words)]
    students = Path()
    for i in range(len(o.epochs or o.minutes)):
        folder, work = o.output / f"window-{i + 1}", o.output / f"window-{i + 1}.work"
        words = ("lab.gpu.window", "--input", str(packed), "--output", str(folder), "--work", str(work))
        words += ("--minutes", f"{10**6 if o.epochs else o.minutes[i]:g}")
        words += ("--epochs", str(o.epochs[i])) if o.epochs else ()
        words += ("--students", o.student)
        words += () if o.few is None else ("--faces", str(o.few), "--views", "1", "--batch", "16")
        given = files
        if i:
            answers = o.output / "window-1.work" / "answers.npy"
            words += ("--answers", str(answers), "--start", str(students), "--rate", f"{LATER_RATE:g}")
            given += (answers, students)
        else:
            words += () if o.teachers is None else ("--teachers", o.teachers)
        students = folder / "students.safetensors"
        made = (students, *((work / "answers.npy",) if not i else ()))
        steps.append(Step("window", given, made, words, partial(_window, words, folder)))
    return steps, students


def _window(words: Words, folder: Path) -> None:
    command(words)
    failed = json.loads((folder / "summary.json").read_text()).get("failed")
    if failed:
        raise UsageError(f"the recipe stops: a training failed: {failed}; {folder / 'summary.json'} has its log")


def _calibrate(o: Options, rules: tuple[str, ...]) -> None:
    part = o.output / "bundle.part"
    if part.exists():
        shutil.rmtree(part)
    shutil.copytree(o.output / "converted", part)
    for labels in ("ferplus8", "rafdb7"):
        more = () if labels == "ferplus8" else ("--skip-unknown",)
        words = ("fer_edge", "calibrate", part, o.output / "held-out.npz", *MEMBERS, *rules, "--labels", labels, *more)
        command(words, quiet=True)
    bundle = o.output / "bundle"
    if bundle.exists():
        shutil.rmtree(bundle)
    part.rename(bundle)


def _figures(o: Options) -> None:
    """Every engine on all test faces and on those without a twin, the first one on spoilt faces as well."""
    from fer_edge.benchmarks.evaluate import evaluate
    from fer_edge.benchmarks.report.card import figures_section

    every = read_faces(o.test, MEMBERS[1], MEMBERS[3])
    alone = read_faces(o.test, MEMBERS[1], MEMBERS[3], leave_out=o.output / "twins.txt")
    bundle, found, rows = o.output / "bundle", [], []
    for i, runtime in enumerate(o.runtimes):
        with fer_edge.load(bundle, runtime=runtime) as clf, fraction(sys.stderr, runtime) as progress:
            found.append(evaluate(clf, every, on_face=progress, robustness=o.robustness and not i))
            rows.append({"all": found[-1].as_json(), "without_twins": evaluate(clf, alone, on_face=progress).as_json()})
    digest = digest_of(open_bundle(bundle).manifest)
    write_text(o.output / "figures.json", json.dumps({"digest": digest, "engines": rows}, indent=1))
    write_text(o.output / "figures.md", "\n".join([*table(o.output), "", figures_section(found)]) + "\n")


def table(output: Path) -> list[str]:
    """The published figures in Markdown, from figures.json."""
    figures = json.loads((output / "figures.json").read_text())
    sizes = {a.runtime: sum(file.bytes for file in a.files) for a in open_bundle(output / "bundle").manifest.artefacts}
    rows = figures["engines"]
    names = [f"{row['all']['runtime']} {row['all']['precision']}" for row in rows]
    lines = [f"| {figures['digest'][:19]} | {' | '.join(names)} |", f"|---|{'---|' * len(rows)}"]
    for title, part in (("", "all"), (" without twins", "without_twins")):
        lines.append(_row(f"faces{title}", [str(row[part]["n"]) for row in rows]))
        for key in ("war", "uar"):
            cells = [f"{row[part][key]:.1%} ({_span(row[part]['intervals'][key])})" for row in rows]
            lines.append(_row(f"{key.upper()}{title} (95% interval)", cells))
    alls = [row["all"] for row in rows]
    for label in RARE:
        cells = []
        for entry in alls:
            count, recall = entry["per_class_count"][label], entry["per_class_recall"][label]
            cells.append(f"{recall:.0%} of {count} ({_span(wilson(recall * count, count))})" if count else "-")
        lines.append(_row(f"recall of {label} (Wilson)", cells))
    lines.append(_row("calibration error", [f"{entry['calibration_error']:.1%}" for entry in alls]))
    lines.append(_row("certain answers", [f"{entry['certain']:.1%}" for entry in alls]))
    wrong = [entry["certain_error"] for entry in alls]
    lines.append(_row("of these wrong", ["-" if error is None else f"{error:.1%}" for error in wrong]))
    spoilt = [entry.get("robustness_summary") for entry in alls]
    if any(spoilt):
        lines.append(_row("spoilt in 8 ways, mean WAR", ["-" if s is None else f"{s['war_mean']:.1%}" for s in spoilt]))
        low = ["-" if s is None else f"{s['lowest']['war']:.1%} ({s['lowest']['way']})" for s in spoilt]
        lines.append(_row("lowest of the 8", low))
    return [*lines, _row("MB", [f"{sizes[entry['runtime']] / 1e6:.2f}" for entry in alls])]


def _row(title: str, cells: Sequence[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def _span(interval: Sequence[float]) -> str:
    return f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}"


def hash_of(path: Path) -> str:
    """Of a file's bytes; of a folder's names and sizes of files, which is what many photos can be asked for."""
    found = hashlib.sha256()
    if path.is_dir():
        listed = sorted((p.relative_to(path).as_posix(), p.stat().st_size) for p in path.rglob("*") if p.is_file())
        found.update(json.dumps(listed).encode())
    else:
        with path.open("rb") as file:
            while part := file.read(1 << 20):
                found.update(part)
    return found.hexdigest()


def carry_out(steps: Sequence[Step], output: Path, until: str | None) -> None:
    """Run what is not there yet."""
    notes = output / "steps"
    notes.mkdir(parents=True, exist_ok=True)
    for number, step in enumerate(steps):
        note = notes / f"{number + 1}-{step.name}.json"
        state = {"words": list(step.words), "given": {str(path): hash_of(path) for path in step.given}}
        before = None
        with suppress(OSError, ValueError):
            before = json.loads(note.read_text())
        if before == state and all(path.exists() for path in step.made):
            say(f"{step.name}: there already")
        else:
            note.unlink(missing_ok=True)
            say(f"{step.name}:")
            step.run()
            missing = [path for path in step.made if not path.exists()]
            if missing:
                raise UsageError(f"the recipe stops: {step.name} left no {missing[0]}; see the lines above")
            write_text(note, json.dumps(state, indent=1))
        if step.name == until and not any(later.name == until for later in steps[number + 1 :]):
            return


def check(o: Options, train: bool) -> None:
    """Raise UsageError for an input that is missing, before anything has begun."""
    for path, how in (
        (o.train, "build it with: fer-edge student data"),
        (o.test, "build it with: fer-edge student data"),
        (o.card, "name a model card with --card"),
    ):
        if not path.is_file():
            raise UsageError(f"{path} is not there; {how}")
    sources = [o.students is not None, o.checkpoint is not None, train]
    if sum(sources) != 1:
        raise UsageError("say where the student comes from: --students FILE, --checkpoint FILE or --train")
    if o.prior is not None and o.checkpoint is not None:
        raise UsageError("--prior is for fitting the text side, and --checkpoint has one already")
    if not train:
        if o.photos is not None or o.epochs or o.teachers or o.few is not None:
            raise UsageError("--photos, --epochs, --teachers and --few say how to train: add --train")
        return
    if o.photos is None:
        raise UsageError("--train learns from photos without labels too: --photos FOLDER")
    import torch

    from .gpu.identity import installed_identity

    if installed_identity() is None:
        raise UsageError("--train starts from a face-recognition network: pip install --no-deps face-recognition-models")
    if not torch.cuda.is_available() and not o.epochs:
        raise UsageError("there is no GPU here: say how long the CPU shall learn, with --epochs N[,N...]")


def numbers(kind: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, str | None], tuple[Any, ...]]:
    """Of an option with numbers above 0, separated by commas."""

    def parse(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[Any, ...]:
        try:
            found = tuple(kind(part) for part in text.split(",")) if text else ()
        except ValueError:
            found = (0,)
        if any(not number > 0 for number in found):
            raise click.BadParameter(f"{text!r} is not a list of numbers above 0", ctx, param)
        return found

    return parse


@click.command(cls=OneLine)
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--students", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="What a window left.")
@click.option("--student", default="s66b", show_default=True, help="Which of them.")
@click.option("--checkpoint", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="A student, finished.")
@click.option("--train", is_flag=True, help="Train before: on a GPU, or for --epochs on the CPU.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Faces without labels.")
@click.option(
    "--minutes",
    callback=numbers(float),
    default=",".join(f"{m:g}" for m in WINDOWS),
    show_default=True,
    metavar="A[,B...]",
    help="Of each window; a later one goes on with the students alone.",
)
@click.option("--epochs", callback=numbers(int), metavar="A[,B...]", help="Of each training, instead of minutes.")
@click.option("--teachers", help="Names of lab.gpu.course. Default: all.")
@click.option("--few", type=click.IntRange(32), help="Only so many faces and small batches, to try things out.")
@click.option("--prior", type=click.FloatRange(0), help="Of the text side; see lab.prior_figures. Default: the course's.")
@click.option("--name", default="student48", show_default=True, help="In the manifest.")
@click.option("--version", default="6", show_default=True, help="In the manifest.")
@click.option("--card", type=click.Path(path_type=Path), default=ROOT / "docs" / "card.md", help="Default: docs/card.md.")
@click.option("--runtime", "runtimes", type=click.Choice(RUNTIMES), multiple=True, help="Repeatable. Default: all.")
@click.option("--robustness/--no-robustness", default=True, help="Spoilt faces too.", show_default=True)
@click.option("--until", type=click.Choice(STEPS), help="Stop after this step.")
def recipe(train: bool, until: str | None, runtimes: tuple[str, ...], **given: Any) -> None:
    """From DATA (train.npz and public_test.npz of `fer-edge student data`) to OUTPUT/bundle and the figures that are
    published, in one go."""
    options = Options(runtimes=runtimes or RUNTIMES, **given)
    check(options, train)
    steps = steps_of(options)
    if until is not None and until not in {step.name for step in steps}:
        raise UsageError(f"--until {until}: there is no such step here; there are {', '.join(step.name for step in steps)}")
    carry_out(steps, options.output, until)
    if until in (None, "figures"):
        show("\n".join(table(options.output)))


if __name__ == "__main__":
    recipe()
