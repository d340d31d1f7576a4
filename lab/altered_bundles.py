"""Altered bundles for the program of examples/cpp, built with sanitizers: every run has to end with an error of one line, or
with the right answer, and never with a sanitizer's report.

``python -m lab.altered_bundles PROGRAM [--count 200] [--seed 0]``. Alterations come in turns, each from a seed of its own:
bytes of any file; and, with hashes and digest made anew so that the reading itself is reached, values of the manifest,
arrays, and the model. One line of JSON: runs and how they ended, for each kind, and what was wrong. Exit 1 when anything
was."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.console import emit
from fer_edge.manifest import canonical

PICTURE = b"P6\n# a comment\n40 30\n255\n" + bytes(range(240)) * 15
BOX = "6.5,-3,20,24"
REPORTS = ("AddressSanitizer", "LeakSanitizer", "runtime error:", "DEADLYSIGNAL")
SECONDS = 120

ODD: tuple[Any, ...] = (
    *(None, True, [], {}, "", "x" * 5000, "\u0000", "../manifest.json", "/etc/passwd", "labels/../golden.npz", "golden.npz"),
    *(-1, 0, 1, 2, 255, 4096, 4097, 1 << 31, 1 << 63, 1 << 64, 10**300, -(1 << 63), 0.5, 1e-320, 1e308, -0.0),
)
HEADERS = (
    (b"<f4", b">f4"),
    (b"<f4", b"<f8"),
    (b"<f4", b"|O4"),
    (b"<f4", b"<U9"),
    (b"<f8", b"<f2"),
    (b"<U", b"<S"),
    (b"False", b"True "),
    (b"(8, 256)", b"(256, 8)"),
    (b"(8, 256)", b"(8, 999)"),
    (b"(8, 256)", b"(-8, 25)"),
    (b"(8, 256)", b"(9999999999999, 2)"),
    (b"(8,", b"(0,"),
    (b"'shape'", b"'shade'"),
    (b"NUMPY\x01", b"NUMPY\x02"),
    (b"}", b" "),
)


@dataclass(frozen=True)
class Ending:
    """How a run ended. ``outcome``: "answer" or "error"; ``problem``: what was wrong with that, "" when nothing was."""

    outcome: str
    problem: str


def spoilt(data: bytes, dice: random.Random) -> bytes:
    """Bytes with something changed, lost, put in or cut off."""
    if not data:
        return dice.randbytes(dice.randint(1, 64))
    at, length = dice.randrange(len(data)), min(dice.choice((1, 1, 2, 4, 16, 300)), len(data))
    if dice.random() < 0.3:  # where headers and directories are
        at = min(dice.randrange(200), len(data) - 1) if dice.random() < 0.5 else max(0, len(data) - 1 - dice.randrange(200))
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + dice.randbytes(length) + data[at + length :],
        lambda: data[:at] + b"\xff" * length + data[at + length :],
        lambda: data[:at] + bytes(length) + data[at + length :],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + dice.randbytes(length) + data[at:],
        lambda: data[:at] + data[at : at + length] * 2 + data[at + length :],
        lambda: data[:at],
        lambda: data + dice.randbytes(length),
        lambda: b"",
    )
    return dice.choice(ways)()


def other_array(data: bytes, dice: random.Random) -> bytes:
    """An npy file as numpy writes it, of another shape, type, order or values than the one that is given."""
    array = np.atleast_1d(np.load(io.BytesIO(data)))
    ways: tuple[Callable[[], NDArray[Any]], ...] = (
        lambda: array[:-1],
        lambda: array[:1],
        lambda: array[:0],
        lambda: array[0],
        lambda: array[..., :-1],
        lambda: array.reshape(-1),
        lambda: np.concatenate([array, array]),
        lambda: np.asfortranarray(array),
        lambda: array.T,
        lambda: array.astype("<U3"),
        lambda: array.astype("<f8") if array.dtype.kind != "U" else array.astype("<U1"),
        lambda: array[..., None],
    )
    stream = io.BytesIO()
    np.save(stream, dice.choice(ways)())
    return stream.getvalue()


def seal(bundle: Path, manifest: dict[str, Any] | None = None) -> None:
    """Make a bundle's hashes and digest fit its files again. ``manifest``: what it says instead, as it is."""
    table = json.loads((bundle / "manifest.json").read_bytes())
    if manifest is None:
        artefacts = [ref for artefact in table["artefacts"] for ref in artefact["files"]]
        for ref in [*table["label_sets"], table["golden"], table["text_projection"], *artefacts]:
            data = (bundle / ref["path"]).read_bytes()
            ref["sha256"] = hashlib.sha256(data).hexdigest()
            if "bytes" in ref:
                ref["bytes"] = len(data)
    else:
        table = manifest
    table.pop("digest", None)
    table["digest"] = hashlib.sha256(canonical(table)).hexdigest()
    (bundle / "manifest.json").write_bytes(canonical(table))


def alter_bytes(bundle: Path, dice: random.Random) -> str:
    """Any file of the bundle: its bytes, or what stands in its place. Nothing else is told of it."""
    files = sorted(path for path in bundle.rglob("*") if path.is_file())
    weighty = [p for p in files if p.name in ("manifest.json", "ferplus8.npz", "openvino-int8.xml")]
    file = dice.choice(weighty if dice.random() < 0.4 else files)
    way = dice.random()
    if way < 0.8:
        file.write_bytes(spoilt(file.read_bytes(), dice))
        return f"bytes of {file.name}"
    file.unlink()
    if way < 0.85:
        file.mkdir()
        return f"a folder for {file.name}"
    if way < 0.9:
        file.symlink_to("/etc/passwd")
        return f"a link out for {file.name}"
    if way < 0.95:
        shutil.copy(dice.choice([other for other in files if other != file]), file)
        return f"another file for {file.name}"
    return f"no {file.name}"


def alter_manifest(bundle: Path, dice: random.Random) -> str:
    """A value of the manifest, or a field's name, with a digest that fits."""
    table = json.loads((bundle / "manifest.json").read_bytes())
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        for key in keys:
            places.append((value, key))
            walk(value[key])

    walk(
        {
            name: value
            for name, value in table.items()
            if name not in ("card", "tools", "encoder", "projection", "text_encoder")
        }
    )
    places += [(table, name) for name in table]
    parent, key = dice.choice(places)
    way = dice.random()
    if way < 0.15:
        del parent[key]
    elif way < 0.25 and isinstance(parent, list):
        parent.append(parent[key])
    elif way < 0.35:
        parent[key] = [parent[key]]
    elif way < 0.5 and isinstance(parent[key], (int, float)):
        parent[key] = parent[key] + dice.choice((-1, 1, 1e-9, -1e9))
    else:
        parent[key] = dice.choice(ODD)
    seal(bundle, table)
    return f"manifest, {key}"


def alter_arrays(bundle: Path, dice: random.Random) -> str:
    """An npz file, or an array inside it, with hashes that fit."""
    file = dice.choice((bundle / "labels" / "ferplus8.npz", bundle / "labels" / "ferplus8.npz", bundle / "golden.npz"))
    content = file.read_bytes()
    if dice.random() < 0.4:
        file.write_bytes(spoilt(content, dice))
        seal(bundle)
        return f"zip of {file.name}"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice(sorted(members))
    data = members[name]
    if dice.random() < 0.4:
        data = other_array(data, dice)
    elif dice.random() < 0.4:
        data = data.replace(*dice.choice(HEADERS))
    elif dice.random() < 0.5:
        data = data[:128] + dice.choice((b"\x00\x00\xc0\x7f", b"\xff\xff\xff\xff")) * ((len(data) - 128) // 4)
    else:
        data = spoilt(data, dice)
    with zipfile.ZipFile(file, "w", dice.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as archive:
        for other, value in members.items():
            archive.writestr(other, data if other == name else value)
    seal(bundle)
    return f"{name} of {file.name}"


def alter_model(bundle: Path, dice: random.Random) -> str:
    """OpenVINO's files, with hashes that fit."""
    file = bundle / dice.choice(("openvino-int8.xml", "openvino-int8.xml", "openvino-int8.bin"))
    file.write_bytes(spoilt(file.read_bytes(), dice))
    seal(bundle)
    return f"model, {file.name}"


KINDS: Mapping[str, Callable[[Path, random.Random], str]] = {
    "bytes": alter_bytes,
    "manifest": alter_manifest,
    "arrays": alter_arrays,
    "model": alter_model,
}


def run(program: Path, bundle: Path, picture: Path) -> tuple[int, str, str]:
    """(exit status, stdout, stderr) of the program."""
    command = [str(program), str(bundle), str(picture), "--box", BOX, "--threads", "1"]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return -1, "", f"still there after {SECONDS} s"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def judged(status: int, out: str, err: str, right: str | None) -> Ending:
    """A run as it has to be seen. ``right``: the only answer that counts, None: any."""
    outcome = {0: "answer", 2: "error"}.get(status, f"status {status}")
    lines = err.strip().splitlines()
    if any(report in err for report in REPORTS) or status not in (0, 2):
        return Ending(outcome, f"status {status}: {' | '.join(lines)[:600]}")
    if status == 2 and not (len(lines) == 1 and len(lines[0]) > len("error: ") and err.startswith("error: ")):
        return Ending(outcome, f"an error that is no line: {err[:300]!r}")
    if status == 0 and (not out or (right is not None and out != right)):
        return Ending(outcome, f"another answer: {out[:60]!r}")
    return Ending(outcome, "")


def try_one(program: Path, kind: str, seed: int, folder: Path, right: str | None) -> tuple[str, Ending]:
    """(what was altered, how it ended) of one altered copy of the default bundle."""
    bundle, picture, dice = folder / "bundle", folder / "picture.ppm", random.Random(f"{kind} {seed}")
    shutil.copytree(DEFAULT_BUNDLE, bundle)
    picture.write_bytes(PICTURE)
    try:
        what = KINDS[kind](bundle, dice)
        return what, judged(*run(program, bundle, picture), right if kind == "bytes" else None)
    finally:
        shutil.rmtree(bundle)


def try_all(program: Path, count: int, seed: int = 0) -> dict[str, Any]:
    """``count`` altered bundles: runs and outcomes of each kind, and what was wrong."""
    ended: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "picture.ppm").write_bytes(PICTURE)
        status, right, err = run(program, DEFAULT_BUNDLE, folder / "picture.ppm")
        if status != 0 or err:
            raise click.ClickException(f"the program fails on the bundle as it is: {err.strip()}")
        for number in range(count):
            kind = tuple(KINDS)[number % len(KINDS)]
            what, ending = try_one(program, kind, seed + number, folder, right)
            ended[kind][ending.outcome] += 1
            if ending.problem:
                wrong.append({"kind": kind, "seed": seed + number, "what": what, "problem": ending.problem})
    return {"count": count, "ended": {kind: dict(found) for kind, found in ended.items()}, "wrong": wrong}


@click.command(help=__doc__)
@click.argument("program", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--count", default=200, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.pass_context
def main(context: click.Context, program: Path, count: int, seed: int) -> None:
    """Try them and print what came of it."""
    result = try_all(program.resolve(), count, seed)
    emit(result)
    context.exit(1 if result["wrong"] else 0)


if __name__ == "__main__":
    main()
