"""A kit on the disk: a folder or one tar file, whole or not there, with the same bytes from the same things."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fer_edge.errors import UsageError
from fer_edge.files import disk_errors, exchange, partial_folder, replaced, sync_folder, sync_tree

SUMS, ABOUT = "SHA256SUMS", "kit.json"
TAR = ".tar"
EPOCH = 315_532_800
"""The time of every file of a kit, as SOURCE_DATE_EPOCH would say it: the first day of 1980, which zip and FAT know, too."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+/-]*")
"""What install.sh takes for a file of a kit."""


@contextmanager
def new_kit(target: Path, force: bool = False) -> Iterator[Path]:
    """A fresh folder beside ``target`` that becomes it when the block ends well, as a folder, or as a tar file where its
    name ends so; and vanishes when it does not. Gives it checksums, times and modes. Raises UsageError when ``target`` is
    there and ``force`` is not set, is no kit, or cannot be written."""
    check_kit(target, force)
    folder = partial_folder(target)
    name = target.name.removesuffix(TAR)
    try:
        with disk_errors(target):
            folder.mkdir(0o755)
            whole = folder / name
            whole.mkdir(0o755)
            yield whole
            _write_sums(whole)
            _settle(whole)
            if target.name.endswith(TAR):
                _write_tar(whole, target)
            else:
                _put(whole, target, force)
                sync_folder(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # what was not finished, or the kit that was there before


def check_kit(target: Path, force: bool) -> None:
    """Raise UsageError where no kit may be written."""
    if not _NAME.fullmatch(target.name):
        raise UsageError(f"{target} cannot name a kit: use letters, digits, '-', '_', '+' and '.'")
    if not target.parent.is_dir():
        raise UsageError(f"{target.parent} is not a folder; create it first")
    if os.path.lexists(target):
        if not force:
            raise UsageError(f"{target} exists already; remove it, name another, or pass --force")
        if target.is_dir() and any(target.iterdir()) and not (target / ABOUT).is_file():
            raise UsageError(f"{target} is no kit, so --force does not replace it; name another folder")
        if target.is_dir() == target.name.endswith(TAR):
            raise UsageError(f"{target} is {'a folder' if target.is_dir() else 'a file'}; name another")


def files_of(folder: Path) -> list[str]:
    """Every file of a folder, as a path inside it, sorted."""
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir())


def sums(folder: Path) -> str:
    """What sha256sum(1) prints of a folder's files. Raises UsageError for a name that install.sh would not take."""
    lines = []
    for path in files_of(folder):
        if not _NAME.fullmatch(path):
            raise UsageError(
                f"{path!r} cannot go into a kit: its files have only letters, digits and . _ + - in their names"
            )
        digest = hashlib.sha256()
        with (folder / path).open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        lines.append(f"{digest.hexdigest()}  {path}\n")
    return "".join(lines)


def _write_sums(folder: Path) -> None:
    (folder / SUMS).write_text(sums(folder), encoding="ascii")


def _settle(folder: Path) -> None:
    """Modes and times that no umask and no clock change, all of it on the disk."""
    sync_tree(folder)
    for place in (folder, *folder.rglob("*")):
        place.chmod(0o755 if place.is_dir() or place.suffix == ".sh" else 0o644)
    for place in (*folder.rglob("*"), folder):
        os.utime(place, (EPOCH, EPOCH))


def _write_tar(folder: Path, target: Path) -> None:
    """A tar file (POSIX.1-1988, which every tar reads) with the folder in it."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        entry.mtime = EPOCH
        return entry

    with replaced(target) as partial, tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
        for place in (folder, *sorted(folder.rglob("*"))):
            archive.add(
                place, f"{folder.name}/{place.relative_to(folder).as_posix()}".removesuffix("/."), False, filter=plain
            )


def _put(folder: Path, target: Path, force: bool) -> None:
    """``folder`` under the name ``target``, which may have come to be since it was looked at."""
    if not os.path.lexists(target) or not any(target.iterdir()):
        folder.rename(target)
        return
    check_kit(target, force)
    exchange(folder, target)
