"""``fer-edge compile``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from fer_edge.console import Command, common, emit, required_bundle, say, show, status


@click.command(
    cls=Command,
    examples=(
        "fer-edge compile my-bundle/ --target rk3588 -o rk3588/ \\",
        "  --python rknn/bin/python --calibration faces/",
        "fer-edge compile my-bundle/ --target ethos-u55-256 -o u55/",
    ),
)
@required_bundle
@click.option("--target", required=True, metavar="T", help="rk3588, ethos-u55-256, ...; a wrong name lists all.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="A bundle folder to write, with what the device needs. Default: the artefact goes into BUNDLE itself.",
)
@click.option("--precision", type=click.Choice(["int8", "fp16"]), help="Default: int8.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="A folder of faces (or an npz with 'images') to calibrate int8 with, where the compiler measures ranges.",
)
@click.option(
    "--calibration-count", type=click.IntRange(min=1), default=300, show_default=True, help="How many of them to use."
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="The Python of the environment that has the compiler. Default: this one.",
)
@click.option("--force", is_flag=True, help="Replace the output folder when it exists.")
@common
def compile_(bundle: Path, as_json: bool, **options: Any) -> None:
    """Compile BUNDLE for a device that takes no general model file, and judge the result before it is written.

    RKNN is judged in the vendor's simulator, Ethos-U by LiteRT's reference kernels and Vela's report. What misses its
    bars is not written: then the exit status is 1.
    """
    from .compile import compile_bundle

    with status() as progress:
        made = compile_bundle(bundle, report=progress, **options)
    told = {
        "target": made.target,
        "runtime": made.runtime,
        "precision": made.precision,
        "compiler": made.compiler,
        "judge": made.judge,
        "parity": made.parity.numbers(),
        "misses": list(made.misses),
        "report": dict(made.report),
        "bundle": str(made.bundle.folder) if made.bundle else None,
        "notes": list(made.notes),
    }
    if as_json:
        emit(told)
    else:
        show(_text(told))
    for note in made.notes:
        say(f"Note: {note}")
    if made.misses:
        figures = "; ".join(made.misses)
        say(f"Error: {made.target} {made.precision} does not give the float reference's answer in {made.judge}: {figures}")
        sys.exit(1)


def _text(told: dict[str, Any]) -> str:
    from fer_edge.report import table

    parity = told["parity"]
    rows = [
        ["target", f"{told['target']} {told['precision']}, by {told['compiler']}"],
        ["judged by", told["judge"]],
        ["centred cosine", f"{parity['centred_cosine']:.6f} (worst crop {parity['centred_cosine_min']:.4f})"],
        ["top-1 agreement", f"{parity['top1_agreement']:.3f}"],
    ]
    names = {
        "operators_npu": "operators on the NPU",
        "operators_cpu": "operators on the CPU",
        "macs": "multiplications on the NPU",
        "cycles": "cycles (estimate)",
        "sram_kib": "SRAM, KiB",
        "off_chip_kib": "flash or DRAM, KiB",
        "inferences_per_s": "inferences a second (estimate)",
        "system": "for the system",
        "clock_mhz": "clock, MHz",
        "mb": "MB",
    }
    for key, name in names.items():
        value = told["report"].get(key)
        if value is not None:
            shown = ", ".join(value) if isinstance(value, list) else f"{value:.6g}" if isinstance(value, float) else value
            rows.append([name, str(shown)])
    rows.append(["written to", told["bundle"] or "nothing was written"])
    return table(rows)
