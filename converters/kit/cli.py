"""``fer-edge pack``."""

from __future__ import annotations

from pathlib import Path

import click

from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import Command, bundle_argument, common, emit, printable, say, status
from fer_edge.engines import PRECISIONS, RUNTIMES, preferred_order
from fer_edge.manifest import digest_of

from .pack import OPTIONS, Plan, pack, pack_bundle
from .target import GLIBC, MACHINES, Target


@click.command(
    "pack",
    cls=Command,
    examples=(
        "fer-edge pack -o kit --target linux-aarch64 --python 3.11 --with live",
        "fer-edge pack my-bundle/ -o slim/ --runtime litert",
    ),
    needs={
        "python": "target",
        "glibc": "target",
        "extras": "target",
        "detector": "target",
        "wheels": "target",
        "constraint": "target",
        "target": "python",
    },
)
@bundle_argument
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder, or file.tar, to write.")
@click.option("--target", type=click.Choice(list(MACHINES)), help="The box. Left out: only a bundle with less in it.")
@click.option("--python", metavar="3.N", help="The box's Python, as 3.11.")
@click.option("--glibc", metavar="2.N", help=f"The box's C library ('ldd --version' shows it). Default: {GLIBC}.")
@click.option("--runtime", type=click.Choice(RUNTIMES), help="The engine. Default: the best one for the box.")
@click.option("--precision", type=click.Choice(PRECISIONS), help="Take this artefact alone. Default: all of the runtime.")
@click.option("--with", "extras", type=click.Choice(OPTIONS), multiple=True, help="An extra beside the engine: live, say.")
@click.option(
    "--detector",
    type=click.Path(path_type=Path),
    help="YuNet's weights, for 'watch'. Default: those of 'fer-edge faces fetch', if you have them.",
)
@click.option(
    "--wheels",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Take wheels from this folder, and ask no package registry.",
)
@click.option(
    "--constraint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Versions to take, as pip's -c: for the same kit another day.",
)
@click.option("--force", is_flag=True, help="Replace the kit, or the bundle, that is there.")
@common
def pack_command(
    bundle: Path | None,
    output: Path,
    target: str | None,
    python: str | None,
    glibc: str | None,
    runtime: str | None,
    precision: str | None,
    extras: tuple[str, ...],
    detector: Path | None,
    wheels: Path | None,
    constraint: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Pack a kit that installs on a box without a network: a slim bundle, wheels, checksums, an installer, a service, a bill
    of materials. pip downloads the wheels, by its own settings. Without --target: only the bundle, with one runtime in it.

    BUNDLE may be the word default."""
    opened = open_bundle(DEFAULT_BUNDLE if bundle is None or (str(bundle) == "default" and not bundle.exists()) else bundle)
    if target is None or python is None:
        if runtime is None:
            raise click.UsageError("name a --runtime, or a --target with its --python", click.get_current_context())
        slim = pack_bundle(opened, output, runtime, precision, force)
        digest = digest_of(slim.manifest)
        emit({"bundle": str(output), "digest": digest}) if as_json else say(f"Wrote {printable(str(output))}.")
        return
    box = Target(target, python, glibc or GLIBC)
    engine = runtime or preferred_order(box.machine)[0]
    plan = Plan(box, engine, tuple(dict.fromkeys(extras)), precision, detector, wheels, constraint)
    with status() as progress:
        kit = pack(opened, output, plan, force, progress)
    if as_json:
        row = {"kit": str(output), "target": target, "python": python, "runtime": engine, "digest": kit.digest}
        emit({**row, "wheels": list(kit.wheels), "detector": kit.detector or None, "bytes": kit.bytes})
        return
    say(f"Wrote {printable(str(output))}: {len(kit.wheels)} wheels, {kit.bytes / 1e6:.1f} MB.")
    if "live" in extras and not kit.detector:
        say("No face detector is in it: you have none. 'fer-edge faces fetch' gets it, then pack again; or --detector FILE.")
    inside = output.name.removesuffix(".tar")
    first = f"tar xf {output.name}; " if output.name.endswith(".tar") else ""
    say(f"On the box: {printable(first)}sh {printable(inside)}/install.sh")
