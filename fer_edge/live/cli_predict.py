"""What ``fer-edge predict --faces`` and ``--draw`` do beyond a crop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fer_edge.classifier import Classifier, Prediction
from fer_edge.errors import UsageError
from fer_edge.files import check_target
from fer_edge.image import Box, ImageLike

from .draw import check_drawing, draw_faces, save_drawing
from .faces import FaceFinder, use_threads
from .predictions import FacePrediction


class Faces:
    """The finder of a command, and the options of its faces; those that are None have their defaults."""

    def __init__(self, clf: Classifier, detector: str | None, longest: int | None, **options: Any) -> None:
        self._clf = clf
        self._finder = FaceFinder(detector, **({} if longest is None else {"longest": longest}))
        self._options = {name: value for name, value in options.items() if value is not None}
        use_threads(clf.threads)

    def __call__(self, photo: ImageLike) -> list[FacePrediction]:
        """The faces of a photo."""
        return self._clf.predict_faces(photo, self._finder, **self._options)

    def close(self) -> None:
        """Give the detector back."""
        self._finder.close()


def drawing_files(images: Sequence[str], target: str) -> dict[str, Path]:
    """Image -> file that it is drawn into: ``target`` itself for one image; where it is a folder, or ends with a slash, a
    PNG of the image's name in it. Raises UsageError where two would be one, an image would be written over, or nothing can
    be written."""
    folder = Path(target)
    if target.endswith(("/", "\\")) or folder.is_dir():
        files = {image: folder / f"{'stdin' if image == '-' else Path(image).stem}.png" for image in images}
    elif len(files := dict.fromkeys(images, folder)) > 1:
        raise UsageError(f"--draw {target} is one file for {len(files)} images; name a folder, as --draw labelled/")
    owner: dict[Path, str] = {}
    for image, file in files.items():
        if file in owner:
            raise UsageError(f"{owner[file]} and {image} would both be drawn into {file}; draw them one by one")
        owner[file] = image
        check_drawing(file)
        for other in images:
            if file.exists() and Path(other).exists() and file.samefile(other):
                raise UsageError(f"--draw would write over the image {other}; name another file or folder")
        check_target(file, make_folder=True)
    return files


def draw(photo: ImageLike, faces: Sequence[tuple[Box, Prediction | None]], file: Path, max_pixels: int) -> None:
    """Write the photo with its faces. Raises ImageError or UsageError."""
    save_drawing(draw_faces(photo, faces, max_pixels=max_pixels), file)
