"""Real video files, by PyAV: frames from the paper's positions, one label for the clip, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import fer_edge
from fer_edge.video import segment_middles


@pytest.mark.parametrize("name", ["WolfgangLanger_Pexels.mp4", "again.mkv", "no_face.mp4"])
def test_frames_are_the_segment_middles(name: str, data: Path) -> None:
    av = pytest.importorskip("av")
    file = data / "scenes" / "videos" / name
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    picked = fer_edge.sample_frames(file, 16)
    assert len(picked) == 16
    for frame, position in zip(picked, segment_middles(len(frames), 16), strict=True):
        assert np.abs(np.asarray(frame).astype(int) - frames[position]).max() <= 2


def test_a_clip_has_one_label(data: Path) -> None:
    pytest.importorskip("av")
    with fer_edge.load(runtime="null") as clf:
        answer = clf.predict_clip(fer_edge.sample_frames(data / "scenes" / "videos" / "again.mkv", 16))
    assert answer.label in answer.scores


def test_a_broken_video_is_one_error(data: Path, tmp_path: Path) -> None:
    pytest.importorskip("av")
    raw = (data / "scenes" / "videos" / "again.mkv").read_bytes()
    for name, content in {"cut.mkv": raw[:100], "noise.mp4": bytes(range(256)) * 40, "empty.mp4": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(fer_edge.ImageError, match=name) as caught:
            fer_edge.sample_frames(tmp_path / name)
        assert "\n" not in str(caught.value)
