"""Fewer operations in a CLIP's vision tower: against transformers' own forward pass, against token merging written as plain
loops, and on every engine."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from click.testing import CliRunner
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fer_edge
from fer_edge.cli import cli
from fer_edge.converters.convert import Plan, convert
from fer_edge.converters.crops import augmented
from fer_edge.converters.exporter import Export, load_exporter, write_all
from fer_edge.converters.pruning import MergingTower, Pruning, merge, prune
from fer_edge.converters.reference import open_reference
from fer_edge.converters.sources import open_encoder
from fer_edge.converters.student.faces import load_faces
from fer_edge.converters.student.recipe import TrainingData, TrainingPlan
from fer_edge.converters.student.run import Run
from fer_edge.converters.student.sentences import descriptions, stored_sentences
from fer_edge.converters.student.train import run_epochs
from fer_edge.labels import LABEL_SETS
from lab.pruning_figures import RECIPE, compared
from lab.random_clip import write_clip
from lab.vit import VitConfig


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 tokens, three layers."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    write_clip(folder, dim=32, width=48, layers=3, heads=4, patch=8, image=32)
    return folder


def tower(clip: Path) -> Any:
    return open_encoder(str(clip)).body.vision


@torch.inference_mode()
def test_without_merging_it_is_the_same_tower(clip: Path) -> None:
    vision, x = tower(clip), torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(MergingTower(vision, 0)(x), vision(pixel_values=x).pooler_output)


@torch.inference_mode()
def test_positions_are_interpolated_as_transformers_does(clip: Path) -> None:
    x = torch.rand(2, 3, 24, 24)
    expected = tower(clip)(pixel_values=x, interpolate_pos_encoding=True).pooler_output
    pruned = prune(open_encoder(str(clip)), Pruning(input_size=24))
    torch.testing.assert_close(pruned.body(x), expected)
    assert pruned.size == 24
    assert pruned.source.source == "clip (input 24)"


@torch.inference_mode()
def test_merging_equal_tokens_changes_nothing(clip: Path) -> None:
    """A picture of equal patches at no position: whatever is merged, sizes in the attention make up for it exactly."""
    vision = tower(clip)
    vision.embeddings.position_embedding.weight.zero_()
    x = torch.rand(1, 3, 8, 8).repeat(1, 1, 4, 4)
    expected = vision(pixel_values=x).pooler_output
    for count in (1, 3, 8, 100):
        torch.testing.assert_close(MergingTower(vision, count)(x), expected, atol=1e-5, rtol=1e-5)


def merged_by_loops(tokens: Any, keys: Any, size: Any, count: int) -> dict[tuple[float, ...], float]:
    """Token Merging, section 3 of the paper, for one picture in float64: tokens and their sizes, in no order."""
    unit = keys / np.linalg.norm(keys, axis=1, keepdims=True)
    even, odd = range(0, len(tokens), 2), range(1, len(tokens), 2)
    edges = []
    for i in even:
        if i > 0:
            best = max(odd, key=lambda j, i=i: float(unit[i] @ unit[j]))
            edges.append((float(unit[i] @ unit[best]), i, best))
    groups = {j: [j] for j in range(len(tokens))}
    for _, i, j in sorted(edges, reverse=True)[:count]:
        groups[j].append(i)
        del groups[i]
    result = {}
    for members in groups.values():
        weights = np.array([size[m] for m in members])
        mean = (weights[:, None] * tokens[members]).sum(0) / weights.sum()
        result[tuple(np.round(mean, 4))] = float(weights.sum())
    return result


@pytest.mark.parametrize("count", [1, 4, 7])
def test_merging_against_plain_loops(count: int) -> None:
    random = np.random.default_rng(count)
    tokens, keys, size = random.normal(size=(17, 6)), random.normal(size=(17, 5)), random.integers(1, 5, (17, 1))
    got, sizes = merge(*(torch.from_numpy(a[None]).double().float() for a in (tokens, keys, size)), count)
    expected = merged_by_loops(tokens, keys, size[:, 0], count)
    assert got.shape == (1, 17 - count, 6)
    assert float(sizes.sum()) == size.sum()
    np.testing.assert_allclose(got[0, 0].numpy(), tokens[0], rtol=1e-6, err_msg="the class token stays first")
    found = sorted((*row.tolist(), s) for row, s in zip(got[0].double(), sizes[0, :, 0].tolist(), strict=True))
    np.testing.assert_allclose(found, sorted((*row, s) for row, s in expected.items()), atol=2e-4)


def test_no_layer_merges_more_than_there_is(clip: Path) -> None:
    """17 tokens: at most 8 of the 9 at even places can go, then 4 of 5, then 2 of 3."""
    assert MergingTower(tower(clip), 100).merged == (8, 4, 2)
    assert MergingTower(tower(clip), 3).merged == (3, 3, 3)


@pytest.mark.parametrize("pruning", [Pruning(24, 2), Pruning(16, 100)], ids=["a few", "down to two tokens"])
def test_every_engine_computes_it(clip: Path, pruning: Pruning, tmp_path: Path) -> None:
    """Parity of the artefact with the lighter float graph is checked by the conversion, with fp32's bars."""
    bundle = convert(str(clip), tmp_path / "b", Plan(precisions=("fp32",), pruning=pruning)).bundle
    assert [artefact.runtime for artefact in bundle.manifest.artefacts] == ["openvino", "litert", "onnxruntime"]
    assert bundle.manifest.input.size == (pruning.input_size, pruning.input_size)
    assert bundle.manifest.encoder.source == f"clip ({pruning})"
    for artefact in bundle.manifest.artefacts:
        with fer_edge.load(bundle.folder, runtime=artefact.runtime) as clf:
            scores = clf.predict(np.full((40, 40, 3), 90, np.uint8)).scores
        assert math.isclose(sum(scores.values()), 1.0, rel_tol=1e-5)


def test_eight_bits_choose_the_same_tokens(data: Path, tmp_path: Path) -> None:
    """The products that choose and gather tokens stay in float: with them in 8 bits the mean was 0.79."""
    write_clip(tmp_path / "clip", dim=64, width=96, layers=4, heads=4, patch=8, image=64)
    faces = data / "lfw_expressions" / "surprise"
    plan = Plan(runtimes=("onnxruntime",), calibration=faces, calibration_count=64, pruning=Pruning(None, 6))
    (artefact,) = convert(str(tmp_path / "clip"), tmp_path / "b", plan).bundle.manifest.artefacts
    assert artefact.parity["centred_cosine"] > 0.95


def test_openvino_chooses_in_float_too(clip: Path, tmp_path: Path) -> None:
    """No product of two activations has a quantized input, and attention is two of them; those with weights have."""
    graph = open_reference(str(clip), pruning=Pruning(None, 2)).graph
    export = Export(graph, augmented(8, 32, "rgb", 11), "vit", False, tmp_path)
    write_all(load_exporter("openvino"), export, ("int8",), tmp_path)
    ops = ov.Core().read_model(tmp_path / "openvino-int8.xml").get_ordered_ops()
    quantized: dict[bool, set[bool]] = {True: set(), False: set()}
    products = [op for op in ops if op.get_type_name() in ("MatMul", "ScaledDotProductAttention")]
    assert {op.get_type_name() for op in products} == {"MatMul", "ScaledDotProductAttention"}
    for op in products:
        inputs = [value.get_node() for value in op.input_values()][:2]  # attention has a mask and a scale, too
        quantized[any(map(_from_constants, inputs))].add("FakeQuantize" in [node.get_type_name() for node in inputs])
    assert quantized[False] == {False}
    assert True in quantized[True]


def test_openvino_answers_right_and_always_the_same_or_is_refused(clip: Path, tmp_path: Path) -> None:
    """With attention in 8 bits the engine read what it never wrote, on processors with AMX int8: two runs gave two answers,
    and a centred cosine of 0.08."""
    plan = Plan(("openvino",), ("fp32", "int8"), pruning=Pruning(None, 2), allow_drift=True, require_all=False)
    conversion = convert(str(clip), tmp_path / "b", plan)
    parity = {artefact.precision: artefact.parity for artefact in conversion.bundle.manifest.artefacts}
    if conversion.failed:
        (failure,) = conversion.failed
        assert failure.reason.startswith("answers differently from run to run: a fault of openvino 20")
        assert list(parity) == ["fp32"]
    else:
        assert parity["int8"]["centred_cosine"] > 0.97
        assert parity["int8"]["repeatable"] == 1


def _from_constants(op: Any) -> bool:
    inputs = [value.get_node() for value in op.input_values()]
    return op.get_type_name() == "Constant" or (bool(inputs) and all(map(_from_constants, inputs)))


def test_the_card_says_what_it_costs(clip: Path, tmp_path: Path) -> None:
    """Against the whole encoder: with nothing but the positions of equal sizes changed it would be 1."""
    command = [str(clip), "-o", str(tmp_path / "b"), "--runtime", "onnxruntime", "--precision", "fp32"]
    result = CliRunner().invoke(cli, ["convert", *command, "--merge-tokens", "4"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "Experimental: a lighter encoder (4 tokens merged a layer)" in result.stderr
    card = fer_edge.bundle.open_bundle(tmp_path / "b").manifest.card
    kept = float(card.rpartition("centred cosine ")[2].partition(",")[0])
    assert 0.2 < kept < 0.9999


def test_what_cannot_be_made_lighter(clip: Path, root: Path) -> None:
    with pytest.raises(fer_edge.UsageError, match="multiple of that"):
        prune(open_encoder(str(clip)), Pruning(30))
    student = open_encoder(str(root / "converters/student/student48.safetensors"))
    with pytest.raises(fer_edge.UsageError, match="go with a CLIP"):
        prune(student, Pruning(40))
    assert prune(student, Pruning()) is student


def test_a_small_transformer_learns_and_is_measured(data: Path, tmp_path: Path) -> None:
    """Its loss falls, the whole network agrees with itself, and its products are those that torch counts."""
    known = load_faces(data / "fer2013" / "public_test.npz", LABEL_SETS["ferplus8"])
    few = replace(known, pictures=known.pictures[:96], images=known.images[:96], targets=_first(known.targets))
    few = replace(few, labels=_first(known.labels))
    config = VitConfig(width=24, layers=3, heads=2)
    told = descriptions()
    training = TrainingData(few, few, stored_sentences(), told, told, LABEL_SETS["ferplus8"])
    recipe = replace(RECIPE, epochs=6, batch=32, lr=3e-3, warmup_epochs=0.5, average=0.5, bf16=False, mixup=0.0)
    run = Run(TrainingPlan(training, config, recipe), tmp_path)
    run_epochs(run, lambda report: None, lambda done: None)
    assert run.history[-1].loss < run.history[0].loss
    rows = compared(run, config, few)
    assert [rows[0][name] for name in ("macs_share", "agreement", "centred_cosine")] == [1.0, 1.0, 1.0]
    assert rows[0]["war"] == pytest.approx(run.history[-1].war, abs=0.02)
    assert all(row["macs_share"] < 1 for row in rows[1:])
    assert min(row["centred_cosine"] for row in rows) < 0.99
    tower = run.learned().body.vision
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        tower(pixel_values=torch.zeros(1, 1, 48, 48))
    assert rows[0]["macs"] == counter.get_total_flops() // 2
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        MergingTower(tower, 6)(torch.zeros(1, 1, 48, 48))
    (merged,) = (row for row in rows if row["way"] == "6 tokens merged a layer")
    assert merged["macs"] < counter.get_total_flops() / 2 < 1.25 * merged["macs"], "choosing what to merge is not free"


def _first(values: Any) -> Any:
    return values[:96]
