"""Teachers in half the space, for the repository: ``python -m lab.gpu.keep RUN WEIGHTS`` reads RUN/teacher-*.safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

from .course import keep


def main(run: Path, weights: Path) -> None:
    """Write WEIGHTS/teacher-*.safetensors, and say how large each is."""
    for path in sorted(run.glob("teacher-*.safetensors")):
        keep(path, weights / path.name)
        print(weights / path.name, f"{(weights / path.name).stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
