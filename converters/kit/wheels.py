"""The wheels of a kit: ours, made of what is installed or of the checkout, and those that pip downloads for another box."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from email.parser import Parser
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

import fer_edge
from fer_edge.console import shortened
from fer_edge.errors import MissingExtraError, UsageError, importable
from fer_edge.files import check_room

from .target import Target

if TYPE_CHECKING:
    from packaging.requirements import Requirement

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a wheel of ours: the first that a zip can have."""
_ROOMS = ("benchmarks", "converters", "fer_edge", "runtimes")
_SOURCES = ("LICENSE", "NOTICE", "README.md", "pyproject.toml")
_ROUNDS = 5
"""How often pip is asked for what the box wants and this machine would not, before it is given up."""


@dataclass(frozen=True)
class Wheel:
    """A wheel: its file, the package's ``name`` in its normal form, ``version``, ``licence`` in its maker's words or "", and
    ``needs``: its Requires-Dist lines; ``sha256`` and ``bytes`` of the file."""

    file: Path
    name: str
    version: str
    licence: str
    needs: tuple[str, ...]
    sha256: str
    bytes: int


def read_wheel(file: Path) -> Wheel:
    """What a wheel says of itself. Raises UsageError for a file that is none."""
    from packaging.utils import canonicalize_name

    try:
        with zipfile.ZipFile(file) as archive:
            (member,) = (n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
            about = Parser().parsestr(archive.read(member).decode("utf-8", "replace"))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no wheel: {shortened(str(error), 200)}") from error
    content = file.read_bytes()
    return Wheel(
        file,
        canonicalize_name(about["Name"]),
        about["Version"],
        _licence(about),
        tuple(about.get_all("Requires-Dist") or ()),
        hashlib.sha256(content).hexdigest(),
        len(content),
    )


def _licence(about: Message) -> str:
    """SPDX's expression where there is one, else the older field if that is a name and no text, else the classifiers."""
    old = (about["License"] or "").strip()
    names = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or () if c.startswith("License ::")]
    return str(about["License-Expression"] or (old if 0 < len(old) <= 100 and "\n" not in old else " AND ".join(names)))


def own_wheel(folder: Path) -> Path:
    """The wheel of the fer-edge that runs, written to ``folder``: of the checkout, or of what is installed. The same files
    make the same bytes. Raises UsageError."""
    root = Path(fer_edge.__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file() and (root / "runtimes").is_dir():
        return _of_checkout(root, folder)
    try:
        return installed_wheel(metadata.distribution("fer-edge"), folder)
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            f"no wheel can be made of {root}: fer-edge is not installed there, and it is no checkout"
        ) from error


def _of_checkout(root: Path, folder: Path) -> Path:
    source, built = folder / "source", folder / "built"
    source.mkdir()
    for room in _ROOMS:
        shutil.copytree(root / room, source / room, ignore=shutil.ignore_patterns("__pycache__", ".partial-*"))
    for name in _SOURCES:
        shutil.copyfile(root / name, source / name)
    # The build's own tools where they are here: then it needs no registry.
    here = ["--no-build-isolation"] if importable("setuptools") else []
    _pip(
        ["wheel", "--no-deps", "--wheel-dir", str(built), *here, str(source)], folder, "fer-edge's own wheel cannot be built"
    )
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    shutil.rmtree(source)
    shutil.rmtree(built)
    return _write_wheel(folder / wheel.name, files)


def installed_wheel(distribution: metadata.Distribution, folder: Path) -> Path:
    """A wheel of an installed distribution, as its RECORD lists it; scripts that pip made of entry points are made again
    where the wheel is installed. Raises UsageError for a file that is not the one that was installed, and for what was not
    installed from a wheel."""
    name = f"{distribution.metadata['Name']} {distribution.version}"
    about = distribution.read_text("WHEEL")
    if distribution.files is None or about is None:
        raise UsageError(f"no wheel can be made of {name}: it was not installed from one")
    files = {}
    for entry in distribution.files:
        left_out = entry.parts[0] == ".." or "__pycache__" in entry.parts
        if left_out or (entry.parent.name.endswith(".dist-info") and entry.name in _OF_PIP):
            continue
        content = Path(str(entry.locate())).read_bytes()
        if entry.hash is None or _hash(content) != entry.hash.value:
            raise UsageError(f"{entry.locate()} is not the file that was installed; install {name} anew")
        files[entry.as_posix()] = content
    (record,) = {n.partition("/")[0] for n in files if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)}
    tags = [line.partition(":")[2].strip().split("-") for line in about.splitlines() if line.startswith("Tag:")]
    joined = "-".join(".".join(dict.fromkeys(part)) for part in zip(*tags, strict=True))
    return _write_wheel(folder / f"{record.removesuffix('.dist-info')}-{joined}.whl", files)


_OF_PIP = ("INSTALLER", "REQUESTED", "RECORD", "direct_url.json")
"""In .dist-info: of the installation, not of the wheel."""


def _write_wheel(file: Path, files: Mapping[str, bytes]) -> Path:
    """A wheel with a RECORD of its own: sorted, one time, one mode, not compressed, so that no zlib makes other bytes."""
    files = {name: content for name, content in files.items() if not name.endswith(".dist-info/RECORD")}
    (folder,) = {n.partition("/")[0] for n in files if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)}
    names = sorted(files, key=lambda name: (name.startswith(f"{folder}/"), name))
    lines = [f"{_field(name)},sha256={_hash(files[name])},{len(files[name])}\n" for name in names]
    record = f"{folder}/RECORD"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name in (*names, record):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, "".join([*lines, f"{record},,\n"]) if name == record else files[name])
    return file


def _field(name: str) -> str:
    """A field of a CSV file."""
    return f'"{name}"' if "," in name else name


def _hash(content: bytes) -> str:
    """As RECORD has it (PEP 376): urlsafe base64 without padding."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode("ascii")


def collect(
    own: Path,
    extras: Iterable[str],
    target: Target,
    folder: Path,
    source: Path | None = None,
    constraint: Path | None = None,
) -> list[Wheel]:
    """Download the wheels that fer-edge (``own``: its wheel) with these extras needs on ``target`` to ``folder``, and put
    ``own`` beside them; returns all of them by name. ``source``: a folder of wheels instead of the registry;
    ``constraint``: a file of versions, pip's -c.

    pip resolves with the markers of this machine, so its choice is looked through with those of the target: what is missing
    is asked for again, what the target does not want goes. Raises UsageError, which names the wheel that does not exist."""
    asked: list[str] = []
    wheels = [mine := read_wheel(own)]
    for _ in range(_ROUNDS):
        used, missing = _closure(mine.name, frozenset(extras), wheels, target)
        if not missing:
            break
        asked += [line for line in missing if line not in asked]
        download(asked, target, folder, source, constraint)
        wheels = [mine, *(read_wheel(file) for file in sorted(folder.glob("*.whl")))]
    else:
        raise UsageError(f"pip finds no versions for {target.words} that fit together: {', '.join(missing)} is left")
    for wheel in wheels:
        if wheel is not mine and wheel.name not in used:
            wheel.file.unlink()
    shutil.move(own, folder / own.name)
    return [read_wheel(file) for file in sorted(folder.glob("*.whl"))]


def _closure(name: str, extras: frozenset[str], wheels: Sequence[Wheel], target: Target) -> tuple[set[str], list[str]]:
    """(names of the wheels that the box wants, requirements that none of them meets), from one package with extras on."""
    by_name = {wheel.name: wheel for wheel in wheels}
    seen: set[tuple[str, frozenset[str]]] = set()
    open_ends, missing = [(name, extras)], dict[str, None]()
    while open_ends:
        name, extras = here = open_ends.pop()
        if here in seen:
            continue
        seen.add(here)
        for need in _needs(by_name[name], extras, target):
            wheel = by_name.get(need.name)
            if wheel is None or not need.specifier.contains(wheel.version, prereleases=True):
                missing[_line(need)] = None
            else:
                open_ends.append((need.name, frozenset(need.extras)))
    return {name for name, _ in seen}, list(missing)


def _needs(wheel: Wheel, extras: frozenset[str], target: Target) -> Iterator[Requirement]:
    """What a wheel with extras requires on the box; names in their normal form."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    environment = target.environment()
    for line in wheel.needs:
        need = Requirement(line)
        if need.marker is None or any(need.marker.evaluate({**environment, "extra": e}) for e in ("", *sorted(extras))):
            need.name = canonicalize_name(need.name)
            yield need


def _line(need: Requirement) -> str:
    """A requirement for pip: without its marker, which is true."""
    extras = ",".join(sorted(need.extras))
    return f"{need.name}{f'[{extras}]' if extras else ''}{need.specifier}"


def edges(wheels: Sequence[Wheel], extras: Iterable[str], target: Target) -> dict[str, list[str]]:
    """Package -> packages that it wants on the box; fer-edge with ``extras``, the others as fer-edge's extras go."""
    ours = frozenset(extras)
    return {
        wheel.name: sorted({need.name for need in _needs(wheel, ours if wheel.name == "fer-edge" else frozenset(), target)})
        for wheel in wheels
    }


def download(
    requirements: Sequence[str], target: Target, folder: Path, source: Path | None = None, constraint: Path | None = None
) -> None:
    """Let pip put wheels for ``target`` into ``folder``, which it empties first. Raises UsageError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    options = ["--dest", str(folder), "--only-binary", ":all:", "--implementation", "cp", "--python-version", target.python]
    options += ["--abi", f"cp{target.python.replace('.', '')}"]
    options += [part for tag in target.platforms() for part in ("--platform", tag)]
    options += [] if source is None else ["--no-index", "--find-links", str(source)]
    options += [] if constraint is None else ["--constraint", str(constraint)]
    where = "" if source is None else f" in {source}"
    _pip(["download", *options, *requirements], folder, f"no wheels for {target.words}{where}")


def _pip(arguments: Sequence[str], folder: Path, problem: str) -> None:
    """Run pip, whose temporary files lie in ``folder``. Raises UsageError: ``problem``, and pip's reason."""
    if PathFinder.find_spec("pip") is None:  # find_spec itself wakes a hook of setuptools, which may warn
        raise MissingExtraError("pip, which downloads wheels,", "pack")
    temporary = folder / "pip"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
        if done.returncode:
            output = done.stderr + done.stdout
            if os.strerror(errno.ENOSPC) in output:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            check_room(folder)
            raise UsageError(f"{problem}: {_reason(output)}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _reason(output: str) -> str:
    """pip's reason, without the addresses that it names."""
    lines = [line.strip() for line in output.splitlines()]
    if any("Retrying (" in line or "connection" in line.lower() for line in lines):
        return "the package registry does not answer; with a folder of wheels, none is needed: --wheels FOLDER"
    wheel = next((m[1] for line in lines if (m := re.search(r"No matching distribution found for (\S+)", line))), "")
    if wheel:
        return f"there is none of {wheel}"
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")] or lines[-1:] or ["pip fails"]
    text = re.sub(r"https?://\S+", "...", errors[0])
    return f"pip says: {shortened(text, 300)}"
