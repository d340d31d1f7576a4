"""Errors of the tree travel between processes, and a wrong argument of the public functions is one of them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import fer_edge
from fer_edge import Classifier, FerEdgeError, MissingExtraError, UsageError
from fer_edge.arguments import checked


def tree(kind: type[FerEdgeError] = FerEdgeError) -> Iterator[type[FerEdgeError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from tree(child)


class Demanding(FerEdgeError):
    """An error whose ``__init__`` takes something else than its message."""

    def __init__(self, file: str, *, line: int) -> None:
        super().__init__(f"{file} is wrong in line {line}")
        self.line = line


# Pickle


@pytest.mark.parametrize("kind", [k for k in tree() if k not in (Demanding, MissingExtraError)], ids=lambda k: k.__name__)
def test_every_error_survives_pickle(kind: type[FerEdgeError]) -> None:
    error = kind("a line of text")
    error.seen = ["x"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        back = pickle.loads(pickle.dumps(error, protocol))
        assert type(back) is kind
        assert (str(back), back.args, vars(back)) == ("a line of text", ("a line of text",), {"seen": ["x"]})


def test_errors_with_an_init_of_their_own_survive_pickle() -> None:
    for error in (MissingExtraError("the package torch", "convert"), Demanding("a.toml", line=3)):
        back = pickle.loads(pickle.dumps(error))
        assert (type(back), str(back), vars(back)) == (type(error), str(error), vars(error))


def fail_in_a_worker() -> None:
    raise MissingExtraError("the package torch", "convert")


def one() -> int:
    return 1


def test_a_workers_error_reaches_its_parent_and_the_pool_goes_on() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(MissingExtraError, match="pip install") as caught:
            pool.submit(fail_in_a_worker).result(timeout=60)
        assert caught.value.extra == "convert"
        assert pool.submit(one).result(timeout=60) == 1


# Arguments


@pytest.fixture(scope="module")
def clf() -> Iterator[Classifier]:
    with fer_edge.load(runtime="null") as classifier:
        yield classifier


FACE = np.zeros((48, 48), np.uint8)
WRONG: dict[str, tuple[Callable[[Classifier], object], str]] = {
    "load(5)": (lambda clf: fer_edge.load(5), "bundle"),
    "load(labels=[])": (lambda clf: fer_edge.load(labels=["happiness"]), "labels must be a text; got list"),
    "load(runtime=3)": (lambda clf: fer_edge.load(runtime=3), "runtime must be a text; got int 3"),
    "load(device=5)": (lambda clf: fer_edge.load(device=5), "device"),
    "load(precision=[])": (lambda clf: fer_edge.load(precision=["int8"]), "precision"),
    "load(execution_precision=5)": (lambda clf: fer_edge.load(execution_precision=5), "execution_precision"),
    "load(threads=True)": (lambda clf: fer_edge.load(threads=True), "threads must be a whole number; got bool True"),
    "load(threads=2.0)": (lambda clf: fer_edge.load(threads=2.0), "threads must be a whole number; got float"),
    "sample_frames(x, 2.5)": (lambda clf: fer_edge.sample_frames([FACE], 2.5), "count must be a whole number"),
    "sample_frames(x, '3')": (lambda clf: fer_edge.sample_frames([FACE], "3"), "count must be a whole number"),
    "predict_batch(5)": (
        lambda clf: clf.predict_batch(5),
        "images must be several, in a list or another iterable; got int 5",
    ),
    "predict_clip(None)": (lambda clf: clf.predict_clip(None), "frames must be several"),
    "features(None)": (lambda clf: clf.features(None), "images must be several"),
    "features(memory)": (lambda clf: clf.features(memoryview(np.zeros((2, 48, 48), np.uint8))), "images must be several"),
    "sample_frames(photo)": (lambda clf: fer_edge.sample_frames(np.zeros((48, 48, 3), np.uint8)), "video: expected several"),
    "sample_frames(number)": (lambda clf: fer_edge.sample_frames(np.zeros(())), "video: expected several"),
    "predict(box=5)": (lambda clf: clf.predict(FACE, box=5), "box must be 4 numbers; got int 5"),
    "predict(x, 5)": (lambda clf: clf.predict(FACE, 5), "box must be 4 numbers; got int 5"),
    "predict(margin='x')": (lambda clf: clf.predict(FACE, margin="x"), "margin must be a number; got str 'x'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_a_usage_error_that_names_the_argument(name: str, clf: Classifier) -> None:
    call, words = WRONG[name]
    with pytest.raises(UsageError) as caught:
        call(clf)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_numpy_gives_is_taken(clf: Classifier) -> None:
    with fer_edge.load(runtime="null", threads=np.int64(2)) as other:
        assert other.threads == 2
    assert len(fer_edge.sample_frames([FACE], np.uint8(3))) == 3
    assert clf.predict(FACE, box=np.array([0, 0, 40, 40]), margin=np.float32(0.1)).label
    assert clf.features(FACE for _ in range(2)).shape[0] == 2


def test_a_closed_file_in_place_of_several_images(clf: Classifier, tmp_path: Path) -> None:
    """Its iter() raises a ValueError, and that of a memory of several dimensions a NotImplementedError."""
    (tmp_path / "a.png").write_bytes(b"")
    with (tmp_path / "a.png").open("rb") as file:
        pass
    with pytest.raises(UsageError, match="images must be several"):
        clf.features(file)  # type: ignore[arg-type]


def test_a_path_of_bytes_is_a_path(tmp_path: Path) -> None:
    class Entry:  # as os.scandir gives them for a folder that is named by bytes
        def __fspath__(self) -> bytes:
            return bytes(tmp_path / "gone.gif")

    with pytest.raises(fer_edge.ImageError, match=r"gone\.gif does not exist"):
        fer_edge.sample_frames(Entry())  # type: ignore[arg-type]


class Frames:
    """A data set as torch knows it: nothing but an index."""

    def __getitem__(self, i: int) -> np.ndarray:
        if i > 1:
            raise IndexError
        return FACE


def test_a_class_that_has_only_an_index_can_be_gone_through(clf: Classifier) -> None:
    assert len(clf.predict_batch(Frames())) == 2


@checked("anything")
def sample(
    anything: str,
    words: str | None = None,
    way: Literal["square", "box"] = "square",
    values: Iterable[int] = (),
    share: float = 0.0,
    call: Callable[[], Any] = dict,
    *,
    count: int = 1,
) -> tuple[object, ...]:
    """All kinds of annotation."""
    return anything, words, way, values, share, call, count


def test_checked_functions_keep_what_they_are() -> None:
    assert (sample.__name__, sample.__doc__) == ("sample", "All kinds of annotation.")
    assert sample(5, None, "box", range(3), 1, print, count=2) == (5, None, "box", range(3), 1, print, 2)
    with pytest.raises(TypeError, match="unexpected keyword"):  # Python's own words for what no call of ours can mean
        sample("x", nope=1)
    with pytest.raises(TypeError, match="positional"):
        sample("x", "y", "box", (), 0.0, dict, 1, 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"words": b"x"}, "words must be a text; got bytes"),
        ({"way": "oval"}, "way must be 'square' or 'box'; got str 'oval'"),
        ({"way": np.zeros(3)}, "way must be 'square' or 'box'; got ndarray"),
        ({"values": 3}, "values must be several, in a list or another iterable; got int 3"),
        ({"share": "0.5"}, "share must be a number; got str"),
        ({"share": True}, "share must be a number; got bool"),
        ({"call": 5}, "call must be a function; got int"),
        ({"count": None}, "count must be a whole number; got NoneType"),
        ({"count": list(range(1000))}, "..."),
    ],
)
def test_each_kind_of_annotation_is_looked_at(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        sample("x", **arguments)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 150
