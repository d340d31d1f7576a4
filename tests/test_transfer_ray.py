"""The feature step on Ray: the cache of two workers, one of them killed, is the cache of one machine."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fer_edge.benchmarks.random_blip2 import write_blip2
from fer_edge.benchmarks.random_clip import write_clip
from fer_edge.converters.crops import augmented
from fer_edge.converters.learn.transfer.cache import missing_shards, read_pairs, read_plan, shard_file
from fer_edge.converters.learn.transfer.features import Faces, Progress, compute, plan_cache
from fer_edge.converters.learn.transfer.sources import Wanted, open_sources
from PIL import Image

from fer_edge.cli import main
from fer_edge.errors import UsageError

pytest.importorskip("ray", reason="Ray has no wheel for this Python")
from fer_edge.converters.learn.transfer.on_ray import Cluster, Place, compute_on_ray, room

START = ["--num-cpus=2", "--node-ip-address=127.0.0.1", "--include-dashboard=false", "--disable-usage-stats", "--block"]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster that somebody else started, on two processors."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # as its user would have set it up, on both sides
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray = str(Path(sys.executable).with_name("ray"))
    start = [ray, "start", "--head", f"--port={port}", *START]
    with subprocess.Popen(start, stdout=subprocess.DEVNULL, start_new_session=True) as head:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            os.killpg(head.pid, signal.SIGKILL)
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


def workers() -> Iterator[int]:
    """Processes of ShardWorkers on this machine."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(b"ray::") and b"ShardWorker" in title:
                yield int(entry.name)


def test_a_killed_worker_changes_nothing(models: Path, faces: Path, address: str, tmp_path: Path) -> None:
    known = Faces(faces)
    image, llm = open_sources(wanted(models))
    with one_thread():
        compute(known, tmp_path / "one", plan_cache(known, image, llm, 4, half=False), image[0], llm, lambda p: None)
    killed: list[int] = []
    seen: list[int] = []

    def kill(progress: Progress) -> None:
        seen.append(progress.done)
        if progress.done and not killed:
            pids = list(workers())
            assert len(pids) == 2
            assert missing_shards(tmp_path / "two", read_plan(tmp_path / "two")), "too late to kill anybody"
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    compute_on_ray(faces, tmp_path / "two", wanted(models), (4, False), Cluster(address, 2, 1), kill)
    assert killed
    assert seen == sorted(seen)
    assert seen[-1] == 65
    one, two = read_pairs(tmp_path / "one"), read_pairs(tmp_path / "two")
    assert one.plan == two.plan
    assert (one.rows, one.left_out, one.repeated) == (two.rows, two.left_out, two.repeated)
    assert torch.equal(one.image, two.image)
    assert torch.equal(one.llm, two.llm)
    assert (tmp_path / "one" / "index.jsonl").read_text() == (tmp_path / "two" / "index.jsonl").read_text()


def ran(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out = capfd.readouterr()
    return int(end.value.code or 0), out.out, out.err


def test_a_cluster_that_runs_already(
    models: Path, faces: Path, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """By the command: one line of JSON and no word of Ray's; nothing is made twice; errors of workers are one line."""
    command = ["transfer", "features", str(faces), "--encoder", str(models / "clip"), "--json"]
    cluster = ["--engine", "ray", "--threads", "1", "--shard", "16", "-o", str(tmp_path / "cache")]
    here, llm = ["--address", address], ["--llm", str(models / "blip2")]
    code, out, err = ran([*command, *cluster, *here, *llm], capfd)
    assert code == 0, err
    assert json.loads(out)["faces"] == 64
    assert len(err.splitlines()) == 1, err
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
        assert len(err.splitlines()) == 1, err
    code, _, err = ran([*command, "-o", str(tmp_path / "cache"), *here, *llm], capfd)
    assert "are for --engine ray" in err


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
    ray = ["--engine", "ray", "--workers", "1", "--threads", "1", "--json"]
    done = subprocess.run([*command, *ray], capture_output=True, text=True, cwd=models, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["faces"] == 64
    assert not list(workers())


BOX = {"Alive": True, "Resources": {"CPU": 8.0}}
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
        ([BOX, DEAD], Cluster("auto", None, 1), "cuda", "no machine of the Ray cluster has a graphics card"),
    ],
)
def test_room(nodes: list[dict[str, Any]], cluster: Cluster, device: str | None, expected: Place | str) -> None:
    if isinstance(expected, Place):
        assert room(nodes, cluster, device) == expected
        return
    with pytest.raises(UsageError, match=expected):
        room(nodes, cluster, device)
