"""The converter: sources, projections, prompts, refusals, and that a failure leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from learning import FP32_OPENVINO, SMALL, STUDENT
from safetensors.torch import save_file

import fer_edge
from fer_edge.bundle import golden_set, label_set, open_bundle, text_projection
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.cli import main
from fer_edge.converters import convert as conversion
from fer_edge.converters import to_onnxruntime
from fer_edge.converters.convert import Plan, convert
from fer_edge.converters.crops import augmented, from_folder, shipped_face
from fer_edge.converters.graph import class_constants, fold
from fer_edge.converters.reference import open_reference, reference_features
from fer_edge.converters.sources import made_with, read_projection
from fer_edge.converters.to_onnxruntime import OPSET
from fer_edge.doctor import cpu, saturates
from fer_edge.golden import BARS
from fer_edge.labels import LABEL_SETS
from fer_edge.runtime import open_model
from fer_edge.runtimes import run_litert
from lab.random_clip import write_clip, write_head


@pytest.fixture
def clip(clip_bundle: Path) -> Path:
    """A tiny random CLIP folder, with a head.pth beside it that is higher than wide, as the published ones are."""
    return clip_bundle.parent / "clip"


def test_the_fold_keeps_every_cosine() -> None:
    """W = QR: cosines under R equal those under W, for P above, at and below D, and for a rank-deficient W."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 50, 16))
    for weight in (
        rng.normal(size=(64, 16)),
        rng.normal(size=(16, 16)),
        rng.normal(size=(5, 16)),
        np.outer(rng.normal(size=40), rng.normal(size=16)),
    ):
        r = fold(weight, 16)
        assert r.shape == (min(weight.shape[0], 16), 16)

        def cosines(matrix: np.ndarray) -> np.ndarray:
            a, b = x @ matrix.T, y @ matrix.T
            return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

        np.testing.assert_allclose(cosines(r), cosines(weight), atol=1e-9)
    assert (fold(None, 4) == np.eye(4)).all()


def test_class_constants_are_means_of_unit_vectors_and_not_unit_themselves() -> None:
    table = {"a": [3.0, 4.0], "b": [0.0, 2.0]}
    constants = class_constants(
        [["a", "b"], ["a"]], lambda texts: np.array([table[t] for t in texts], np.float32), np.eye(2)
    )
    np.testing.assert_allclose(constants, [[0.3, 0.9], [0.6, 0.8]], atol=1e-6)


def test_a_clip_bundle_has_the_papers_label_sets_and_its_text_projection(clip_bundle: Path, clip: Path) -> None:
    bundle = open_bundle(clip_bundle)
    assert {ref.name: ref.labels for ref in bundle.manifest.label_sets} == dict(LABEL_SETS)
    assert bundle.manifest.input.mean == (0.0, 0.0, 0.0)
    assert label_set(bundle, "mafw11").prompts[10] == ("a photo of a face with an expression of disappointment.",)
    weight, _, _ = read_projection(clip.parent / "head.pth", SMALL["dim"])
    r = text_projection(bundle).astype(np.float64)
    np.testing.assert_allclose(r.T @ r, weight.astype(np.float64).T @ weight, rtol=1e-3, atol=1e-4)
    assert len(golden_set(bundle).crops) >= 16
    assert "/" not in bundle.manifest.encoder.source


def test_plain_clip_uses_clips_pixels_unless_told(clip: Path) -> None:
    plain, bare = open_reference(str(clip)), open_reference(str(clip), normalize="none")
    assert plain.spec.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert plain.projection is None
    assert bare.spec.mean == (0.0, 0.0, 0.0)
    crops = augmented(2, 32, "rgb", 0)
    assert not np.allclose(reference_features(plain, crops), reference_features(bare, crops))


def test_prompt_and_label_files(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "mood.toml").write_text('tired = "a tired face."\n"wide awake" = ["an awake face.", "bright eyes."]\n')
    bundle = convert(
        str(clip), tmp_path / "b", Plan(labels=str(tmp_path / "mood.toml"), prompts="ensemble", **FP32_OPENVINO)
    ).bundle
    assert bundle.manifest.default_labels == "mood"
    with fer_edge.load(tmp_path / "b") as clf:
        assert clf.labels == ("tired", "wide awake")
        assert set(clf.predict(augmented(1, 32, "rgb", 0)[0]).scores) == {"tired", "wide awake"}
    assert len(label_set(bundle, "ferplus8").prompts[0]) == 7
    (tmp_path / "seven.json").write_text(json.dumps({label: f"{label}!" for label in LABEL_SETS["rafdb7"]}))
    seven = open_reference(str(clip), prompts=str(tmp_path / "seven.json"))
    assert [labels.name for labels in seven.sets] == ["rafdb7"]


def test_projection_formats(tmp_path: Path) -> None:
    weight = write_head(tmp_path / "head.pth", 32, 100)
    save_file({"mlp.weight": weight}, tmp_path / "a.safetensors")
    save_file({"anything": weight.half()}, tmp_path / "b.safetensors")
    torch.save({"state_dict": {"mlp.weight": weight}}, tmp_path / "c.pth")
    first, source, _ = read_projection(tmp_path / "head.pth", 32)
    np.testing.assert_array_equal(first, weight.numpy())
    for name in ("a.safetensors", "c.pth"):
        again, known, _ = read_projection(tmp_path / name, 32)
        np.testing.assert_array_equal(again, first)
        assert known.sha256 == source.sha256
    np.testing.assert_allclose(read_projection(tmp_path / "b.safetensors", 32)[0], first, atol=1e-3)


class Evil:
    """Unpickling this would write a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch pwned",))


def test_bad_projections_are_one_error_and_no_pickle_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"mlp.weight": Evil()}, tmp_path / "evil.pth")
    torch.save({"mlp.weight": torch.full((4, 32), float("nan"))}, tmp_path / "nan.pth")
    torch.save({"x": torch.ones(4, 32), "y": torch.ones(4, 32)}, tmp_path / "two.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    write_head(tmp_path / "l14.pth", 48, 100)
    for name in ("evil.pth", "nan.pth", "two.pth", "list.pth", "text.pth", "empty.safetensors", "l14.pth", "missing.pth"):
        with pytest.raises(fer_edge.ConversionError, match=name) as caught:
            read_projection(tmp_path / name, 32)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()
    save_file(
        {"mlp.weight": torch.ones(4, 32)}, tmp_path / "cut.safetensors", metadata={"fer-edge-projection": '{"image": 5}'}
    )
    with pytest.raises(fer_edge.ConversionError, match=r"cut\.safetensors: its header fer-edge-projection is damaged"):
        made_with(tmp_path / "cut.safetensors")
    assert made_with(tmp_path / "nan.pth") is None


def test_failures_leave_nothing_behind(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out" / "bundle"
    target.parent.mkdir()
    broken = Plan(projection=clip.parent / "nope.pth", **FP32_OPENVINO)
    with pytest.raises(fer_edge.ConversionError, match=r"nope\.pth"):
        convert(str(clip), target, broken)

    def cut_off(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(to_onnxruntime, "_int8", cut_off)
    with pytest.raises(KeyboardInterrupt):
        convert(str(clip), target, Plan(runtimes=("onnxruntime",), precisions=("fp32", "int8")))
    assert list(target.parent.iterdir()) == []


def test_drift_is_refused_by_how_much_or_recorded(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A float artefact made wrong on purpose: refused with figures; with --allow-drift written, marked, and still seen by
    verify."""
    from fer_edge.verify import verify

    prepare = conversion._prepare

    def shifted(source: str, plan: Plan, name: str) -> Any:
        material = prepare(source, plan, name)
        with torch.no_grad():
            # The reference was computed before; the exported graph then has its rows in another order.
            last = material.reference.graph.last
            last.copy_(last.flip(0))
        return material

    monkeypatch.setattr(conversion, "_prepare", shifted)
    with pytest.raises(
        fer_edge.ConversionError, match=r"openvino fp32 .*centred cosine -?0\.\d+ is below 0\.999.*--allow-drift"
    ):
        convert(str(clip), tmp_path / "refused", Plan(**FP32_OPENVINO))
    assert not (tmp_path / "refused").exists()
    bundle = convert(str(clip), tmp_path / "allowed", Plan(allow_drift=True, **FP32_OPENVINO)).bundle
    (artefact,) = bundle.manifest.artefacts
    assert artefact.drift_allowed
    (row,) = verify(bundle).rows
    assert row.status == "drift allowed"
    # What was allowed is the drift that the conversion saw; a manifest that saw less turns the same answer into a miss.
    from dataclasses import replace

    from fer_edge.bundle import Bundle

    parity = {**artefact.parity, "centred_cosine": 0.9, "self_retrieval": 1.0}
    manifest = replace(bundle.manifest, artefacts=(replace(artefact, parity=parity),))
    (row,) = verify(Bundle(bundle.folder, manifest)).rows
    assert row.status == "miss"


def test_what_fails_does_not_discard_what_passed(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bar of int8 is raised above what it reaches."""
    monkeypatch.setattr(conversion, "BARS", {**BARS, "int8": {"centred_cosine": 0.9999}})
    arguments = ["convert", str(clip), "-o", str(tmp_path / "b"), "--runtime", "openvino", "--json"]
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--precision", "int8", "--precision", "fp32"])
    assert end.value.code == 1
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert [(a["runtime"], a["precision"]) for a in told["artefacts"]] == [("openvino", "fp32")]
    (failed,) = told["failed"]
    assert (failed["runtime"], failed["precision"]) == ("openvino", "int8")
    assert 0.9 < failed["parity"]["centred_cosine"] < 0.9999
    (line,) = (line for line in err.splitlines() if line.startswith("Failed: openvino int8"))
    assert line == f"Failed: openvino int8 {failed['reason']}"
    assert f"centred cosine {failed['parity']['centred_cosine']:.4g} is below 0.9999" in line
    assert "calibrate with faces of your own, --calibration FOLDER, or" in line
    assert sorted(file.name for file in (tmp_path / "b").glob("openvino*")) == ["openvino-fp32.bin", "openvino-fp32.xml"]
    with fer_edge.load(tmp_path / "b") as clf:
        assert clf.precision == "fp32"


def test_an_exporters_own_oserror_is_its_artefacts_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that a library misses is no full disk: what passed is written."""

    def fails(*given: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file", "schema.fbs")

    monkeypatch.setattr(to_onnxruntime, "_int8", fails)
    plan = Plan(runtimes=("onnxruntime",), precisions=("fp32", "int8"), require_all=False)
    made = convert(str(STUDENT), tmp_path / "b", plan)
    assert [a.precision for a in made.bundle.manifest.artefacts] == ["fp32"]
    assert "schema.fbs" in made.failed[0].reason
    conversion._check_disk(OSError("a library's own, without a number"), tmp_path)
    with pytest.raises(OSError, match="full"):
        conversion._check_disk(OSError(errno.ENOSPC, "full"), tmp_path)


def test_all_or_nothing_and_no_advice_already_taken(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Calibrated with black faces, int8 knows no light."""
    np.savez(tmp_path / "black.npz", images=np.zeros((8, 32, 32, 3), np.uint8))
    arguments = ["--runtime", "openvino", "--precision", "fp32", "--precision", "int8", "--require-all"]
    with pytest.raises(SystemExit) as end:
        main(["convert", str(clip), "-o", str(tmp_path / "b"), *arguments, "--calibration", str(tmp_path / "black.npz")])
    assert end.value.code == 2
    out, err = capfd.readouterr()
    assert out == ""
    # On a slow machine a line of progress stands before it.
    assert "Error: openvino int8 does not give the float reference's answer: centred cosine " in err
    assert "calibrated with 8 faces of black.npz: try other or more faces" in err
    assert "--calibration" not in err
    assert not (tmp_path / "b").exists()


class Wavering:
    """A session of a real engine whose third opening has one bit more."""

    opened = 0

    def __init__(self, session: Any) -> None:
        self.session = session
        Wavering.opened += 1
        self.nth = Wavering.opened

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def run(self, crop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feature, logits = self.session.run(crop)
        return (np.nextafter(feature, np.float32(np.inf)) if self.nth == 3 else feature), logits


def test_an_engine_that_answers_otherwise_when_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drift may be allowed, this may not: no figure of it means anything."""
    real = run_litert.open
    monkeypatch.setattr(run_litert, "open", lambda *given: Wavering(real(*given)))
    fault = r"^litert fp32 answers differently from run to run: a fault of .* on this processor \(.*\), not of the model; "
    with pytest.raises(fer_edge.ConversionError, match=fault):
        convert(str(STUDENT), tmp_path / "b", Plan(runtimes=("litert",), precisions=("fp32",), allow_drift=True))


def test_an_engine_that_raises_what_it_likes_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(*given: object) -> None:
        raise KeyError("feature")

    monkeypatch.setattr(run_litert, "open", sick)
    with pytest.raises(fer_edge.ConversionError, match=r"^litert fp32 fails: .*feature"):
        convert(str(STUDENT), tmp_path / "b", Plan(runtimes=("litert",), precisions=("fp32",)))


def test_another_packages_runtime_is_converted_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its entry points: a module that opens models, and one that writes them."""
    site = tmp_path / "site"
    (site / "theirs-1.dist-info").mkdir(parents=True)
    (site / "theirs-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n")
    points = "[fer_edge.runtimes]\ntheirs = theirs_run\n[fer_edge.exporters]\ntheirs = theirs_to\n"
    (site / "theirs-1.dist-info" / "entry_points.txt").write_text(points)
    (site / "theirs_run.py").write_text("from fer_edge.runtimes.run_litert import *\n")
    (site / "theirs_to.py").write_text("from fer_edge.converters.to_litert import *\n")
    monkeypatch.syspath_prepend(site)
    bundle = convert(str(STUDENT), tmp_path / "b", Plan(runtimes=("theirs",), precisions=("fp32",))).bundle
    assert [(a.runtime, a.precision) for a in bundle.manifest.artefacts] == [("theirs", "fp32")]
    for name in ("null", "nobodys"):
        with pytest.raises(fer_edge.UsageError, match=f"no artefacts are made for the runtime '{name}'; there are openvino"):
            convert(str(STUDENT), tmp_path / "c", Plan(runtimes=(name,)))


def test_sources_that_cannot_be_converted(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "half").mkdir()
    for file in clip.iterdir():
        (tmp_path / "half" / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file

    tensors = load_file(clip / "model.safetensors")
    del tensors["visual_projection.weight"]
    save_file(tensors, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    cases = {
        "empty": "not a readable CLIP",
        "bert": "bert model",
        "notes.txt": "student checkpoint",
        "half": "visual_projection",
        "gone/gone/gone": "does not exist",
    }
    for name, message in cases.items():
        with pytest.raises(fer_edge.ConversionError, match=message) as caught:
            convert(str(tmp_path / name), tmp_path / "out", Plan(**FP32_OPENVINO))
        assert "\n" not in str(caught.value)
    with pytest.raises(fer_edge.UsageError, match="exists already"):
        convert(str(clip), clip.parent, Plan(**FP32_OPENVINO))
    with pytest.raises(fer_edge.UsageError, match="has its own projection"):
        convert(str(STUDENT), tmp_path / "out", Plan(projection=clip.parent / "head.pth", **FP32_OPENVINO))
    assert not (tmp_path / "out").exists()


def test_a_clip_whose_tokenizer_is_missing_or_foreign_is_refused(clip: Path, tmp_path: Path) -> None:
    """transformers builds an empty tokenizer without a word; every prompt would then mean the same."""
    for name, files in {"none": (), "config only": ("tokenizer_config.json",)}.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in ("config.json", "model.safetensors", *files):
            (folder / file).write_bytes((clip / file).read_bytes())
        with pytest.raises(fer_edge.ConversionError, match="tokenizer"):
            convert(str(folder), tmp_path / "out", Plan(**FP32_OPENVINO))
    folder = tmp_path / "wrong end"
    folder.mkdir()
    for file in clip.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(fer_edge.ConversionError, match="tokenizer"):
        convert(str(folder), tmp_path / "out", Plan(**FP32_OPENVINO))


def test_prompts_that_mean_the_same_are_refused(clip: Path, tmp_path: Path) -> None:
    """Two prompts that differ only behind the context length are one prompt."""
    long = "a photo of a face " * 30
    (tmp_path / "long.json").write_text(json.dumps({"a": f"{long} of anger", "b": f"{long} of fear"}))
    with pytest.raises(fer_edge.LabelError, match="mean the same"):
        convert(str(clip), tmp_path / "out", Plan(labels=str(tmp_path / "long.json"), **FP32_OPENVINO))


def test_what_readers_refuse_is_not_written(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(fer_edge.FerEdgeError):
        convert(str(clip), tmp_path / "out", Plan(name="a\nb", **FP32_OPENVINO))
    (tmp_path / "my moods.toml").write_text('a = "x"\nb = "y"\n')
    with pytest.raises(fer_edge.LabelError, match="cannot name a label set"):
        convert(str(clip), tmp_path / "out", Plan(labels=str(tmp_path / "my moods.toml"), **FP32_OPENVINO))
    with pytest.raises(fer_edge.UsageError, match="--runtime onnxruntime"):
        convert(str(STUDENT), tmp_path / "out", Plan(symmetric=True, **FP32_OPENVINO))
    with pytest.raises(fer_edge.UsageError, match="go with a CLIP"):
        convert(str(STUDENT), tmp_path / "out", Plan(normalize="clip", **FP32_OPENVINO))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my moods.toml"]


def test_label_sets_without_prompts_are_named(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seven.json").write_text(json.dumps({label: f"{label}!" for label in LABEL_SETS["rafdb7"]}))
    arguments = ["--runtime", "openvino", "--precision", "fp32", "--prompts", str(tmp_path / "seven.json")]
    with pytest.raises(SystemExit) as end:
        main(["convert", str(clip), "-o", str(tmp_path / "b"), *arguments])
    assert end.value.code == 0
    err = capfd.readouterr().err
    assert "ferplus8 was left out; the prompts have none for contempt" in err
    assert "mafw11 was left out" in err


def test_all_precisions_of_a_student_reach_their_bars(student_bundle: Path) -> None:
    """fp32, fp16 and int8 on all three engines."""
    bundle = open_bundle(student_bundle)
    assert len(bundle.manifest.artefacts) == 9
    assert not any(a.drift_allowed for a in bundle.manifest.artefacts)
    assert all(
        "augmentations of the one shipped face" in (a.calibration or "")
        for a in bundle.manifest.artefacts
        if a.precision == "int8"
    )
    sizes = {(a.runtime, a.precision): sum(f.bytes for f in a.files) for a in bundle.manifest.artefacts}
    for runtime in ("openvino", "litert", "onnxruntime"):
        assert sizes[(runtime, "int8")] < 0.65 * sizes[(runtime, "fp16")] < 0.4 * sizes[(runtime, "fp32")]


def test_int8_weights_leave_room_without_vnni() -> None:
    """x86 without VNNI adds two products of 8 bits in 16 signed ones: 2 * 255 * 64 fits, 2 * 255 * 127 does not. With 8 bits
    the student fell to a centred cosine of 0.54 on such a processor, and stood at 0.99 where it was converted."""
    model = onnx.load(DEFAULT_BUNDLE / "onnxruntime-int8.onnx")
    arrays = [onnx.numpy_helper.to_array(item) for item in model.graph.initializer]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim >= 2]
    assert len(weights) == 10
    assert all(60 < np.abs(array.astype(int)).max() <= 64 for array in weights)


def test_symmetric_int8_as_tensorrt_wants_it(tmp_path: Path) -> None:
    """On x86 without VNNI its weights of 8 bits overflow; a graphics card has no such limit."""
    plan, overflows = Plan(runtimes=("onnxruntime",), symmetric=True), saturates(cpu()[1])
    if overflows:
        with pytest.raises(fer_edge.ConversionError, match="no VNNI and cannot check --symmetric"):
            convert(str(STUDENT), tmp_path / "s", plan)
    symmetric = convert(str(STUDENT), tmp_path / "s", replace(plan, allow_drift=overflows)).bundle
    model = onnx.load(tmp_path / "s" / "onnxruntime-int8.onnx")
    zero_points = {i.name: i for i in model.graph.initializer}
    activations = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert activations
    for node in activations:
        point = onnx.numpy_helper.to_array(zero_points[node.input[2]])
        assert point.dtype == np.int8
        assert not point.any()
    assert overflows or symmetric.manifest.artefacts[0].parity["centred_cosine"] > 0.95


@pytest.mark.parametrize("left", [b"", b"PK"])
def test_a_damaged_clip_is_bad_input(left: bytes, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """torch ends an empty file with EOFError, which click takes for Ctrl-D: it came out as "Interrupted.", 130."""
    shutil.copytree(clip, tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    (tmp_path / "clip" / "pytorch_model.bin").write_bytes(left)
    with pytest.raises(SystemExit) as end:
        main(["convert", str(tmp_path / "clip"), "-o", str(tmp_path / "bundle")])
    assert end.value.code == 2
    assert "is not a readable CLIP" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("kind", ["npy", "cut npz"])
def test_calibration_from_what_is_no_npz(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "faces.npz"
    np.savez(file, images=np.zeros((4, 8, 8), np.uint8))
    if kind == "npy":
        with file.open("wb") as stream:
            np.save(stream, np.zeros((4, 8, 8), np.uint8))
    else:
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(fer_edge.ConversionError, match="is not a readable npz file"):
        from_folder(file, 4, 8, "gray")


def test_a_folder_of_faces_whose_name_is_not_unicode(tmp_path: Path) -> None:
    faces = Path(os.fsdecode(os.fsencode(tmp_path) + b"/f\xff"))
    try:
        faces.mkdir()
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    for i in range(3):
        shipped_face().rotate(i).save(faces / f"{i}.png")
    bundle = convert(str(STUDENT), tmp_path / "b", Plan(runtimes=("litert",), calibration=faces, allow_drift=True)).bundle
    assert "3 faces of f\\udcff" in (bundle.manifest.artefacts[0].calibration or "")


def test_litert_static_for_cnn_and_dynamic_for_vit(clip_bundle: Path, student_bundle: Path) -> None:
    """What NPUs want, and what keeps a ViT's fidelity; the manifest says which."""
    bundles = {"cnn": student_bundle, "vit": clip_bundle}
    said = {
        name: next(
            a.calibration for a in open_bundle(b).manifest.artefacts if (a.runtime, a.precision) == ("litert", "int8")
        )
        for name, b in bundles.items()
    }
    assert "augmentations" in (said["cnn"] or "")
    assert said["vit"] == "none (dynamic range)"
    from ai_edge_litert.interpreter import Interpreter

    kinds = {}
    for name in ("cnn", "vit"):
        interpreter = Interpreter(str(bundles[name] / "litert-int8.tflite"))
        interpreter.allocate_tensors()
        assert interpreter.get_signature_list() == {
            "serving_default": {"inputs": ["image"], "outputs": ["feature", "logits"]}
        }
        (image,) = interpreter.get_input_details()
        assert image["dtype"] == np.uint8
        kinds[name] = [d["op_name"] for d in interpreter._get_ops_details()]
    assert "QUANTIZE" in kinds["cnn"]
    assert "QUANTIZE" not in kinds["vit"]


def test_graph_names_for_users_of_other_languages(clip_bundle: Path) -> None:
    import onnxruntime
    import openvino

    model = openvino.Core().read_model(clip_bundle / "openvino-fp32.xml")
    assert [i.get_any_name() for i in model.inputs] == ["image"]
    assert [o.get_any_name() for o in model.outputs] == ["logits", "feature"], "whoever takes one output takes the first"
    assert (model.inputs[0].get_element_type().to_string(), list(model.inputs[0].get_shape())) == ("u8", [1, 32, 32, 3])
    session = onnxruntime.InferenceSession(clip_bundle / "onnxruntime-fp16.onnx")
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [("image", "tensor(uint8)", [1, 32, 32, 3])]
    assert [(o.name, o.type) for o in session.get_outputs()] == [("feature", "tensor(float)"), ("logits", "tensor(float)")]
    for file in clip_bundle.glob("*.onnx"):
        model = onnx.load(file)
        assert next(o.version for o in model.opset_import if o.domain == "") == OPSET
        assert model.ir_version <= 10, "ONNX Runtime 1.18 reads no newer one"


@pytest.mark.parametrize("runtime", ["openvino", "litert", "onnxruntime"])
def test_the_graphs_own_logits_are_the_formula_on_its_feature(runtime: str, clip_bundle: Path) -> None:
    """Users of other languages read ``logits``: the head is not quantized. fp16 rounds the class constants, by 2^-11
    of logits up to 100."""
    bundle = open_bundle(clip_bundle)
    labels = label_set(bundle, bundle.manifest.default_labels)
    crops = np.random.default_rng(0).integers(0, 256, (8, 1, 32, 32, 3), dtype=np.uint8)
    artefacts = [artefact for artefact in bundle.manifest.artefacts if artefact.runtime == runtime]
    assert [artefact.precision for artefact in artefacts] == ["fp32", "fp16", "int8"]
    for artefact in artefacts:
        files = [bundle.folder / file.path for file in artefact.files]
        session = open_model(runtime, files, artefact.precision, None, 1)
        try:
            for crop in crops:
                feature, logits = session.run(crop)
                exact = feature.astype(np.float64) / np.linalg.norm(feature.astype(np.float64)) @ labels.constants.T
                limit = 0.05 if artefact.precision == "fp16" else 1e-3
                np.testing.assert_allclose(
                    logits, labels.logit_scale * exact, rtol=0, atol=limit, err_msg=artefact.precision
                )
        finally:
            session.close()


def test_bf16_is_had_by_asking_and_is_reported(clip_bundle: Path) -> None:
    """float artefacts compute in fp32 even where the processor has bf16; what is asked for shows in the result."""
    import openvino

    with fer_edge.load(clip_bundle, runtime="openvino", precision="fp32") as clf:
        assert clf.execution_precision == "fp32"
        exact = clf.features(golden_set(open_bundle(clip_bundle)).crops)
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        with pytest.raises(fer_edge.EngineError, match="bf16"):
            fer_edge.load(clip_bundle, runtime="openvino", precision="fp32", execution_precision="bf16")
        return
    with fer_edge.load(clip_bundle, runtime="openvino", precision="fp32", execution_precision="bf16") as clf:
        assert "bf16" in clf.execution_precision
        assert not np.array_equal(clf.features(golden_set(open_bundle(clip_bundle)).crops), exact)


def test_calibration_goes_through_the_same_image_code(data: Path, tmp_path: Path) -> None:
    folder = data / "lfw_expressions" / "anger"
    crops = from_folder(folder, 7, 32, "gray")
    assert crops.shape == (7, 32, 32, 1)
    from fer_edge.image import to_input

    first = sorted(folder.glob("*.jpg"))[0]
    assert (crops[0] == to_input(first, (32, 32), "gray")).all()
    assert from_folder(data / "fer2013" / "public_test.npz", 5, 48, "gray").shape == (5, 48, 48, 1)
    for bad in (tmp_path, tmp_path / "missing", data / "README.md"):
        with pytest.raises(fer_edge.ConversionError):
            from_folder(bad, 5, 32, "rgb")


def test_own_crops_are_different_and_reproducible() -> None:
    crops = augmented(32, 48, "gray", 7)
    assert len({c.tobytes() for c in crops}) == 32
    assert (crops == augmented(32, 48, "gray", 7)).all()
    assert shipped_face().size == (224, 224)


def test_labels_add_compiles_through_the_bundles_projection(
    clip_bundle: Path, clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Constants equal those that convert would have made; another encoder is refused by its identity."""
    import shutil

    bundle = Path(shutil.copytree(clip_bundle, tmp_path / "b"))
    label = "a photo of a face with an expression of anger."
    (tmp_path / "two.toml").write_text(f'angry = "{label}"\nelse = "a photo of a house."\n')
    with pytest.raises(SystemExit) as end:
        main(["labels", "add", str(bundle), str(tmp_path / "two.toml"), "--text-encoder", str(clip), "--json"])
    assert end.value.code == 0
    assert json.loads(capfd.readouterr().out) == {
        "bundle": str(bundle),
        "name": "two",
        "labels": ["angry", "else"],
        "notes": [],
    }
    opened = open_bundle(bundle)
    added, built_in = label_set(opened, "two"), label_set(opened, "rafdb7")
    np.testing.assert_allclose(added.constants[0], built_in.constants[3], atol=1e-6)
    assert added.logit_scale == built_in.logit_scale
    with fer_edge.load(bundle, labels="two") as clf:
        assert clf.labels == ("angry", "else")
    write_clip(tmp_path / "other", **{**SMALL, "seed": 5})
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(
            [
                "labels",
                "add",
                str(bundle),
                str(tmp_path / "two.toml"),
                "--name",
                "three",
                "--text-encoder",
                str(tmp_path / "other"),
            ]
        )
    assert end.value.code == 2
    assert "is not the text encoder of this bundle" in capfd.readouterr().err
    assert (bundle / "manifest.json").read_bytes() == before


def test_convert_command_prints_json_alone(clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Converters and engines print a lot, from C++ too; none of it reaches stdout."""
    arguments = ["convert", str(clip), "-o", str(tmp_path / "b"), "--runtime", "litert", "--precision", "fp16", "--json"]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    out = json.loads(capfd.readouterr().out)
    assert [(a["runtime"], a["precision"]) for a in out["artefacts"]] == [("litert", "fp16")]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capfd.readouterr().err.count("\n") == 1
