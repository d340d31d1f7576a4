"""What a family of targets offers: its file is a module with the names of :class:`Family`, imported when it is asked for."""

from __future__ import annotations

import pkgutil
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fer_edge.bundle import Bundle, Golden
from fer_edge.errors import ConversionError, UsageError
from fer_edge.labels import LabelSet


@dataclass(frozen=True)
class Job:
    """What to compile: ``target`` by name, ``precision`` int8 or fp16; ``calibration`` uint8 (N, H, W, C) and what it is, in
    words; ``python``: the interpreter that has the compiler, None: this one; ``work``: a folder for files in between."""

    bundle: Bundle
    golden: Golden
    labels: LabelSet
    target: str
    precision: str
    calibration: NDArray[np.uint8]
    calibrated_with: str
    python: Path | None
    work: Path


@dataclass(frozen=True)
class Compiled:
    """What a compiler made: ``files`` by ending, the one that an engine opens first before others; ``features`` (N, D) and
    ``logits`` (N, K, or None) of the golden crops, and of a second run, as ``judge`` computed them; ``report``: the
    compiler's own figures; ``calibration``: with what it was calibrated, None: it was not."""

    files: Mapping[str, bytes]
    features: NDArray[np.float32]
    logits: NDArray[np.float32] | None
    repeatable: bool
    compiler: str
    judge: str
    report: Mapping[str, Any] = field(default_factory=dict)
    calibration: str | None = None


class Family(Protocol):
    """What a family's module offers."""

    TARGETS: Sequence[str]
    """Names of the devices."""
    RUNTIME: str
    """The runtime that opens its artefacts on the device."""
    PRECISIONS: Sequence[str]
    """What it compiles to, the default first."""
    CALIBRATES: bool
    """Whether it wants calibration faces for int8."""

    def compile(self, job: Job) -> Compiled:
        """Compile. Raises MissingExtraError, UsageError, or ConversionError for what the compiler refuses."""


def families() -> dict[str, Family]:
    """Target -> the module of its family."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name not in ("target", "rknn_worker"):
            family = cast(Family, import_module(f".{module.name}", __package__))
            found |= dict.fromkeys(family.TARGETS, family)
    return found


def family_of(target: str) -> Family:
    """The family of a target. Raises UsageError for a name that nobody has."""
    known = families()
    if target not in known:
        raise UsageError(f"no target {target!r}; there are {', '.join(known)}")
    return known[target]


def ask(command: Sequence[str | Path], what: str, cwd: Path) -> str:
    """The output (stdout and stderr together) of a compiler's process. Raises ConversionError with the line that tells why
    it ended."""
    try:
        done = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, check=False
        )
    except OSError as error:
        raise UsageError(f"{command[0]} does not start: {error.strerror}") from error
    text = done.stdout.decode("utf-8", "replace")
    if done.returncode:
        raise ConversionError(f"{what} refuses the model: {telling(text)}")
    return text


def telling(text: str) -> str:
    """The line of a compiler's output that names an error: its last exception, else what it marked, else its last line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).replace("\r", "\n")
    lines = ["".join(c for c in line if c.isprintable()).strip() for line in plain.splitlines()]
    named = [line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line) and "Traceback" not in line]
    marked = [line for line in lines if line.startswith("E ") and " version: " not in line]
    found = named[-1:] or marked[:1] or [line for line in lines if line][-1:] or ["it said nothing"]
    return found[0][:300]
