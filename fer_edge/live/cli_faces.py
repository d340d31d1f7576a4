"""``fer-edge faces``: the face detector's weights."""

from __future__ import annotations

from pathlib import Path

import click

from fer_edge.console import Finite, Rooms, common, emit, say, status

from .weights import TIMEOUT, WEIGHTS, fetch, install, is_installed, place


@click.group(cls=Rooms, examples=("fer-edge faces fetch",))
def faces() -> None:
    """The face detector that 'predict --faces' and 'watch' use."""


@faces.command(
    "fetch",
    examples=("fer-edge faces fetch", "fer-edge faces fetch --from face_detection_yunet_2023mar.onnx"),
)
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    help="Take this file instead of downloading one, where there is no network; it must be the published one.",
)
@click.option("--url", help="Download from this mirror of the published file. Default: OpenCV's model zoo.")
@click.option(
    "--timeout",
    type=Finite(min=0.1),
    default=TIMEOUT,
    show_default=True,
    help="Seconds without an answer after which a download is given up.",
)
@common
def faces_fetch(source: Path | None, url: str | None, timeout: float, as_json: bool) -> None:
    """Put the detector's weights (YuNet, MIT, 0.2 MB) into your cache, once. Its SHA-256 is pinned. This command alone uses
    the network; nothing is downloaded when the file is there."""
    if source is not None and url is not None:
        raise click.UsageError("--from takes a file and --url an address; name one of them", click.get_current_context())
    weights = WEIGHTS["yunet"]
    fresh = source is not None or url is not None or not is_installed(weights)
    if source is not None:
        file = install(weights, source)
    elif fresh:
        with status() as progress:
            progress(f"fetching {weights.file}")
            file = fetch(weights, url, timeout, lambda done: progress(f"fetching {weights.file}: {done:.0%}"))
    else:
        file = place(weights)
    if as_json:
        row = {"detector": weights.name, "file": str(file), "sha256": weights.sha256, "bytes": weights.size}
        emit({**row, "licence": weights.licence, "fetched": fresh})
    else:
        say(f"{weights.name} ({weights.licence}) {'lies' if fresh else 'is there already,'} at {file}")
