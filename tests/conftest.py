"""Shared fixtures: the embedded bundle, the real faces, the shipped portrait, small CLIPs with random weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fer_edge.classifier import DEFAULT_BUNDLE

if TYPE_CHECKING:
    from fer_edge.benchmarks.results import Results
    from fer_edge.converters.student.recipe import TrainingData

ROOT = Path(__file__).resolve().parent.parent

# torch's threads spin while they wait for one another, which beside other processes doubles their work.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

LONGEST = (
    *("transfer_ray", "cpp", "convert", "exactness", "golden", "pruning", "streams", "bench", "compare", "telemetry"),
    *("transfer_features", "watch", "house", "mqtt", "cli", "docs", "memory", "robustness", "show", "student", "kit"),
)
"""Files of tests that take long."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Among several workers (make test) the longest files are begun first, that none of them ends long after the others."""
    if hasattr(config, "workerinput"):
        places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real faces (FER_EDGE_DATA, default ../shared/data)."""
    folder = Path(os.environ.get("FER_EDGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "fer2013" / "public_test.npz").is_file():
        pytest.skip(f"no real faces at {folder}; set FER_EDGE_DATA")
    return folder


@pytest.fixture(scope="session")
def yunet(data: Path) -> Path:
    """YuNet's weights, which are not ours to ship: beside the folder of real faces, models/."""
    file = data.parent / "models" / "face_detection_yunet_2023mar.onnx"
    if not file.is_file():
        pytest.skip(f"no face detector at {file}")
    pytest.importorskip("cv2")
    return file


@pytest.fixture(scope="session")
def portrait() -> Path:
    """The astronaut's portrait, 512 x 512; her face is at PORTRAIT_BOX."""
    return ROOT / "examples" / "astronaut.png"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A writable copy of the embedded bundle."""
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def few(data: Path) -> TrainingData:
    """160 faces with votes."""
    from learning import LABELS

    from fer_edge.converters.student.faces import Faces, load_faces
    from fer_edge.converters.student.recipe import TrainingData
    from fer_edge.converters.student.sentences import descriptions, phrases, stored_sentences

    faces = load_faces(data / "fer2013" / "public_test.npz", LABELS)
    assert faces.targets is not None
    assert faces.labels is not None
    part = Faces(faces.images[:160], faces.images[:160], faces.targets[:160], faces.labels[:160])
    return TrainingData(part, None, stored_sentences(), descriptions(), phrases(), LABELS)


@pytest.fixture(scope="session")
def tables(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """votes.npz (400 faces with votes) and plain.npz (300 other faces without)."""
    folder = tmp_path_factory.mktemp("tables")
    with np.load(data / "fer2013" / "public_test.npz") as z:
        members = ("images", "ferplus_votes_labelcsv", "ferplus_majority_labelcsv")
        table = {name: z[name][:400] for name in members}
        names = {name: z[name] for name in ("ferplus_vote_names", "ferplus_class_names")}
        np.savez(folder / "votes.npz", **table, **names)
        np.savez(folder / "plain.npz", images=z["images"][400:700])
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP folder, with head.pth beside it."""
    from learning import small_clip

    return small_clip(tmp_path_factory.mktemp("clip"), 20)


@pytest.fixture(scope="session")
def clip_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random CLIP with a projection of 256 rows, of every runtime and precision; the CLIP lies beside it in clip/,
    its projection in head.pth. Not to be changed."""
    from learning import small_clip

    from fer_edge.converters.convert import Plan, convert

    folder = tmp_path_factory.mktemp("converted")
    clip = small_clip(folder, 256)
    plan = Plan(projection=folder / "head.pth", precisions=("fp32", "fp16", "int8"), allow_drift=True)
    return convert(str(clip), folder / "bundle", plan).bundle.folder


@pytest.fixture(scope="session")
def student_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped checkpoint, of every runtime and precision, calibrated with the shipped face. Not to be changed."""
    from learning import STUDENT

    from fer_edge.converters.convert import Plan, convert

    plan = Plan(precisions=("fp32", "fp16", "int8"))
    return convert(str(STUDENT), tmp_path_factory.mktemp("student") / "bundle", plan).bundle.folder


@pytest.fixture(scope="session")
def run() -> Results:
    """A benchmark of every engine on the embedded default, one thread, all scenarios, two processes each."""
    from dataclasses import replace

    from measuring import QUICK

    from fer_edge.benchmarks.bench import Plan, bench
    from fer_edge.benchmarks.results import SCENARIOS

    plan = Plan((DEFAULT_BUNDLE,), threads=(1,), scenarios=SCENARIOS, load=replace(QUICK, fps=200.0), rounds=2)
    return bench(plan)


@pytest.fixture(scope="session")
def videos(data: Path) -> Path:
    """The folder of short clips with faces."""
    folder = data / "scenes" / "videos"
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}")
    return folder
