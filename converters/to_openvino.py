"""OpenVINO artefacts: .xml and .bin. int8 by NNCF post-training quantization; the head after ``feature`` stays in
float."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nncf
import numpy as np
import openvino as ov
import torch
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from numpy.typing import NDArray

from .exporter import Export

_PRODUCTS = ("MatMul", "ScaledDotProductAttention")


def trace(export: Export) -> Any:
    """The float model."""
    example = export.example
    with torch.no_grad():
        model = ov.convert_model(export.graph, example_input=torch.from_numpy(example), input=list(example.shape))
    for output, name in zip(model.outputs, ("feature", "logits"), strict=True):
        output.get_tensor().set_names({name})
    model.inputs[0].get_tensor().set_names({"image"})
    model.get_parameters()[0].set_layout(ov.Layout("NHWC"))
    feature, logits = model.get_results()
    model = ov.Model([logits, feature], model.get_parameters(), "fer-edge")  # whoever takes one output takes the first
    for name, value in export.about.model_info().items() if export.about else ():
        model.set_rt_info(value, ["model_info", name])
    for name, value in export.about.facts().items() if export.about else ():
        model.set_rt_info(value, ["fer_edge", name])
    return model


def write(traced: Any, precision: str, export: Export, folder: Path) -> list[str]:
    """Write one artefact into ``folder``; its files' names, the graph's first."""
    stem = f"openvino-{precision}"
    model = _int8(traced, export.calibration, export.architecture) if precision == "int8" else traced
    ov.save_model(model, folder / f"{stem}.xml", compress_to_fp16=precision == "fp16")
    return [f"{stem}.xml", f"{stem}.bin"]


def calibrated(export: Export) -> bool:
    """Always: NNCF measures the ranges."""
    return True


def _int8(model: Any, calibration: NDArray[np.uint8], architecture: str) -> Any:
    return nncf.quantize(
        model.clone(),
        nncf.Dataset([crop[None] for crop in calibration]),
        model_type=nncf.ModelType.TRANSFORMER if architecture == "vit" else None,
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=_kept_in_float(model)),
        # The exact correction runs the model layer by layer: seconds for a student, long for a ViT.
        fast_bias_correction=architecture == "vit",
        # The default averages minima and maxima over the faces, and clips whatever a face in hard light exceeds them by.
        advanced_parameters=None if architecture == "vit" else _whole_range(),
    )


def _whole_range() -> Any:
    whole = RangeEstimatorParametersSet.MINMAX
    return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=whole)


def _kept_in_float(model: Any) -> list[str]:
    """The head; and where tokens are merged, products of two activations: they choose and gather tokens, and 8 bits choose
    others. Attention is two such products in one operator."""
    ops = model.get_ordered_ops()
    if not any(op.get_type_name() == "TopK" for op in ops):
        return _head(model)
    constant, products = set(), []
    for op in ops:
        inputs = [value.get_node().get_friendly_name() for value in op.input_values()]
        known = [name in constant for name in inputs]
        if op.get_type_name() == "Constant" or (inputs and all(known)):
            constant.add(op.get_friendly_name())
        elif op.get_type_name() in _PRODUCTS and not any(known[:2]):  # attention has a constant scale, too
            products.append(op.get_friendly_name())
    head = _head(model)
    return [*head, *(name for name in products if name not in head)]


def _head(model: Any) -> list[str]:
    """Names of the operations that ``feature`` does not depend on: normalisation and class constants."""
    feature = next(r for r in model.get_results() if "feature" in r.input_value(0).get_names())
    body, waiting = set(), [feature]
    while waiting:
        op = waiting.pop()
        if op.get_friendly_name() not in body:
            body.add(op.get_friendly_name())
            waiting += [value.get_node() for value in op.input_values()]
    kinds = ("Constant", "Result", "Parameter")
    return [
        op.get_friendly_name()
        for op in model.get_ops()
        if op.get_friendly_name() not in body and op.get_type_name() not in kinds
    ]
