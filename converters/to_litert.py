"""LiteRT artefacts: .tflite with one signature (image -> feature, logits).

int8 of a ViT is dynamic-range (static w8a8 loses its fidelity); of a convolutional student static w8a8, which NPUs
want. The head after the convolutions stays in float: a quantized L2 normalisation converts and then fails at the first
run."""

from __future__ import annotations

import shutil
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_quantizer import calibrator, quantizer, recipe, recipe_manager
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import (
    ComputePrecision,
    OpQuantizationConfig,
    TensorDataType,
    TensorQuantizationConfig,
    TFLOperationName,
)
from ai_edge_quantizer.utils import qsv_utils
from numpy.typing import NDArray

from .exporter import Export

_SIGNATURE = "serving_default"
_LOGITS = "^serving_default_logits_output"
_STATIC_OPS = (TFLOperationName.CONV_2D, TFLOperationName.DEPTHWISE_CONV_2D, TFLOperationName.PAD)


def trace(export: Export) -> Path:
    """The float model, a file."""
    plain = export.scratch / "plain.tflite"
    with torch.no_grad():
        model = litert_torch.convert(export.graph, sample_kwargs={"image": torch.from_numpy(export.example)})
    plain.write_bytes(model.model_content())  # its own writer ends the process without a word when the disk is full
    return plain


def write(traced: Path, precision: str, export: Export, folder: Path) -> list[str]:
    """Write one artefact into ``folder``; its file's name."""
    name = f"litert-{precision}.tflite"
    if precision == "fp32":
        shutil.copyfile(traced, folder / name)
    elif precision == "fp16":
        _quantized(_fp16(traced), folder / name)
    elif calibrated(export):
        _static(traced, folder / name, export.calibration)
    else:
        _quantized(_dynamic(traced), folder / name)
    return [name]


def calibrated(export: Export) -> bool:
    """Of a student; a ViT's ranges are taken at run time."""
    return export.architecture == "cnn"


def _fp16(plain: Path) -> quantizer.Quantizer:
    work = quantizer.Quantizer(str(plain))
    config = OpQuantizationConfig(
        weight_tensor_config=TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT),
        compute_precision=ComputePrecision.FLOAT,
        explicit_dequantize=True,
    )
    work.update_quantization_recipe(".*", TFLOperationName.ALL_SUPPORTED, config, algorithm_key="float_casting")
    return work


def _dynamic(plain: Path) -> quantizer.Quantizer:
    """All of it but the product with the class constants."""
    work = quantizer.Quantizer(str(plain), recipe.dynamic_wi8_afp32())
    work.update_quantization_recipe(_LOGITS, TFLOperationName.ALL_SUPPORTED, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return work


def _static(plain: Path, target: Path, calibration: NDArray[np.uint8]) -> None:
    recipes = recipe_manager.RecipeManager()
    for op in _STATIC_OPS:
        recipes.add_static_config(".*", op, activation_num_bits=8, weight_num_bits=8)
    # The quantizer's own calibrate() averages minima and maxima, and clips whatever a face in hard light exceeds them by.
    ranges = calibrator.Calibrator(str(plain), num_threads=2, qsv_update_func=qsv_utils.min_max_update)
    ranges.calibrate({_SIGNATURE: [{"image": crop[None]} for crop in calibration]}, recipes)
    seen = ranges.get_model_qsvs()
    work = quantizer.Quantizer(str(plain), recipes.get_quantization_recipe())
    target.write_bytes(bytes(work.quantize(seen, enable_progress_bar=False, enable_progress_report=False).quantized_model))


def _quantized(work: quantizer.Quantizer, target: Path) -> None:
    target.write_bytes(bytes(work.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model))
