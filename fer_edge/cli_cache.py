"""``fer-edge cache``."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from .cache import Entry, clear, entries, user_folder
from .console import Finite, Rooms, common, emit, say, show
from .report import table

_folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), help="The folder that --cache named. Default: the user's."
)


@click.group(cls=Rooms, examples=("fer-edge cache list", "fer-edge cache clear --older-than 30"))
def cache() -> None:
    """What engines have built of large models, kept for the next start. docs/cache.md says when, and how it is checked."""


@cache.command("list", examples=("fer-edge cache list --json",))
@_folder_option
@common
def cache_list(folder: Path | None, as_json: bool) -> None:
    """What is kept: for which bundle, engine and device, how large, and when it was used."""
    where = user_folder() if folder is None else folder
    found = entries(where)
    if as_json:
        emit({"folder": str(where), "bytes": sum(entry.bytes for entry in found), "entries": [_plain(e) for e in found]})
        return
    rows = [["bundle", "engine", "device", "built in", "MB", "last used"]]
    for entry in found:
        told = _plain(entry)
        sizes = [f"{entry.seconds:.1f} s", f"{entry.bytes / 1e6:.1f}"]
        rows.append([told["bundle"], told["engine"], told["device"], *sizes, told["used"][:16].replace("T", " ")])
    if found:
        show(table(rows))
    say(f"{len(found)} kept in {where}, {sum(entry.bytes for entry in found) / 1e6:.1f} MB")


@cache.command("clear", examples=("fer-edge cache clear", "fer-edge cache clear --older-than 30"))
@_folder_option
@click.option("--older-than", type=Finite(min=0), metavar="DAYS", help="Only what was not used for so many days.")
@common
def cache_clear(folder: Path | None, older_than: float | None, as_json: bool) -> None:
    """Remove all that is kept, or what was not used for some days. The next start takes its full time."""
    where = user_folder() if folder is None else folder
    gone = clear(where, 0.0 if older_than is None else older_than * 86_400)
    size = sum(entry.bytes for entry in gone)
    if as_json:
        emit({"folder": str(where), "removed": len(gone), "bytes": size})
    else:
        say(f"Removed {len(gone)} from {where}, {size / 1e6:.1f} MB")


def _plain(entry: Entry) -> dict[str, Any]:
    facts = entry.facts
    bundle = facts.get("bundle", {})
    return {
        "entry": entry.folder.name,
        "bundle": " ".join(str(bundle[key]) for key in ("name", "version") if key in bundle) or "unreadable",
        "digest": bundle.get("digest", ""),
        "files": sorted(facts.get("files", {})),
        "engine": facts.get("engine", ""),
        "device": facts.get("device", ""),
        "options": facts.get("options", {}),
        "bytes": entry.bytes,
        "seconds": entry.seconds,
        "used": datetime.fromtimestamp(min(entry.used, time.time()), timezone.utc).isoformat(timespec="seconds"),
    }
