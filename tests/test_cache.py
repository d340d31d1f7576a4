"""What engines have built is kept, believed only to the last byte, and by nobody else."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fer_edge
from fer_edge import cache
from fer_edge.bundle import golden_set, open_bundle
from fer_edge.cache import Store, clear, entries
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.runtime import load_runtime

CROPS = golden_set(open_bundle(DEFAULT_BUNDLE)).crops[:6, ..., 0]
KEPT, USED = "kept for the next start", "from the cache"


def start(folder: Path | bool | None, threads: int = 1) -> tuple[str, NDArray[np.float32]]:
    """What became of the cache, and features of six faces."""
    with fer_edge.load(runtime="openvino", threads=threads, cache=folder) as clf:
        return clf.cache, clf.features(CROPS)


@pytest.fixture(scope="module")
def right() -> NDArray[np.float32]:
    """The features without any cache."""
    pytest.importorskip("openvino")
    state, features = start(False)
    assert state == ""
    return features


@pytest.fixture(scope="module")
def filled(right: NDArray[np.float32], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the default's entries of one and of two threads. Not to be changed."""
    folder = tmp_path_factory.mktemp("filled") / "cache"
    assert start(folder, 1)[0] == KEPT
    assert start(folder, 2)[0] == KEPT
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(filled, tmp_path / "cache"))


def entry_of(folder: Path, threads: int = 1) -> Path:
    (found,) = (e.folder for e in entries(folder) if e.facts["options"]["INFERENCE_NUM_THREADS"] == threads)
    return found


def test_the_second_start_gives_the_same_numbers(folder: Path, right: NDArray[np.float32]) -> None:
    for threads in (1, 2, 1):
        state, features = start(folder, threads)
        assert state == USED
        assert np.array_equal(features, right)
    assert len(entries(folder)) == 2


@pytest.mark.parametrize("how", [None, "a bit in the middle", "no model", "half a record", "the other entry"])
def test_a_large_model_is_read_ahead(
    how: str | None, folder: Path, right: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a thread, while the artefact is hashed; and believed no more than otherwise."""
    monkeypatch.setattr("fer_edge.classifier.LARGE", 1 << 20)
    asked = []
    look_ahead = Store.look_ahead
    monkeypatch.setattr(Store, "look_ahead", lambda self: (asked.append(self), look_ahead(self)))
    if how is not None:
        SPOILT[how](folder)
    state, features = start(folder)
    assert len(asked) == 1
    assert state == (USED if how is None else KEPT)
    assert np.array_equal(features, right)


def test_it_is_nobody_elses(filled: Path) -> None:
    """Whatever the umask is."""
    assert stat.S_IMODE(filled.stat().st_mode) == 0o700
    for entry in entries(filled):
        assert stat.S_IMODE(entry.folder.stat().st_mode) == 0o700
        assert {file.name for file in entry.folder.iterdir()} == {"model.blob", "record.json"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in entry.folder.iterdir()} == {0o600}


def flip(file: Path, place: float) -> None:
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    file.write_bytes(content)


def swap(one: Path, other: Path) -> None:
    between = one.with_name("between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def linked(folder: Path) -> None:
    blob = entry_of(folder) / "model.blob"
    blob.rename(folder.parent / "elsewhere")
    blob.symlink_to(folder.parent / "elsewhere")


SPOILT: dict[str, Callable[[Path], object]] = {
    "a bit of the first byte": lambda f: flip(entry_of(f) / "model.blob", 0),
    "a bit in the middle": lambda f: flip(entry_of(f) / "model.blob", 0.5),
    "a bit of the last byte": lambda f: flip(entry_of(f) / "model.blob", 1),
    "a bit of the record": lambda f: flip(entry_of(f) / "record.json", 0.3),
    "half a model": lambda f: os.truncate(entry_of(f) / "model.blob", 500_000),
    "an empty model": lambda f: os.truncate(entry_of(f) / "model.blob", 0),
    "no model": lambda f: (entry_of(f) / "model.blob").unlink(),
    "half a record": lambda f: os.truncate(entry_of(f) / "record.json", 200),
    "no record": lambda f: (entry_of(f) / "record.json").unlink(),
    "a pickle for a record": lambda f: (entry_of(f) / "record.json").write_bytes(b"\x80\x04]\x94."),
    "the other entry's model": lambda f: swap(entry_of(f, 1) / "model.blob", entry_of(f, 2) / "model.blob"),
    "the other entry": lambda f: swap(entry_of(f, 1), entry_of(f, 2)),
    "a link": linked,
    "somebody else's file": lambda f: os.chown(entry_of(f) / "model.blob", 65534, 65534),
    "a file that others may write": lambda f: (entry_of(f) / "model.blob").chmod(0o666),
}


@pytest.mark.parametrize("how", SPOILT)
def test_what_was_altered_is_thrown_away_and_built_anew(
    how: str, folder: Path, right: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    if how == "somebody else's file" and os.geteuid() != 0:
        pytest.skip("only root gives a file away")
    SPOILT[how](folder)
    cache._say.cache_clear()
    with caplog.at_level(logging.WARNING, "fer_edge"):
        state, features = start(folder)
    assert np.array_equal(features, right)
    assert state == KEPT
    assert "is thrown away" in caplog.text
    assert start(folder)[0] == USED, "what was built anew is kept"


def sign(folder: Path, content: bytes) -> None:
    """An entry with another content whose record is in order: what an engine of another version may have left."""
    entry = entry_of(folder)
    record = json.loads((entry / "record.json").read_bytes())
    shutil.rmtree(entry)
    cache._put(entry, record["key"], {"model.blob": content}, 1.0)


@pytest.mark.parametrize("content", [b"", b"not a model", bytes(4096)])
def test_what_the_engine_refuses_is_built_anew(content: bytes, folder: Path, right: NDArray[np.float32]) -> None:
    sign(folder, content)
    state, features = start(folder)
    assert (state, np.array_equal(features, right)) == (KEPT, True)
    assert start(folder)[0] == USED


def test_only_for_what_it_was_built_from(folder: Path, bundle: Path) -> None:
    """Another precision of the arithmetic, another bundle of the same models, and another engine begin anew."""
    from fer_edge.bundle import remove_label_set

    count = len(entries(folder))
    with fer_edge.load(runtime="openvino", threads=1, cache=folder, execution_precision="bf16") as clf:
        assert clf.cache == KEPT
    remove_label_set(open_bundle(bundle), "rafdb7")
    with fer_edge.load(bundle, runtime="openvino", threads=1, cache=folder) as clf:
        assert clf.cache == KEPT
    assert len(entries(folder)) == count + 2
    assert len({entry.facts["bundle"]["digest"] for entry in entries(folder)}) == 2


def test_another_processor_begins_anew(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is moved to another box, say."""
    assert len(cache.processor().rpartition(", ")[2]) == 16
    assert start(folder)[0] == USED
    monkeypatch.setattr(cache, "processor", lambda: "another one, with AMX")
    assert start(folder)[0] == KEPT


def test_an_altered_artefact_is_refused_although_its_model_is_kept(folder: Path, bundle: Path) -> None:
    with fer_edge.load(bundle, runtime="openvino", threads=1, cache=folder) as clf:
        assert clf.cache == USED, "a copy of a bundle is the same bundle"
    flip(bundle / "openvino-int8.bin", 0.5)
    with pytest.raises(fer_edge.IntegrityError, match=r"openvino-int8\.bin was altered"):
        fer_edge.load(bundle, runtime="openvino", threads=1, cache=folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="modes of files are those of POSIX")
@pytest.mark.parametrize("whose", ["the folder", "the folder above", "a link"])
def test_a_folder_that_others_may_write_is_not_used(
    whose: str, folder: Path, right: NDArray[np.float32], caplog: pytest.LogCaptureFixture
) -> None:
    before = sorted(folder.rglob("*"))
    named = folder
    if whose == "a link":
        named = folder.with_name("link")
        named.symlink_to(folder)
    else:
        (folder if whose == "the folder" else folder.parent).chmod(0o777)
    try:
        with caplog.at_level(logging.WARNING, "fer_edge"):
            state, features = start(named)
            start(named)
    finally:
        folder.parent.chmod(0o700)
    assert state.startswith("not kept: ")
    assert np.array_equal(features, right)
    assert sorted(folder.rglob("*")) == before
    assert caplog.text.count("is not kept") == 1, "it is said once"
    if whose == "the folder":
        with pytest.raises(fer_edge.UsageError, match="may be written by others"):
            entries(named)


def test_a_folder_that_cannot_be_made_only_costs_the_time(tmp_path: Path, right: NDArray[np.float32]) -> None:
    (tmp_path / "file").write_text("")
    state, features = start(tmp_path / "file" / "cache")
    assert state.startswith("not kept: ")
    assert np.array_equal(features, right)


def test_small_models_leave_nothing_behind_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, right: NDArray[np.float32]
) -> None:
    """By itself only what takes long to build is kept, in the user's cache folder."""
    pytest.importorskip("platformdirs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert start(None)[0] == ""
    assert list(tmp_path.iterdir()) == []
    assert start(True)[0] == KEPT
    assert len(entries(tmp_path / "fer-edge" / "engines")) == 1
    assert start(False)[0] == ""
    monkeypatch.setattr(load_runtime("openvino"), "LARGE", 1 << 20)
    assert start(None)[0] == USED


@pytest.mark.parametrize("runtime", ["litert", "onnxruntime", "null"])
def test_an_engine_that_has_nothing_to_keep_says_so(runtime: str, tmp_path: Path) -> None:
    """Asked for, it is refused; by itself it does without."""
    if runtime != "null":
        pytest.importorskip({"litert": "ai_edge_litert"}.get(runtime, runtime))
    with pytest.raises(fer_edge.UsageError, match=f"{runtime} on .* builds nothing that could be kept"):
        fer_edge.load(runtime=runtime, cache=tmp_path / "cache")
    with fer_edge.load(runtime=runtime, cache=None) as clf:
        assert clf.cache == ""


# What follows needs no engine.

FACTS = {"engine": "none 1"}


def store(folder: Path, name: str = "a") -> Store:
    return Store({"bundle": {"name": name, "digest": name}}, folder, True)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(["model", "other", "record.json"]), place=st.floats(0, 1), bit=st.integers(0, 7))
def test_no_flipped_bit_is_believed(name: str, place: float, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("flip") / "cache"
    files = {"model": bytes(range(256)), "other": b"x"}
    store(folder).write(FACTS, files, 0.5)
    assert store(folder).read(FACTS) == files
    file = entries(folder)[0].folder / name
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    file.write_bytes(content)
    assert store(folder).read(FACTS) is None
    assert entries(folder) == []


def test_what_was_used_longest_ago_makes_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "LIMIT", 3000)
    for age, name in enumerate("abc"):
        store(tmp_path / "cache", name).write(FACTS, {"model": bytes(500)}, 1.0)
        os.utime(entries(tmp_path / "cache")[0].folder, (1000 + age, 1000 + age))
    assert store(tmp_path / "cache", "a").read(FACTS) is not None  # used now
    store(tmp_path / "cache", "d").write(FACTS, {"model": bytes(900)}, 1.0)
    left = {entry.facts["bundle"]["name"] for entry in entries(tmp_path / "cache")}
    assert {"a", "d"} <= left
    assert "b" not in left
    large = store(tmp_path / "cache", "e")
    large.write(FACTS, {"model": bytes(4000)}, 1.0)
    assert "not kept" in large.state[-1]


def test_writers_and_clearers_at_once(tmp_path: Path) -> None:
    """Nobody reads half an entry, and what a killed writer left goes with the next one."""
    folder = tmp_path / "cache"
    content = {"model": os.urandom(200_000)}
    store(folder).write(FACTS, content, 1.0)
    (folder / ".partial-0123").mkdir()

    def work(number: int) -> set[bool]:
        seen = set()
        for _ in range(15):
            found = store(folder).read(FACTS)
            seen.add(found in (None, content))
            if number == 0:
                clear(folder)
            else:
                store(folder).write(FACTS, content, 1.0)
        return seen

    with ThreadPoolExecutor(4) as pool:
        assert set().union(*pool.map(work, range(4))) == {True}
    assert not list(folder.glob(".partial-*"))


def test_an_engine_that_keeps_its_own_files(tmp_path: Path) -> None:
    """As TensorRT does: it is given a private folder with what was checked, and what it leaves there is kept."""
    folder = tmp_path / "cache"
    with store(folder).folder_of(FACTS) as own:
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert list(own.iterdir()) == []
        (own / "x.engine").write_bytes(b"built")
    with store(folder).folder_of(FACTS) as own:
        assert {file.name: file.read_bytes() for file in own.iterdir()} == {"x.engine": b"built"}
        (own / "x.timing").write_bytes(b"times")
    assert store(folder).read(FACTS) == {"x.engine": b"built", "x.timing": b"times"}
    flip(entries(folder)[0].folder / "x.engine", 0)
    with store(folder).folder_of(FACTS) as own:
        assert list(own.iterdir()) == []

    def fail() -> None:
        with store(folder).folder_of(FACTS) as own:
            (own / "x.engine").write_bytes(b"half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert entries(folder) == [], "what failed is not kept"


def run(*arguments: object, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fer_edge", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "XDG_CACHE_HOME": str(home)})


def test_the_commands(tmp_path: Path, portrait: Path, right: NDArray[np.float32]) -> None:
    pytest.importorskip("platformdirs")
    asked = ("predict", portrait, "--runtime", "openvino", "--cache", "on")
    for state in (KEPT, USED):
        done = run(*asked, home=tmp_path)
        assert done.returncode == 0
        assert done.stderr.endswith(f", {state})\n")
    mine = tmp_path / "fer-edge" / "engines"
    (mine / "notes.txt").write_text("not an entry")
    listed = json.loads(run("cache", "list", "--json", home=tmp_path).stdout)
    (entry,) = listed["entries"]
    assert listed["folder"] == str(mine)
    assert entry["files"] == ["openvino-int8.bin", "openvino-int8.xml"]
    assert entry["engine"].startswith("openvino ")
    assert listed["bytes"] == entry["bytes"] > 1_000_000
    assert open_bundle(DEFAULT_BUNDLE).manifest.name in run("cache", "list", home=tmp_path).stdout
    assert json.loads(run("cache", "clear", "--older-than", 1, "--json", home=tmp_path).stdout)["removed"] == 0
    assert "Removed 1 " in run("cache", "clear", home=tmp_path).stderr
    assert [file.name for file in mine.iterdir()] == ["notes.txt"]
    done = run("predict", portrait, "--runtime", "litert", "--cache", "on", home=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
