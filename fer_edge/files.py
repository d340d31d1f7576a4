"""Files and folders that are written in one step: a reader sees the old one or the new one, whole, a failure leaves the
old one, and what a power cut leaves is one of the two."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: there, writers of one bundle have to take turns by themselves
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial-"
"""Begins the name of the hidden folder in which a file, or a bundle, lies while it is written."""

_BLOCKS = 1 << 16
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
"""Linux, fcntl.h and linux/fs.h."""


def check_target(file: Path, make_folder: bool = False) -> None:
    """Before hours of work: raise UsageError when a file cannot be written. ``make_folder``: make the folder it lies in."""
    with disk_errors(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        if _is_stream(file):
            if not os.access(file, os.W_OK):
                raise PermissionError(errno.EACCES, "it may not be written to")
            return
        if make_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        with _partial(file):
            pass


def read_file(file: Path, limit: int) -> bytes:
    """A file's content. Raises OSError, also when it has more than ``limit`` bytes, or ValueError for a name that no file
    has."""
    with open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > limit:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, and at most {limit:,} are read", str(file))
        return stream.read(size)


def open_file(file: Path) -> BinaryIO:
    """A plain file for reading. A link at the end of the path is not followed, and a pipe, which would be waited for, is
    refused. Raises OSError or ValueError."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    opened = os.open(file, flags)
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise OSError(errno.EINVAL, "it is not a file", str(file))
    return os.fdopen(opened, "rb")


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A name to write a file under, which becomes ``file`` when the block ends well, and vanishes when it does not.

    The file exists already, empty, in a new folder that nobody else may enter, under its own name: no link planted beside
    ``file`` is followed, and two writers never meet. It gets the mode that the umask asks for, whichever library wrote it.
    A link at ``file`` is replaced, never followed. Raises UsageError for an OSError of the disk."""
    with disk_errors(file), _partial(file) as (partial, mode):
        yield partial
        _settle(partial, mode)
        os.replace(partial, file)
        sync_folder(file.parent)


def write_bytes(file: Path, data: bytes) -> None:
    """Write a file in one step. Raises UsageError."""
    with replaced(file) as partial:
        partial.write_bytes(data)


def write_text(file: Path, text: str) -> None:
    """Write a text file in one step; what is not Unicode, as a file's name may be, is escaped. Raises UsageError."""
    data = text.encode("utf-8", "backslashreplace")
    with disk_errors(file):
        stream = _is_stream(file)
        if stream:
            with file.open("ab") as opened:  # to a plain file, after what the process wrote there before
                opened.write(data)
    if not stream:
        write_bytes(file, data)


def partial_folder(target: Path) -> Path:
    """A name beside ``target`` that nobody else uses."""
    return target.parent / f"{PARTIAL}{os.urandom(8).hex()}"


def clear_partials(folder: Path) -> None:
    """Remove what killed writers left in a folder, when nobody is writing there."""
    import shutil  # here, because a device never writes a bundle and pays for this at every start

    for left in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def locked(folder: Path, patience: float = 60.0) -> Iterator[None]:
    """Hold a folder alone among its writers, processes and threads, until the block ends: flock(2) on the folder itself,
    so that nothing is left behind and a killed writer holds nothing. Readers need no lock.

    Raises UsageError when it is not there, or others hold it for ``patience`` seconds."""
    if fcntl is None:
        yield
        return
    with disk_errors(folder):
        held = _lock(folder, time.monotonic() + patience)
    try:
        yield
    finally:
        os.close(held)


def _lock(folder: Path, end: float) -> int:
    """An open descriptor of the locked folder."""
    while True:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(held), folder.stat()):  # else it was exchanged for another while we waited
                return held
        except BlockingIOError:
            pass
        except BaseException:
            os.close(held)
            raise
        os.close(held)
        if time.monotonic() > end:
            raise UsageError(f"{folder} is being written by another process; try again when that has ended")
        time.sleep(0.005)


def exchange(one: Path, other: Path) -> None:
    """Two folders of one file system change names.

    In one step where the system can (Linux: renameat2(2) with RENAME_EXCHANGE); elsewhere ``other`` is absent for the moment
    between two renames. Raises OSError."""
    if _exchanged_at_once(one, other):
        return
    third = one.with_name(f"{one.name}-old")
    other.rename(third)
    try:
        one.rename(other)
    except BaseException:
        third.rename(other)
        raise
    third.rename(one)


def _exchanged_at_once(one: Path, other: Path) -> bool:
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):  # an old kernel, or a file system that cannot
        return False
    raise OSError(code, os.strerror(code), str(other))


def copy_tree(folder: Path, copy: Path) -> None:
    """A copy of a folder under a new name in the same file system. Files are shared with the original where the disk can
    (hard links): whoever changes one in either must replace it, as :func:`replaced` does. Raises OSError."""
    import shutil  # here, because a device never writes a bundle and pays for this at every start

    def put(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # a card formatted with FAT has no links
            shutil.copy(source, target)
        _settle(Path(target), stat.S_IMODE(os.stat(target).st_mode))

    shutil.copytree(folder, copy, copy_function=put)
    for where, _, _ in os.walk(copy, topdown=False):
        sync_folder(Path(where))


def check_room(folder: Path) -> None:
    """After an error of a library's own: raise the disk's OSError where a few blocks more cannot be written to a folder."""
    probe = partial_folder(folder / "probe")
    try:
        with probe.open("xb") as file:
            file.write(bytes(_BLOCKS))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def sync_tree(folder: Path) -> None:
    """Every file and folder of a tree on the disk, files with the mode that the umask asks for: the one that ``folder``,
    made by mkdir, has without its x."""
    mode = stat.S_IMODE(folder.stat().st_mode) & 0o666
    for where, _, names in os.walk(folder, topdown=False):
        for name in names:
            _settle(Path(where, name), mode)
        sync_folder(Path(where))


def sync_folder(folder: Path) -> None:
    """The names in a folder on the disk."""
    if os.name == "nt":  # which opens no folders
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(opened)


def _settle(file: Path, mode: int) -> None:
    """Mode, then content on the disk: what outlives a power cut must not be the name of a file that did not."""
    opened = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    try:
        if stat.S_IMODE(os.fstat(opened).st_mode) != mode:
            file.chmod(mode)
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def _partial(file: Path) -> Iterator[tuple[Path, int]]:
    """A new empty file with the name of ``file`` in a new folder of ours, and the mode that the umask gave it."""
    import shutil

    folder = partial_folder(file)
    folder.mkdir(0o700)
    try:
        partial = folder / file.name
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
        opened = os.open(partial, flags, 0o666)
        mode = stat.S_IMODE(os.fstat(opened).st_mode)
        os.close(opened)
        yield partial, mode
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_stream(file: Path) -> bool:
    """Whether something is there that can be written to and not replaced: a device, a pipe, an open file of a process, as
    /dev/stdout is also where it goes to a plain file."""
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        return False
    leads = (os.readlink(file) if file.is_symlink() else "", os.path.realpath(file.parent))
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or any(place.startswith("/proc/") for place in leads)


@contextmanager
def disk_errors(file: Path) -> Iterator[None]:
    """An OSError of the block as a UsageError: ``file`` cannot be written. One that names another file, which is read
    meanwhile, say, passes; so do a broken pipe, and errors that libraries make up (they have no number)."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        named = error.filename
        if error.errno is None or (isinstance(named, (str, bytes)) and not _concerns(Path(os.fsdecode(named)), file)):
            raise
        raise UsageError(f"{file} cannot be written: {error.strerror}") from error
    except ValueError as error:
        if "\0" not in str(file):
            raise
        raise UsageError(f"{str(file)!r} cannot be written: no file has such a name") from error


def _concerns(named: Path, file: Path) -> bool:
    return named in (file, *file.parents) or any(part.startswith(PARTIAL) for part in named.parts)


def user_cache() -> Path | None:
    """The folder for what can be had again, of the user who runs this, whether it is there or not; None for one without a
    home. Needs the package platformdirs."""
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("fer-edge", appauthor=False)
    except RuntimeError:  # of newer releases, where the system does not know the user
        return None
    return folder if folder.is_absolute() else None  # older ones leave "~" as it is
