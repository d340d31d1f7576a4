"""What is installed, and what an extra of fer-edge would install, by the packages' own metadata. Nothing is imported, and
``importlib.metadata`` only here: it is a tenth of a device's start-up."""

from __future__ import annotations

import ast
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from operator import eq, ge, gt, le, lt, ne
from pathlib import Path
from typing import Any

from .errors import importable

IMPORT_NAMES = {
    "cyclonedx-python-lib": "cyclonedx",
    "ethos-u-vela": "ethosu",
    "mlcommons-loadgen": "mlperf_loadgen",
    "opencv-python-headless": "cv2",
    "paho-mqtt": "paho",
    "rknn-toolkit2": "rknn",
    "rknn-toolkit-lite2": "rknnlite",
}
"""Import names of distributions that extras ask for, where the two differ: the metadata of a package that is not installed
cannot tell, and another one (opencv-python, a Jetson's own OpenCV without metadata) may stand in its place."""

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: eq,
    ast.NotEq: ne,
    ast.Lt: lt,
    ast.LtE: le,
    ast.Gt: gt,
    ast.GtE: ge,
}


def extras() -> tuple[str, ...]:
    """The extras of fer-edge that are no list of others; none where fer-edge itself is not installed."""
    table = _optional()
    return tuple(extra for extra, lines in table.items() if not any(_name(line) == "fer-edge" for line in lines))


def requirements(extra: str) -> tuple[str, ...]:
    """The distributions that an extra asks for on this box."""
    lines = [line for line in _optional().get(extra, ()) if holds(line.partition(";")[2], extra)]
    return tuple(dict.fromkeys(map(_name, lines)))


def missing(extra: str) -> tuple[str, ...]:
    """Those of :func:`requirements` that are not here."""
    return tuple(name for name in requirements(extra) if not present(name))


def present(distribution: str) -> bool:
    """Whether a distribution is installed, or another one brings its import name (as onnxruntime-gpu brings onnxruntime, and
    opencv-python brings cv2)."""
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return importable(import_name(distribution))
    return True


def import_name(distribution: str) -> str:
    """What is imported of a distribution that an extra asks for."""
    return IMPORT_NAMES.get(distribution) or distribution.replace("-", "_")


def distributions_of(import_name: str) -> tuple[metadata.Distribution, ...]:
    """Every installed distribution that brings a package of this import name."""
    listed = f"\n{import_name}/__init__.py,"  # a plain search: records have ten thousand lines
    found = {}
    for distribution in metadata.distributions():
        top = (distribution.read_text("top_level.txt") or "").split()
        if import_name in top or listed in "\n" + (distribution.read_text("RECORD") or ""):
            found[distribution.metadata["Name"]] = distribution
    return tuple(found.values())


def _optional() -> dict[str, list[str]]:
    """Extra -> requirements, by the metadata of the installed fer-edge; a checkout has its own."""
    root = Path(__file__).resolve().parent.parent
    if (root / "pyproject.toml").is_file() and (root / "runtimes").is_dir() and sys.version_info >= (3, 11):
        import tomllib

        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return dict(project["optional-dependencies"])
    try:
        mine = metadata.metadata("fer-edge")
    except metadata.PackageNotFoundError:
        return {}
    lines = mine.get_all("Requires-Dist") or []
    of_extras = [line for line in lines if re.search(r"\bextra\s*==", line)]
    names = mine.get_all("Provides-Extra") or []
    return {extra: [line for line in of_extras if re.search(rf"""extra\s*==\s*['"]{extra}['"]""", line)] for extra in names}


def _name(line: str) -> str:
    match = re.match(r"[A-Za-z0-9][A-Za-z0-9._-]*", line)
    return re.sub(r"[-_.]+", "-", match.group() if match else "").lower()


def holds(marker: str, extra: str) -> bool:
    """Whether an environment marker holds here for an extra (PyPA's "Dependency specifiers": comparisons, ``and``, ``or``,
    brackets: Python's own parser reads them). A marker beyond that holds: better one package too many than one left out."""
    version = platform.python_version_tuple()
    names: Mapping[str, str] = {
        "extra": extra,
        "os_name": os.name,
        "sys_platform": sys.platform,
        "platform_machine": platform.machine(),
        "platform_system": platform.system(),
        "platform_python_implementation": platform.python_implementation(),
        "implementation_name": sys.implementation.name,
        "python_version": ".".join(version[:2]),
        "python_full_version": platform.python_version(),
    }

    def value(node: ast.expr, of_version: bool) -> str | list[int]:
        text = names[node.id] if isinstance(node, ast.Name) else str(ast.literal_eval(node))
        return [int(part) for part in re.findall(r"\d+", text)] if of_version else text

    def truth(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            return (all if isinstance(node.op, ast.And) else any)([truth(part) for part in node.values])
        if not isinstance(node, ast.Compare):
            raise ValueError
        sides = (node.left, node.comparators[0])
        of_version = any(isinstance(side, ast.Name) and "version" in side.id for side in sides)
        return _COMPARE[type(node.ops[0])](*(value(side, of_version) for side in sides))

    try:
        return not marker.strip() or truth(ast.parse(marker.strip(), mode="eval").body)
    except (ValueError, KeyError, SyntaxError):
        return True
