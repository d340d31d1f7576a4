"""``fer-edge pack``: a kit installs on a box without a network, is what was packed or nothing, and says what is in it."""

from __future__ import annotations

import json
import os
import platform
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fer_edge.bundle import open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import cli
from fer_edge.converters.kit import wheels as wheel_files
from fer_edge.converters.kit.folder import EPOCH, SUMS, new_kit
from fer_edge.converters.kit.slim import chosen, write_slim
from fer_edge.converters.kit.target import Target, least_glibc
from fer_edge.errors import UsageError
from fer_edge.manifest import digest_of

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
MACHINE = f"linux-{platform.machine()}"
NOBODY = 65534
RUNTIMES = ("litert", "onnxruntime", "openvino")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kits are for Linux")


def pack(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["pack", *map(str, arguments)], standalone_mode=False)


def refused(*arguments: object) -> str:
    """The one line that a command refuses with."""
    done = subprocess.run([sys.executable, "-m", "fer_edge", "pack", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels made of what is installed here: pip, the core's packages, and LiteRT with what it needs."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("packaging")
    from packaging.requirements import Requirement

    folder = tmp_path_factory.mktemp("wheels")
    waiting, seen = ["pip", "numpy", "pillow", "click", "ai-edge-litert"], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = metadata.distribution(name)
        try:
            wheel_files.installed_wheel(distribution, folder)
        except UsageError as error:
            pytest.skip(str(error))
        needs = [Requirement(line) for line in distribution.requires or ()]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return folder


@pytest.fixture(scope="module")
def kit(wheels: Path) -> Iterator[Path]:
    """A kit of LiteRT and the default for this machine, in a place that every user can read. Not to be changed."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        output = Path(name, "kit")
        done = pack(
            "default", "-o", output, "--target", MACHINE, "--python", HERE, "--runtime", "litert", "--wheels", wheels
        )
        assert done.exit_code == 0, done.exception
        yield output


def outside(command: Sequence[object], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without a network (not even loopback is up) and not as root, with next to nothing in its environment."""
    if os.getuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("only root can take the network away and be somebody else")
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        pytest.skip("no network namespaces here")
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs", "--inh-caps=-all"]
    path = f"{Path(sys.base_prefix, 'bin')}:/usr/bin:/bin"
    shell = ["env", "-i", f"PATH={path}", f"HOME={folder / 'nowhere'}", "PYTHONDONTWRITEBYTECODE=1"]
    return subprocess.run(
        ["unshare", "-n", *as_nobody, *shell, *map(str, command)], cwd="/", capture_output=True, text=True, timeout=300
    )


@pytest.fixture
def theirs() -> Iterator[Path]:
    """A folder of the user nobody."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        place = Path(name, "theirs")
        place.mkdir()
        if os.getuid() == 0:
            os.chown(place, NOBODY, NOBODY)
        yield place


def python_of_nobody() -> Path:
    """The Python of this machine that nobody may run, of the version of the kit."""
    candidates = [Path("/usr/bin", f"python{HERE}"), Path(sys.base_prefix, "bin", f"python{HERE}")]
    for candidate in candidates:
        if candidate.exists() and outside([candidate, "-c", "import venv"], Path("/")).returncode == 0:
            return candidate
    pytest.skip(f"no Python {HERE} here that every user may run")


def install(kit: Path, prefix: Path) -> subprocess.CompletedProcess[str]:
    return outside(["sh", kit / "install.sh", "--prefix", prefix, "--python", python_of_nobody()], prefix.parent)


def test_it_installs_without_a_network_as_nobody_and_verifies(kit: Path, theirs: Path) -> None:
    prefix = theirs / "fer-edge"
    done = install(kit, prefix)
    assert done.returncode == 0, done.stderr
    program = prefix / "bin" / "fer-edge"
    bundle = prefix / "current" / "bundle"
    verdict = outside([program, "verify", bundle, "--json"], theirs)
    assert verdict.returncode == 0, verdict.stderr
    assert [row["runtime"] for row in json.loads(verdict.stdout)["artefacts"]] == ["litert"]
    assert json.loads((kit / "kit.json").read_text())["bundle"]["digest"] == digest_of(open_bundle(bundle).manifest)
    # The same again finds it done.
    release = (prefix / "current").resolve()
    before = (release / "complete").stat().st_mtime_ns
    assert install(kit, prefix).returncode == 0
    assert (release / "complete").stat().st_mtime_ns == before
    assert [p.name for p in (prefix / "releases").iterdir()] == [release.name]


@pytest.mark.kit
def test_an_installation_that_was_broken_is_made_anew(kit: Path, theirs: Path) -> None:
    prefix = theirs / "fer-edge"
    assert install(kit, prefix).returncode == 0
    bundle = prefix / "current" / "bundle"
    (bundle / "golden.npz").write_bytes(b"")
    assert install(kit, prefix).returncode == 0
    assert outside([prefix / "bin" / "fer-edge", "verify", bundle], theirs).returncode == 0
    assert len(list((prefix / "releases").iterdir())) == 1


@pytest.mark.kit
def test_an_installation_that_is_ended_leaves_nothing(kit: Path, tmp_path: Path) -> None:
    """By Ctrl-C, which every process of a terminal's group gets, and by a full disk."""
    prefix = tmp_path / "prefix"
    command: list[str | Path] = ["sh", kit / "install.sh", "--prefix", prefix, "--python", sys.executable]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(prefix.glob("releases/*/venv/bin/python")):
        assert started.poll() is None
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGINT)
    _, text = started.communicate(timeout=60)
    assert (started.returncode, text.splitlines()[-1]) == (130, "Interrupted.")
    assert list((prefix / "releases").iterdir()) == []
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    script = f"mount -t tmpfs -o size=40m none {prefix} || exit 9; {shlex.join(map(str, command))}; code=$?"
    script += f"; ls -A {prefix}/releases; exit $code"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert re.match(r"Error: the packages cannot be installed: .*No space left on device", done.stderr.splitlines()[-1])


@pytest.mark.kit
def test_a_wrong_answer_on_the_box_is_not_put_in_use(kit: Path, theirs: Path, tmp_path: Path) -> None:
    """A kit whose files are whole and whose bundle does not verify: constants of a label set were changed."""
    from dataclasses import replace

    from fer_edge.bundle import change_label_sets, label_set

    bad = Path(shutil.copytree(kit, theirs.parent / "bad"))
    bundle = open_bundle(bad / "bundle")
    labels = label_set(bundle, bundle.manifest.default_labels)
    change_label_sets(bundle, [replace(labels, constants=labels.constants[::-1].copy())])
    resum(bad)
    done = install(bad, theirs / "x")
    assert done.returncode == 2
    assert "the bundle does not verify on this box" in done.stderr
    assert list((theirs / "x" / "releases").iterdir()) == []
    assert not (theirs / "x" / "current").exists()


def resum(folder: Path) -> None:
    from fer_edge.converters.kit.folder import sums

    (folder / SUMS).unlink()
    (folder / SUMS).write_text(sums(folder))


@pytest.fixture
def small(tmp_path: Path, kit: Path) -> Path:
    """A kit whose wheels and models are a few bytes each: of what is checked before anything is installed."""
    with new_kit(tmp_path / "small") as folder:
        for path in (line.split("  ")[1] for line in (kit / SUMS).read_text().splitlines()):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            content = (kit / path).read_bytes()
            (folder / path).write_bytes(content if len(content) < 20_000 else content[:100])
    return tmp_path / "small"


def check(kit: Path, prefix: Path) -> str:
    """What install.sh refuses a kit with; nothing was installed, and nothing made ready for it."""
    command = ["sh", kit / "install.sh", "--prefix", prefix]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert done.returncode != 0, done.stderr
    assert not prefix.exists()
    return done.stderr


def test_a_whole_kit_passes_the_check(small: Path) -> None:
    done = subprocess.run(["sh", small / "install.sh", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "every file is the one that was packed\n")


@pytest.mark.parametrize("which", ["small", pytest.param("kit", marks=pytest.mark.kit)])
def test_one_altered_byte_is_refused_before_anything_is_installed(
    which: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """In every file, at a place and by a value that chance chooses."""
    chance = random.Random(20)
    kit = request.getfixturevalue(which)
    copy = Path(shutil.copytree(kit, tmp_path / "copy"))
    for path in (SUMS, *(line.split("  ")[1] for line in (kit / SUMS).read_text().splitlines())):
        if path == "install.sh":
            continue  # the next test
        content = bytearray((copy / path).read_bytes())
        where, what = chance.randrange(len(content)), chance.randrange(1, 256)
        content[where] ^= what
        (copy / path).write_bytes(content)
        error = check(copy, tmp_path / "prefix")
        assert error.count("\n") == 1, error
        assert "nothing was installed" in error
        content[where] ^= what
        (copy / path).write_bytes(content)


@pytest.mark.parametrize("path", ["install.sh", SUMS])
def test_what_checks_is_checked(path: str, small: Path, tmp_path: Path) -> None:
    """Bytes of the installer and of the list, among them those that turn a blank into a tab, and a small letter into a
    capital one."""
    chance = random.Random(7)
    whole = (small / path).read_bytes()
    for number in range(40):
        content = bytearray(whole)
        where = chance.randrange(len(content))
        content[where] ^= (0x20, 0x01, chance.randrange(1, 256))[number % 3]
        if path == "install.sh" and where < 2:
            continue
        (small / path).write_bytes(content)
        check(small, tmp_path / "prefix")


def test_files_more_or_fewer_and_links_are_refused(small: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "prefix"
    (small / "wheels" / "more.whl").write_bytes(b"")
    assert "wheels/more.whl is no file of this kit" in check(small, prefix)
    (small / "wheels" / "more.whl").unlink()
    (small / "a b\nc").write_bytes(b"")
    assert "is no file of this kit" in check(small, prefix)
    (small / "a b\nc").unlink()
    (small / "kit.json").rename(tmp_path / "kit.json")
    assert "kit.json is missing" in check(small, prefix)
    (small / "kit.json").symlink_to(tmp_path / "kit.json")
    assert "./kit.json is neither a file nor a folder" in check(small, prefix)
    (small / "kit.json").unlink()
    (tmp_path / "kit.json").rename(small / "kit.json")
    (small / SUMS).unlink()
    assert "SHA256SUMS is missing" in check(small, prefix)


def test_the_installer_says_what_is_wrong(small: Path, tmp_path: Path) -> None:
    def line(*arguments: object) -> str:
        done = subprocess.run(["sh", small / "install.sh", *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    assert "--here is unknown" in line("--here")
    assert "--prefix needs a value" in line("--prefix")
    assert "has only letters" in line("--prefix", tmp_path / "a b")
    assert "/bin/false is not CPython" in line("--prefix", tmp_path / "x", "--python", "/bin/false")
    (tmp_path / "file").write_text("")
    assert "cannot be written; name a folder of yours" in line("--prefix", tmp_path / "file")
    text = (small / "install.sh").read_text().replace(f'("CPython", "{HERE}",', '("CPython", "3.99",')
    (small / "install.sh").write_text(text)
    resum(small)
    assert f"(it is: CPython {HERE} {platform.machine()} 64 glibc" in line(
        "--prefix", tmp_path / "x", "--python", sys.executable
    )
    assert not (tmp_path / "x").exists()


def test_a_kit_that_fails_halfway_leaves_the_one_before(small: Path, tmp_path: Path) -> None:
    """Its wheels are a few bytes: pip refuses them, in one line, and what was begun goes."""
    prefix = tmp_path / "prefix"
    (prefix / "releases" / "before").mkdir(parents=True)
    (prefix / "current").symlink_to("releases/before")
    command = ["sh", small / "install.sh", "--prefix", prefix, "--python", sys.executable]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.match(r"Error: the packages cannot be installed: ", done.stderr.splitlines()[-1])
    assert [p.name for p in (prefix / "releases").iterdir()] == ["before"]
    assert os.readlink(prefix / "current") == "releases/before"


def test_two_runs_make_the_same_bytes(kit: Path, wheels: Path, tmp_path: Path) -> None:
    """The second under another umask, as a tar file, and later."""
    old = os.umask(0o077)
    try:
        options = ["--target", MACHINE, "--python", HERE, "--runtime", "litert", "--wheels", wheels]
        assert pack(DEFAULT_BUNDLE, "-o", tmp_path / "kit.tar", *options).exit_code == 0
    finally:
        os.umask(old)
    with tarfile.open(tmp_path / "kit.tar") as archive:
        assert [m.name for m in archive] == ["kit", *(f"kit/{p.relative_to(kit)}" for p in sorted(kit.rglob("*")))]
        for member in archive:
            file = kit.parent / member.name
            assert (member.mtime, member.uid, member.gid, member.uname) == (EPOCH, 0, 0, "")
            assert (member.mode, member.mtime) == (file.stat().st_mode & 0o777, int(file.stat().st_mtime)), member.name
            if member.isfile():
                stream = archive.extractfile(member)
                assert stream is not None
                assert stream.read() == file.read_bytes(), member.name
    sums = subprocess.run(["sha256sum", "--strict", "-c", SUMS], cwd=kit, capture_output=True, text=True)
    assert sums.returncode == 0, sums.stderr


def test_the_bill_of_materials_is_valid_and_names_all(kit: Path) -> None:
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (kit / "sbom.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    bill = json.loads(text)
    assert validator.validate_str(json.dumps({**bill, "components": [{"name": "x"}]})) is not None, "it can fail"
    hashes = {c["hashes"][0]["content"] for c in bill["components"]}
    listed = {path: sha for sha, path in (line.split("  ") for line in (kit / SUMS).read_text().splitlines())}
    files = {path: sha for path, sha in listed.items() if path.endswith(".whl")}
    assert hashes == {*files.values(), digest_of(open_bundle(kit / "bundle").manifest)}
    litert = next(d for d in bill["dependencies"] if d["ref"] == "pypi:ai-edge-litert")
    assert "pypi:numpy" in litert["dependsOn"]
    ours = next(d for d in bill["dependencies"] if d["ref"] == "pypi:fer-edge")
    assert set(ours["dependsOn"]) == {"pypi:ai-edge-litert", "pypi:click", "pypi:numpy", "pypi:pillow"}
    assert next(c for c in bill["components"] if c["name"] == "click")["licenses"]
    assert "timestamp" not in bill["metadata"]


def test_a_slim_bundle_is_a_bundle_of_its_own(tmp_path: Path) -> None:
    done = pack("default", "-o", tmp_path / "slim", "--runtime", "litert", "--json")
    slim, whole = open_bundle(tmp_path / "slim"), open_bundle(DEFAULT_BUNDLE)
    assert json.loads(done.stdout) == {"bundle": str(tmp_path / "slim"), "digest": digest_of(slim.manifest)}
    assert digest_of(slim.manifest) != digest_of(whole.manifest)
    assert {a.runtime for a in slim.manifest.artefacts} == {"litert"}
    for path in ("golden.npz", "labels/ferplus8.npz", "labels/rafdb7.npz", "text_projection.npy", "litert-int8.tflite"):
        assert (slim.folder / path).read_bytes() == (whole.folder / path).read_bytes()
    verdict = CliRunner().invoke(cli, ["verify", str(slim.folder), "--json"], standalone_mode=False)
    assert verdict.exit_code == 0, verdict.output
    assert "has no artefact for onnxruntime; it has litert int8" in refused(
        slim.folder, "-o", tmp_path / "b", "--runtime", "onnxruntime"
    )
    assert "no artefact for litert fp32" in refused("-o", tmp_path / "b", "--runtime", "litert", "--precision", "fp32")
    assert "exists already" in refused("default", "-o", slim.folder, "--runtime", "litert")
    assert pack("default", "-o", slim.folder, "--runtime", "onnxruntime", "--force").exit_code == 0


def test_an_altered_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    content = bytearray((bundle / "golden.npz").read_bytes())
    content[1000] ^= 1
    (bundle / "golden.npz").write_bytes(content)
    assert "golden.npz was altered or truncated" in refused(bundle, "-o", tmp_path / "x", "--runtime", "litert")
    assert not (tmp_path / "x").exists()
    (tmp_path / "y").mkdir()
    slim = chosen(open_bundle(DEFAULT_BUNDLE), "litert")
    assert write_slim(slim, tmp_path / "y").manifest == slim.manifest


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("--target linux-x86_64", "goes with --python"),
        ("--python 3.11", "goes with --target"),
        ("", "name a --runtime, or a --target"),
        ("--target linux-x86_64 --python 3.9", "no Python '3.9'"),
        ("--target linux-x86_64 --python 3.11 --glibc 1", "no glibc '1'"),
        ("--target linux-vax --python 3.11", "is not one of"),
        ("--target linux-x86_64 --python 3.11 --detector x", "with the extra live alone"),
        ("--target linux-x86_64 --python 3.11 --detector pyproject.toml --with live", "is not face_detection_yunet"),
        ("--target linux-aarch64 --python 3.11 --wheels docs", "Python 3.11 and glibc 2.35 in docs: there is none of"),
    ],
)
def test_what_cannot_be_packed_is_said_in_a_line(arguments: str, reason: str, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("platformdirs")
    output = tmp_path / "kit"
    os.chdir(root)
    assert reason in refused("default", "-o", output, *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_only_a_kit_is_replaced(kit: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    options = ["--target", MACHINE, "--python", HERE, "--force"]
    assert "is no kit, so --force does not replace it" in refused("default", "-o", other, *options)
    assert "exists already" in refused("default", "-o", kit, *options[:-1])
    with new_kit(tmp_path / "one") as folder:
        (folder / "kit.json").write_text("1")
    with new_kit(tmp_path / "one", force=True) as folder:
        (folder / "kit.json").write_text("2")
    assert (tmp_path / "one" / "kit.json").read_text() == "2"
    with pytest.raises(ZeroDivisionError), new_kit(tmp_path / "one", force=True) as folder:
        (folder / "kit.json").write_text(str(3 / 0))
    assert (tmp_path / "one" / "kit.json").read_text() == "2"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other"]


def test_ctrl_c_leaves_nothing(wheels: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fer_edge", "pack", "default", "-o", str(tmp_path / "kit"), "--runtime", "litert"]
    command += ["--target", MACHINE, "--python", HERE, "--wheels", str(wheels)]
    started = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob(".partial-*/work/pip")) and not list(tmp_path.glob(".partial-*/kit/wheels")):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, text = started.communicate(timeout=60)
    assert (started.returncode, text) == (130, "Interrupted.\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [24, pytest.param(60, marks=pytest.mark.kit)])
def test_a_full_disk_is_said_in_a_line(size: int, wheels: Path, tmp_path: Path) -> None:
    """Of 24 MB: fer-edge's own wheel cannot be built there; of 60: the engine has no room."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    command = [sys.executable, "-m", "fer_edge", "pack", "default", "-o", "kit", "--runtime", "litert"]
    command += ["--target", MACHINE, "--python", HERE, "--wheels", str(wheels)]
    script = (
        f"mount -t tmpfs -o size={size}m none {tmp_path} && cd {tmp_path} || exit 9; {shlex.join(command)}; code=$?; ls -A"
    )
    script += "; exit $code"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr == "Error: kit cannot be written: No space left on device\n"


def test_a_disk_that_pip_fills_is_said_in_a_line(wheels: Path, tmp_path: Path) -> None:
    """What pip itself says of it is many lines, or that it found nothing."""
    if os.getuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    code = (
        "import sys; from pathlib import Path; from fer_edge.errors import UsageError\n"
        "from fer_edge.files import disk_errors\n"
        "from fer_edge.converters.kit import target, wheels\n"
        "box, folder = target.Target(*sys.argv[1:3]), Path('.partial-x')\n"
        "folder.mkdir()\n"
        "try:\n"
        "    with disk_errors(Path('kit')): wheels.download(['numpy'], box, folder / 'wheels', Path(sys.argv[3]))\n"
        "except UsageError as error: print(error)"
    )
    command = shlex.join([sys.executable, "-c", code, MACHINE, HERE, str(wheels)])
    script = f"mount -t tmpfs -o size=8m none {tmp_path} && cd {tmp_path} && {command}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == "kit cannot be written: No space left on device\n", done.stdout + done.stderr


def planted(folder: Path, name: str, version: str, *needs: str, tag: str = "py3-none-any") -> None:
    """A wheel with nothing but metadata."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"Requires-Dist: {n}\n" for n in needs)
    info = f"{name}-{version}.dist-info"
    wheel = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    wheel_files._write_wheel(
        folder / f"{name}-{version}-{tag}.whl", {f"{info}/METADATA": about.encode(), f"{info}/WHEEL": wheel.encode()}
    )


def test_requirements_are_those_of_the_box_not_of_this_machine(tmp_path: Path) -> None:
    """pip resolves with the markers of the machine that it runs on."""
    registry, out, work = tmp_path / "registry", tmp_path / "out", tmp_path / "work"
    for folder in (registry, work):
        folder.mkdir()
    other = "aarch64" if platform.machine() != "aarch64" else "x86_64"
    planted(work, "fer_edge", "9", 'top>=2; extra == "e"', 'never; extra == "f"')
    planted(registry, "top", "2.1", f'far==1; platform_machine == "{other}"', f'near; platform_machine != "{other}"')
    planted(registry, "top", "1.0")
    planted(
        registry,
        "far",
        "1",
        'old; python_version < "3.12"',
        'new; python_version >= "3.12"',
        tag=f"cp312-abi3-manylinux_2_28_{other}",
    )
    for name in ("near", "old", "new"):
        planted(registry, name, "1")
    target = Target(f"linux-{other}", "3.12")
    got = wheel_files.collect(next(work.glob("*.whl")), ["e"], target, out, registry)
    assert [wheel.name for wheel in got] == ["far", "fer-edge", "new", "top"]
    assert sorted(p.name.split("-")[0] for p in out.iterdir()) == ["far", "fer_edge", "new", "top"]
    assert least_glibc(p.name for p in out.iterdir()) == "2.28"
    planted(work, "fer_edge", "9", 'top>=2; extra == "e"')
    with pytest.raises(UsageError, match=r"glibc 2\.27 in .*: there is none of far==1"):
        wheel_files.collect(next(work.glob("*.whl")), ["e"], Target(f"linux-{other}", "3.12", "2.27"), out, registry)


def test_a_target_takes_what_packaging_says_that_it_takes() -> None:
    """Tags of Python's own library for manylinux, of a machine with that glibc."""
    from packaging import _manylinux

    for minor in (17, 28, 36):
        ours = Target("linux-x86_64", "3.11", f"2.{minor}").platforms()
        theirs = {f"manylinux_2_{m}_x86_64" for m in range(5, minor + 1)} | {
            f"{n}_x86_64" for n in _manylinux._LEGACY_MANYLINUX_MAP.values()
        }
        assert set(ours) - {"linux_x86_64"} == theirs
    assert least_glibc(["a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", "b-1-py3-none-any.whl"]) == "2.27"
    assert least_glibc(["a-1-cp310-abi3-manylinux2014_aarch64.whl"]) == "2.17"


def test_a_wheel_of_what_is_installed_is_the_one_that_was_installed(wheels: Path, tmp_path: Path) -> None:
    """pip installs it, and its files are those of this environment; an altered file is not packed."""
    wheel = next(wheels.glob("click-*.whl"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--target",
        tmp_path / "t",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    click = metadata.distribution("click")
    for entry in (e for e in click.files or () if e.suffix == ".py"):
        assert (tmp_path / "t" / entry).read_bytes() == Path(str(entry.locate())).read_bytes()
    (installed,) = metadata.distributions(path=[str(tmp_path / "t")])
    again = wheel_files.installed_wheel(installed, tmp_path)
    assert again.read_bytes() == wheel.read_bytes()
    (tmp_path / "t" / "click" / "core.py").write_text("")
    with pytest.raises(UsageError, match=r"click/core\.py is not the file that was installed; install click"):
        wheel_files.installed_wheel(installed, tmp_path)


UNIT = {"PREFIX": "/opt/fer-edge", "RUNTIME": "litert", "DETECTOR": "yunet.onnx"}


@pytest.fixture
def unit(root: Path) -> str:
    text = (root / "converters" / "kit" / "fer-edge-watch.service").read_text()
    for key, value in UNIT.items():
        text = text.replace(f"@{key}@", value)
    return text


def test_the_unit_is_one_that_systemd_takes_and_its_command_ours(unit: str, tmp_path: Path) -> None:
    from fer_edge.live.cli import watch

    lines = [line for line in unit.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    settings = dict(line.split("=", 1) for line in lines if "=" in line)
    program, name, *arguments = shlex.split(settings["ExecStart"])
    assert (program, name) == ("/opt/fer-edge/bin/fer-edge", "watch")
    assert watch.make_context(name, arguments).params["detector"] == Path("/opt/fer-edge/current/detector/yunet.onnx")
    assert settings["PrivateNetwork"] == settings["DynamicUser"] == settings["NoNewPrivileges"] == "yes"
    assert settings["ProtectSystem"] == "strict"
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd-analyze")
    file = tmp_path / "fer-edge-watch.service"
    file.write_text(unit.replace(program, sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", file], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager", file]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Unknown" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this systemd judges no unit that does not run")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def test_the_installer_is_plain_shell(root: Path) -> None:
    tool = shutil.which("shellcheck") or shutil.which("shellcheck", path=Path(sys.executable).parent)
    if tool is None:
        pytest.skip("no shellcheck")
    command = [tool, "--shell=sh", "--norc", root / "converters" / "kit" / "install.sh"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_dockerfiles_install_a_kit_and_leave_no_tools(runtime: str, root: Path, tmp_path: Path) -> None:
    file = root / "examples" / "docker" / f"Dockerfile.{runtime}"
    text = file.read_text()
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line and not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    assert all("--network=none" in line for line in lines if line.startswith("RUN "))
    assert "Never built here" in text
    assert f"--runtime {runtime} " in text
    tool = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if tool is None:
        pytest.skip("no hadolint")

    def lint(content: str) -> str:
        (tmp_path / "Dockerfile").write_text(content)
        done = subprocess.run([tool, "--no-color", tmp_path / "Dockerfile"], capture_output=True, text=True)
        return done.stdout + done.stderr

    assert lint(text) == ""
    assert "DL3007" in lint(text.replace("3.11-slim-bookworm AS", "latest AS")), "it can fail"


def test_packing_needs_no_torch_and_no_engine(root: Path) -> None:
    heavy = ("torch", "onnx", "openvino", "onnxruntime", "ai_edge_litert", "cv2", "av", "cyclonedx")
    code = f"import sys, fer_edge.converters.kit.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What follows needs a package registry: make test-kit.


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--dest",
        tmp_path_factory.mktemp("probe"),
        "click",
    ]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no package registry answers here")


@pytest.mark.kit
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_kit_with_live_watches_without_a_network(
    runtime: str, registry: None, yunet: Path, videos: Path, theirs: Path
) -> None:
    target = ["--target", MACHINE, "--python", HERE, "--runtime", runtime, "--with", "live", "--detector", yunet]
    kit = theirs.parent / "kit"
    done = pack("default", "-o", kit, *target)
    assert done.exit_code == 0, done.exception
    assert pack("default", "-o", theirs.parent / "again" / "kit", *target).exit_code != 0, "no such folder"
    (theirs.parent / "again").mkdir()
    assert pack("default", "-o", theirs.parent / "again" / "kit", *target).exit_code == 0
    sums = [(folder / SUMS).read_bytes() for folder in (kit, theirs.parent / "again" / "kit")]
    assert sums[0] == sums[1], "two runs, equal bytes"
    prefix = theirs / "fer-edge"
    installed = install(kit, prefix)
    assert installed.returncode == 0, installed.stderr
    current = prefix / "current"
    unit = (current / "fer-edge-watch.service").read_text()
    assert "@" not in re.sub(r"@(system-service|privileged)", "", unit)
    program = prefix / "bin" / "fer-edge"
    assert outside([program, "verify", current / "bundle"], theirs).returncode == 0
    clip = theirs.parent / "clip.mkv"
    shutil.copyfile(videos / "again.mkv", clip)
    command = [program, "watch", clip, "-b", current / "bundle", "--detector", current / "detector" / yunet.name, "--json"]
    seen = outside(command, theirs)
    assert seen.returncode == 0, seen.stderr
    rows: list[dict[str, Any]] = [json.loads(line) for line in seen.stdout.splitlines()]
    assert rows[0]["event"] == "appear"
    assert rows[-1]["event"] == "summary"
    assert rows[-1]["tracks"] >= 1


@pytest.mark.kit
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_kit_for_another_machine_has_its_wheels(runtime: str, registry: None, yunet: Path, tmp_path: Path) -> None:
    """Every tag is one that Python's own library for tags takes for an ARM box with Python 3.11 and glibc 2.35."""
    from packaging.tags import compatible_tags, cpython_tags
    from packaging.utils import parse_wheel_filename

    options = ["--python", "3.11", "--runtime", runtime, "--with", "live", "--with", "bench", "--detector", yunet]
    done = pack("default", "-o", tmp_path / "kit", "--target", "linux-aarch64", *options)
    assert done.exit_code == 0, done.exception
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)] + ["manylinux2014_aarch64"]
    takes = {
        *cpython_tags((3, 11), ["cp311"], platforms),
        *compatible_tags((3, 11), "cp311", platforms),
    }
    files = [parse_wheel_filename(p.name) for p in (tmp_path / "kit" / "wheels").iterdir()]
    for name, _, _, tags in files:
        assert tags & takes, name
    assert any("aarch64" in tag.platform for _, _, _, tags in files for tag in tags)
    assert "mlcommons-loadgen" not in {name for name, *_ in files}, "its marker is for x86"
    subprocess.run(["sh", tmp_path / "kit" / "install.sh", "--check"], check=True, capture_output=True)
    if platform.machine() == "x86_64":
        done_there = subprocess.run(
            ["sh", tmp_path / "kit" / "install.sh", "--prefix", tmp_path / "p"], capture_output=True, text=True
        )
        assert done_there.returncode == 2
        assert "this kit needs CPython 3.11 for aarch64 with glibc" in done_there.stderr


@pytest.mark.kit
def test_a_wheel_that_does_not_exist_is_said_in_a_line(registry: None, tmp_path: Path) -> None:
    """OpenVINO's wheel for ARM wants glibc 2.35."""
    options = ["--target", "linux-aarch64", "--python", "3.11", "--runtime", "openvino", "--glibc", "2.31"]
    line = refused("default", "-o", tmp_path / "kit", *options)
    assert re.search(r"no wheels for linux-aarch64, Python 3\.11 and glibc 2\.31: there is none of \S*openvino", line), line
    assert list(tmp_path.iterdir()) == []
