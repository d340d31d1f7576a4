"""LiteRT artefacts: .tflite with one signature (image -> feature, logits).

int8 of a ViT is dynamic-range (static w8a8 loses its fidelity); of a convolutional student static w8a8, in integers from
the picture to ``feature``, which NPUs want. The head after it stays in float: a quantized L2 normalisation converts and
then fails at the first run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

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

from . import tflite_graph, tflite_metadata
from .exporter import Export

_SIGNATURE = "serving_default"
_LOGITS = "^serving_default_logits_output"
_STATIC_OPS = (
    (".*", TFLOperationName.CONV_2D),
    (".*", TFLOperationName.DEPTHWISE_CONV_2D),
    (".*", TFLOperationName.PAD),
    (".*", TFLOperationName.MEAN),
    ("^feature_in_one_range", TFLOperationName.FULLY_CONNECTED),
)
"""(names of outputs, operator) of a student's body."""
ROOM = 1.2
"""How much farther than on the calibration faces a channel of the feature may reach before it is clipped."""


def trace(export: Export) -> Path:
    """The float model, a file."""
    plain = export.scratch / "plain.tflite"
    with torch.no_grad():
        model = litert_torch.convert(export.graph, sample_kwargs={"image": torch.from_numpy(export.example)})
    plain.write_bytes(model.model_content())  # its own writer ends the process without a word when the disk is full
    changed = tflite_graph.read(plain)
    tflite_graph.pool_where_it_lies(changed)
    tflite_graph.write(changed, plain)
    return plain


def write(traced: Path, precision: str, export: Export, folder: Path) -> list[str]:
    """Write one artefact into ``folder``; its file's name."""
    name = f"litert-{precision}.tflite"
    if precision == "fp32":
        shutil.copyfile(traced, folder / name)
    elif precision == "fp16":
        _quantized(_fp16(traced), folder / name)
    elif calibrated(export):
        _static(traced, folder / name, export)
    else:
        _quantized(_dynamic(traced), folder / name)
    if export.about:
        tflite_metadata.describe(folder / name, export.about)
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


def _static(plain: Path, target: Path, export: Export) -> None:
    body = export.scratch / "body.tflite"
    model = tflite_graph.read(plain)
    with torch.no_grad():
        feature = np.concatenate(
            [export.graph(torch.from_numpy(crop[None]))["feature"].numpy() for crop in export.calibration]
        )
    low, high = feature.min(0), feature.max(0)
    more = (high - low) * np.float32((ROOM - 1) / 2)
    between = tflite_graph.share_one_range(model, "feature", low - more, high + more)
    tflite_graph.write(model, body)
    recipes = recipe_manager.RecipeManager()
    for outputs, op in _STATIC_OPS:
        recipes.add_static_config(outputs, op, activation_num_bits=8, weight_num_bits=8)
    # The quantizer's own calibrate() averages minima and maxima, and clips whatever a face in hard light exceeds them by.
    ranges = calibrator.Calibrator(str(body), num_threads=2, qsv_update_func=qsv_utils.min_max_update)
    ranges.calibrate({_SIGNATURE: [{"image": crop[None]} for crop in export.calibration]}, recipes)
    seen = ranges.get_model_qsvs()
    for name, bound in (("min", -1.0), ("max", 1.0)):
        seen[between][name] = np.full_like(seen[between][name], bound)
    work = quantizer.Quantizer(str(body), recipes.get_quantization_recipe())
    _quantized(work, target, seen)
    model = tflite_graph.read(target)
    tflite_graph.take_pixels_as_integers(model)
    tflite_graph.write(model, target)


def _quantized(work: quantizer.Quantizer, target: Path, seen: Any = None) -> None:
    result = work.quantize(seen, enable_progress_bar=False, enable_progress_report=False)
    target.write_bytes(bytes(result.quantized_model))
