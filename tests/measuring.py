"""What the tests of the benchmarks share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner, Result

from fer_edge.arrays import read_npz, write_npz
from fer_edge.benchmarks.traffic import Load
from fer_edge.bundle import open_bundle, path_ref, write_manifest
from fer_edge.cli import cli

QUICK = Load(0.05, 1.0)


def command(*arguments: object, what: str = "bench") -> Result:
    return CliRunner().invoke(cli, [what, *map(str, arguments)], catch_exceptions=True)


def wrong_bundle(folder: Path) -> Path:
    """The embedded default with the golden set's references exchanged: every engine's answers are wrong against it."""
    bundle = open_bundle(folder)
    golden = read_npz(folder / "golden.npz", {"crops", "features"})
    write_npz(folder / "golden.npz", crops=golden["crops"], features=golden["features"][::-1].copy())
    reference = replace(bundle.manifest.golden, sha256=path_ref(folder, "golden.npz").sha256)
    write_manifest(folder, replace(bundle.manifest, golden=reference))
    return folder
