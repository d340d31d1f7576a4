"""The feature step on Ray: the cache of two workers, one of them killed, is the cache of one machine."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from fer_edge.cli import main
from fer_edge.converters.crops import augmented
from fer_edge.converters.transfer.cache import missing_shards, open_cache, read_plan, shard_file
from fer_edge.converters.transfer.feature_pairs import read_pairs
from fer_edge.converters.transfer.features import Faces, Progress, compute, plan_cache
from fer_edge.converters.transfer.sources import Wanted, open_sources
from fer_edge.errors import UsageError
from lab.random_blip2 import write_blip2
from lab.random_clip import write_clip

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
from ray.exceptions import AuthenticationError

from fer_edge.converters.transfer.on_ray import Cluster, Place, ShardWorker, compute_on_ray, room

START = ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", "--block"]


@dataclass(frozen=True)
class Head:
    address: str
    pid: int


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """Of a cluster that somebody else started, on two processors."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # as its user would have set it up, on both sides
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", f"--port={port}", *START]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            else:
                pytest.fail("the cluster did not start in a minute")
            yield Head(f"127.0.0.1:{port}", process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            del os.environ["RAY_AUTH_MODE"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "clip", dim=16, width=64, layers=6, heads=2, patch=4, image=96)
    write_blip2(folder / "blip2")
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faces")
    for i, crop in enumerate(augmented(64, 48, "rgb", 3)):
        Image.fromarray(crop).save(folder / f"{i:02d}.png")
    (folder / "30broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    return folder


def wanted(models: Path) -> Wanted:
    return Wanted(str(models / "clip"), str(models / "blip2"), batch=4, device="cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


RAYLET = b"/raylet/raylet\0"
"""How the command line of a machine's Ray server begins."""


def processes(title: bytes) -> dict[int, int]:
    """Of this machine, those whose command line holds ``title``: pid -> parent."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and title in (entry / "cmdline").read_bytes():
                found[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    return found


def workers(head: Head) -> list[int]:
    """ShardWorkers of that cluster: children of its raylet."""
    raylets = [pid for pid in processes(RAYLET) if os.getsid(pid) == head.pid]
    return [pid for pid, parent in processes(b"ShardWorker").items() if parent in raylets]


def test_killed_workers_change_nothing(models: Path, faces: Path, head: Head, tmp_path: Path) -> None:
    """Both are killed when the first shard is there: whoever was at one loses it."""
    known = Faces(faces)
    image, llm = open_sources(wanted(models))
    with one_thread():
        compute(known, tmp_path / "one", plan_cache(known, image, llm, 4, half=False), image[0], llm, lambda p: None)
    killed: list[int] = []
    seen: list[int] = []

    def kill(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done and not killed:
            assert missing_shards(tmp_path / "two", read_plan(tmp_path / "two")), "too late to kill anybody"
            killed.extend(workers(head))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    compute_on_ray(faces, tmp_path / "two", wanted(models), (4, False), Cluster(head.address, 2, 1), kill)
    assert len(killed) == 2
    assert seen == sorted(seen)
    assert seen[-1] == 65
    one, two = read_pairs(tmp_path / "one"), read_pairs(tmp_path / "two")
    assert one.plan == two.plan
    assert (one.rows, one.left_out, one.repeated) == (two.rows, two.left_out, two.repeated)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.llm, two.llm)
    assert (tmp_path / "one" / "index.jsonl").read_text() == (tmp_path / "two" / "index.jsonl").read_text()
    assert not list((tmp_path / "two").rglob(".partial-*"))


def ran(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out = capfd.readouterr()
    # What takes over 20 s says so, in a line of its own: on a busy machine that is anything.
    err = "".join(line for line in out.err.splitlines(True) if not re.match(r"features: .* \.\.\. ", line))
    return int(end.value.code or 0), out.out, err


def words(err: str) -> list[str]:
    """The lines that a slow machine adds none to: every 20 s one tells how long it has been."""
    return [line for line in err.splitlines() if not line.startswith("features ... ")]


def test_a_cluster_that_runs_already(
    models: Path, faces: Path, head: Head, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command: one line of JSON and no word of Ray's; nothing is made twice; errors of workers are one line."""
    command = ["transfer", "features", str(faces), "--encoder", str(models / "clip"), "--json"]
    cluster = ["--engine", "ray", "--threads", "1", "--shard", "16", "-o", str(tmp_path / "cache")]
    here, llm = ["--address", head.address], ["--llm", str(models / "blip2")]
    code, out, err = ran([*command, *cluster, *here, *llm], capfd)
    assert code == 0, err
    assert json.loads(out)["faces"] == 64
    assert len(words(err)) == 1, err
    assert "30broken.jpg" in err
    made = [shard_file(tmp_path / "cache", k).stat().st_mtime_ns for k in range(5)]
    assert ran([*command, *cluster, *here, *llm], capfd)[0] == 0
    assert [shard_file(tmp_path / "cache", k).stat().st_mtime_ns for k in range(5)] == made

    for more, problem in (
        ([*here, "--llm", str(models / "clip")], "is a clip model"),
        ([*here, *llm, "--workers", "9"], "room for 2 workers of 1 processors each, not for 9"),
        ([*here, *llm, "--float"], "was made with fp16 features"),
    ):
        code, _, err = ran([*command, *cluster, *more], capfd)
        assert code == 2, err
        assert problem in err
        assert len(words(err)) == 1, err
    code, _, err = ran([*command, "-o", str(tmp_path / "cache"), *here, *llm], capfd)
    assert "are for --engine ray" in err

    table = torch.ones(65, 3)
    table[40] = torch.nan
    save_file({"features": table}, tmp_path / "x.safetensors", metadata={"paths": json.dumps(Faces(faces).names())})
    bad = [
        "--engine",
        "ray",
        "--threads",
        "1",
        "-o",
        str(tmp_path / "bad"),
        "--llm-features",
        str(tmp_path / "x.safetensors"),
    ]
    code, _, err = ran([*command, *bad, *here], capfd)
    assert code == 2
    assert "the llm side gives NaN or Inf for 1 faces, the first is 39.png" in err
    assert len(err.splitlines()) == 1, err


def test_a_worker_with_other_models_says_so(models: Path, faces: Path, tmp_path: Path) -> None:
    """As a row of the answer, which is how errors get through Ray whole. A renamed model is the same model."""
    known, cache = Faces(faces), tmp_path / "cache"
    image, llm = open_sources(wanted(models))
    open_cache(cache, plan_cache(known, image, llm, 16, half=False))
    other = replace(wanted(models), pixels="clip")
    worker = ShardWorker(str(faces), str(cache), other, torch.get_num_threads())
    assert worker({"shard": [0, 1]})["kind"] == ["ConversionError"] * 2
    assert "a worker reads other models" in worker({"shard": [0]})["problem"][0]
    renamed = replace(wanted(models), encoder=str(shutil.copytree(models / "clip", tmp_path / "copy")))
    worker = ShardWorker(str(faces), str(cache), renamed, torch.get_num_threads())
    assert worker({"shard": [1]}) == {"faces": [16], "kind": [""], "problem": [""]}
    shutil.rmtree(cache / "shards")
    assert "00002.safetensors cannot be written" in worker({"shard": [2]})["problem"][0]


@pytest.mark.parametrize("error", [AuthenticationError("no token"), ConnectionError("refused"), RuntimeError("version")])
def test_a_cluster_that_cannot_be_reached(
    models: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(**kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(UsageError, match="no Ray cluster at box:1"):
        compute_on_ray(faces, tmp_path / "c", wanted(models), (4, False), Cluster("box:1", 1, 1))


def test_a_cluster_of_ones_own(models: Path, faces: Path, tmp_path: Path) -> None:
    """Without an address one is started for the run; it is gone afterwards."""
    sides = ["--encoder", str(models / "clip"), "--llm", "blip2"]
    command = [
        Path(sys.executable).with_name("fer-edge"),
        "transfer",
        "features",
        str(faces),
        *sides,
        "-o",
        str(tmp_path / "cache"),
    ]
    before = processes(RAYLET).keys()
    ray = ["--engine", "ray", "--workers", "1", "--threads", "1", "--json"]
    done = subprocess.run([*command, *ray], capture_output=True, text=True, cwd=models, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["faces"] == 64
    until = time.monotonic() + 20
    while not processes(RAYLET).keys() <= before:
        assert time.monotonic() < until, "the cluster outlives the run"
        time.sleep(0.2)


BOX = {"Alive": True, "Resources": {"CPU": 8.0, "memory": 64e9}}
CARDS = {"Alive": True, "Resources": {"CPU": 64.0, "GPU": 4.0}}
DEAD = {"Alive": False, "Resources": {"CPU": 999.0, "GPU": 9.0}}


@pytest.mark.parametrize(
    ("nodes", "cluster", "device", "expected"),
    [
        ([BOX, BOX, DEAD], Cluster("auto", None, 3), None, Place(4, 3, 0)),
        ([BOX, BOX, DEAD], Cluster("auto", 3, 3), None, Place(3, 3, 0)),
        ([BOX, CARDS], Cluster("auto", None, 4), None, Place(4, 4, 1)),
        ([BOX, CARDS], Cluster("auto", None, 4), "cpu", Place(18, 4, 0)),
        ([BOX], Cluster("auto", None, 9), None, "room for 0 workers of 9 processors each, not for 1"),
        ([CARDS], Cluster("auto", 5, 1), None, "room for 4 workers of 1 processors and one graphics card each, not for 5"),
        ([BOX, BOX], Cluster("auto", None, 1, 30.0), None, Place(4, 1, 0)),
        ([BOX], Cluster("auto", None, 1, 80.0), None, "room for 0 workers of 1 processors, 80 GB each"),
        ([BOX, DEAD], Cluster("auto", None, 1), "cuda", "no machine of the Ray cluster has a graphics card"),
    ],
)
def test_room(nodes: list[dict[str, Any]], cluster: Cluster, device: str | None, expected: Place | str) -> None:
    if isinstance(expected, Place):
        assert room(nodes, cluster, device) == expected
        return
    with pytest.raises(UsageError, match=expected):
        room(nodes, cluster, device)
