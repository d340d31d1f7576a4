"""Boxes and labels drawn into a photo, legible at any size and on any background."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fer_edge.classifier import Prediction
from fer_edge.decode import MAX_PIXELS
from fer_edge.errors import UsageError
from fer_edge.files import replaced
from fer_edge.image import Box, ImageLike, rgb_array

LIGHT, DARK, PALE = "#ffd23f", "#111111", "#d8d8d8"
"""A line of LIGHT between two of DARK is seen on every background and by everybody: what a colour tells, a word or the kind
of a line tells as well. PALE: of faces that are not judged."""
SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Of files that are drawn into."""
_SMALLEST, _LARGEST = 12.0, 120.0
"""Pixels of the letters."""

Area = tuple[float, float, float, float]
"""(left, top, right, bottom)."""


def draw_faces(
    photo: ImageLike, faces: Sequence[tuple[Box, Prediction | None]], *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The upright photo (RGB) with a box round each face, in the photo's pixels, and its label with the percentage; "?" and
    a broken line where it is not certain; a thin line and no word where the face is not judged (None). Raises ImageError."""
    pixels, shrunk = rgb_array(photo, max_pixels)
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    areas = [
        _inside((x / shrunk, y / shrunk, (x + w) / shrunk, (y + h) / shrunk), picture.size) for (x, y, w, h), _ in faces
    ]
    # Small ones last: a box that lies within another one stays whole.
    order = sorted(range(len(faces)), key=lambda i: -_size(areas[i]))
    for i in order:
        said = faces[i][1]
        line = max(1, round(_letters(areas[i], picture.size) / (8 if said else 16)))
        _frame(pen, areas[i], line, LIGHT if said else PALE, broken=said is not None and not said.certain)
    plates: list[Area] = []
    for i in order:
        said = faces[i][1]
        if said is not None:
            share = ">99%" if said.score >= 0.995 else f"{said.score:.0%}"  # nobody is sure by 100%
            text = f"{said.label}{'' if said.certain else '?'} {share}"
            font = ImageFont.load_default(_letters(areas[i], picture.size))
            others = [area for j, area in enumerate(areas) if j != i]
            plates.append(_plate(pen, text, font, areas[i], picture.size, plates, others))
    return picture


def check_drawing(file: Path) -> str:
    """Pillow's format for a file by its ending. Raises UsageError for one that is none of SUFFIXES."""
    kind = SUFFIXES.get(file.suffix.lower())
    if kind is None:
        raise UsageError(f"{file} is drawn as what its ending says: {', '.join(SUFFIXES)}; it has {file.suffix or 'none'}")
    return kind


def save_drawing(picture: Image.Image, file: Path) -> None:
    """Write a picture in one step, as its ending says. Raises UsageError."""
    kind = check_drawing(file)
    with replaced(file) as partial:
        picture.save(partial, kind, **({"quality": 92} if kind != "PNG" else {}))


def _inside(area: Area, size: tuple[int, int]) -> Area:
    left, top, right, bottom = (min(max(0.0, v), size[i % 2] - 1.0) for i, v in enumerate(area))
    return left, top, right, bottom


def _size(area: Area) -> float:
    return max(0.0, area[2] - area[0]) * max(0.0, area[3] - area[1])


def _overlap(one: Area, other: Area) -> float:
    return _size((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))


def _letters(area: Area, size: tuple[int, int]) -> float:
    """Pixels of the letters: by the face, and not beyond what the picture makes of it."""
    whole = max(size)
    return min(max(_SMALLEST, whole / 100, min((area[2] - area[0]) / 5, whole / 24)), _LARGEST)


def _frame(pen: ImageDraw.ImageDraw, area: Area, line: int, color: str, broken: bool) -> None:
    left, top, right, bottom = (round(v) for v in area)
    if right - left < 2 or bottom - top < 2:
        return
    edge = max(1, line // 3)
    pen.rectangle((left - edge, top - edge, right + edge, bottom + edge), outline=DARK, width=line + 2 * edge)
    if not broken:
        pen.rectangle((left, top, right, bottom), outline=color, width=line)
        return
    inner = line - 1
    for a, b in _dashes(left, right, 4 * line):
        pen.rectangle((a, top, b, top + inner), fill=color)
        pen.rectangle((a, bottom - inner, b, bottom), fill=color)
    for a, b in _dashes(top, bottom, 4 * line):
        pen.rectangle((left, a, left + inner, b), fill=color)
        pen.rectangle((right - inner, a, right, b), fill=color)


def _dashes(start: int, end: int, length: int) -> Iterator[tuple[int, int]]:
    """An odd number of pieces, so that corners are drawn; every second one is a gap."""
    count = max(3, round((end - start) / length) // 2 * 2 + 1)
    step = (end - start) / count
    for i in range(0, count, 2):
        yield round(start + i * step), round(start + (i + 1) * step)


def _plate(
    pen: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    area: Area,
    size: tuple[int, int],
    plates: Sequence[Area],
    faces: Sequence[Area],
) -> Area:
    """Write a text near a face where it hides least; returns what it covers."""
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    pad = max(2.0, (bottom - top) / 4)
    # Letters with and without tails get plates of one height.
    high = pen.textbbox((0, 0), "happy?", font=font)
    wide, tall = right - left + 2 * pad, high[3] - high[1] + 2 * pad
    centre = (area[0] + area[2] - wide) / 2
    places = [(x, y) for y in (area[1] - tall, area[3], area[1], area[3] - tall) for x in (area[0], centre, area[2] - wide)]
    places += [(area[2], (area[1] + area[3] - tall) / 2), (area[0] - wide, (area[1] + area[3] - tall) / 2)]

    reach = (area[0] - 2 * wide, area[1] - 2 * tall, area[2] + 2 * wide, area[3] + 2 * tall)
    near = [other for other in (*plates, *faces) if _overlap(reach, other)]

    def cost(place: tuple[float, float]) -> float:
        covers = (*place, place[0] + wide, place[1] + tall)
        return 4 * sum(_overlap(covers, other) for other in near) + _overlap(covers, area)

    # A plate that would leave the picture is moved into it before it is weighed.
    moved = [(min(max(0.0, x), max(0.0, size[0] - wide)), min(max(0.0, y), max(0.0, size[1] - tall))) for x, y in places]
    x, y = min(moved, key=cost)
    covers = (x, y, x + wide, y + tall)
    pen.rectangle(covers, fill=LIGHT, outline=DARK, width=max(1, round(pad / 4)))
    pen.text((x + pad - left, y + pad - high[1]), text, fill=DARK, font=font)
    return covers
