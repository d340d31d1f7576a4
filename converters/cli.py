"""``fer-edge convert`` and ``fer-edge labels add``. Nothing heavy is imported before the command runs."""

from __future__ import annotations

import ctypes
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from fer_edge.console import Command, common, emit, need_extra, printable, required_bundle, say, show
from fer_edge.engines import PRECISIONS, RUNTIMES
from fer_edge.errors import FerEdgeError, UsageError


def _flush() -> None:
    """Python's buffers, and those of the C library, whose late output would otherwise land on the restored stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


@contextmanager
def hushed() -> Iterator[int]:
    """Send what engines and converters print (stdout and stderr, C++ included) to a log; yields a descriptor of the
    real stderr.

    When the block fails with anything but an error of our own, the end of the log is shown."""
    _flush()
    kept = {fd: os.dup(fd) for fd in (1, 2)}
    with tempfile.TemporaryFile() as log:
        # Not closed here: loggers that libraries set up meanwhile keep it.
        text = io.TextIOWrapper(os.fdopen(os.dup(log.fileno()), "wb", buffering=0), write_through=True)
        try:
            for fd in kept:
                os.dup2(log.fileno(), fd)
            # Once for C++, by descriptor, and once for Python, whose sys.stdout need not be descriptor 1.
            with redirect_stdout(text), redirect_stderr(text):
                yield kept[2]
        except (FerEdgeError, KeyboardInterrupt):
            raise
        except BaseException:
            _flush()
            log.seek(max(0, log.tell() - 4000))
            end = log.read().decode("utf-8", "replace")
            os.write(kept[2], "".join(f"{printable(line)}\n" for line in end.splitlines()).encode())
            raise
        finally:
            _flush()
            for fd, copy in kept.items():
                os.dup2(copy, fd)
                os.close(copy)


class PixelStatistics(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.3 only
    """auto, none, clip, or mean and std as 1 + 1 or 3 + 3 numbers."""

    name = "auto|none|clip|MEAN,STD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple) or value in ("auto", "none", "clip"):
            return value
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) not in (2, 6):
            self.fail(f"{value!r} is none of auto, none, clip, and no mean and std as 2 or 6 numbers", param, ctx)
        half = len(numbers) // 2
        return numbers[:half], numbers[half:]


@click.command(
    cls=Command,
    examples=(
        "fer-edge convert openai/clip-vit-base-patch32 -o clip-b32/ \\",
        "  --projection exp-clip.pth --labels rafdb7 --calibration faces/",
        "fer-edge convert student.safetensors -o student/ --runtime litert",
    ),
)
@click.argument("source")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="The bundle folder to write; it must not exist.",
)
@click.option(
    "--projection",
    type=click.Path(path_type=Path),
    help="Exp-CLIP head: the reference's .pth (mlp.weight) or safetensors.",
)
@click.option("--labels", help="Default label set: rafdb7, ferplus8, mafw11, or a TOML/JSON file (label -> prompts).")
@click.option(
    "--prompts", help="P1, P2, P3, ensemble, or a TOML/JSON file. Default: P3; for a student, its own descriptions."
)
@click.option("--runtime", "runtimes", multiple=True, help=f"{', '.join(RUNTIMES)}; repeatable. Default: all of these.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    type=click.Choice(PRECISIONS),
    help="Repeatable. Default: int8.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A folder of faces (or an npz with 'images') to calibrate int8 with.",
)
@click.option(
    "--calibration-count", type=click.IntRange(min=1), default=300, show_default=True, help="How many of them to use."
)
@click.option(
    "--normalize",
    type=PixelStatistics(),
    default="auto",
    show_default=True,
    help="Pixel mean and std: clip = the source's own (CLIP's where it states none), none = value / 255 alone, auto = as "
    "the projection was learned (a released head: none), without one clip; or numbers, MEAN,STD or R,G,B,R,G,B.",
)
@click.option(
    "--input-size",
    type=click.IntRange(min=1),
    help="Experimental: pixels of a side, fewer than the CLIP was trained with; its positions are interpolated.",
)
@click.option(
    "--merge-tokens",
    type=click.IntRange(min=0),
    default=0,
    help="Experimental: tokens that every layer of the CLIP merges away (Token Merging, ICLR 2023).",
)
@click.option("--symmetric", is_flag=True, help="onnxruntime int8 with symmetric activations, as TensorRT wants.")
@click.option("--for-targets", is_flag=True, help="Keep a float graph too, which 'fer-edge compile' goes out from.")
@click.option(
    "--target",
    type=click.Choice(["jetson"]),
    help="jetson: onnxruntime alone, with --symmetric, for TensorRT (docs/jetson.md). --runtime names others beside it.",
)
@click.option("--report", "with_report", is_flag=True, help="Show each artefact's operators, and what classes of NPUs take.")
@click.option("--require-all", is_flag=True, help="Write nothing unless every artefact passes its checks.")
@click.option("--allow-drift", is_flag=True, help="Write artefacts that miss their parity bars; the manifest records it.")
@click.option("--name", help="Name in the manifest. Default: the output folder's name.")
@click.option("--version", default="1", show_default=True, help="Version in the manifest.")
@click.option("--licence", default="unstated", show_default=True, help="Licence of the weights, for the manifest.")
@click.option(
    "--card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A model card in Markdown, stored in the manifest.",
)
@click.option("--force", is_flag=True, help="Replace the output folder when it exists.")
@common
def convert(
    source: str,
    output: Path,
    as_json: bool,
    card: Path | None,
    runtimes: tuple[str, ...],
    precisions: tuple[str, ...],
    input_size: int | None,
    merge_tokens: int,
    target: str | None,
    with_report: bool,
    **options: Any,
) -> None:
    """Convert SOURCE into a bundle and check every artefact against the float reference.

    SOURCE: a Hugging Face CLIP folder or id, or a student checkpoint. What falls below the parity bars is not written: then
    the exit status is 1, and 2 where nothing is left to write.
    """
    need_extra(extra="convert")
    with hushed() as real_stderr, open(os.dup(real_stderr), "w", encoding="utf-8") as screen:
        from .compile_labels import left_out
        from .convert import Plan
        from .convert import convert as run
        from .progress import steps
        from .pruning import Pruning

        if target == "jetson":
            options["symmetric"] = True
            runtimes = tuple(runtimes) or ("onnxruntime",)
        plan = Plan(
            runtimes=tuple(dict.fromkeys(runtimes)) or RUNTIMES,
            precisions=tuple(dict.fromkeys(precisions)) or ("int8",),
            card=_text(card) if card else "",
            pruning=Pruning(input_size, merge_tokens),
            **options,
        )
        with steps(screen) as report:
            conversion = run(source, output, plan, report)
    from fer_edge.report import describe, summary, table

    bundle, notes = conversion.bundle, list(conversion.notes)
    notes += [
        f"the label set {name} was left out; the prompts have none for {', '.join(missing)}"
        for name, missing in left_out(bundle).items()
    ]
    if plan.pruning:
        notes.append(bundle.manifest.card.rpartition(chr(10))[2])
    if plan.calibration is None and any(
        a.calibration and "augmentations" in a.calibration for a in bundle.manifest.artefacts
    ):
        notes.append("int8 was calibrated with augmentations of one face. Calibrate with your own: --calibration FOLDER")
    if with_report:
        from .lint import lint
        from .lint import table as lint_table

        linted = lint(bundle)
    if as_json:
        told = {**summary(bundle), "failed": [asdict(failure) for failure in conversion.failed], "notes": notes}
        emit({**told, "operators": [one.to_dict() for one in linted]} if with_report else told)
    else:
        show(describe(bundle))
        if with_report:
            show()
            show(table(lint_table(linted)))
    for note in notes:
        say(f"Note: {note}")
    for failure in conversion.failed:
        say(f"Failed: {failure.runtime} {failure.precision} {failure.reason}")
    if conversion.failed:
        sys.exit(1)


@click.command(
    "add",
    cls=Command,
    examples=(
        "fer-edge labels add my-bundle/ moods.toml \\",
        "  --text-encoder openai/clip-vit-base-patch32",
    ),
)
@required_bundle
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--text-encoder", required=True, help="The encoder the bundle was made with: a folder or a Hugging Face id.")
@click.option("--name", help="Name of the label set. Default: the file's name without its ending.")
@common
def labels_add(bundle: Path, file: Path, text_encoder: str, name: str | None, as_json: bool) -> None:
    """Compile the sentences of FILE (TOML or JSON: label -> prompt or prompts) into a new label set of BUNDLE."""
    need_extra("torch", "transformers", extra="convert")
    with hushed():
        from .compile_labels import add_labels

        added, notes = add_labels(bundle, file, text_encoder, name)
    for note in notes:
        say(f"Note: {note}")
    if as_json:
        emit({"bundle": str(bundle), "name": added.name, "labels": list(added.labels), "notes": list(notes)})
    else:
        say(f"Added the label set {added.name} ({', '.join(added.labels)}). Use it with --labels {added.name}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is no text in UTF-8 ({error})") from error
