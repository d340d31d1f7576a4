"""How warm a Linux box is, read from /sys.

Readers take ``root``: a copied or made-up tree is read like the box itself. What is missing, switched off or says nonsense
is left out; no reader raises, and none makes a value up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from .container import number_of, text_of

NO_SENSORS = ("PMIC-Die",)  # a zone of Jetsons that always says 100 degrees, hot or cold


def temperatures(root: Path = Path("/")) -> dict[str, float]:
    """Degrees Celsius by thermal zone; where no zone has any, by hwmon sensor.

    Millidegrees, as in Documentation/ABI/testing/sysfs-class-thermal and Documentation/hwmon/sysfs-interface.rst. A zone
    that is off answers with an error, or with -256 degrees on a Jetson. A name means the same sensor at every call."""
    zones = numbered(root / "sys/class/thermal", r"thermal_zone([0-9]+)")
    chips = numbered(root / "sys/class/hwmon", r"hwmon([0-9]+)")
    sensors = [file for chip in chips for file in numbered(chip, r"temp([0-9]+)_input")]
    named = [(name_in(zone / "type") or zone.name, zone / "temp") for zone in zones]
    found = _degrees([(name, file) for name, file in named if name not in NO_SENSORS])
    return found or _degrees([(_sensor_name(file), file) for file in sensors])


def _sensor_name(file: Path) -> str:
    channel = file.name.removesuffix("_input")
    return f"{name_in(file.parent / 'name') or file.parent.name} {name_in(file.parent / f'{channel}_label') or channel}"


def _degrees(sensors: Sequence[tuple[str, Path]]) -> dict[str, float]:
    values = [number_of(path) for _, path in sensors]
    named = zip(distinct([name for name, _ in sensors]), values, strict=True)
    return {name: value / 1000 for name, value in named if value is not None and -60_000 <= value <= 200_000}


def distinct(names: Sequence[str]) -> list[str]:
    """The names, a repeated one with the first number from 2 on that makes it unlike all others."""
    found: list[str] = []
    for name in names:
        numbers = (f"{name} {n}" for n in count(2) if f"{name} {n}" not in {*names, *found})
        found.append(next(numbers) if name in found else name)
    return found


def name_in(path: Path) -> str:
    """The name that a file holds, at most 80 characters that can be printed; "" where it cannot be read."""
    return "".join(c for c in text_of(path) or "" if c.isprintable())[:80]


def numbered(folder: Path, pattern: str) -> list[Path]:
    """Entries of a folder that match, by their number: cpu2 before cpu10."""
    try:
        matches = [m for entry in os.listdir(folder) if (m := re.fullmatch(pattern, entry))]
    except OSError:
        return []
    return [folder / m.group() for m in sorted(matches, key=lambda m: int(m.group(1)))]
