"""What compares other packages with ours: faces are fed as it says, answers counted as they come, and a face without one
is a mistake. The packages themselves are not here."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import fer_edge
from fer_edge.benchmarks.robustness import WAYS
from fer_edge.errors import UsageError
from lab.rivals import BORDERS, GRAY, LABELS, PHOTO_SIDE, Border, asked, figures, photo_of, rivals, sample

ECHO = """
import json, struct, sys
print(json.dumps({"version": "1.2", "bytes": 3_000_000, "network_bytes": 1_000_000}), flush=True)
while header := sys.stdin.buffer.read(12):
    width, height, crop = struct.unpack("<III", header)
    pixels = sys.stdin.buffer.read(3 * width * height)
    if pixels[0] == 9:
        sys.exit(3)
    label = None if pixels[0] == 0 else "fearful" if crop else "happy"
    print(json.dumps({"label": label, "ms": width + height / 1000 + pixels[-1] / 1e6}), flush=True)
"""


def test_a_photo_has_its_face_in_the_middle_and_a_border_round_it() -> None:
    rng = np.random.default_rng(0)
    large = rng.integers(0, 256, (300, 240, 3), dtype=np.uint8)
    photo = photo_of(large, Border(0.5, "edge"))
    assert photo.shape == (600, 480, 3)
    assert np.array_equal(photo[150:450, 120:360], large)
    assert (photo[0] == photo[149]).all()
    assert np.array_equal(photo[150:450, 0], large[:, 0])
    small = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert photo_of(small, Border(1.0)).shape == (3 * PHOTO_SIDE, 3 * PHOTO_SIDE, 3)
    assert (photo_of(small, Border(1.0))[:PHOTO_SIDE] == GRAY).all()
    middle = Image.fromarray(photo_of(small, Border(1.0))[PHOTO_SIDE : 2 * PHOTO_SIDE, PHOTO_SIDE : 2 * PHOTO_SIDE])
    back = np.asarray(middle.resize((48, 48), Image.Resampling.BOX), int)
    assert np.corrcoef(back.ravel(), small.ravel())[0, 1] > 0.95


def test_a_face_without_an_answer_is_a_mistake() -> None:
    truth = ["happiness"] * 4 + ["anger"] * 2
    found = figures(["happiness", "happiness", None, "fear", "anger", None], truth)
    assert (found["faces"], found["found"]) == (6, 4)
    assert found["war"] == pytest.approx(3 / 6)
    assert found["uar"] == pytest.approx((2 / 4 + 1 / 2) / 2)
    assert found["recall"] == {**dict.fromkeys(LABELS), "happiness": 0.5, "anger": 0.5}
    assert found["war_interval"][0] < 0.5 < found["war_interval"][1]
    assert figures([None] * 6, truth)["war"] == 0


def test_a_process_is_asked_picture_by_picture(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    first = np.full((2, 3, 3), 7, np.uint8)
    first[-1, -1, -1] = 5
    with asked([sys.executable, str(tmp_path / "echo.py")], "fer") as rival:
        assert (rival.version, rival.files_mb, rival.network_mb, rival.border) == ("1.2", 3.0, 1.0, BORDERS["fer"])
        label, ms = rival.ask(first, True)
        assert label == "fear"
        assert ms == pytest.approx(3.002005)
        assert rival.ask(first, False)[0] == "happiness"
        assert rival.ask(np.zeros((4, 4, 3), np.uint8), False)[0] is None
        with pytest.raises(UsageError, match="fer ended"):
            rival.ask(np.full((4, 4, 3), 9, np.uint8), False)
    with pytest.raises(UsageError, match="does not start"), asked([str(tmp_path / "nothing")], "fer"):
        pass


def test_a_sample_is_of_common_classes_and_spread_over_the_data(data: Path) -> None:
    file = data / "fer2013" / "public_test.npz"
    members = ("ferplus_majority_labelcsv", "ferplus_class_names")
    pictures, labels = sample(file, *members, 20, 50)
    assert set(Counter(labels).values()) == {20}
    with np.load(file) as z:
        names, truth, images = z[members[1]].tolist(), z[members[0]], z["images"]
    common = {name for k, name in enumerate(names) if (truth == k).sum() >= 50 and name in LABELS}
    assert set(labels) == common
    rows = [int(np.flatnonzero((images == picture).all((1, 2)))[0]) for picture in pictures]
    assert [names[truth[row]] for row in rows] == labels
    assert np.median(rows) == pytest.approx(len(images) / 2, rel=0.3)
    assert len(sample(file, *members, 0, 1)[0]) == int(((truth >= 0) & (truth != names.index("contempt"))).sum())
    with pytest.raises(UsageError, match="no class"):
        sample(file, *members, 5, 10**6)


def test_ours_are_the_answers_of_the_classifier(data: Path) -> None:
    pytest.importorskip("rich")
    detector = data.parent / "models" / "face_detection_yunet_2023mar.onnx"
    if not detector.is_file():
        pytest.skip(f"no detector at {detector}")
    folder = data / "lfw_expressions"
    arguments = [str(folder), "--rival", "fer-edge", "--most", "3", "--detector", str(detector), "--spoilt", "--time"]
    done = CliRunner().invoke(rivals, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    crop, photo = (json.loads(line) for line in done.stdout.splitlines())
    pictures, labels = sample(folder, None, None, 3, 50)
    with fer_edge.load(labels="rafdb7", threads=1) as clf:
        said = [p.label for p in clf.predict_batch(pictures)]
        hard = [p.label for p in clf.predict_batch(next(w for w in WAYS if w.text == "16 pixels").spoil(pictures))]
    assert crop["war"] == pytest.approx(np.mean([a == b for a, b in zip(said, labels, strict=True)]), abs=1e-4)
    found = crop["spoilt"]["16 pixels"]
    assert found["war"] == pytest.approx(np.mean([a == b for a, b in zip(hard, labels, strict=True)]), abs=1e-4)
    assert len(crop["spoilt"]) == 8
    means = np.mean([entry["war"] for entry in crop["spoilt"].values()])
    assert crop["spoilt_mean"]["war"] == pytest.approx(means, abs=1e-4)
    assert (crop["feed"], photo["feed"], photo["found"]) == ("crop", "photo", 15)
    assert photo["mb"] > crop["mb"] > 1
    assert crop["median_ms"] >= crop["tenth_ms"] > 0


@pytest.mark.parametrize("name", ["fer", "human"])
def test_a_rival_that_is_not_there_is_said_so(name: str, data: Path, tmp_path: Path) -> None:
    arguments = [str(data / "lfw_expressions"), "--rival", name, "--most", "1"]
    for more, word in (([], "--packages"), (["--packages", str(tmp_path)], name)):
        done = CliRunner().invoke(rivals, [*arguments, *more], catch_exceptions=False)
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert word in done.stderr.splitlines()[-1]
