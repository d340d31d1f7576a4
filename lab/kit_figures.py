"""Sizes of kits for each engine and target, and how long one takes to install here: ``python -m lab.kit_figures``.

It downloads wheels from the package registry that pip is set up for. The detector is put in with --detector FILE."""

from __future__ import annotations

import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.converters.kit.pack import Plan, pack
from fer_edge.converters.kit.target import Target
from fer_edge.engines import RUNTIMES

TARGETS = ("linux-x86_64", "linux-aarch64")


def size(folder: Path) -> float:
    """MB of a folder's files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and not p.is_symlink()) / 1e6


def row(target: str, runtime: str, live: bool, python: str, detector: Path | None) -> list[str]:
    """Packed, and installed where the target is this machine."""
    with tempfile.TemporaryDirectory() as name:
        kit, prefix = Path(name, "kit"), Path(name, "prefix")
        plan = Plan(Target(target, python), runtime, ("live",) if live else (), detector=detector if live else None)
        began = time.monotonic()
        made = pack(open_bundle(DEFAULT_BUNDLE), kit, plan)
        packed = time.monotonic() - began
        cells = [target, runtime + (" + live" if live else ""), str(len(made.wheels)), f"{size(kit):.1f}", f"{packed:.0f}"]
        if target.removeprefix("linux-") != platform.machine():
            return [*cells, "", ""]
        began = time.monotonic()
        command: list[str | Path] = ["sh", kit / "install.sh", "--prefix", prefix, "--python", sys.executable]
        subprocess.run(command, check=True, capture_output=True)
        return [*cells, f"{time.monotonic() - began:.0f}", f"{size(prefix):.0f}"]


@click.command()
@click.option("--detector", type=click.Path(path_type=Path, exists=True), help="YuNet's weights.")
@click.option("--python", default=f"{sys.version_info[0]}.{sys.version_info[1]}", help="Of the targets.")
@click.option("--target", "targets", type=click.Choice(TARGETS), multiple=True, default=TARGETS, help="Default: both.")
@click.option("--runtime", "runtimes", type=click.Choice(RUNTIMES), multiple=True, default=RUNTIMES, help="Default: all.")
def main(detector: Path | None, python: str, targets: tuple[str, ...], runtimes: tuple[str, ...]) -> None:
    """Print the table, a row as soon as it is known."""
    click.echo("target, kit, wheels, MB, s to pack, s to install, MB installed")
    for target in targets:
        for runtime in runtimes:
            for live in (False, True):
                click.echo(", ".join(row(target, runtime, live, python, detector)))


if __name__ == "__main__":
    main()
