"""The package: what the wheel holds, what its extras bring, which versions are promised, and that all of it agrees."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import fer_edge

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOMS = ("converters", "runtimes", "benchmarks")
ENGINES = {"openvino": "openvino", "litert": "ai-edge-litert", "onnxruntime": "onnxruntime"}
"""Extra -> the distribution that it brings."""


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return table


@pytest.fixture(scope="module")
def tracked(root: Path) -> list[str]:
    """The files of the repository."""
    return subprocess.run(["git", "ls-files"], cwd=root, check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture(scope="module")
def source(root: Path, tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of them, so that no left-over of another build gets in."""
    folder = tmp_path_factory.mktemp("source")
    for name in tracked:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    return folder


def built(source: Path, folder: Path, *options: str) -> tuple[Path, str]:
    """A wheel of the source (``--editable`` among the options: one that points at it), and all that was printed."""
    command = [sys.executable, "-c", BUILD, str(folder), *options]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, done.stdout + done.stderr


BUILD = """
import sys
from setuptools import build_meta
build = build_meta.build_editable if "--editable" in sys.argv else build_meta.build_wheel
build(sys.argv[1])
"""
"""What pip calls, with nothing hidden: pip shows what a build prints only when asked."""


def test_the_wheel_holds_the_folders_and_nothing_warns(source: Path, tracked: list[str], tmp_path: Path) -> None:
    """Every module and every data file, the embedded bundle included, and nothing else."""
    wheel, printed = built(source, tmp_path)
    names = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {
        n if n.startswith("fer_edge/") else f"fer_edge/{n}" for n in tracked if n.split("/")[0] in ("fer_edge", *ROOMS)
    }
    assert names == expected
    assert "fer_edge/default/manifest.json" in names
    assert wheel.stat().st_size < 10e6
    assert not re.search(r"warning|deprecat|would be ignored", printed, re.IGNORECASE), printed


def test_an_editable_build_warns_of_nothing(source: Path, tmp_path: Path) -> None:
    _, printed = built(source, tmp_path, "--editable")
    assert not re.search(r"warning|deprecat|would be ignored", printed, re.IGNORECASE), printed


def test_a_warning_of_the_build_is_seen(source: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(source, tmp_path / "broken"))
    text = (broken / "pyproject.toml").read_text()
    (broken / "pyproject.toml").write_text(text.replace("include-package-data = false", "include-package-data = true"))
    (tmp_path / "wheel").mkdir()
    (broken / "MANIFEST.in").write_text("recursive-include fer_edge/default *\n")
    _, printed = built(broken, tmp_path / "wheel")
    assert "Package would be ignored" in printed


def test_extras_are_those_of_the_design(project: dict[str, Any]) -> None:
    engines = {"openvino", "litert", "onnxruntime", "rknn"}
    extras = engines | {"convert", "bench", "live", "pack", "ethos-u", "ray", "all", "dev"}
    assert extras == set(project["optional-dependencies"])
    assert {Requirement(d).name for d in project["dependencies"]} == {"numpy", "pillow", "click"}


def test_an_engine_comes_with_its_own_extra_alone(project: dict[str, Any]) -> None:
    """A GPU build of an engine must survive every extra that a device wants: what measures brings no engine."""
    extras = {name: {Requirement(r).name for r in needs} for name, needs in project["optional-dependencies"].items()}
    for name in ("bench", "ray"):
        assert not extras[name] & set(ENGINES.values()), name
    for extra, distribution in ENGINES.items():
        assert extras[extra] - {"platformdirs"} == {distribution}  # which only names a folder


def test_the_oldest_versions_are_the_promised_ones(root: Path, project: dict[str, Any]) -> None:
    """tests/oldest.txt, which ``make test-device`` installs, is the lower end of every range of a device."""
    lines = [line for line in (root / "tests" / "oldest.txt").read_text().splitlines() if not line.startswith("#")]
    tried = {r.name: next(iter(r.specifier)).version.removesuffix(".*") for r in map(Requirement, lines)}
    needs = [*project["dependencies"], *(r for e in ENGINES for r in project["optional-dependencies"][e])]
    promised = {r.name: next(s.version for s in r.specifier if s.operator == ">=") for r in map(Requirement, needs)}
    assert tried == promised


def test_the_hosted_matrix_has_the_promised_pythons(root: Path, project: dict[str, Any]) -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((root / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["device"]
    classified = {c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)}
    assert classified <= set(job["strategy"]["matrix"]["python"])
    assert min(map(Version, classified)) == Version(project["requires-python"].removeprefix(">="))


def test_the_changelog_has_this_version(root: Path) -> None:
    versions = re.findall(r"^## \[?([0-9.]+)\]? - \d{4}-\d{2}-\d{2}$", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == fer_edge.__version__
    assert versions == sorted(versions, key=Version, reverse=True)


def test_sizes_are_counted(tmp_path: Path) -> None:
    from lab.sizes import Size, functions

    (tmp_path / "x.py").write_text(
        "def f():\n    def g():\n        pass\n\n    return g\n\n\nclass C:\n    async def m(self):\n        pass\n"
    )
    assert set(functions(tmp_path / "x.py", "x.py")) == {Size(5, "x.py:1 f"), Size(2, "x.py:2 g"), Size(2, "x.py:9 m")}
