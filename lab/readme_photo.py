"""The photo at the top of the README: the astronaut's portrait, which is in the public domain, twice.

``python -m lab.readme_photo`` writes examples/two-faces.jpg; ``fer-edge predict examples/two-faces.jpg --faces --draw
docs/two-faces.jpg`` writes what the README shows."""

from __future__ import annotations

from pathlib import Path

import click
from PIL import Image, ImageOps

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=EXAMPLES / "two-faces.jpg", show_default=False)
def photo(output: Path) -> None:
    """Write the photo: the portrait, and beside it the same, mirrored and smaller."""
    with Image.open(EXAMPLES / "astronaut.png") as opened:
        portrait = opened.convert("RGB")
    left = portrait.crop((30, 0, 430, 360))
    right = ImageOps.mirror(portrait).crop((90, 0, 450, 432)).resize((300, 360), Image.Resampling.LANCZOS)
    scene = Image.new("RGB", (left.width + right.width, left.height))
    scene.paste(left, (0, 0))
    scene.paste(right, (left.width, 0))
    scene.save(output, quality=88)


if __name__ == "__main__":
    photo()
