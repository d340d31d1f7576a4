"""The embedded default on 64-bit ARM without an ARM machine: ``python -m lab.aarch64 WORK -o FILE``.

Debian's packages for arm64 are fetched by debootstrap and unpacked here (none of their scripts runs), the wheels for
aarch64 by pip, and both run under qemu-user: ``fer-edge verify``, hashes of the answers and, with --tests, the shortest
of the device's tests. It shows what the ARM code of the engines computes; it shows no speed, and no fault of a processor.

Wants Linux, root, and Debian's packages debootstrap, qemu-user-static, binfmt-support (proot where the kernel takes no
foreign programs)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fer_edge.console import say, status
from fer_edge.errors import UsageError

from .commands import OneLine
from .devices import ROOT

SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
PACKAGES = ("python3", "libstdc++6", "libgomp1", "ca-certificates")
GLIBC = range(17, 37)
"""Minor versions of the C library that the wheels may want: bookworm has 2.36."""
WHEELS = (
    "numpy<3",
    "pillow<14",
    "click<9",
    "ai-edge-litert<3",
    "onnxruntime<2",
    "openvino<2027",
    "pytest<10",
    "hypothesis<7",
)
CARRIED = ("fer_edge", "runtimes", "benchmarks", "converters", "lab", "tests", "examples", "pyproject.toml", "README.md")
SHORT = ("tests/test_runtimes.py", "tests/test_opener.py")
"""The short form of the device's tests: what opens and runs artefacts."""
_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
PROCESSORS = {
    "cortex-a72": ("0x0", "0xd08", _ARMV8, "of a Raspberry Pi 4"),
    "cortex-a76": ("0x4", "0xd0b", f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp", "of a Raspberry Pi 5"),
}
"""Variant, part and features as Linux tells them (Arm's Main ID register; arch/arm64/kernel/cpuinfo.c), by qemu's name."""
BINFMT = Path("/proc/sys/fs/binfmt_misc")


def ready() -> None:
    """Raise UsageError where this machine lacks what is wanted."""
    missing = [tool for tool in ("debootstrap", "dpkg-deb", "qemu-aarch64-static") if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        why = f"{', '.join(missing)} not found" if missing else "it is not run by root"
        raise UsageError(
            f"no root for arm64 can be made: {why}; apt-get install debootstrap qemu-user-static binfmt-support"
        )


def registered() -> bool:
    """Whether this kernel runs programs for aarch64 by qemu, in a chroot too; tries to register it."""
    if not (BINFMT / "qemu-aarch64").exists():
        for command in (["mount", "-t", "binfmt_misc", "none", str(BINFMT)], ["update-binfmts", "--enable", "qemu-aarch64"]):
            subprocess.run(command, capture_output=True, check=False)
    file = BINFMT / "qemu-aarch64"
    return file.exists() and any(line.startswith("flags:") and "F" in line for line in file.read_text().splitlines())


def make_root(work: Path) -> Path:
    """WORK/root: Debian for arm64, the wheels in /opt/site, this checkout in /opt/fer-edge."""
    root, packages = work / "root", work / "packages"
    if not (root / "usr/bin/python3").exists():
        include = ",".join(PACKAGES)
        options = ["--arch=arm64", "--variant=minbase", "--download-only", f"--include={include}"]
        run(["debootstrap", *options, SUITE, str(packages.absolute()), MIRROR])
        root.mkdir(parents=True, exist_ok=True)
        for file in sorted((packages / "var/cache/apt/archives").glob("*.deb")):
            run(["dpkg-deb", "-x", str(file), str(root)])
    site = root / "opt/site"
    if not site.exists():
        tags = [f"--platform=manylinux_2_{minor}_aarch64" for minor in reversed(GLIBC)] + [
            "--platform=manylinux2014_aarch64"
        ]
        chosen = ["--only-binary=:all:", "--python-version=3.11", "--implementation=cp", "--target", str(site)]
        run([sys.executable, "-m", "pip", "install", "--quiet", *chosen, *tags, *WHEELS])
    copy = root / "opt/fer-edge"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in CARRIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy / name)
    for name in ("proc", "sys", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    return root


def run(command: Sequence[str]) -> None:
    """Run a command of this machine. Raises UsageError with its last line."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise UsageError(f"{command[0]} ended with status {done.returncode}: {said[:200]}")


def cpuinfo(processor: str) -> str:
    """/proc/cpuinfo of two such processors. qemu-user shows the machine's own, of x86, on which the library cpuinfo of
    LiteRT and ONNX Runtime dies."""
    variant, part, features, _ = PROCESSORS[processor]
    lines = [f"Features\t: {features}", "CPU implementer\t: 0x41", "CPU architecture: 8", f"CPU variant\t: {variant}"]
    lines += [f"CPU part\t: {part}", "CPU revision\t: 1"]
    return "".join(f"processor\t: {i}\n" + "\n".join(lines) + "\n\n" for i in range(2))


def inside(root: Path, processor: str, arguments: Sequence[str]) -> list[str]:
    """The command that runs this root's Python with these arguments, as slowly as the others wish. /proc, /sys and /dev are
    the machine's, /proc/cpuinfo the processor's, in a mount namespace that ends with it."""
    (root / "cpuinfo").write_text(cpuinfo(processor))
    settings = {"QEMU_CPU": processor, "PATH": "/usr/bin:/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    settings |= {"PYTHONPATH": "/opt/site:/opt/fer-edge", "FER_EDGE_DATA": "/nowhere"}
    variables = [f"{name}={value}" for name, value in settings.items()]
    program = ["/usr/bin/env", "-i", *variables, "/usr/bin/python3", *arguments]
    if registered():
        binds = [f'mount --rbind /{name} "$0/{name}"' for name in ("proc", "sys", "dev")]
        binds.append('mount --bind "$0/cpuinfo" "$0/proc/cpuinfo"')
        enter = 'exec nice -n 19 chroot "$0" /bin/sh -c \'cd /opt/fer-edge && exec "$@"\' sh "$@"'
        script = " && ".join([*binds, enter])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(root.absolute()), *program]
    if shutil.which("proot") is None:
        raise UsageError("this kernel takes no programs for aarch64, and there is no proot: apt-get install proot")
    bound = [f"--bind={name}" for name in ("/proc", "/sys", "/dev", f"{(root / 'cpuinfo').absolute()}:/proc/cpuinfo")]
    return [
        "nice",
        "-n",
        "19",
        "proot",
        "-q",
        f"qemu-aarch64-static -cpu {processor}",
        "-r",
        str(root),
        *bound,
        "-w",
        "/opt/fer-edge",
        *program,
    ]


def lines_of(root: Path, processor: str, arguments: Sequence[str]) -> Iterator[str]:
    """What a command in the root prints on stdout. Its end is not judged: a verify that did not pass says so."""
    done = subprocess.run(inside(root, processor, arguments), stdout=subprocess.PIPE, text=True, errors="replace")
    yield from done.stdout.splitlines()
    if done.returncode < 0:
        raise UsageError(f"qemu ended with signal {-done.returncode}")


@click.command(cls=OneLine)
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.option("--processor", type=click.Choice(list(PROCESSORS)), default="cortex-a76", show_default=True)
@click.option("--tests", is_flag=True, help="Also run the short form of the device's tests: many minutes.")
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="The box's file, for docs/devices/.")
def main(work: Path, processor: str, tests: bool, output: Path | None) -> None:
    """Verify the embedded default on emulated 64-bit ARM. WORK: a folder for the root, 700 MB."""
    ready()
    with status() as progress:
        progress("making a root for arm64")
        root = make_root(work)
    files = {}
    for name, arguments in {
        "verify": ["-m", "fer_edge", "verify", "--json", "--threads", "1"],
        "answers": ["-m", "lab.devices", "answers"],
    }.items():
        files[name] = work / f"{name}.json"
        files[name].write_text("\n".join(lines_of(root, processor, arguments)) or json.dumps({}))
    if output is not None:
        from .devices import devices

        how = f"python -m lab.aarch64 WORK --processor {processor}"
        box = f"64-bit ARM, {processor.title()} {PROCESSORS[processor][-1]}, by QEMU"
        told = ["--device", box, "--seen", "emulator", "--how", how, "-o", str(output)]
        inputs = [word for name, file in files.items() for word in (f"--{name}", str(file))]
        devices.main(["add", *told, *inputs], standalone_mode=False)
    if tests:
        for line in lines_of(root, processor, ["-m", "pytest", *SHORT]):
            say(line)


if __name__ == "__main__":
    main()
