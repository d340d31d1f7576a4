"""What a classifier answers: one face, several, a clip; and which of them a refusal names."""

from __future__ import annotations

import io
import json
import pickle
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fer_edge
from fer_edge.bundle import add_label_set, label_set, open_bundle, write_manifest

BOX = (168, 56, 112, 112)


@pytest.fixture(scope="module")
def clf() -> Any:
    with fer_edge.load(threads=1) as opened:
        yield opened


def test_a_prediction(clf: fer_edge.Classifier, portrait: Path) -> None:
    p = clf.predict(portrait, box=BOX)
    assert p.score == p.scores[p.label] == max(p.scores.values())
    assert p.certain is True, "a label set without a threshold is always certain"
    assert p.top(1) == [(p.label, p.score)]
    assert [score for _, score in p.top(99)] == sorted(p.scores.values(), reverse=True)
    assert dict(p.top(99)) == p.scores
    assert p.to_dict() == {"label": p.label, "score": p.score, "scores": p.scores, "certain": True}
    assert fer_edge.Prediction(**{k: v for k, v in json.loads(json.dumps(p.to_dict())).items() if k != "score"}) == p
    again, other = clf.predict(portrait, box=BOX), clf.predict(portrait)
    assert {p, again, other} == {p, other}
    assert hash(p) == hash(pickle.loads(pickle.dumps(p)))
    with pytest.raises(FrozenInstanceError):
        p.label = "fear"  # type: ignore[misc]
    wrong: list[Any] = [0, -1, 1.5, "2"]
    for n in wrong:
        with pytest.raises(fer_edge.UsageError, match="n must be"):
            p.top(n)


def test_certain_is_the_label_sets_threshold(bundle: Path, portrait: Path) -> None:
    opened = open_bundle(bundle)
    plain = replace(label_set(opened, "ferplus8"), threshold=0.0, least_length=0.0)
    with fer_edge.load(bundle, threads=1) as clf:
        score = clf.predict(portrait).score
    for name, threshold in (("below", score - 1e-9), ("at", score), ("above", score + 1e-9)):
        opened = add_label_set(opened, replace(plain, name=name, threshold=threshold))
        with fer_edge.load(bundle, labels=name, threads=1) as clf:
            assert clf.predict(portrait).certain is (name != "above")
            assert clf.predict_batch([portrait])[0].certain is (name != "above")


def test_certain_is_the_features_length_too(bundle: Path, portrait: Path) -> None:
    """By every way to a prediction; of a clip it is the length of the mean feature."""
    opened = open_bundle(bundle)
    plain = replace(label_set(opened, "ferplus8"), threshold=0.0, least_length=0.0)
    with fer_edge.load(bundle, threads=1) as clf:
        (feature,) = clf.features([portrait])
        score = clf.predict(portrait).score
    length = float(np.linalg.norm(feature.astype(np.float64)))
    for name, least in (("below", length * (1 - 1e-9)), ("above", length * (1 + 1e-9))):
        opened = add_label_set(opened, replace(plain, name=name, least_length=least))
        with fer_edge.load(bundle, labels=name, threads=1) as clf:
            answers = [clf.predict(portrait), *clf.predict_batch([portrait]), *clf.predict_features(feature[None])]
            answers += [clf.predict_clip([portrait] * 3)]
            assert [p.certain for p in answers] == [name == "below"] * 4
    opened = add_label_set(opened, replace(plain, name="both", least_length=length / 2, threshold=score + 1e-9))
    with fer_edge.load(bundle, labels="both", threads=1) as clf:
        assert not clf.predict(portrait).certain


def test_the_square_is_the_manifests(bundle: Path, portrait: Path) -> None:
    """Its side is crop.scale times the box's longer side."""
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, replace(manifest, input=replace(manifest.input, crop=replace(manifest.input.crop, scale=1.25))))
    with fer_edge.load(bundle, threads=1) as wide, fer_edge.load(threads=1) as clf:
        assert (
            wide.predict(portrait, box=BOX) == clf.predict(portrait, box=(154, 42, 140, 140)) != clf.predict(portrait, BOX)
        )
        assert wide.predict_boxes(portrait, [BOX]) == [clf.predict(portrait, box=(154, 42, 140, 140))]
        assert wide.predict(portrait, BOX, shape="box") == clf.predict(portrait, BOX)


def test_every_form_of_a_picture_is_one_answer(clf: fer_edge.Classifier, portrait: Path) -> None:
    raw = portrait.read_bytes()
    with Image.open(portrait) as picture, portrait.open("rb") as stream:
        pixels = np.asarray(picture.convert("RGB"))
        answers = [clf.predict(image, box=BOX) for image in (portrait, str(portrait), raw, picture, pixels, stream)]
    assert set(answers) == {answers[0]}
    batch = clf.predict_batch([portrait, raw, pixels, io.BytesIO(raw)])
    assert set(batch) == {clf.predict(portrait)}
    assert clf.predict_clip([raw, pixels]).label == batch[0].label


@pytest.mark.parametrize("method", ["predict_batch", "features", "predict_clip"])
def test_a_failed_batch_names_the_image(clf: fer_edge.Classifier, method: str, portrait: Path) -> None:
    call, name = getattr(clf, method), "frames" if method == "predict_clip" else "images"
    for wrong in (portrait.parent / "none.png", np.zeros((4, 4, 3)), b"", None, 7):
        with pytest.raises(fer_edge.ImageError, match=rf"^{name}\[2\]: ") as caught:
            call(iter([portrait, portrait, wrong, portrait]))
        assert "\n" not in str(caught.value)
    with portrait.open("rb") as stream:
        for one in (portrait, str(portrait), portrait.read_bytes(), stream, np.zeros((48, 48, 3), np.uint8)):
            with pytest.raises(fer_edge.UsageError, match="several"):
                call(one)
    for none in (5, None, 2.5):
        with pytest.raises(fer_edge.UsageError, match=f"{name} must be"):
            call(none)


def test_wrong_uses_are_one_error_of_the_tree(clf: fer_edge.Classifier, portrait: Path) -> None:
    face = np.zeros((48, 48), np.uint8)
    uses: dict[str, Any] = {
        "margin": lambda: clf.predict(face, margin=0.5),
        "margin must": lambda: clf.predict(face, margin="x"),  # type: ignore[arg-type]
        "shape": lambda: clf.predict(face, shape="box"),
        "box must": lambda: clf.predict(face, box=5),  # type: ignore[arg-type]
        "boxes must": lambda: clf.predict_boxes(face, 5),  # type: ignore[arg-type]
        "shape must": lambda: clf.predict(face, BOX, shape="round"),  # type: ignore[arg-type]
        "max_pixels must": lambda: clf.predict(face, max_pixels="all"),  # type: ignore[arg-type]
        "max_pixels must be at least": lambda: clf.predict(face, max_pixels=0),
    }
    for says, use in uses.items():
        with pytest.raises(fer_edge.UsageError, match=says):
            use()


def test_the_docstring_tells_opencv_users() -> None:
    for text in (fer_edge.Classifier.predict.__doc__, fer_edge.image.to_input.__doc__):
        assert "cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)" in " ".join(str(text).split())
