"""``fer-edge bench`` and ``fer-edge compare``. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fer_edge.console import Command, Finite, Numbers, bundle_argument, common, emit, fraction, need_extra, say
from fer_edge.engines import PRECISIONS
from fer_edge.errors import UsageError
from fer_edge.files import check_target

if TYPE_CHECKING:
    from .bench import Plan
    from .results import Scenario

file_option = click.Path(dir_okay=False, writable=True, path_type=Path)


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, as 90s, 30m or 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", value)
        if not found or float(found.group(1)) == 0:
            self.fail(f"{value!r} is no duration; write 90s, 30m or 2h", param, ctx)
        return float(found.group(1)) * {"s": 1, "m": 60, "h": 3600}[found.group(2)]


_existing = click.Path(exists=True, path_type=Path)
_OPTIONS = (
    click.option("--runtime", "runtimes", multiple=True, help="Repeatable. Default: every one installed."),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=click.Choice(PRECISIONS),
        help="Repeatable. Default: all that the bundle has.",
    ),
    click.option("--device", "devices", multiple=True, help="By the engine's own name; repeatable. Default: its CPU."),
    click.option("--threads", type=Numbers(), default=(), help="One or several. Default: all processors, at most 4."),
    click.option("--execution-precision", help="Arithmetic to ask the engine for: bf16 or fp16 (openvino can)."),
    click.option(
        "--scenario",
        "scenarios",
        multiple=True,
        type=click.Choice(["single-stream", "offline", "multi-stream", "server", "camera"]),
        help="Repeatable. Default: single-stream and offline.",
    ),
    click.option("--seconds", type=Finite(min=0.05), default=1.0, show_default=True, help="Of a timed block."),
    click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Fresh processes of each."),
    click.option("--mlperf", is_flag=True, help="MLPerf's official minimum durations: ten minutes a scenario."),
    click.option(
        "--latency-bound",
        type=Finite(min=0, min_open=True),
        help="Of server, in ms. Default: twice the single-stream p90.",
    ),
    click.option("--fps", type=Finite(min=0.1), default=30.0, show_default=True, help="Frames a second of camera."),
    click.option("--faces", type=click.IntRange(1, 8), default=1, show_default=True, help="Faces in a frame of camera."),
    click.option(
        "--clip",
        type=click.Path(exists=True, dir_okay=False),
        help="A video for camera, over and over. Default: one of our own, 640 x 480, with --faces faces.",
    ),
    click.option(
        "--detector",
        type=click.Path(),
        help="Of camera, as of 'watch'. Default: the installed one; without one the faces of our own clip are known.",
    ),
    click.option(
        "--photo",
        type=click.Path(exists=True, dir_okay=False),
        help="What decoding and resizing are timed with. Default: a JPEG of 256 x 256.",
    ),
    click.option("--all-bundles", type=_existing, metavar="DIR", help="Measure every bundle in this folder."),
    click.option("--accuracy", type=_existing, metavar="DATA", help="Labelled faces: WAR and UAR too, as evaluate."),
    click.option("--truth", metavar="MEMBER", help="Of an npz for --accuracy: see evaluate."),
    click.option("--classes", metavar="MEMBER", help="Of an npz for --accuracy: see evaluate."),
    click.option("--recursive", is_flag=True, help="Of a folder for --accuracy: see evaluate."),
    click.option(
        "--interleave",
        "other",
        type=_existing,
        metavar="OTHER",
        help="Measure in turns with this: a bundle, or the python of an environment with another build.",
    ),
    click.option("--sustained", type=Duration(), help="Work this long, and show what heat does: 90s, 30m, 2h."),
    click.option(
        "--profile",
        is_flag=True,
        help="Also what each operator takes, by the engine's own profiler, in a run of its own after the timed ones.",
    ),
    click.option("--in-process", is_flag=True, help="No fresh processes: for debugging, not for figures."),
    click.option("-o", "--output", type=file_option, help="Also write the JSON, raw samples included."),
    click.option("--csv", "csv_file", type=file_option, help="Also write every number as CSV."),
    click.option("--markdown", "markdown_file", type=file_option, help="Also write the table as Markdown."),
    click.option("--html", "html_file", type=file_option, help="Also write a report with plots: one file, offline."),
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What ``bench`` takes, in the order of its help."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@click.command(
    cls=Command,
    examples=(
        "fer-edge bench -o today.json --html today.html",
        "fer-edge bench my-bundle/ --runtime onnxruntime --threads 1,2 --seconds 5",
        "fer-edge bench --sustained 30m --runtime openvino",
    ),
    needs=dict.fromkeys(("truth", "classes", "recursive"), "accuracy"),
)
@bundle_argument
@_options
@common
def bench(bundle: Path | None, as_json: bool, **options: Any) -> None:
    """Speed, memory, energy and right answers of every engine, precision and thread count on this box.

    Each configuration runs in fresh processes of its own. Exit status 1 when a configuration failed, stopped
    early or gives wrong answers. Ctrl-C or SIGTERM ends the run and keeps what was measured (exit status 130, 143).
    """
    need_extra("rich", "matplotlib", extra="bench")
    from .report.files import write_all
    from .report.screen import bench_text
    from .runs import accuracy, check_faces, in_turns, ordinary, sustained, wrong

    outputs = {name: options.pop(name) for name in ("output", "csv_file", "markdown_file", "html_file")}
    data = [options.pop(name) for name in ("accuracy", "truth", "classes", "recursive")]
    other, seconds = options.pop("other"), options.pop("sustained")
    _together(other, seconds, data[0], outputs["csv_file"], options)
    plan = _plan(bundle, **options)
    for file in outputs.values():
        if file is not None:
            check_target(file)
    if data[0] is not None:
        check_faces(plan, data)
    with fraction(sys.stderr, "measuring") as progress:
        if other is not None:
            results = in_turns(plan, other, progress)
        elif seconds is not None:
            results = sustained(plan, seconds, progress)
        else:
            results = ordinary(plan, progress)
        if data[0] is not None and not results.extras.get("interrupted"):
            results = accuracy(results, data, progress)
    unwritten = write_all(results, **outputs)  # first: a closed pipe or a full screen must not cost hours
    if as_json:
        emit(results.as_json())
    else:
        bench_text(results, sys.stdout)
    if unwritten:
        raise UsageError("; ".join(unwritten))
    if results.extras.get("interrupted"):
        say("Interrupted: what was measured until then stands above.")
        sys.exit(130)
    unfinished = results.extras.get("accuracy", {}).get("failed") or results.extras.get("sustained", {}).get("stopped")
    if results.failures or wrong(results) or unfinished:
        sys.exit(1)
    if any(entry.get("unreadable") for entry in results.extras.get("accuracy", {}).get("of", ())):
        sys.exit(2)


def _together(other: Path | None, seconds: float | None, data: Path | None, csv: Path | None, options: Any) -> None:
    """Raise UsageError for options of different runs."""
    if other is not None and seconds is not None:
        raise UsageError("--interleave and --sustained are two different runs; ask for one of them")
    mode = "--interleave" if other is not None else "--sustained" if seconds is not None else None
    if mode and (data is not None or csv is not None):
        raise UsageError(f"{mode} gives a verdict and no table: --accuracy and --csv go with an ordinary run")
    if mode and (options["mlperf"] or options["scenarios"]):
        raise UsageError(f"{mode} has its own traffic: --mlperf and --scenario go with an ordinary run")
    if mode and (options["photo"] or options["in_process"]):
        raise UsageError(
            f"{mode} times the engine alone, in processes of its own: --photo and --in-process have no say there"
        )
    if mode and options["profile"]:
        raise UsageError(f"{mode} gives a verdict and no table: --profile goes with an ordinary run")
    if options["mlperf"] and "camera" in options["scenarios"]:
        raise UsageError("the camera is no scenario of MLPerf's: measure it in a run without --mlperf")
    context = click.get_current_context()
    options_of = dict.fromkeys(("fps", "faces", "clip", "detector"), "camera") | {"latency_bound": "server"}
    for name, scenario in options_of.items():
        given = context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        if given and scenario not in options["scenarios"]:
            raise UsageError(f"--{name.replace('_', '-')} is for --scenario {scenario}, which is not asked for")
    if options["clip"] and context.get_parameter_source("faces") is click.core.ParameterSource.COMMANDLINE:
        raise UsageError("--clip shows the faces that it shows: --faces is for our own clip")


def _plan(bundle: Path | None, all_bundles: Path | None, **options: Any) -> Plan:
    from fer_edge.classifier import DEFAULT_BUNDLE
    from fer_edge.image import load_picture

    from . import loadgen
    from .bench import Plan, official
    from .traffic import Load

    if bundle is not None and all_bundles is not None:
        raise UsageError("name one bundle, or a folder of them with --all-bundles, not both")
    bundles: tuple[Path, ...] = (bundle or DEFAULT_BUNDLE,)
    if all_bundles is not None:
        bundles = tuple(sorted(path.parent for path in all_bundles.glob("*/manifest.json")))
        if not bundles:
            raise UsageError(f"{all_bundles} has no bundle in it: no folder with a manifest.json")
    seconds, mlperf = options.pop("seconds"), options.pop("mlperf")
    scenarios: tuple[Scenario, ...] = options.pop("scenarios") or ("single-stream", "offline")
    needing = "--mlperf" if mlperf else next((name for name in scenarios if name in ("multi-stream", "server")), None)
    if needing and not loadgen.installed():
        raise UsageError(
            f"{needing} needs MLPerf's LoadGen, which is not installed (it has no wheel for aarch64); single-stream, "
            "offline and camera work without it"
        )
    if options["photo"] is not None:
        load_picture(options["photo"])
    if "camera" in scenarios:
        need_extra(extra="live")
    paced = {name: options.pop(name) for name in ("fps", "faces", "clip", "detector")}
    load = Load(seconds, 5 * seconds, latency_bound_ms=options.pop("latency_bound"), **paced)
    plan = Plan(
        bundles,
        load=load,
        devices=options.pop("devices") or (None,),
        threads=tuple(dict.fromkeys(options.pop("threads"))),
        scenarios=scenarios,
        **options,
    )
    return official(plan) if mlperf else plan


@click.command(
    cls=Command,
    examples=("fer-edge compare before.json after.json --again before2.json --tolerance 0.1",),
)
@click.argument("a", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("b", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tolerance",
    type=Finite(min=0),
    default=0.05,
    show_default=True,
    help="B may be slower by this share before it counts as a regression. Noise is never below 2%.",
)
@click.option(
    "--again",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A second run of A: what it differs by from A is noise.",
)
@click.option("--partial", is_flag=True, help="B measured less on purpose: what it did not try is no loss.")
@common
def compare(a: Path, b: Path, tolerance: float, again: Path | None, partial: bool, as_json: bool) -> None:
    """Was B faster than A? Two files of 'bench -o' or 'bench --json'.

    Exit status 0: no regression. 1: a configuration of B is slower beyond noise and --tolerance, gives wrong answers or
    was not checked for them, or fails or is missing where A was measured. 3: inconclusive, because noise is larger than
    --tolerance, so that a regression could hide in it; 1 goes before 3.
    """
    need_extra("rich", "matplotlib", extra="bench")
    from .compare import compare as pair
    from .compare import differences, lost, overall, unchecked
    from .report.screen import comparison_text
    from .results import read_results
    from .runs import wrong

    before, after = read_results(a), read_results(b)
    second = read_results(again) if again else None
    if any(run is not None and run.extras.get("in_process") for run in (before, after, second)):
        raise UsageError("a run with --in-process is for debugging: its figures are not compared")
    found = pair(before, after, second)
    gone, bad = lost(before, after, partial), [*wrong(after), *unchecked(before, after)]
    notes = differences(before, after)
    answer = "regression" if gone or bad else overall(found, tolerance)
    if as_json:
        answers = [c.answer(tolerance) for c in found]
        counted = {"regressions": answers.count("regression"), "inconclusive": answers.count("inconclusive")}
        comparisons = [{**asdict(c), "noise": c.noise, "answer": c.answer(tolerance)} for c in found]
        said = {"answer": answer, "tolerance": tolerance, **counted, "failed": gone, "wrong": bad, "notes": notes}
        emit({**said, "comparisons": comparisons})
    else:
        comparison_text(found, tolerance, gone, bad, notes, sys.stdout)
    sys.exit({"no regression": 0, "regression": 1, "inconclusive": 3}[answer])
