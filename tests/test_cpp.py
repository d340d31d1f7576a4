"""examples/cpp: built by CMake against pip's OpenVINO, it answers as Python does, and altered bundles do it no harm."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from test_docs import commands, of_language

import fer_edge
from fer_edge.bundle import golden_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.image import Box

if TYPE_CHECKING:
    from fer_edge.classifier import Classifier

pytest.importorskip("openvino")
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "examples" / "cpp"
PACKAGES = "cmake g++ nlohmann-json3-dev libssl-dev libzip-dev"
HEADERS = ("nlohmann/json.hpp", "openssl/evp.h", "zip.h")
TOLERANCE = {"int8": 1e-3, "fp32": 1e-4}
Pixels = NDArray[np.uint8]


def build(folder: Path, *options: str) -> Path:
    """examples/cpp, built in a folder; a warning of the compiler is an error. Skips where a tool or header is missing."""
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    missing += [header for header in HEADERS if not (Path("/usr/include") / header).is_file()]
    if missing:
        pytest.skip(f"{', '.join(missing)} not here: apt-get install {PACKAGES}")
    compile_all = ["cmake", "--build", str(folder), "--parallel", "2"]
    where = ["-S", str(SOURCES), "-B", str(folder), f"-DPython3_EXECUTABLE={sys.executable}"]
    for command in (["cmake", *where, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON", *options], compile_all):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cpp"), "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


@pytest.fixture(scope="module")
def binding() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ctypes_example", SOURCES / "ctypes_example.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def library(built: Path, binding: ModuleType) -> Any:
    return binding.load_library(built / "libfer_edge.so")


@pytest.fixture(scope="module")
def float_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint in fp32 for OpenVINO."""
    pytest.importorskip("torch")
    from learning import STUDENT

    from fer_edge.converters.convert import Plan, convert

    plan = Plan(runtimes=("openvino",), precisions=("fp32",))
    return convert(str(STUDENT), tmp_path_factory.mktemp("float") / "bundle", plan).bundle.folder


def ask(ours: Any, pixels: Pixels, box: Box | None = None) -> Any:
    """What C++ says of an array (H, W), (H, W, 1) or (H, W, 3)."""
    height, width, *channels = pixels.shape
    return ours.predict(pixels.tobytes(), width, height, *(channels or [1]), box)


@contextmanager
def both(
    library: Any, binding: ModuleType, bundle: Path, precision: str, labels: str = "ferplus8"
) -> Iterator[tuple[Any, Classifier]]:
    """A bundle in C++ and in Python."""
    with (
        binding.Classifier(library, bundle, precision=precision, labels=labels, threads=1) as ours,
        fer_edge.load(bundle, runtime="openvino", precision=precision, labels=labels, threads=1) as clf,
    ):
        assert ours.labels == clf.labels
        yield ours, clf


def same(found: Any, expected: fer_edge.Prediction, tolerance: float) -> None:
    worst = max(abs(found.scores[label] - score) for label, score in expected.scores.items())
    assert worst <= tolerance
    assert found.label == expected.label
    assert found.certain == expected.certain


def predict(built: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(built / "fer-edge-predict"), *map(str, arguments)], capture_output=True, text=True)


def shown(text: str) -> dict[str, float]:
    """The scores that the program prints."""
    return {label: float(score) for label, score in re.findall(r"^  (\S+) +(\d\.\d{6})$", text, re.MULTILINE)}


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("labels", ["ferplus8", "rafdb7"])
def test_the_golden_set(
    library: Any, binding: ModuleType, request: pytest.FixtureRequest, precision: str, labels: str
) -> None:
    bundle = DEFAULT_BUNDLE if precision == "int8" else request.getfixturevalue("float_bundle")
    with both(library, binding, bundle, precision, labels) as (ours, clf):
        for crop in golden_set(open_bundle(bundle)).crops:
            same(ask(ours, crop), clf.predict(crop), TOLERANCE[precision])


def test_a_bundle_in_colour(library: Any, binding: ModuleType, clip: Path, tmp_path: Path) -> None:
    """A CLIP: three channels, another size, a mean and a deviation in the graph, and gray pictures made RGB."""
    from fer_edge.converters.convert import Plan, convert

    plan = Plan(projection=clip.parent / "head.pth", runtimes=("openvino",), precisions=("fp32",))
    bundle = convert(str(clip), tmp_path / "bundle", plan).bundle.folder
    dice = np.random.default_rng(3)
    with both(library, binding, bundle, "fp32", "mafw11") as (ours, clf):
        assert clf.bundle.manifest.input.channels == 3
        for shape in ((80, 70, 3), (80, 70), (300, 90, 3)):
            pixels = dice.integers(0, 256, shape, np.uint8)
            for box in (None, (-9.5, 20, 60, 40), (10, 60, 50.2, 33)):
                same(ask(ours, pixels, box), clf.predict(pixels, box=box), 1e-6)


def photos(data: Path) -> list[tuple[Pixels, Box]]:
    """50 photos, gray and in colour, each with a box from a seed; of every three boxes one reaches out of the picture."""
    dice = np.random.default_rng(5)
    faces = [sorted(folder.iterdir())[k] for folder in sorted((data / "lfw_expressions").iterdir()) for k in range(4)]
    scenes = sorted((data / "scenes" / "images").iterdir())[:18]
    chosen = []
    for number, path in enumerate([*faces, *scenes]):
        with Image.open(path) as opened:
            pixels = np.asarray(opened if opened.mode == "L" else opened.convert("RGB"))
        height, width = pixels.shape[:2]
        w, h = dice.uniform(0.1, 0.7, 2) * (width, height)
        x, y = dice.uniform(0, 1, 2) * (width - w, height - h)
        if number % 3 == 0:
            x, y = ((-w / 3, y), (width - w / 2, y), (x, -h / 2), (x, height - h / 3))[number // 3 % 4]
        chosen.append((pixels, (float(x), float(y), float(w), float(h))))
    return chosen


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_fifty_photos_with_boxes(
    library: Any, binding: ModuleType, data: Path, request: pytest.FixtureRequest, precision: str
) -> None:
    bundle = DEFAULT_BUNDLE if precision == "int8" else request.getfixturevalue("float_bundle")
    chosen = photos(data)
    assert len(chosen) == 50
    assert {pixels.ndim for pixels, _ in chosen} == {2, 3}
    with both(library, binding, bundle, precision) as (ours, clf):
        for pixels, box in chosen:
            same(ask(ours, pixels, box), clf.predict(pixels, box=box), TOLERANCE[precision])


sides = st.integers(1, 90)
places = st.floats(-60, 120, allow_nan=False)


@pytest.fixture(scope="module")
def pair(library: Any, binding: ModuleType) -> Iterator[tuple[Any, Classifier]]:
    with (
        binding.Classifier(library, DEFAULT_BUNDLE, threads=1) as ours,
        fer_edge.load(runtime="openvino", threads=1) as clf,
    ):
        yield ours, clf


@settings(max_examples=200, deadline=None, database=None)
@given(
    size=st.tuples(sides, sides),
    color=st.booleans(),
    box=st.none() | st.tuples(places, places, st.floats(0.1, 150), st.floats(0.1, 150)),
    seed=st.integers(0, 1 << 16),
)
@example(size=(90, 64), color=True, box=None, seed=1)  # columns first
@example(size=(90, 69), color=True, box=None, seed=2)  # rows first, by the least
@example(size=(90, 68), color=False, box=None, seed=3)
@example(size=(48, 90), color=False, box=None, seed=4)
def test_any_box_is_cut_stretched_and_refused_as_in_python(
    pair: tuple[Any, Classifier], binding: ModuleType, size: tuple[int, int], color: bool, box: Box | None, seed: int
) -> None:
    """The same crop to the bit: the same engine on the same crop gives the same scores but for the softmax's rounding."""
    ours, clf = pair
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3) if color else size, np.uint8)
    expected: fer_edge.Prediction | None = None
    reason = ""
    try:
        expected = clf.predict(pixels, box=box)
    except fer_edge.ImageError as error:
        reason = str(error)
    if expected is not None:
        same(ask(ours, pixels, box), expected, 1e-9)
        return
    with pytest.raises(binding.FerEdgeError) as refusal:
        ask(ours, pixels, box)
    assert str(refusal.value) == reason


@pytest.fixture(scope="module")
def face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portrait as a PPM file; beside it as PGM, and as bare bytes."""
    folder = tmp_path_factory.mktemp("face")
    with Image.open(ROOT / "examples" / "astronaut.png") as opened:
        picture = opened.convert("RGB")
    picture.save(folder / "face.ppm")
    picture.convert("L").save(folder / "face.pgm")
    (folder / "face.rgb").write_bytes(picture.tobytes())
    return folder / "face.ppm"


def test_the_program_prints_label_and_scores(built: Path, face: Path) -> None:
    with fer_edge.load(runtime="openvino") as clf:
        for name, raw in (("face.ppm", ()), ("face.pgm", ()), ("face.rgb", ("--raw", "512,512,3"))):
            done = predict(built, DEFAULT_BUNDLE, face.with_name(name), "--box", "168,56,112,112", *raw)
            assert (done.returncode, done.stderr) == (0, "")
            expected = clf.predict(face.with_suffix(".pgm") if name == "face.pgm" else face, box=(168, 56, 112, 112))
            assert done.stdout.startswith(f"{expected.label} {100 * expected.score:.1f}%\n")
            assert shown(done.stdout) == pytest.approx(expected.scores, abs=1e-3)
        done = predict(built, DEFAULT_BUNDLE, face, "--box", "168,56,112,112", "--box", "0,0,40,40", "--labels", "rafdb7")
        assert done.stdout.count("%") == 2
        assert len(shown(done.stdout)) == 7
        assert "not certain" in predict(built, DEFAULT_BUNDLE, face).stdout


def test_what_the_page_shows_can_be_done(built: Path, tmp_path: Path) -> None:
    """docs/cpp.md, on what was built already."""
    (block,) = [b for b in of_language(ROOT / "docs" / "cpp.md", "console") if b.mark == ("run by", "tests/test_cpp.py")]
    script = re.sub(r"(?<=[ '])(examples|fer_edge)/", rf"{ROOT}/\1/", commands(block.text))
    script = re.sub(r"(?<!-)\bbuild(?=[ /\n]|$)", str(built), script, flags=re.MULTILINE)
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = block.text.partition("112,112\n")[2].partition("$")[0]
    assert answer.count("\n") == 9
    assert answer in done.stdout
    assert ": good\nhappiness\n" in done.stdout


def test_the_binding_is_a_program_too(built: Path, face: Path) -> None:
    command = [sys.executable, "-I", str(SOURCES / "ctypes_example.py"), str(built / "libfer_edge.so")]
    done = subprocess.run(
        [*command, str(DEFAULT_BUNDLE), str(face), "--box", "168,56,112,112"], capture_output=True, text=True, check=True
    )
    assert done.stdout == re.sub(r" .*", "", done.stdout.splitlines()[0]) + "\n" + "".join(
        f"{line}\n" for line in done.stdout.splitlines()[1:]
    )
    assert done.stdout.startswith("happiness\n")
    assert len(shown(done.stdout)) == 8


def test_a_device_is_checked_by_the_golden_set(library: Any, binding: ModuleType, built: Path, bundle: Path) -> None:
    from fer_edge.bundle import label_set
    from fer_edge.golden import compare

    opened = open_bundle(DEFAULT_BUNDLE)
    golden = golden_set(opened)
    with fer_edge.load(runtime="openvino", threads=1) as clf:
        features = clf.features(list(golden.crops))
    expected = compare(features, None, golden.features, label_set(opened, "ferplus8"))
    with binding.Classifier(library, DEFAULT_BUNDLE, threads=1) as ours:
        short, parity = ours.verify()
    assert short == ""
    assert (parity.finite, parity.repeatable) == (1, 1)
    for name in ("centred_cosine", "self_retrieval", "top1_agreement", "score_difference"):
        assert getattr(parity, name) == pytest.approx(getattr(expected, name), abs=1e-6)

    swap_golden(bundle)
    done = predict(built, bundle, "--verify")
    assert done.returncode == 1
    assert "is below" in done.stdout


def swap_golden(bundle: Path) -> None:
    """Golden crops in another order than their features: an engine that answers rightly seems to answer wrongly."""
    from dataclasses import replace

    from fer_edge.arrays import write_npz
    from fer_edge.bundle import path_ref, write_manifest

    opened = open_bundle(bundle)
    golden = golden_set(opened)
    write_npz(bundle / "golden.npz", crops=golden.crops[::-1], features=golden.features)
    reference = replace(opened.manifest.golden, sha256=path_ref(bundle, "golden.npz").sha256)
    write_manifest(bundle, replace(opened.manifest, golden=reference))


def test_threads_share_a_classifier(library: Any, binding: ModuleType) -> None:
    crops = golden_set(open_bundle(DEFAULT_BUNDLE)).crops
    with binding.Classifier(library, DEFAULT_BUNDLE, threads=1) as ours:
        size = crops.shape[2], crops.shape[1], crops.shape[3]
        expected = [ours.predict(crop.tobytes(), *size) for crop in crops]
        wrong: list[int] = []

        def work() -> None:
            wrong.extend(i for i, crop in enumerate(crops) if ours.predict(crop.tobytes(), *size) != expected[i])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--box", "900,0,10,10"], "lies outside the picture"),
        (["--box", "1,2,3"], "four numbers"),
        (["--box", "1,2,nan,3"], "four finite numbers"),
        (["--raw", "10,10,3"], "does not have the 300 bytes"),
        (["--raw", "10,10,4"], "channels are 1 or 3"),
        (["--precision", "fp16"], "no fp16 artefact for openvino"),
        (["--precision", "int4"], "no precision 'int4'"),
        (["--labels", "mafw11"], "it has ferplus8, rafdb7"),
        (["--device", "AUTO"], "no device 'AUTO' here; there are CPU"),
        (["--threads", "0"], "--threads is a number from 1"),
        (["--digest", "0" * 64], "was asked for"),
        (["--colour", "1"], "no option --colour"),
    ],
)
def test_wrong_use_is_one_line(built: Path, face: Path, arguments: list[str], words: str) -> None:
    done = predict(built, DEFAULT_BUNDLE, face, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr.splitlines()[0]
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be opened"),
        (b"", "no binary PGM"),
        (b"P3\n1 1\n255\n0 0 0\n", "no binary PGM"),
        (b"P6\n1 1\n65535\n000000", "largest value is not 255"),
        (b"P6\n9 9\n255\n000", "is cut short"),
        (b"P6\n99999 99999\n255\n000", "too large"),
        (b"P6\n-1 9\n255\n000", "header is broken"),
        (b"P6 # size\n1", "header is broken"),
    ],
)
def test_what_is_no_picture_is_one_line(built: Path, tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "picture.ppm"
    if content is not None:
        file.write_bytes(content)
    done = predict(built, DEFAULT_BUNDLE, file)
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*picture\.ppm .*{re.escape(words)}.*\n", done.stderr)


def test_an_altered_bundle_is_refused_by_name(built: Path, bundle: Path, face: Path) -> None:
    for name in ("labels/rafdb7.npz", "golden.npz", "openvino-int8.bin", "openvino-int8.xml", "manifest.json"):
        file = bundle / name
        content = file.read_bytes()
        file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        done = predict(built, bundle, face)
        assert done.returncode == 2
        assert name in done.stderr
        file.write_bytes(content)
    assert predict(built, bundle, face).returncode == 0
    manifest = bundle / "manifest.json"
    content = manifest.read_bytes()
    for old, new in ((b'"scale": 1.0', b'"scale": 1.1'), (b'"version": "', b'"version": "1'), (b"\n}", b"\n }")):
        assert content.count(old) == 1 or old == b"\n}"
        manifest.write_bytes(content.replace(old, new, 1))
        assert "its digest does not match" in predict(built, bundle, face).stderr
    shutil.rmtree(bundle)
    assert "is not a bundle" in predict(built, bundle, face).stderr


def test_the_header_is_c_of_ten_functions() -> None:
    text = (SOURCES / "fer_edge.h").read_text()
    functions = re.findall(r"^FER_EDGE_API [^;]*?(fer_edge_\w+)\(", text, re.MULTILINE)
    assert len(functions) == len(set(functions)) <= 10
    used = set(re.findall(r"library\.(fer_edge_\w+)", (SOURCES / "ctypes_example.py").read_text()))
    assert used == set(functions)


def test_altered_bundles_do_no_harm(tmp_path: Path) -> None:
    """The short form of ``python -m lab.altered_bundles``."""
    from lab.altered_bundles import try_all

    folder = build(tmp_path, "-DFER_EDGE_SANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    result = try_all(folder / "fer-edge-predict", 16)
    assert result["wrong"] == []
    assert sum(sum(found.values()) for found in result["ended"].values()) == 16


@pytest.mark.skipif(os.name != "posix", reason="a shell script stands for the program")
@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo same", "another answer"),
        ("echo 'x.cpp:1:2: runtime error: overflow' >&2; exit 2", "runtime error"),
        ("echo 'error: one' >&2; echo two >&2; exit 2", "no line"),
        ("kill -SEGV $$", "status -11"),
        ("echo right", ""),
        ("echo 'error: the bundle was altered' >&2; exit 2", ""),
    ],
)
def test_harm_is_seen(tmp_path: Path, script: str, problem: str) -> None:
    from lab.altered_bundles import judged, run

    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    found = judged(*run(program, tmp_path, tmp_path), "right\n").problem
    assert problem in found
    assert bool(problem) == bool(found)
