"""Sources of a conversion: nothing of them is left out without a word. It is used, refused, or said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import SMALL, STUDENT
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import fer_edge
from fer_edge.cli import main
from fer_edge.converters.crops import augmented
from fer_edge.converters.pixels import CLIP_MEAN, CLIP_STD, own_pixels, stated
from fer_edge.converters.reference import Reference, open_reference, reference_features
from fer_edge.converters.sources import read_projection
from fer_edge.converters.student.network import load_student
from lab.random_clip import write_head

HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
OWN = {
    "half": HALF,
    "no mean at all": {"do_normalize": False},
    "from 0 to 255": {"do_rescale": False, "image_mean": [120, 110, 100], "image_std": [60, 61, 62]},
    "from 0 to 2": {"rescale_factor": 2 / 255, "image_mean": [1, 0.9, 0.8], "image_std": [0.5, 0.6, 0.7]},
}


@pytest.fixture
def copied(clip: Path, tmp_path: Path) -> Path:
    """A tiny CLIP that a test may change."""
    return Path(shutil.copytree(clip, tmp_path / "copied"))


def processor(folder: Path, **settings: Any) -> CLIPImageProcessorPil:
    """transformers' own image processor of 32 x 32 pixels with these settings, saved into ``folder``."""
    edge = {"height": 32, "width": 32}
    made = CLIPImageProcessorPil(size=edge, crop_size=edge, do_center_crop=False, resample=2, **settings)
    made.save_pretrained(folder)
    return made


@pytest.mark.parametrize("settings", OWN.values(), ids=OWN)
def test_mean_and_std_are_the_sources_own(copied: Path, settings: dict[str, Any]) -> None:
    """Against transformers' processor on a crop that it neither cuts nor resizes."""
    own = processor(copied, **settings)
    reference = open_reference(str(copied))
    crop = augmented(1, 32, "rgb", 3)
    expected = own(Image.fromarray(crop[0]), return_tensors="np")["pixel_values"]
    mean, std = (np.array(v)[None, :, None, None] for v in (reference.spec.mean, reference.spec.std))
    np.testing.assert_allclose((crop.transpose(0, 3, 1, 2) / 255 - mean) / std, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        body = reference.encoder.body(torch.from_numpy(expected).float())
    np.testing.assert_allclose(
        reference_features(reference, crop)[0], body[0].numpy() @ reference.encoder.last.T, rtol=1e-3, atol=1e-4
    )
    assert any("the source's own mean" in note for note in reference.notes)


def test_a_projection_goes_with_the_pixels_it_was_learned_with(copied: Path, clip: Path) -> None:
    """A released head: none, whatever the source's processor says; and what is stated counts before either."""
    processor(copied, **HALF)
    assert open_reference(str(copied), clip.parent / "head.pth").spec.mean == (0.0, 0.0, 0.0)
    assert open_reference(str(copied), normalize="none").spec.std == (1.0, 1.0, 1.0)
    assert open_reference(str(copied), normalize="clip").spec.mean == (0.5, 0.5, 0.5)
    assert open_reference(str(copied), normalize=((0.4,), (0.2, 0.3, 0.4))).spec.std == (0.2, 0.3, 0.4)
    assert open_reference(str(clip)).spec.mean == CLIP_MEAN


def test_the_processor_of_transformers_5_lies_in_another_file(copied: Path) -> None:
    processor(copied, **HALF)
    file = copied / "preprocessor_config.json"
    (copied / "processor_config.json").write_text(json.dumps({"image_processor": json.loads(file.read_text())}))
    file.unlink()
    assert own_pixels(str(copied), 32)[0] == ((0.5,) * 3, (0.5,) * 3)
    (copied / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert own_pixels(str(copied), 32) == ((CLIP_MEAN, CLIP_STD), ())


def test_what_a_bundle_does_not_do_with_pixels_is_said(copied: Path) -> None:
    CLIPImageProcessorPil().save_pretrained(copied)
    (note,) = open_reference(str(copied)).notes
    assert "resizes the shorter side to 224 (bicubic) and cuts the middle 224 x 224; here the whole face crop" in note
    assert "stretched to 32 x 32 (bilinear)" in note
    processor(copied, image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))
    assert open_reference(str(copied)).notes == ()


@pytest.mark.parametrize(
    "raw", ['{"image_std": [0, 1, 1]}', '{"image_mean": "x"}', '{"image_mean": [1, 2]}', "[1]", "{", '{"resample": 99}']
)
def test_a_malformed_processor_is_one_error(copied: Path, raw: str) -> None:
    (copied / "preprocessor_config.json").write_text(raw)
    with pytest.raises(fer_edge.ConversionError, match=r"copied: preprocessor_config\.json is") as caught:
        open_reference(str(copied))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        (((123.7,) * 3, (58.4,) * 3), "divide them by 255"),
        (((0.5,), (0.0,)), "std is above 0"),
        (((float("nan"),), (1.0,)), "finite"),
        (((0.5, 0.5), (0.5, 0.5)), "one number, or 3"),
    ],
)
def test_stated_numbers_that_cannot_be_meant(numbers: Any, reason: str) -> None:
    with pytest.raises(fer_edge.UsageError, match=reason):
        stated(numbers, 3)


def test_stated_numbers_on_the_command_line(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for value, reason in (("0.5,0.5,0.5", "2 or 6 numbers"), ("plain", "none of auto"), ("123,58", "divide them by 255")):
        with pytest.raises(SystemExit) as end:
            main(["convert", str(clip), "-o", str(clip / "never"), "--runtime", "litert", "--normalize", value])
        assert end.value.code == 2
        assert reason in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", str(STUDENT), "-o", str(clip / "never"), "--normalize", "0.5,0.5"])
    assert "go with a CLIP" in capsys.readouterr().err
    assert not (clip / "never").exists()


def with_weights(folder: Path, **tensors: torch.Tensor) -> None:
    file = folder / "model.safetensors"
    named = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file({**load_file(file), **named}, file, metadata={"format": "pt"})


def bias(folder: Path) -> None:
    with_weights(folder, visual_projection__bias=torch.ones(SMALL["dim"]))


def lora(folder: Path) -> None:
    name = "vision_model__encoder__layers__0__self_attn__q_proj__lora_A__default__weight"
    with_weights(folder, **{name: torch.ones(4, SMALL["width"])})


def peft(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4}')


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (bias, "no place for, the first is visual_projection.bias"),
        (lora, "no place for.*lora_A"),
        (peft, "merge_and_unload"),
    ],
)
def test_weights_that_an_encoder_has_no_place_for_are_refused(
    copied: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(copied)
    with pytest.raises(fer_edge.ConversionError, match=reason) as caught:
        open_reference(str(copied))
    assert "\n" not in str(caught.value)


def test_weights_beside_the_encoder_are_left_out_and_said(copied: Path, clip: Path) -> None:
    """They change no answer: another model's head in the same file, a file of weights that nothing reads."""
    with_weights(copied, classifier__weight=torch.ones(7, SMALL["dim"]))
    shutil.copy(clip.parent / "head.pth", copied / "head.pth")
    (copied / "optimizer.pt").write_bytes(b"")
    crops = augmented(4, 32, "rgb", 3)

    def answers(reference: Reference) -> np.ndarray:
        return reference_features(reference, crops)

    opened, head = open_reference(str(copied)), open_reference(str(copied), copied / "head.pth")
    assert (answers(opened) == answers(open_reference(str(clip)))).all()
    assert [note.partition(": ")[2] for note in opened.notes] == [
        "1 weights are no part of the encoder and were left out, the first is classifier.weight",
        "files of weights that were not read: head.pth, optimizer.pt",
    ]
    assert head.notes[-1].endswith("not read: optimizer.pt")


def test_what_else_a_projection_file_holds(tmp_path: Path) -> None:
    weight = write_head(tmp_path / "head.pth", 32, 20)
    assert read_projection(tmp_path / "head.pth", 32)[2] == ()
    held: dict[str, dict[str, torch.Tensor]] = {
        "bias": {"mlp.weight": weight, "mlp.bias": torch.ones(20)},
        "layers": {"mlp.0.weight": weight, "mlp.2.weight": torch.ones(20, 20)},
        "unnamed layers": {"head.weight": weight, "head.bias": torch.ones(20)},
        "no bias": {"mlp.weight": weight, "mlp.bias": torch.zeros(20)},
        "other name": {"proj": weight},
        "others": {"mlp.weight": weight, "clip.logit_scale": torch.tensor(1.0)},
    }
    for name, tensors in held.items():
        torch.save(tensors, tmp_path / f"{name}.pth")
    for name, reason in (
        ("bias", "holds mlp.bias beside"),
        ("layers", "mlp.0.weight"),
        ("unnamed layers", "holds head.bias"),
    ):
        with pytest.raises(fer_edge.ConversionError, match=reason):
            read_projection(tmp_path / f"{name}.pth", 32)
    for name, notes in (("no bias", []), ("other name", ["its only matrix, proj"]), ("others", ["1 other tensors"])):
        matrix, _, said = read_projection(tmp_path / f"{name}.pth", 32)
        np.testing.assert_array_equal(matrix, weight.numpy())
        assert len(said) == len(notes)
        assert all(part in note for part, note in zip(notes, said, strict=True))


def test_a_student_checkpoint_holds_a_student_and_nothing_else(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(STUDENT, framework="pt") as file:
        header = file.metadata()
    save_file({**load_file(STUDENT), "adapter.weight": torch.ones(2)}, tmp_path / "more.safetensors", metadata=header)
    with pytest.raises(fer_edge.ConversionError, match=r"more\.safetensors holds adapter\.weight"):
        load_student(tmp_path / "more.safetensors")
