"""A power cut while a bundle is written: what the disk then holds is a bundle, old or new, whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fer_edge.bundle import all_files, checked_path, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE

WRITER = """
import shutil, sys
from dataclasses import replace
from pathlib import Path
from fer_edge.bundle import add_label_set, label_set, open_bundle, remove_label_set, staged, write_manifest
source, target, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
print("began", flush=True)
for k in range(rounds):
    with staged(target, force=True) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        write_manifest(folder, replace(open_bundle(folder).manifest, version=f"new {k}"))
    opened = open_bundle(target)
    add_label_set(opened, replace(label_set(opened, "rafdb7"), name="mine"))
    remove_label_set(opened, "mine")
"""

Cut = Callable[[], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Cut]]:
    """A small disk of its own, and a function that gives the folder which a machine would find on it after a power cut now:
    the blocks as they are on the device, mounted anew. Its journal is written every second."""
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
        pytest.skip("only root can mount a disk of its own")
    image, copies = tmp_path / "image", 0
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    mounted: list[Path] = []

    def mount(source: Path, name: str, options: str) -> Path:
        place = tmp_path / name
        place.mkdir()
        if subprocess.run(["mount", "-o", f"loop,{options}", source, place], capture_output=True).returncode:
            pytest.skip("no disks can be mounted here")
        mounted.append(place)
        return place

    def cut() -> Path:
        nonlocal copies
        copies += 1
        copy = shutil.copyfile(image, tmp_path / f"image{copies}")
        return mount(copy, f"after{copies}", "rw")

    try:
        yield mount(image, "disk", "commit=1"), cut
    finally:
        for place in mounted:
            subprocess.run(["umount", place], check=False)


FILL = """
import errno, os, sys
from pathlib import Path
from fer_edge import UsageError
from fer_edge.bundle import staged
from fer_edge.files import check_room
check_room(Path(sys.argv[1]).parent)
try:
    with staged(Path(sys.argv[1])) as folder:
        file = os.open(folder / "model.bin", os.O_WRONLY | os.O_CREAT)
        try:
            while True:
                os.write(file, bytes(1 << 16))
        except OSError as error:
            assert error.errno == errno.ENOSPC
            check_room(folder)  # after an error that says nothing, as OpenVINO's
except UsageError as error:
    print(error)
"""


def test_a_full_disk_is_named_whatever_a_library_calls_it(disk: tuple[Path, Cut]) -> None:
    folder, _ = disk
    ran = subprocess.run([sys.executable, "-c", FILL, str(folder / "b")], capture_output=True, text=True)
    assert ran.stdout == f"{folder / 'b'} cannot be written: No space left on device\n", ran.stderr
    assert [p.name for p in folder.iterdir()] == ["lost+found"]


def version(folder: Path) -> str:
    """Of the bundle that is there, after every file of it was held against its hash."""
    bundle = open_bundle(folder)
    for path, sha256, size in all_files(bundle):
        checked_path(bundle, path, sha256, size)
    return bundle.manifest.version


def started(target: Path, rounds: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", WRITER, str(DEFAULT_BUNDLE), str(target), str(rounds)]
    writer = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"began\n"
    return writer


def test_a_power_cut_leaves_a_whole_bundle(disk: tuple[Path, Cut]) -> None:
    folder, cut = disk
    target = folder / "bundle"
    shutil.copytree(DEFAULT_BUNDLE, target)
    os.sync()
    before = version(target)
    writer = started(target, 30)
    seen = []
    for k in range(6):  # at whatever moment
        time.sleep(0.02 + 0.06 * k)
        writer.send_signal(signal.SIGSTOP)
        seen.append(version(cut() / "bundle"))
        writer.send_signal(signal.SIGCONT)
    writer.kill()
    writer.communicate()
    assert all(found == before or found.startswith("new ") for found in seen)
    assert len(set(seen)) > 1, "no cut fell into the writing"
    with started(target, 1) as writer:
        assert writer.wait() == 0
    assert version(cut() / "bundle") == "new 0"  # what was said to be written is written
    time.sleep(1.5)  # the names are on the disk now, and the content long since
    assert version(cut() / "bundle") == "new 0"
