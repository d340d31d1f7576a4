"""The bundle folder: any changed byte is seen, no crafted file gets past BundleError, writes are all or nothing."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import fer_edge
from fer_edge import BundleError, IntegrityError, LabelError, UsageError, files
from fer_edge.arrays import write_npz
from fer_edge.bundle import (
    Bundle,
    add_label_set,
    all_files,
    artefact_files,
    change_label_sets,
    checked_bytes,
    golden_set,
    label_set,
    open_bundle,
    remove_label_set,
    staged,
    text_projection,
    write_manifest,
)
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.engines import RUNTIMES, installed
from fer_edge.labels import LabelSet
from fer_edge.manifest import MANIFEST, Artefact, digest_of, read_manifest, to_bytes
from fer_edge.verify import verify

RAW = (DEFAULT_BUNDLE / MANIFEST).read_bytes()
FUZZ = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def signed(value: dict[str, Any]) -> bytes:
    """manifest.json as somebody who knows the format would forge it: written here anew, not by fer_edge."""

    def form(v: object) -> bytes:
        return json.dumps(v, sort_keys=True, indent=1, ensure_ascii=False).encode() + b"\n"

    value = {k: v for k, v in value.items() if k != "digest"}
    return form({**value, "digest": hashlib.sha256(form(value)).hexdigest()})


def forge(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest and sign it again."""
    value = json.loads((bundle / MANIFEST).read_bytes())
    change(value)
    (bundle / MANIFEST).write_bytes(signed(value))


def plant(bundle: Path, path: str, data: bytes) -> None:
    """Put another file at ``path`` and sign the manifest again, so that its hash is right."""
    (bundle / path).write_bytes(data)

    def new_hash(value: Any) -> None:
        for v in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            new_hash(v)
        if isinstance(value, dict) and value.get("path") == path:
            value["sha256"] = hashlib.sha256(data).hexdigest()
            if "bytes" in value:
                value["bytes"] = len(data)

    forge(bundle, new_hash)


def one_line(error: BaseException, name: str) -> None:
    assert len(str(error).splitlines()) == 1
    assert name in str(error)


@contextmanager
def refused(name: str, kind: type[BundleError] = BundleError, says: str = "") -> Iterator[None]:
    """The block raises a BundleError of one line that names the file."""
    with pytest.raises(kind) as caught:
        yield
    one_line(caught.value, name)
    assert says in str(caught.value)


@contextmanager
def little_memory(limit: int = 32 << 20) -> Iterator[None]:
    """The block takes less than ``limit`` bytes."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_all(folder: Path) -> None:
    """Everything that a manifest names, each through the function that reads it."""
    opened = open_bundle(folder)
    for artefact in opened.manifest.artefacts:
        artefact_files(opened, artefact)
    for ref in opened.manifest.label_sets:
        label_set(opened, ref.name)
    golden_set(opened)
    text_projection(opened)


@pytest.fixture(scope="module")
def lone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for manifests alone."""
    return tmp_path_factory.mktemp("lone")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable bundle for fuzzing; every example puts back what it changed."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path_factory.mktemp("shared") / "bundle"))


def test_round_trip(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert to_bytes(manifest) == RAW == signed(json.loads(RAW))
    assert json.loads(RAW)["digest"] == digest_of(manifest)
    write_manifest(bundle, manifest)
    assert snapshot(bundle) == snapshot(DEFAULT_BUNDLE)
    read_all(bundle)


@FUZZ
@given(position=st.integers(0, len(RAW) - 1), flip=st.integers(1, 255))
def test_any_changed_byte_is_seen(lone: Path, position: int, flip: int) -> None:
    (lone / MANIFEST).write_bytes(RAW[:position] + bytes([RAW[position] ^ flip]) + RAW[position + 1 :])
    with refused(MANIFEST):
        open_bundle(lone)


@FUZZ
@given(length=st.integers(0, len(RAW) - 1))
def test_any_truncation_is_seen(lone: Path, length: int) -> None:
    (lone / MANIFEST).write_bytes(RAW[:length])
    with refused(MANIFEST, IntegrityError if length else BundleError):
        open_bundle(lone)


DEEP = b"[" * 400 + b"]" * 400


@pytest.mark.parametrize(
    "raw",
    [
        RAW + b"\n",
        RAW[:-1],
        RAW.replace(b"\n", b"\r\n"),
        RAW.replace(b"\n ", b"\n  "),
        b"\xef\xbb\xbf" + RAW,
        json.dumps(json.loads(RAW)).encode(),
        RAW.replace(b'"schema": 2', b'"schema": 2,\n "schema": 2'),
        RAW.replace(b'"name": "', b'"name": "other",\n "name": "', 1),
        b"",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b"\0" * 1000,
        b"\xff\xfe{}",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        b'{\n "card": ' + DEEP + b',\n "digest": "",\n "schema": 2\n}\n',
        b'{"schema": ' + b"9" * 5000 + b"}",
        b'{"schema": NaN}',
        b'{"schema": "1"}',
        b'{"schema": true}',
        b'{"schema": 2, "digest": ["\\ud800"]}',
        b'{"schema": 2, "card": "\\ud800"}',
    ],
)
def test_malformed_manifests(lone: Path, raw: bytes) -> None:
    (lone / MANIFEST).write_bytes(raw)
    with refused(MANIFEST):
        open_bundle(lone)


@pytest.mark.parametrize("schema", [3, 999])
def test_newer_schema_says_upgrade(bundle: Path, schema: int) -> None:
    forge(bundle, lambda v: v.update(schema=schema, a_field_of_the_future={}))
    with refused(MANIFEST, says="upgrade fer-edge"):
        open_bundle(bundle)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below a JSON value."""
    for key, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*at, key)
        yield from places(v, (*at, key))


def holder(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place[:-1]:
        value = value[key]
    return value


OPTIONAL = {"projection", "calibration", "target"}
FREE = {"parity", "tools", "thresholds", "fp32", "fp16", "int8"}
"""Mappings whose keys are free."""


def test_every_field_is_needed_and_has_its_type(bundle: Path) -> None:
    value = json.loads(RAW)
    seen = 0
    for place in places({k: v for k, v in value.items() if k != "digest"}):
        if any(type(part) is int and part > 0 for part in place):
            continue  # the first of a list speaks for all
        old, key = holder(value, place)[place[-1]], place[-1]
        wrong: list[object] = [None, True, 3, 0.5, "text", [], {}, [None], {"a": None}]
        for new in wrong:
            number = isinstance(old, float) and type(new) in (int, float)
            if type(new) is type(old) or number or (key in OPTIONAL and (new is None or (old, type(new)) == (None, str))):
                continue
            forged = json.loads(RAW)
            holder(forged, place)[key] = new
            (bundle / MANIFEST).write_bytes(signed(forged))
            with refused(MANIFEST):
                open_bundle(bundle)
            seen += 1
        if isinstance(key, str) and not (len(place) > 1 and place[-2] in FREE):
            forged = json.loads(RAW)
            del holder(forged, place)[key]
            (bundle / MANIFEST).write_bytes(signed(forged))
            with refused(MANIFEST):
                open_bundle(bundle)
            seen += 1
    assert seen > 400


def change(*place: Any, to: object) -> Callable[[dict[str, Any]], None]:
    """A forger's edit of one value."""

    def edit(value: dict[str, Any]) -> None:
        holder(value, place)[place[-1]] = to

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        change("extra", to=1),
        change("input", "extra", to=1),
        change("artefacts", 0, "files", 0, "extra", to="x"),
        change("artefacts", 0, "files", to=[]),
        change("artefacts", 0, "precision", to="int4"),
        change("artefacts", 0, "parity", "finite", to=float("nan")),
        change("artefacts", 0, "parity", "finite", to=float("inf")),
        change("artefacts", 0, "parity", "finite", to=10**400),
        change("artefacts", 0, "parity", to={"a\nb": "x"}),
        change("artefacts", 0, "runtime", to="a\nb"),
        change("artefacts", 1, to=json.loads(RAW)["artefacts"][0]),
        change("feature_dim", to=10**400),
        change("feature_dim", to=0),
        change("feature_dim", to=-1),
        change("input", "height", to=10**400),
        change("input", "width", to=0),
        change("input", "color", to="bgr"),
        change("input", "mean", to=[10**400]),
        change("input", "mean", to=[float("nan")]),
        change("input", "mean", to=[]),
        change("input", "std", to=[0.0] * len(json.loads(RAW)["input"]["std"])),
        change("golden", "thresholds", "int8", "centred_cosine", to=10**400),
        change("default_labels", to="none such"),
        change("default_labels", to="a\nb"),
        change("label_sets", to=[]),
        change("label_sets", 1, to=json.loads(RAW)["label_sets"][0]),
        change("label_sets", 0, "labels", to=[]),
        change("label_sets", 0, "labels", to=["anger", "anger"]),
        change("label_sets", 0, "labels", 0, to="\x1b[31mred"),
        change("name", to="a\nb"),
        change("card", to={"nested": [[[[[[]]]]]]}),
    ],
)
def test_signed_nonsense(bundle: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    forge(bundle, edit)
    with refused(MANIFEST):
        open_bundle(bundle)


@pytest.mark.parametrize("size", [10**400, -1, 1 << 40])
def test_size_that_no_file_has(bundle: Path, size: int) -> None:
    forge(bundle, change("artefacts", 0, "files", 0, "bytes", to=size))
    with refused(MANIFEST, says="size out of range"):
        open_bundle(bundle)


def test_more_than_anybody_needs_is_not_read(bundle: Path) -> None:
    value = json.loads(RAW)
    first, ref = value["artefacts"][0], value["label_sets"][0]
    many = [{**first, "target": f"t{k}", "files": [{**first["files"][0], "path": f"{k}"}]} for k in range(65)]
    pieces = [{**first["files"][0], "path": f"{k}"} for k in range(17)]
    sets = [ref, *({**ref, "name": f"n{k}", "path": f"{k}"} for k in range(1024))]
    for edit, says in (
        (change("artefacts", to=many), "65 artefacts"),
        (change("artefacts", 0, "files", to=pieces), "more than 16 files"),
        (change("label_sets", to=sets), "1025 label sets"),
        (change("label_sets", 0, "labels", to=[str(k) for k in range(65537)]), "more than 65,536 labels"),
        (change("card", to="x" * (1 << 22)), "at most 4,194,304 are read"),
    ):
        (bundle / MANIFEST).write_bytes(RAW)
        forge(bundle, edit)
        with refused(MANIFEST, says=says):
            open_bundle(bundle)


def test_a_file_is_listed_once(bundle: Path) -> None:
    value = json.loads(RAW)
    model, labels = value["artefacts"][0]["files"][0], value["label_sets"][0]["path"]
    for edit in (
        change("artefacts", 0, "files", to=[model, model]),
        change("label_sets", 1, "path", to=labels),
        change("golden", "path", to=labels),
        change("text_projection", "path", to=model["path"]),
    ):
        (bundle / MANIFEST).write_bytes(RAW)
        forge(bundle, edit)
        with refused(MANIFEST, says="listed twice"):
            open_bundle(bundle)


def test_not_a_bundle(tmp_path: Path, bundle: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", bundle / MANIFEST):
        with refused(str(folder), says="is not a bundle"):
            fer_edge.load(folder)
    with refused("cannot be read"):
        open_bundle("a\0b")
    (tmp_path / MANIFEST).mkdir()
    with refused(MANIFEST):
        open_bundle(tmp_path)


def test_pipes_are_not_waited_for(bundle: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no pipes here")
    (bundle / "golden.npz").unlink()
    os.mkfifo(bundle / "golden.npz")
    with refused("golden.npz"):
        golden_set(open_bundle(bundle))
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    with refused(MANIFEST):
        open_bundle(bundle)


# Paths that leave the bundle. What they lead to is the right file, with the right hash: only the path is wrong.

PLACES = [("golden",), ("text_projection",), ("label_sets", 0), ("artefacts", 0, "files", 0)]
PLACE = pytest.mark.parametrize("place", PLACES, ids=lambda place: place[0])


def ref_of(value: Any, place: tuple[Any, ...]) -> Any:
    return holder(value, (*place, "path"))


@PLACE
@pytest.mark.parametrize(
    "path",
    ["{out}", "../stolen", "labels/../../stolen", "labels/../stolen", "./stolen", "a\\stolen", "c:stolen", "a\nstolen"],
)
def test_paths_out_of_the_bundle(bundle: Path, tmp_path: Path, place: tuple[Any, ...], path: str) -> None:
    path = path.format(out=tmp_path / "stolen")
    original = bundle / ref_of(json.loads(RAW), place)["path"]
    for copy in (tmp_path / "stolen", bundle / "stolen", bundle / path):
        shutil.copy(original, copy)
    forge(bundle, change(*place, "path", to=path))
    with refused(MANIFEST):
        read_all(bundle)


@PLACE
@pytest.mark.parametrize("path", ["", ".", "..", "a\0b", "/", "labels", "labels/x\0", "x" * 5000, "a\x85b"])
def test_paths_that_are_no_files(bundle: Path, place: tuple[Any, ...], path: str) -> None:
    forge(bundle, change(*place, "path", to=path))
    with refused(str(bundle)):
        read_all(bundle)


@PLACE
def test_links(bundle: Path, tmp_path: Path, place: tuple[Any, ...]) -> None:
    file = bundle / ref_of(json.loads(RAW), place)["path"]
    inside = file.with_name("elsewhere")
    file.rename(inside)
    file.symlink_to(inside)
    read_all(bundle)
    inside.rename(tmp_path / "outside")
    file.unlink()
    file.symlink_to(tmp_path / "outside")
    with refused(file.name):
        read_all(bundle)
    file.unlink()
    file.symlink_to(file)
    with refused(file.name):
        read_all(bundle)


def test_linked_folder(bundle: Path, tmp_path: Path) -> None:
    (bundle / "labels").rename(tmp_path / "labels")
    (bundle / "labels").symlink_to(tmp_path / "labels")
    with refused("link out of the bundle"):
        read_all(bundle)


# Files that are not what the manifest promises.


def altered(data: bytes) -> dict[str, bytes | None]:
    """Ways to break a file."""
    middle = len(data) // 2
    return {
        "changed": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
        "truncated": data[:-1],
        "longer": data + b"\0",
        "empty": b"",
        "missing": None,
    }


FILES = sorted({path for path, _, _ in all_files(open_bundle(DEFAULT_BUNDLE))})


@pytest.mark.parametrize("path", FILES)
def test_altered_files(bundle: Path, path: str) -> None:
    """Whoever reads the file sees it; so does ``load``, of every file but those of other artefacts and of the text side."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    owner = next((a for a in manifest.artefacts if path in [f.path for f in a.files]), None)
    size = (bundle / path).stat().st_size

    def load() -> None:
        if path == manifest.text_projection.path:
            text_projection(opened)
        elif owner is None:
            fer_edge.load(bundle, runtime="null").close()
        elif installed(owner.runtime):
            fer_edge.load(bundle, runtime=owner.runtime).close()
        else:
            artefact_files(opened, owner)

    load()
    for name, data in altered((bundle / path).read_bytes()).items():
        (bundle / path).unlink(missing_ok=True)
        if data is not None:
            (bundle / path).write_bytes(data)
        with refused(str(bundle / path), IntegrityError, "missing" if data is None else "altered or truncated: expected"):
            load()
        if data is not None and owner is not None and len(data) != size:
            with refused(f"expected {size:,} bytes", says=f"found {len(data):,} bytes"):
                load()
        with refused(str(bundle / path), IntegrityError):
            read_all(bundle)
        if name in ("changed", "missing"):
            report = verify(opened, [RUNTIMES[0] if owner is None else owner.runtime])
            assert [str(bundle / path) in problem for problem in report.files] == [True], name
            assert not report.ok


def test_verify_goes_on_after_a_failure(bundle: Path) -> None:
    """Three files are wrong, and all three are named, with what was expected; the engines' verdicts stand beside them."""
    for path in ("labels/rafdb7.npz", "text_projection.npy", "litert-int8.tflite"):
        (bundle / path).write_bytes((bundle / path).read_bytes()[:-1])
    report = verify(open_bundle(bundle))
    assert {problem.split(" was altered")[0] for problem in report.files} == {
        str(bundle / path) for path in ("labels/rafdb7.npz", "text_projection.npy", "litert-int8.tflite")
    }
    assert {row.runtime: row.status for row in report.rows if installed(row.runtime)} == {
        r: "altered" if r == "litert" else "ok" for r in RUNTIMES if installed(r)
    }
    assert not report.ok
    shutil.copy(DEFAULT_BUNDLE / "labels/rafdb7.npz", bundle / "labels/rafdb7.npz")
    (bundle / "labels/ferplus8.npz").unlink()
    report = verify(open_bundle(bundle))
    assert len(report.files) == 3
    assert {row.status for row in report.rows} == {"altered", "not checked"}
    assert not report.ok


def test_load_pins_a_digest(bundle: Path) -> None:
    digest = json.loads(RAW)["digest"]
    fer_edge.load(bundle, runtime="null", digest=digest.upper()).close()
    with refused(MANIFEST, IntegrityError, says=digest):
        fer_edge.load(bundle, runtime="null", digest="0" * 64)


def test_a_manifest_is_no_link(bundle: Path, tmp_path: Path) -> None:
    (bundle / MANIFEST).rename(bundle / "elsewhere")
    (bundle / MANIFEST).symlink_to("elsewhere")
    with refused(MANIFEST, says="is a link"):
        open_bundle(bundle)
    (bundle / MANIFEST).unlink()
    (bundle / "elsewhere").rename(bundle / MANIFEST)
    (tmp_path / "link").symlink_to(bundle)  # the folder may be one
    read_all(tmp_path / "link")


# Models that are more than their files.


def drop(bundle: Path, path: str) -> None:
    """Take a file off the manifest's list."""

    def edit(value: dict[str, Any]) -> None:
        for artefact in value["artefacts"]:
            artefact["files"] = [ref for ref in artefact["files"] if ref["path"] != path]

    forge(bundle, edit)


def artefact_of(bundle: Path, runtime: str) -> tuple[Bundle, Artefact]:
    opened = open_bundle(bundle)
    return opened, next(a for a in opened.manifest.artefacts if a.runtime == runtime)


def test_weights_that_nobody_listed(bundle: Path, tmp_path: Path) -> None:
    drop(bundle, "openvino-int8.bin")
    with refused("openvino-int8.xml", says="openvino-int8.bin, which the manifest does not list"):
        artefact_files(*artefact_of(bundle, "openvino"))
    (bundle / "openvino-int8.bin").rename(tmp_path / "outside.bin")
    (bundle / "openvino-int8.bin").symlink_to(tmp_path / "outside.bin")
    with refused("openvino-int8.xml"):
        fer_edge.load(bundle, runtime="openvino" if installed("openvino") else "null")
        artefact_files(*artefact_of(bundle, "openvino"))
    assert verify(open_bundle(bundle), ["openvino"]).rows[0].status in ("refused", "no engine")


def external(model: bytes, place: str, inner: bool) -> bytes:
    """An ONNX model that keeps its largest tensor at ``place``; ``inner``: one in a subgraph of a node's attribute."""
    onnx = pytest.importorskip("onnx")
    parsed = onnx.load_from_string(model)
    tensor = max(parsed.graph.initializer, key=lambda t: len(t.raw_data))
    if inner:
        node = parsed.graph.node.add(op_type="If", name="if", input=["c"], output=["y"])
        graph = onnx.GraphProto(name="then")
        graph.initializer.append(tensor)
        node.attribute.append(onnx.helper.make_attribute("then_branch", graph))
        tensor = node.attribute[0].g.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, text in (("location", place), ("offset", "0")):
        tensor.external_data.add(key=key, value=text)
    return bytes(parsed.SerializeToString())


@pytest.mark.parametrize("inner", [False, True], ids=["initializer", "subgraph"])
@pytest.mark.parametrize(
    "place",
    ["../stolen.bin", "/etc/passwd", "inside.bin", "./onnxruntime-int8.onnx", "onnxruntime-int8.onnx", "*/_ORT_MEM_ADDR_/*"],
)
def test_external_data_that_nobody_listed(bundle: Path, place: str, inner: bool) -> None:
    (bundle / "inside.bin").write_bytes(bytes(1 << 20))
    plant(bundle, "onnxruntime-int8.onnx", external((bundle / "onnxruntime-int8.onnx").read_bytes(), place, inner))
    with refused("onnxruntime-int8.onnx", says=f"keeps weights outside of itself, in {place!r}"):
        artefact_files(*artefact_of(bundle, "onnxruntime"))


def test_external_data_in_another_spelling(bundle: Path) -> None:
    """A protobuf may write a length in more bytes than it needs; a name in a document is no data."""

    def part(number: int, data: bytes) -> bytes:
        return bytes([number << 3 | 2, len(data) | 0x80, 0x80, 0]) + data

    entry = part(13, part(1, b"location") + part(2, b"inside.bin"))
    plant(bundle, "onnxruntime-int8.onnx", part(7, part(5, entry)))
    with refused("onnxruntime-int8.onnx", says="'inside.bin'"):
        artefact_files(*artefact_of(bundle, "onnxruntime"))
    honest = (DEFAULT_BUNDLE / "onnxruntime-int8.onnx").read_bytes()
    plant(bundle, "onnxruntime-int8.onnx", honest + part(6, b"location"))  # doc_string
    artefact_files(*artefact_of(bundle, "onnxruntime"))


def test_external_data_that_is_listed(bundle: Path) -> None:
    plant(bundle, "onnxruntime-int8.onnx", external((bundle / "onnxruntime-int8.onnx").read_bytes(), "w.bin", False))
    (bundle / "w.bin").write_bytes(b"weights")

    def listed(value: dict[str, Any]) -> None:
        sha = hashlib.sha256(b"weights").hexdigest()
        artefact = next(a for a in value["artefacts"] if a["runtime"] == "onnxruntime")
        artefact["files"].append({"path": "w.bin", "sha256": sha, "bytes": 7})

    forge(bundle, listed)
    artefact_files(*artefact_of(bundle, "onnxruntime"))


def test_litert_weights_outside_of_the_file(bundle: Path) -> None:
    """A model with the schema's external_buffer_groups, written by the engine's own schema code."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    flatbuffers = pytest.importorskip("flatbuffers")
    if not hasattr(schema, "ExternalBufferGroupT"):
        pytest.skip("this LiteRT knows no external buffers")
    model = schema.ModelT.InitFromPackedBuf((bundle / "litert-int8.tflite").read_bytes(), 0)
    group = schema.ExternalBufferGroupT()
    group.name = "../stolen.bin"
    model.externalBufferGroups = [group]
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    plant(bundle, "litert-int8.tflite", bytes(builder.Output()))
    with refused("litert-int8.tflite", says="keeps weights outside of itself"):
        artefact_files(*artefact_of(bundle, "litert"))


@pytest.mark.parametrize("data", [b"", b"x", b"<", b"ORTM" * 9, b"\x00\x00\x00\x00ORTM" + bytes(99), b"\xff" * 99])
@pytest.mark.parametrize(
    ("runtime", "path"),
    [("openvino", "openvino-int8.xml"), ("litert", "litert-int8.tflite"), ("onnxruntime", "onnxruntime-int8.onnx")],
)
def test_another_format_under_the_ending(bundle: Path, runtime: str, path: str, data: bytes) -> None:
    """ONNX has no mark of its own: what is neither another format nor external data is the engine's to refuse."""
    others = [p for p in ("litert-int8.tflite", "onnxruntime-int8.onnx", "openvino-int8.xml") if p != path]
    for other in [data, *((DEFAULT_BUNDLE / p).read_bytes() for p in others if runtime != "onnxruntime")]:
        plant(bundle, path, other)
        if runtime == "onnxruntime" and other and other[4:8] != b"ORTM":
            continue
        with refused(path, says="ending"):
            artefact_files(*artefact_of(bundle, runtime))


# Crafted files with the right hash.


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, allow_pickle=True)
    return stream.getvalue()


def npy_header(text: str, data: bytes = b"\0" * 64) -> bytes:
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(f"{name}.npy", data)
    return stream.getvalue()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def golden_arrays(bundle: Path) -> dict[str, NDArray[Any]]:
    with np.load(bundle / "golden.npz") as z:
        return {name: z[name] for name in z.files}


HEADERS = [
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }",
    "{'descr': '<f4', 'fortran_order': True, 'shape': (1000000000000,), }",
    "{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,), }",
    "{'descr': '<U250000000', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '|V1000000000', 'fortran_order': False, 'shape': (1000,), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -1), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1.5,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1,",
    "{'descr': (), 'fortran_order': False, 'shape': (1,), }",
    "{'descr': {}, 'fortran_order': False, 'shape': (1,), }",
    "{1: 2, 'a': 3}",
    "-" * 3000 + "1",
    "(" * 3000,
    "[]",
    "",
    "\0" * 100,
]


@pytest.mark.parametrize("header", HEADERS)
def test_crafted_array_headers(bundle: Path, header: str) -> None:
    crafted = npy_header(header)
    plant(bundle, "golden.npz", zipped({"crops": crafted, "features": crafted}))
    plant(bundle, "text_projection.npy", crafted)
    opened = open_bundle(bundle)
    with little_memory(), refused("golden.npz"):
        golden_set(opened)
    with little_memory(), refused("text_projection.npy"):
        text_projection(opened)


def test_header_that_is_longer_than_the_file(bundle: Path) -> None:
    crafted = b"\x93NUMPY\x02\x00" + struct.pack("<I", 0xFFFFFFF0) + b"{}"
    plant(bundle, "text_projection.npy", crafted)
    plant(bundle, "golden.npz", zipped({"crops": crafted, "features": crafted}))
    with little_memory(), refused("text_projection.npy"):
        text_projection(open_bundle(bundle))
    with little_memory(), refused("golden.npz"):
        golden_set(open_bundle(bundle))


def test_pickles_are_not_opened(bundle: Path, tmp_path: Path) -> None:
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    plant(bundle, "golden.npz", zipped({"crops": npy(trap), "features": npy(trap)}))
    plant(bundle, "labels/rafdb7.npz", zipped({k: npy(trap) for k in label_arrays(bundle)}))
    plant(bundle, "text_projection.npy", npy(trap))
    opened = open_bundle(bundle)
    for read in (golden_set, text_projection, lambda b: label_set(b, "rafdb7")):
        with refused(str(bundle)):
            read(opened)
    assert not (tmp_path / "sprung").exists()
    np.load(bundle / "text_projection.npy", allow_pickle=True)
    assert (tmp_path / "sprung").exists()  # the trap itself works


def test_zip_bombs(bundle: Path) -> None:
    arrays = {name: npy(array) for name, array in golden_arrays(bundle).items()}
    honest = zipped(arrays, zipfile.ZIP_DEFLATED)
    entry = honest.index(b"PK\x01\x02")
    for size in (0xFFFFFFF0, (1 << 28) + 1):
        plant(bundle, "golden.npz", honest[: entry + 24] + struct.pack("<I", size) + honest[entry + 28 :])
        with little_memory(), refused("golden.npz"):
            golden_set(open_bundle(bundle))
    # bz2 and lzma are unpacked without a bound: whatever the archive declares, they are not opened.
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        plant(bundle, "golden.npz", zipped({**arrays, "crops": arrays["crops"] + bytes(40 << 20)}, method))
        with little_memory(), refused("golden.npz"):
            golden_set(open_bundle(bundle))
    plant(bundle, "golden.npz", honest)
    golden_set(open_bundle(bundle))


def edited(arrays: dict[str, NDArray[Any]], **changes: NDArray[Any] | None) -> bytes:
    """An npz of arrays with some changed; None leaves one out."""
    return zipped({k: npy(v) for k, v in {**arrays, **changes}.items() if v is not None})


def test_wrong_golden_sets(bundle: Path) -> None:
    arrays = golden_arrays(bundle)
    crops, features = arrays["crops"], arrays["features"]
    with_nan = features.copy()
    with_nan[1, 2] = np.nan
    bad = [
        edited(arrays, features=None),
        edited(arrays, more=crops),
        edited(arrays, crops=crops[:-1]),
        edited(arrays, crops=crops[:, 1:]),
        edited(arrays, crops=crops[..., 0]),
        edited(arrays, crops=crops.astype(np.int16)),
        edited(arrays, features=features[:, 1:]),
        edited(arrays, features=features.astype(np.float64)),
        edited(arrays, features=features.astype(">f4")),
        edited(arrays, features=with_nan),
        edited(arrays, features=np.array(1, np.float32)),
        edited(arrays, crops=crops[:1], features=features[:1]),
        edited(arrays, crops=crops[:0], features=features[:0]),
        zipped({"crops": npy(crops), "../features": npy(features)}),
        zipped({"crops": npy(crops), "features": npy(features)[:-1]}),
        b"",
        b"not a zip",
        npy(crops),
        edited(arrays)[:-1],
        b"PK\x05\x06" + bytes(18),
    ]
    for data in bad:
        plant(bundle, "golden.npz", data)
        with refused("golden.npz"):
            golden_set(open_bundle(bundle))
    plant(bundle, "golden.npz", edited(arrays))
    np.testing.assert_array_equal(golden_set(open_bundle(bundle)).features, features)


def label_arrays(bundle: Path, name: str = "rafdb7") -> dict[str, NDArray[Any]]:
    with np.load(bundle / f"labels/{name}.npz") as z:
        return {member: z[member] for member in z.files}


def test_wrong_label_sets(bundle: Path) -> None:
    arrays = label_arrays(bundle)
    constants, index, names = arrays["constants"], arrays["prompt_index"], arrays["names"]
    with_nan = constants.copy()
    with_nan[0, 0] = np.inf
    no_character = names.copy().view(np.uint32)
    no_character[0] = 0xFFFFFFFF
    no_prompt = arrays["prompts"].copy().view(np.uint32)
    no_prompt[0] = 0x110000
    bad = [
        *(edited(arrays, **{k: None}) for k in arrays if k not in ("threshold", "least_length")),
        *(edited(arrays, threshold=np.array(v)) for v in (-0.1, 1.1, np.nan, np.inf, 1, [0.5], "x")),
        *(edited(arrays, least_length=np.array(v)) for v in (-0.1, np.nan, np.inf, 1, [0.5], "x")),
        edited(arrays, more=index),
        edited(arrays, names=names[::-1]),
        edited(arrays, names=names[:-1]),
        edited(arrays, names=names[:, None]),
        edited(arrays, names=index),
        edited(arrays, names=no_character.view(names.dtype)),
        edited(arrays, prompts=no_prompt.view(arrays["prompts"].dtype)),
        edited(arrays, constants=constants[:-1]),
        edited(arrays, constants=constants[:, :-1]),
        edited(arrays, constants=constants.astype(np.float64)),
        edited(arrays, constants=with_nan),
        *(edited(arrays, logit_scale=np.array(v)) for v in (0.0, -1.0, np.nan, np.inf, 1e300, 1, [1.0])),
        *(edited(arrays, temperature=np.array(v)) for v in (0.0, -1.0, np.nan, np.inf, 1e-300, 1, [1.0])),
        edited(arrays, prompts=index),
        edited(arrays, prompts=arrays["prompts"][1:]),
        edited(arrays, prompt_index=index - 1),
        edited(arrays, prompt_index=index + 1),
        edited(arrays, prompt_index=index.astype(np.float64)),
    ]
    for data in bad:
        plant(bundle, "labels/rafdb7.npz", data)
        with refused("labels/rafdb7.npz"):
            label_set(open_bundle(bundle), "rafdb7")
    plant(bundle, "labels/rafdb7.npz", edited(arrays))
    assert label_set(open_bundle(bundle), "rafdb7").labels == tuple(names.tolist())
    plant(bundle, "labels/rafdb7.npz", edited(arrays, threshold=None))
    assert label_set(open_bundle(bundle), "rafdb7").threshold == 0
    plant(bundle, "labels/rafdb7.npz", edited(arrays, threshold=np.array(0.6), least_length=None))
    assert label_set(open_bundle(bundle), "rafdb7").threshold == 0.6
    assert label_set(open_bundle(bundle), "rafdb7").least_length == 0
    plant(bundle, "labels/rafdb7.npz", edited(arrays, least_length=np.array(0.6)))
    assert label_set(open_bundle(bundle), "rafdb7").least_length == 0.6


def test_wrong_text_projections(bundle: Path) -> None:
    matrix = np.load(bundle / "text_projection.npy")
    with_nan = matrix.copy()
    with_nan[0, 0] = np.nan
    for bad in (matrix[1:], matrix[0], matrix.astype(np.float64), matrix[None], with_nan, matrix.astype(np.int32)):
        plant(bundle, "text_projection.npy", npy(bad))
        with refused("text_projection.npy"):
            text_projection(open_bundle(bundle))
    plant(bundle, "text_projection.npy", npy(np.asfortranarray(matrix)))
    np.testing.assert_array_equal(text_projection(open_bundle(bundle)), matrix)


def test_unknown_label_set(bundle: Path) -> None:
    with pytest.raises(LabelError, match="ferplus8"):
        fer_edge.load(bundle, runtime="null", labels="none such")


def stored(path: str) -> bytes:
    """A file of the default bundle; npz members stored plainly, so that a changed byte reaches numpy's parser."""
    if not path.endswith(".npz"):
        return (DEFAULT_BUNDLE / path).read_bytes()
    with np.load(DEFAULT_BUNDLE / path) as z:
        return zipped({name: npy(z[name]) for name in z.files})


VICTIMS: dict[str, Callable[[Bundle], object]] = {
    "golden.npz": golden_set,
    "labels/rafdb7.npz": lambda b: label_set(b, "rafdb7"),
    "text_projection.npy": text_projection,
}


@pytest.mark.parametrize("plain", [False, True], ids=["as written", "stored"])
@pytest.mark.parametrize("path", sorted(VICTIMS))
@settings(FUZZ, max_examples=70)
@given(data=st.data())
def test_fuzzed_files_with_the_right_hash(shared: Path, path: str, plain: bool, data: st.DataObject) -> None:
    raw = bytearray(stored(path) if plain else (DEFAULT_BUNDLE / path).read_bytes())
    anywhere = st.one_of(st.integers(0, 200), st.integers(len(raw) - 300, len(raw) - 1), st.integers(0, len(raw) - 1))
    for position, byte in data.draw(st.lists(st.tuples(anywhere, st.integers(0, 255)), min_size=1, max_size=4)):
        raw[position] = byte
    plant(shared, path, bytes(raw[: data.draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))]))
    try:
        VICTIMS[path](open_bundle(shared))
    except BundleError as error:
        one_line(error, path)


# Bundles of fer-edge 0.1.


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle that fer-edge 0.1.0 wrote: schema 1, its embedded default with the ONNX Runtime artefact alone."""
    with zipfile.ZipFile(Path(__file__).parent / "data" / "bundle-0.1.0.zip") as archive:
        archive.extractall(tmp_path / "old")
    return tmp_path / "old"


def test_an_old_bundle_is_read_as_it_is(old: Path) -> None:
    raw = (old / MANIFEST).read_bytes()
    manifest = read_manifest(old)
    assert (manifest.schema, manifest.input.crop.scale, [a.target for a in manifest.artefacts]) == (1, 1.0, [None])
    assert to_bytes(manifest) == raw
    assert digest_of(manifest) == json.loads(raw)["digest"]
    read_all(old)
    assert label_set(open_bundle(old), "ferplus8").threshold == 0
    report = verify(open_bundle(old))
    if installed("onnxruntime"):
        assert report.ok, report
        with fer_edge.load(old, digest=json.loads(raw)["digest"]) as clf:
            assert clf.predict(np.zeros((48, 48), np.uint8)).label in clf.labels
    assert not report.files


def test_an_old_bundle_becomes_a_new_one_when_it_is_written_to(old: Path) -> None:
    before = json.loads((old / MANIFEST).read_bytes())
    add_label_set(open_bundle(old), mine(old))
    value = json.loads((old / MANIFEST).read_bytes())
    assert value["schema"] == 2
    assert value["input"]["crop"] == {"scale": 1.0}
    assert [a["target"] for a in value["artefacts"]] == [None]
    assert value["digest"] != before["digest"]
    for removed in (value, before):
        for key in ("schema", "digest", "label_sets"):
            del removed[key]
    del value["input"]["crop"], value["artefacts"][0]["target"]
    assert value == before
    read_all(old)
    assert {ref.name for ref in open_bundle(old).manifest.label_sets} == {"rafdb7", "ferplus8", "mine"}


def test_what_is_new_does_not_belong_into_an_old_manifest(old: Path, bundle: Path) -> None:
    forge(old, lambda v: v["input"].update(crop={"scale": 2.0}))
    with refused(MANIFEST, says="'crop' is unknown"):
        open_bundle(old)
    forge(bundle, lambda v: v["input"].pop("crop"))
    with refused(MANIFEST, says="'crop' is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("scale", [0, 0.05, 11, -1, 10**400, "1", None])
def test_crop_scales_out_of_range(bundle: Path, scale: object) -> None:
    forge(bundle, change("input", "crop", "scale", to=scale))
    with refused(MANIFEST):
        open_bundle(bundle)


def test_a_target_is_no_general_artefact(bundle: Path) -> None:
    """What was compiled for one device is not opened on another, and verify says where it belongs."""
    forge(bundle, change("artefacts", 0, "target", to="rk3588"))
    opened = open_bundle(bundle)
    runtime = opened.manifest.artefacts[0].runtime
    if installed(runtime):
        with refused(str(bundle), says=f"it has {runtime} int8 for rk3588, "):
            fer_edge.load(bundle, runtime=runtime)
        (row,) = verify(opened, [runtime]).rows
        assert (row.status, row.problem) == ("no engine", "it was compiled for rk3588; check it there")


# Sizes.


def large(bundle: Path, labels: int, prompts: int) -> LabelSet:
    rng = np.random.default_rng(0)
    constants = rng.normal(size=(labels, open_bundle(bundle).manifest.feature_dim)).astype(np.float32)
    constants /= np.linalg.norm(constants, axis=1, keepdims=True) * np.float32(1.001)
    groups = tuple((f"prompt {k}",) * (prompts // labels) for k in range(labels))
    return LabelSet("large", tuple(f"label {k}" for k in range(labels)), constants, 20.0, 1.0, groups)


def test_a_label_set_is_read_in_linear_time(bundle: Path) -> None:
    """The work grows with the number of labels and prompts, not with its square: counted, not timed."""

    def lines(labels: int) -> int:
        shutil.rmtree(bundle)
        shutil.copytree(DEFAULT_BUNDLE, bundle)
        opened = add_label_set(open_bundle(bundle), large(bundle, labels, labels))
        count = 0

        def trace(frame: object, event: str, argument: object) -> object:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            label_set(opened, "large")
        finally:
            sys.settrace(before)
        return count

    assert lines(1200) < 4.5 * lines(400)


def test_large_golden_sets_are_refused_before_they_are_measured(bundle: Path) -> None:
    arrays = golden_arrays(bundle)
    many = {name: np.repeat(array, 64, 0) for name, array in arrays.items()}
    plant(bundle, "golden.npz", zipped({name: npy(array) for name, array in many.items()}, zipfile.ZIP_DEFLATED))
    with refused("golden.npz", says="2,048 crops; at most 1,024 are read"):
        golden_set(open_bundle(bundle))
    report = verify(open_bundle(bundle))
    assert "2,048 crops" in report.files[0]


def test_large_files_are_not_read(bundle: Path) -> None:
    with (bundle / "golden.npz").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: it takes no room
    with little_memory(), refused("golden.npz", says="at most 134,217,728 are read"):
        golden_set(open_bundle(bundle))
    with (bundle / "litert-int8.tflite").open("r+b") as file:
        file.truncate(1 << 40)
    with little_memory(), refused("litert-int8.tflite", IntegrityError, says="found 1,099,511,627,776 bytes"):
        artefact_files(*artefact_of(bundle, "litert"))


# Writing.


def test_staged_becomes_the_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with staged(target) as folder:
        (folder / "a").write_text("b")
        assert not target.exists()
        assert folder.parent == tmp_path
    assert snapshot(tmp_path) == {"out/a": b"b"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("existing", [False, True])
def test_staged_leaves_nothing_after_an_error(tmp_path: Path, error: type[BaseException], existing: bool) -> None:
    target = tmp_path / "out"
    if existing:
        target.mkdir()
        (target / MANIFEST).write_text("old")
    before = snapshot(tmp_path)

    def write() -> None:
        with staged(target, force=existing) as folder:
            (folder / "a").write_text("b")
            raise error

    with pytest.raises(error):
        write()
    assert snapshot(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([target] if existing else [])


def test_staged_and_an_existing_target(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / MANIFEST).write_text("old")

    def write(where: Path, force: bool) -> None:
        with staged(where, force=force) as folder:
            (folder / MANIFEST).write_text("new")

    with pytest.raises(UsageError, match="--force"):
        write(target, False)
    assert snapshot(tmp_path) == {f"out/{MANIFEST}": b"old"}
    write(target, True)
    assert snapshot(tmp_path) == {f"out/{MANIFEST}": b"new"}
    with pytest.raises(UsageError, match="is a file"):
        write(target / MANIFEST, True)
    with pytest.raises(UsageError, match="create it first"):
        write(tmp_path / "no" / "such", False)
    (tmp_path / "link").symlink_to(target)
    (target / "more").write_text("more")
    write(tmp_path / "link", True)
    assert snapshot(tmp_path) == {f"out/{MANIFEST}": b"new", f"link/{MANIFEST}": b"new"} or snapshot(tmp_path) == {
        f"out/{MANIFEST}": b"new"
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "out"]
    assert (tmp_path / "link").is_symlink()


def test_force_never_replaces_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(UsageError, match="is no bundle"), staged(photos, force=True):
        pass
    assert snapshot(tmp_path) == {"photos/holiday.jpg": b"x"}


@pytest.mark.parametrize("at_once", [True, False], ids=["exchange", "renames"])
def test_force_puts_one_whole_bundle_in_the_place_of_another(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """A reader beside a writer that replaces the bundle again and again, by one of another version. Where the system can
    exchange names at once, it meets no moment without a bundle, nor files of two."""
    if not at_once:
        monkeypatch.setattr(files, "_exchanged_at_once", lambda one, other: False)
    sources = [bundle, Path(shutil.copytree(bundle, tmp_path / "other"))]
    add_label_set(open_bundle(sources[1]), mine(bundle))
    target = Path(shutil.copytree(bundle, tmp_path / "target"))
    over = threading.Event()
    problems: list[BaseException] = []
    readings = 0

    def read() -> None:
        nonlocal readings
        while not over.is_set():
            try:
                fer_edge.load(target, runtime="null").close()
            except BundleError as error:
                problems.append(error)
            readings += 1

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(30):
        with staged(target, force=True) as folder:
            shutil.copytree(sources[k % 2], folder, dirs_exist_ok=True)
    over.set()
    reader.join()
    assert readings > 5
    if at_once:
        assert not problems
    read_all(target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "other", "target"]


def test_two_conversions_to_one_new_folder(tmp_path: Path) -> None:
    """The second one finds the first one's work, and does not mix with it."""

    def write() -> None:
        with staged(tmp_path / "out") as first:
            (first / MANIFEST).write_text("first")
            with staged(tmp_path / "out") as second:
                (second / MANIFEST).write_text("second")

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert snapshot(tmp_path) == {f"out/{MANIFEST}": b"second"}


def test_what_came_to_be_meanwhile_is_looked_at_again(tmp_path: Path) -> None:
    def write() -> None:
        with staged(tmp_path / "out", force=True) as folder:
            (folder / MANIFEST).write_text("new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "holiday.jpg").write_bytes(b"x")

    with pytest.raises(UsageError, match="is no bundle"):
        write()
    assert snapshot(tmp_path) == {"out/holiday.jpg": b"x"}


@pytest.mark.parametrize("umask", [0o022, 0o027], ids=oct)
def test_a_bundle_has_the_modes_of_the_umask(tmp_path: Path, umask: int) -> None:
    """Whatever the library that wrote a file thought."""
    before = os.umask(umask)
    try:
        with staged(tmp_path / "out") as folder:
            (folder / "labels").mkdir()
            for name in (MANIFEST, "model.onnx", "labels/a.npz"):
                (folder / name).write_text("x")
            (folder / "model.onnx").chmod(0o600)
    finally:
        os.umask(before)
    modes = {p.relative_to(tmp_path).as_posix(): stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*")}
    folders = {"out", "out/labels"}
    assert modes == {name: (0o777 if name in folders else 0o666) & ~umask for name in modes}


@pytest.mark.parametrize("place", ["manifest.json", "other"])
def test_a_full_disk_while_a_bundle_is_made(tmp_path: Path, place: str) -> None:
    def write() -> None:
        with staged(tmp_path / "out") as folder:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder / place))

    with pytest.raises(UsageError, match="out cannot be written: No space left on device"):
        write()
    assert not list(tmp_path.iterdir())


POWER = """
import shutil, sys
from pathlib import Path
from fer_edge.bundle import add_label_set, change_label_sets, label_set, open_bundle, remove_label_set, staged
from dataclasses import replace
source, target = Path(sys.argv[1]), Path(sys.argv[2])
with staged(target, force=True) as folder:
    shutil.copytree(source, folder, dirs_exist_ok=True)
opened = open_bundle(target)
remove_label_set(add_label_set(opened, replace(label_set(opened, "rafdb7"), name="mine")), "mine")
opened = open_bundle(target)
change_label_sets(opened, [replace(label_set(opened, "rafdb7"), temperature=0.5)])
"""


def test_nothing_old_goes_before_the_new_is_on_the_disk(bundle: Path, tmp_path: Path) -> None:
    """What the kernel saw of a replacement, of an added, a removed and a changed label set: before a name is given, its
    content is synced; before anything goes, the names are."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed here")
    target = Path(shutil.copytree(bundle, tmp_path / "target"))
    log = tmp_path / "log"
    calls = "trace=openat,open,close,write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir"
    command = [strace, "-f", "-y", "-e", calls, "-o", str(log), sys.executable, "-c", POWER, str(bundle), str(target)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("strace may not trace here")
    synced: set[str] = set()
    renames = removals = 0
    unsynced_names: set[str] = set()
    for line in log.read_text(errors="replace").splitlines():
        if str(tmp_path) not in line or "= -1" in line:
            continue
        paths = re.findall(r'"([^"]*)"', line)
        if match := re.search(r"f(?:data)?sync\(\d+<([^>]*)>", line):
            synced.add(match[1])
            unsynced_names = {name for name in unsynced_names if os.path.dirname(name) != match[1]}
        elif match := re.search(r"write\(\d+<([^>]*)>", line):
            synced.discard(match[1])
        elif "rename" in line:
            old, new = paths
            made = [*snapshot(target), "labels", ""] if new == str(target) else [""]
            for name in made:
                assert os.path.join(old, name).rstrip("/") in synced, f"{line}: {name} is not on the disk"
            renames += 1
            unsynced_names.add(new)
        elif "unlink" in line and ".partial-" not in line:
            assert not unsynced_names, f"{line} before the names {unsynced_names} are on the disk"
            removals += 1
        elif "unlink" in line and MANIFEST in line:
            assert not unsynced_names, f"{line}: the old bundle goes before the new one's name is on the disk"
            removals += 1
    assert renames >= 7  # the bundle twice, two label sets, and three manifests
    assert removals >= 2  # of the old bundle's manifest, and of the label set


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from fer_edge.bundle import add_label_set, label_set, open_bundle, remove_label_set
folder, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
opened = open_bundle(folder)
seven = label_set(opened, "rafdb7")
for k in range(count):
    add_label_set(opened, replace(seven, name=f"{name}{k}"))
    if k % 5 == 4:
        remove_label_set(opened, f"{name}{k - 1}")
"""


def test_writers_at_once_lose_nothing(bundle: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(bundle), name, "20"]) for name in "ab"]
    while any(writer.poll() is None for writer in writers):
        fer_edge.load(bundle, runtime="null").close()  # readers are never held up, and see no half
    assert [writer.returncode for writer in writers] == [0, 0]
    expected = {f"{name}{k}" for name in "ab" for k in range(20) if k % 5 != 3} | {"rafdb7", "ferplus8"}
    assert {ref.name for ref in open_bundle(bundle).manifest.label_sets} == expected
    read_all(bundle)
    assert {p.stem for p in (bundle / "labels").iterdir()} == expected


def test_what_a_killed_writer_leaves_is_no_bundle(bundle: Path) -> None:
    (bundle / MANIFEST).rename(bundle / (MANIFEST + ".partial"))
    with refused(str(bundle)):
        fer_edge.load(bundle, runtime="null")


def test_write_npz_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {"a": np.arange(1000, dtype=np.float32), "b": np.array(["x", "yz"]), "c": np.array(2.5)}
    write_npz(tmp_path / "one.npz", **arrays)
    monkeypatch.setattr(time, "time", lambda: 2e9)
    write_npz(tmp_path / "two.npz", **arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz") as z:
        assert set(z.files) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(z[name], array)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def mine(bundle: Path, **changes: Any) -> LabelSet:
    """A new label set that fits the bundle."""
    constants = label_set(open_bundle(bundle), "rafdb7").constants[:2]
    new = LabelSet("mine", ("calm", "größer ☺"), constants, 20.0, 1.5, (("calm.", "very calm."), ("bigger.",)))
    return replace(new, **changes)


def test_add_label_set(bundle: Path) -> None:
    before = snapshot(bundle)
    new = mine(bundle)
    returned = add_label_set(open_bundle(bundle), new)
    opened = open_bundle(bundle)
    assert opened == returned
    again = label_set(opened, "mine")
    np.testing.assert_array_equal(again.constants, new.constants)
    others = [f.name for f in fields(new) if f.name != "constants"]
    assert [getattr(again, n) for n in others] == [getattr(new, n) for n in others]
    after = snapshot(bundle)
    assert {k for k in after if after[k] != before.get(k)} == {MANIFEST, "labels/mine.npz"}
    assert before.keys() <= after.keys()
    read_all(bundle)
    with fer_edge.load(bundle, runtime="null", labels="mine") as clf:
        assert clf.labels == ("calm", "größer ☺")
    stale = open_bundle(bundle)
    add_label_set(opened, mine(bundle, name="no-prompts_1.2", prompts=((), ())))
    add_label_set(stale, mine(bundle, name="third"))
    assert {"mine", "no-prompts_1.2", "third"} < {ref.name for ref in open_bundle(bundle).manifest.label_sets}
    assert label_set(open_bundle(bundle), "no-prompts_1.2").prompts == ((), ())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "ferplus8"},
        *({"name": name} for name in ("../x", "", ".hidden", "a b", "a/b", "a\\b", "a\n", "ä", "..", "-", "a\0")),
        {"labels": ("calm", "calm")},
        {"labels": ("calm",)},
        {"labels": ("calm",), "prompts": (("x",),), "constants": np.zeros((1, 256), np.float32)},
        {"labels": ("calm", "ca\u200blm")},
        {"labels": ("calm", "\u202emlac")},
        {"labels": ("calm", " ")},
        {"threshold": 1.5},
        {"threshold": float("nan")},
        {"least_length": -1.0},
        {"least_length": float("inf")},
        {"labels": (), "prompts": (), "constants": np.zeros((0, 1), np.float32)},
        {"labels": ("calm", "two\nlines")},
        {"labels": ("calm", "nul\0")},
        {"labels": ("calm", "\ud800")},
        {"prompts": (("calm.",),)},
        {"constants": np.ones((2, 3), np.float32)},
        {"constants": np.ones(2, np.float32)},
    ],
)
def test_label_sets_that_are_refused_leave_no_trace(bundle: Path, changes: dict[str, Any]) -> None:
    before = snapshot(bundle.parent)
    with pytest.raises(LabelError) as caught:
        add_label_set(open_bundle(bundle), mine(bundle, **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(bundle.parent) == before


def test_nan_constants_are_refused(bundle: Path) -> None:
    new = mine(bundle)
    with pytest.raises(LabelError, match="finite"):
        add_label_set(open_bundle(bundle), replace(new, constants=new.constants * np.float32(np.nan)))


def test_remove_label_set(bundle: Path) -> None:
    before = snapshot(bundle)
    opened = add_label_set(open_bundle(bundle), mine(bundle))
    left = remove_label_set(opened, "mine")
    assert snapshot(bundle) == before
    assert left == open_bundle(bundle)
    for name, says in (("ferplus8", "is the default label set"), ("mine", "has no label set 'mine'; it has ")):
        with pytest.raises(LabelError, match=says) as caught:
            remove_label_set(opened, name)
        assert len(str(caught.value).splitlines()) == 1
    assert snapshot(bundle) == before
    new = mine(bundle)
    remove_label_set(opened, "rafdb7")
    assert sorted(before.keys() - snapshot(bundle).keys()) == ["labels/rafdb7.npz"]
    read_all(bundle)
    (bundle / "labels" / "mine.npz").write_bytes(b"left by a killed writer")
    add_label_set(opened, new)
    read_all(bundle)


def test_label_sets_are_changed_in_one_step(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that do not change are shared with the bundle that was there; where the disk has no links they are copied."""
    opened = open_bundle(bundle)
    before, engine = snapshot(bundle), bundle / opened.manifest.artefacts[0].files[0].path
    number = engine.stat().st_ino
    sets = [replace(label_set(opened, ref.name), temperature=0.7, threshold=0.6) for ref in opened.manifest.label_sets]
    changed = change_label_sets(opened, sets)
    assert engine.stat().st_ino == number
    assert digest_of(changed.manifest) != digest_of(opened.manifest)
    for old in sets:
        new = label_set(changed, old.name)
        assert (new.temperature, new.threshold, new.prompts) == (0.7, 0.6, old.prompts)
        assert np.array_equal(new.constants, old.constants)
    different = {name for name, data in snapshot(bundle).items() if before[name] != data}
    assert different == {MANIFEST, *(ref.path for ref in opened.manifest.label_sets)}
    read_all(bundle)
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    again = change_label_sets(changed, [replace(sets[0], threshold=0.0)])
    assert engine.stat().st_ino != number
    assert label_set(again, sets[0].name).threshold == 0
    read_all(bundle)
    assert sorted(snapshot(bundle)) == sorted(before)
    assert not list(bundle.parent.glob(".partial-*"))


def test_a_change_that_does_not_fit_or_fails_changes_nothing(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_bundle(bundle)
    seven = label_set(opened, "rafdb7")
    before = snapshot(bundle)
    with pytest.raises(LabelError, match="has no label set 'mine'"):
        change_label_sets(opened, [replace(seven, name="mine")])
    with pytest.raises(LabelError, match="has other labels"):
        change_label_sets(opened, [replace(seven, labels=seven.labels[::-1])])
    with pytest.raises(LabelError, match="has the threshold"):
        change_label_sets(opened, [replace(seven, threshold=1.5)])

    def full(one: Path, other: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(other))

    with monkeypatch.context() as patch:
        patch.setattr("fer_edge.bundle.exchange", full)
        with pytest.raises(BundleError, match="No space left"):
            change_label_sets(opened, [replace(seven, threshold=0.5)])
    assert snapshot(bundle) == before
    assert not list(bundle.parent.glob(".partial-*"))
    add_label_set(opened, mine(bundle))
    with pytest.raises(BundleError, match="written by another process"):
        change_label_sets(opened, [replace(seven, threshold=0.5)])


CHANGER = """
import sys
from dataclasses import replace
from pathlib import Path
from fer_edge.bundle import change_label_sets, label_set, open_bundle
opened = open_bundle(Path(sys.argv[1]))
for k in range(int(sys.argv[2])):
    sets = [label_set(opened, name) for name in ("rafdb7", "ferplus8")]
    opened = change_label_sets(opened, [replace(labels, threshold=k / 100) for labels in sets])
"""


def test_readers_see_no_half_of_a_change(bundle: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", CHANGER, str(bundle), "40"])
    while writer.poll() is None:
        fer_edge.load(bundle, runtime="null").close()
    assert writer.returncode == 0
    assert label_set(open_bundle(bundle), "rafdb7").threshold == 0.39


def test_a_bundle_that_cannot_be_written(bundle: Path) -> None:
    """As another user's: one line that says so, and nothing has changed."""
    new = mine(bundle)
    before = snapshot(bundle)
    code = """
import resource, sys
from fer_edge import BundleError
from fer_edge.bundle import add_label_set, label_set, open_bundle
from dataclasses import replace
opened = open_bundle(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    add_label_set(opened, replace(label_set(opened, "rafdb7"), name="mine"))
except BundleError as error:
    print(error)
"""
    for limit in (1000, 9995):  # the label set, or the manifest after it, does not fit
        command = [sys.executable, "-c", code, str(bundle), str(limit)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "cannot be written: File too large" in ran.stdout
        assert len(ran.stdout.splitlines()) == 1
        assert snapshot(bundle) == before
    add_label_set(open_bundle(bundle), new)


def test_what_was_hashed_is_what_is_read_whatever_is_written_meanwhile(bundle: Path) -> None:
    """The file changes in place, in one and the same descriptor, all the time."""
    opened = open_bundle(bundle)
    ref = next(f for a in opened.manifest.artefacts for f in a.files if f.bytes > 1 << 17)
    right, over = (bundle / ref.path).read_bytes(), threading.Event()
    wrong = bytes(len(right))

    def write() -> None:
        with (bundle / ref.path).open("r+b", buffering=0) as file:
            while not over.is_set():
                for content in (wrong, right):
                    os.pwrite(file.fileno(), content, 0)
                    time.sleep(2e-4)

    writer, taken = threading.Thread(target=write), 0
    writer.start()
    try:
        for _ in range(400):
            with suppress(IntegrityError):
                assert checked_bytes(opened, ref.path, ref.sha256, ref.bytes) == right
                taken += 1
    finally:
        over.set()
        writer.join()
    assert taken
