"""What an extra would install, and what is installed, by the packages' metadata."""

from __future__ import annotations

import ast
import platform
import sys
from importlib import metadata
from pathlib import Path

import pytest

from fer_edge import extras


def calls(root: Path) -> list[tuple[str, list[str], str]]:
    """(file, distributions, extra) of every call of need_extra."""
    found = []
    for room in ("fer_edge", "benchmarks", "converters", "lab"):
        for file in (root / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "need_extra":
                    names = [ast.literal_eval(argument) for argument in node.args]
                    found.append((file.name, names, ast.literal_eval(node.keywords[0].value)))
    return found


def test_commands_ask_for_nothing_that_its_extra_would_not_install(root: Path) -> None:
    every = calls(root)
    assert len(every) >= 8
    for file, names, extra in every:
        assert set(names) <= set(extras.requirements(extra)), file
    assert ("cli.py", [], "convert") in every, "convert needs all of it"


def test_the_extras_of_a_checkout_are_those_of_its_installed_metadata() -> None:
    installed = metadata.metadata("fer-edge").get_all("Provides-Extra") or []
    assert set(extras.extras()) == set(installed) - {"all", "dev"}


def test_an_installed_package_is_read_by_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a checkout: the wheel's METADATA, with its markers."""
    info = tmp_path / "fer_edge-9.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.4",
        "Name: fer-edge",
        "Version: 9",
        "Provides-Extra: bench",
        "Provides-Extra: ray",
        "Provides-Extra: all",
        "Requires-Dist: numpy<3",
        'Requires-Dist: numpy<3,>=1; extra == "bench"',
        f'Requires-Dist: Load_Gen>=6; ("{platform.machine()}" == platform_machine or os_name == "x") and extra == "bench"',
        'Requires-Dist: other-box>=6; platform_machine == "vax" and extra == "bench"',
        'Requires-Dist: ray[data]>=2; extra == "ray"',
        'Requires-Dist: fer-edge[bench,ray]; extra == "all"',
    ]
    (info / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(extras, "__file__", str(tmp_path / "fer_edge" / "extras.py"))
    assert extras.extras() == ("bench", "ray")
    assert extras.requirements("bench") == ("numpy", "load-gen")
    assert extras.requirements("ray") == ("ray",)
    assert extras.missing("bench") == ("load-gen",)


@pytest.mark.parametrize(
    ("marker", "expected"),
    [
        ("", True),
        ("extra == 'bench'", True),
        ('extra == "convert"', False),
        (f"python_version >= '3.10' and sys_platform == '{sys.platform}'", True),
        ("python_version < '3.9'", False),
        ("python_version >= '3.100'", False),
        ("python_full_version < '4' and (os_name == 'nt' or os_name == 'posix')", True),
        ("platform_release ~= '5'", True),
        ("'linux' in sys_platform", True),
    ],
)
def test_markers(marker: str, expected: bool) -> None:
    assert extras.holds(marker, "bench") is expected


def test_another_distribution_of_the_same_package_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu, Jetson's wheel, a system's package."""
    assert not extras.present("some-engine")
    (tmp_path / "some_engine").mkdir()
    (tmp_path / "some_engine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert extras.present("some-engine")
    assert extras.distributions_of("some_engine") == ()
    assert [d.metadata["Name"] for d in extras.distributions_of("numpy")] == ["numpy"]


def test_what_an_extra_asks_for_is_imported_by_the_name_that_is_looked_for() -> None:
    """By the metadata of those that are installed here: where the two names differ, IMPORT_NAMES has to say so."""
    names = {name for extra in extras.extras() for name in extras.requirements(extra)}
    installed = {name for name in names if list(metadata.distributions(name=name))}
    assert installed, "the extra dev installs most of them"
    for name in installed:
        brought = {d.metadata["Name"].lower().replace("_", "-") for d in extras.distributions_of(extras.import_name(name))}
        assert name in brought, f"{name} brings no package {extras.import_name(name)}"
