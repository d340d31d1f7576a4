"""Files in one step: whole or not at all, whoever else writes, whatever lies there, with the mode of the umask."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fer_edge import UsageError, files
from fer_edge.files import check_target, clear_partials, exchange, locked, replaced, write_bytes, write_text


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    """The mode of a new file under some umask."""
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_modes_follow_the_umask(tmp_path: Path, mode: int) -> None:
    """Also where a library writes a file of its own and renames it, as safetensors does, or sets a mode."""

    def renaming(file: Path) -> None:
        other = file.with_name("other")
        other.write_text("x")
        other.chmod(0o600)
        other.rename(file)

    def closing(file: Path) -> None:
        file.write_text("x")
        file.chmod(0o400)

    for write in (renaming, closing, lambda file: file.write_text("x")):
        with replaced(tmp_path / "a") as partial:
            write(partial)  # type: ignore[operator]
        assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode
    write_text(tmp_path / "b", "x")
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == mode
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_checkpoints_and_projections_follow_the_umask(tmp_path: Path, mode: int, root: Path) -> None:
    pytest.importorskip("torch")
    from fer_edge.converters.student.network import load_student, save_student

    save_student(tmp_path / "s.safetensors", load_student(root / "converters/student/student48.safetensors"))
    assert stat.S_IMODE((tmp_path / "s.safetensors").stat().st_mode) == mode
    assert load_student(tmp_path / "s.safetensors").scale > 0


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("today.json", "today.json.partial", ".today.json.partial"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "today.json", "new")
    check_target(tmp_path / "today.json")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "today.json").is_symlink()
    assert (tmp_path / "today.json").read_text() == "new"


def test_nobody_else_may_enter_while_a_file_is_written(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with replaced(tmp_path / "a") as one, replaced(tmp_path / "a") as two:
            assert one != two
            for partial in (one, two):
                assert stat.S_IMODE(partial.parent.stat().st_mode) == 0o700
                assert stat.S_ISREG(partial.lstat().st_mode)
            one.write_text("one")
            two.write_text("two")
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_text() == "one"


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("x"), TypeError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_only_the_disk_makes_a_file_that_cannot_be_written(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with replaced(tmp_path / "a") as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write()
    assert caught.value is error
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


def test_a_file_that_cannot_be_read_meanwhile_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), replaced(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()


FULL = """
import resource, sys
from pathlib import Path
import numpy as np
from fer_edge import files, arrays, FerEdgeError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
target = Path(sys.argv[1])
random = np.random.default_rng(0).integers(0, 255, 9999, dtype=np.uint8)
for write in (
    lambda: files.write_text(target, "x" * 9999),
    lambda: files.write_bytes(target, bytes(9999)),
    lambda: arrays.write_npz(target, a=random),
    lambda: arrays.write_npy(target, random),
):
    try:
        write()
    except FerEdgeError as error:
        print(error)
"""


def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files gives the same kind of error in the same places."""
    (tmp_path / "a").write_text("old")
    command = [sys.executable, "-c", FULL, str(tmp_path / "a")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [f"{tmp_path / 'a'} cannot be written: File too large"] * 4
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("write", [check_target, lambda file: write_text(file, "x")])
def test_places_that_take_no_file(tmp_path: Path, write: Callable[[Path], None]) -> None:
    (tmp_path / "file").write_text("x")
    for name in ("none/a", "file/a", ".", "a\0b", "x" * 5000):
        with pytest.raises(UsageError, match="cannot be written") as caught:
            write(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call goes through; only the order is looked at."""
    seen: list[tuple[str, int]] = []
    fsync, replace = os.fsync, os.replace

    def synced(opened: int) -> None:
        seen.append(("fsync", os.fstat(opened).st_ino))
        fsync(opened)

    def renamed(old: Path, new: Path) -> None:
        seen.append(("rename", old.stat().st_ino))
        replace(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_bytes(tmp_path / "a", b"x")
    file, folder = (tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino
    assert seen == [("fsync", file), ("rename", file), ("fsync", folder)]


STREAM = """
import sys
from pathlib import Path
from fer_edge.files import check_target, write_text
print("before", flush=True)
check_target(Path(sys.argv[1]))
write_text(Path(sys.argv[1]), "text\\n")
print("after")
"""


@pytest.mark.parametrize("name", ["/proc/self/fd/1", "/dev/fd/1"])
@pytest.mark.parametrize("to", ["file", "pipe"])
def test_an_open_file_is_written_to_and_not_replaced(tmp_path: Path, name: str, to: str) -> None:
    """As ``-o /dev/stdout > file``, where replacing the name would take the device from everybody."""
    if not Path(name).exists():
        pytest.skip(f"no {name} here")
    command = [sys.executable, "-c", STREAM, name]
    with (tmp_path / "out").open("ab") as out:
        ran = subprocess.run(command, stdout=out if to == "file" else subprocess.PIPE, check=True)
    assert (ran.stdout or (tmp_path / "out").read_bytes()) == b"before\ntext\nafter\n"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


HOLD = """
import sys, time
from pathlib import Path
from fer_edge.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    held = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    try:
        with pytest.raises(UsageError, match="is being written by another process"), locked(tmp_path, 0.1):
            pass
    finally:
        held.kill()  # a killed writer holds nothing
        held.communicate()
    with locked(tmp_path, 5):
        assert not list(tmp_path.iterdir())
        with pytest.raises(UsageError, match="another process"), locked(tmp_path, 0):  # nor do two threads
            pass
    with pytest.raises(UsageError, match="none cannot be written"), locked(tmp_path / "none"):
        pass


def test_a_folder_that_was_exchanged_while_we_waited(tmp_path: Path) -> None:
    """The lock is on the folder that has the name now."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    waiting = threading.Event()
    held: list[bool] = []

    def wait() -> None:
        waiting.set()
        with locked(tmp_path / "a", 20):
            with pytest.raises(UsageError), locked(tmp_path / "a", 0):
                pass
            with locked(tmp_path / "b", 0):
                held.append(True)

    with locked(tmp_path / "a"):
        other = threading.Thread(target=wait)
        other.start()
        waiting.wait()
        exchange(tmp_path / "a", tmp_path / "b")
    other.join()
    assert held == [True]


@pytest.mark.parametrize("at_once", [True, False])
def test_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool) -> None:
    if not at_once:
        monkeypatch.setattr(files, "_exchanged_at_once", lambda one, other: False)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "file").read_text() == "b"
    assert (tmp_path / "b" / "file").read_text() == "a"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "a", tmp_path / "none")
    assert (tmp_path / "a" / "file").read_text() == "b"


def test_what_killed_writers_left_is_cleared(tmp_path: Path) -> None:
    with replaced(tmp_path / "a") as partial:
        left = tmp_path / f"{partial.parent.name}0"
        left.mkdir()
        (left / "a").write_text("half")
    assert left.exists()
    clear_partials(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
