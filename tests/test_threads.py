"""A classifier among threads, after close, in a forked child, and its answers on batches and clips."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import fer_edge
from fer_edge import Classifier, ImageError, UsageError
from fer_edge.bundle import golden_set, label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.engines import RUNTIMES, installed

ENGINES = tuple(filter(installed, RUNTIMES))

METHODS: dict[str, Callable[[Classifier, Any], object]] = {
    "predict": lambda clf, crop: clf.predict(crop),
    "predict of nothing readable": lambda clf, crop: clf.predict("missing.png"),
    "predict_batch": lambda clf, crop: clf.predict_batch([crop]),
    "predict_batch of nothing": lambda clf, crop: clf.predict_batch([]),
    "predict_clip": lambda clf, crop: clf.predict_clip([crop, crop]),
    "predict_clip of nothing": lambda clf, crop: clf.predict_clip([]),
    "features": lambda clf, crop: clf.features([crop]),
    "with": lambda clf, crop: clf.__enter__(),
}


@pytest.fixture(scope="module")
def crops() -> NDArray[np.uint8]:
    """The golden crops of the embedded bundle: faces of the input's size, all different."""
    return golden_set(open_bundle(DEFAULT_BUNDLE)).crops


@pytest.mark.parametrize("engine", [*ENGINES, "null"])
def test_eight_threads_get_the_answers_of_one(engine: str, crops: NDArray[np.uint8]) -> None:
    with fer_edge.load(runtime=engine, threads=1) as clf:
        expected = clf.features(crops)
        assert len(np.unique(expected.round(3), axis=0)) == len(crops), "the answers have to differ to be told apart"
        start = threading.Barrier(8)

        def work(offset: int) -> list[tuple[int, NDArray[np.float32]]]:
            start.wait(timeout=60)
            order = [(i + 5 * offset) % len(crops) for i in range(len(crops))]
            return [(i, clf.features([crops[i]])[0]) for i in order for _ in range(2)]

        with ThreadPoolExecutor(8) as pool:
            for answers in pool.map(work, range(8)):
                for i, feature in answers:
                    assert feature.tobytes() == expected[i].tobytes()


def test_answers_are_not_overwritten_by_the_next_call(crops: NDArray[np.uint8]) -> None:
    for engine in ENGINES:
        with fer_edge.load(runtime=engine, threads=1) as clf:
            first = clf.features([crops[0]])
            kept = first.copy()
            clf.features(crops[1:])
            assert np.array_equal(first, kept)


@pytest.mark.parametrize("engine", [*ENGINES, "null"])
@pytest.mark.parametrize("method", METHODS)
def test_after_close_every_method_raises(engine: str, method: str, crops: NDArray[np.uint8]) -> None:
    clf = fer_edge.load(runtime=engine)
    clf.close()
    clf.close()
    with pytest.raises(UsageError, match="closed"):
        METHODS[method](clf, crops[0])
    assert "closed" in repr(clf)
    assert clf.labels[0] == "happiness", "what it was can still be asked"


def test_the_context_manager_closes(crops: NDArray[np.uint8]) -> None:
    with fer_edge.load() as clf:
        clf.predict(crops[0])
        assert "closed" not in repr(clf)
    with pytest.raises(UsageError):
        clf.predict(crops[0])
    with pytest.raises(ZeroDivisionError), fer_edge.load() as failed:
        raise ZeroDivisionError
    with pytest.raises(UsageError):
        failed.predict(crops[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_while_others_predict(engine: str, crops: NDArray[np.uint8]) -> None:
    clf = fer_edge.load(runtime=engine, threads=1)
    expected = clf.features([crops[0]])[0]
    running = threading.Barrier(5)

    def work() -> int:
        done = 0
        running.wait(timeout=60)
        try:
            while done < 100_000:
                assert np.array_equal(clf.features([crops[0]])[0], expected)
                done += 1
        except UsageError:
            return done
        raise AssertionError("it was never closed")

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(work) for _ in range(4)]
        running.wait(timeout=60)
        clf.close()
        for future in futures:
            future.result(timeout=60)


FORK = """
import os, sys
import numpy as np
import fer_edge
from fer_edge.bundle import golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.engines import RUNTIMES, installed

crop = golden_set(open_bundle(DEFAULT_BUNDLE)).crops[0]
clf = fer_edge.load(runtime=sys.argv[1], threads=1)
before = clf.predict(crop)
child = os.fork()
if child == 0:
    raised = 0
    for call in (
        lambda: clf.predict(crop),
        lambda: clf.predict("missing.png"),
        lambda: clf.predict_batch([crop]),
        lambda: clf.predict_batch([]),
        lambda: clf.predict_clip([crop]),
        lambda: clf.features([crop]),
        lambda: clf.__enter__(),
    ):
        try:
            call()
        except fer_edge.UsageError as error:
            raised += "fork" in str(error)
    os._exit(0 if raised == 7 else 1)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert clf.predict(crop) == before, "the parent goes on"
clf.close()
print("good")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", [*ENGINES, "null"])
def test_a_forked_child_is_told_to_load_again(engine: str) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, engine], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "good\n"), done.stderr


ENDINGS = """
import gc, multiprocessing, os, signal, sys, threading, time
import numpy as np
import fer_edge

engine, face = sys.argv[1], np.zeros((48, 48), np.uint8)


def opened():
    clf = fer_edge.load(runtime=engine, threads=2)  # two threads: an engine of one may start none
    clf.predict(face)
    return clf


def child(work):
    pid = os.fork()
    if not pid:
        signal.alarm(30)  # ends a child that waits for the parent's threads
        work()
        sys.exit(0)  # an ordinary end: whatever is left is destroyed
    _, status = os.waitpid(pid, 0)
    print(work.__name__, os.waitstatus_to_exitcode(status), flush=True)


def nothing():
    pass


def begin_threads():
    threads = [threading.Thread(target=time.sleep, args=(0.05,)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def close_and_drop():
    global clf
    clf.close()
    clf = None
    gc.collect()


def load_again():
    global clf
    clf = opened()


def load_and_close():
    for _ in range(2):
        with opened():
            pass


def grandchild():
    own = opened()
    child(load_again)
    own.predict(face)


def answer(_):
    return clf.predict(face).label


opened().close()
child(nothing)
child(begin_threads)
child(load_and_close)
clf, other, dropped = opened(), opened(), opened()
other.close()
del dropped
for work in (nothing, begin_threads, close_and_drop, load_again, load_and_close, grandchild):
    child(work)
with multiprocessing.get_context("fork").Pool(2, initializer=load_again) as pool:
    print(set(pool.map_async(answer, range(4)).get(timeout=60)) == {answer(0)})
clf.close()
"""
"""How children of a process that has used an engine may go on and end: servers that fork after loading, worker pools."""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("engine", ENGINES)
def test_a_forked_child_loads_its_own_and_ends_as_it_likes(engine: str) -> None:
    """An engine's threads are not in the child: whoever destroys what was inherited waits for them, or aborts."""
    done = subprocess.run([sys.executable, "-c", ENDINGS, engine], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    closed, open_ = ["nothing", "begin_threads", "load_and_close"], ["nothing", "begin_threads", "close_and_drop"]
    works = [*closed, *open_, "load_again", "load_and_close", "load_again", "grandchild"]
    assert done.stdout.split("\n")[:-1] == [*(f"{work} 0" for work in works), "True"], done.stderr


def test_a_classifier_is_not_copied() -> None:
    """Neither to another process, nor beside itself: a copy would go on in an engine that the first one closed."""
    with fer_edge.load() as clf:
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(UsageError, match="load"):
                copied(clf)


def test_one_image_is_not_several(portrait: Path) -> None:
    rgb = np.asarray(Image.open(portrait).convert("RGB"))
    gray = np.asarray(Image.open(portrait).convert("L"))
    ones = (str(portrait), portrait, Image.fromarray(rgb), gray, rgb, gray[:, :, None], np.dstack([rgb, gray]))
    with fer_edge.load() as clf:
        for one in ones:
            for method in (clf.predict_batch, clf.predict_clip, clf.features):
                with pytest.raises(UsageError, match="several"):
                    method(one)  # type: ignore[arg-type]


def test_several_images_in_every_usual_form(portrait: Path, crops: NDArray[np.uint8]) -> None:
    rgb = np.asarray(Image.open(portrait).convert("RGB"))
    with fer_edge.load() as clf:
        forms = clf.predict_batch([str(portrait), portrait, Image.open(portrait), rgb])
        assert all(found == clf.predict(portrait) for found in forms)
        one_by_one = [clf.predict(crop) for crop in crops]
        assert clf.predict_batch(crops) == one_by_one
        assert clf.predict_batch(crop for crop in crops) == one_by_one
        stack = crops[:, :, :, 0]  # gray images (N, H, W)
        assert clf.predict_batch(stack) == [clf.predict(gray) for gray in stack]
        assert clf.predict_batch([]) == []


def test_a_clip_scores_the_mean_of_the_unnormalised_features(crops: NDArray[np.uint8]) -> None:
    constants = label_set(open_bundle(DEFAULT_BUNDLE), "ferplus8")
    with fer_edge.load() as clf:
        turned = crops.copy()
        turned[1::2] = turned[1::2, ::-1]  # upside down: of faces that are alike, the two means are as well
        for frames in (crops[:1], turned[:2], turned[3:12]):
            features = np.stack([clf.features([frame])[0] for frame in frames]).astype(np.float64)

            def scores(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
                logits = constants.logit_scale * (constants.constants @ (pooled / np.linalg.norm(pooled)))
                powers = np.exp((logits - logits.max()) / constants.temperature)
                return np.asarray(powers / powers.sum())

            expected = scores(features.mean(0))
            found = clf.predict_clip(frames)
            assert list(found.scores.values()) == pytest.approx(expected.tolist(), abs=1e-5)
            assert found.label == constants.labels[int(expected.argmax())]
            if len(frames) > 1:
                other = scores((features / np.linalg.norm(features, axis=1, keepdims=True)).mean(0))
                assert np.abs(other - expected).max() > 1e-4, "frames that tell the two means apart"


def test_a_clip_uses_every_frame_and_no_order(crops: NDArray[np.uint8]) -> None:
    with fer_edge.load() as clf:
        forward = clf.predict_clip(crops)
        assert list(clf.predict_clip(crops[::-1]).scores.values()) == pytest.approx(list(forward.scores.values()), abs=1e-5)
        assert clf.predict_clip(crops[:-1]).scores != forward.scores
        assert clf.predict_clip([crops[0]]).scores == pytest.approx(clf.predict(crops[0]).scores, abs=1e-6)


def test_a_clip_of_nothing() -> None:
    with fer_edge.load() as clf:
        nothings: tuple[Any, ...] = ([], (), iter(()), np.empty((0, 48, 48), np.uint8))
        for nothing in nothings:
            with pytest.raises(ImageError):
                clf.predict_clip(nothing)


@pytest.mark.parametrize("threads", [0, -1, "2", 1.0])
def test_threads_are_a_whole_number_of_at_least_one(threads: object) -> None:
    with pytest.raises(UsageError, match="threads"):
        fer_edge.load(threads=threads)  # type: ignore[arg-type]
    assert fer_edge.load(threads=1).threads == 1
