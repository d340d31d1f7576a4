"""Hugging Face folders and ids: what lies beside the weights, and what of them a model has no place for."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fer_edge.errors import ConversionError, FerEdgeError

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_READ = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""The order in which transformers takes the first one that is there (``modeling_utils.py``)."""


def reason_of(error: Exception) -> str:
    """The first line of an error: transformers goes on with advice."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__


def side_file(source: str, name: str) -> Path | None:
    """A file of a folder or id, None where it has none. A folder is read without any network. Raises ConversionError."""
    from transformers.utils import cached_file

    if Path(source).exists():
        file = Path(source, name)
        return file if file.is_file() else None
    try:
        where = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except Exception as error:  # of a connection that fails, in several layers
        raise ConversionError(f"{source}: whether it has a {name} cannot be found out ({reason_of(error)})") from error
    return Path(where) if where else None


def refuse_adapters(source: str, error: type[FerEdgeError] = ConversionError) -> None:
    """Raise ``error`` where a PEFT adapter lies beside the weights: transformers leaves it out without a word where peft is
    not installed."""
    if side_file(source, "adapter_config.json") is not None:
        raise error(
            f"{source} holds an adapter beside its weights (adapter_config.json) that is not merged into them: merge it "
            "(peft: model.merge_and_unload(), then save_pretrained) and give the merged model"
        )


def unread_weights(source: str, *used: Path | None) -> tuple[str, ...]:
    """A note on the files of weights in a folder that nothing reads; ``used`` are those that something else does."""
    folder = Path(source)
    if not folder.is_dir():
        return ()
    first = next((folder / name for name in _READ if (folder / name).is_file()), folder)
    read = {first.name, *(file.name for file in used if file is not None and file.resolve().parent == folder.resolve())}
    if first.suffix == ".json":
        read |= set(json.loads(first.read_text(encoding="utf-8"))["weight_map"].values())
    left = sorted(file.name for file in folder.iterdir() if file.suffix in _WEIGHTS and file.name not in read)
    return (f"{source}: files of weights that were not read: {', '.join(left)}",) if left else ()


def check_weights(
    source: str,
    model: Any,
    info: Mapping[str, Collection[str]],
    unused: tuple[str, ...] = (),
    error: type[FerEdgeError] = ConversionError,
) -> tuple[str, ...]:
    """Notes on weights of a file that are of no use to ``model``, from what ``from_pretrained`` says of its loading.

    Raises ``error`` where weights are missing (transformers draws random ones) but those of ``unused`` modules, and where
    there are some inside the model's own modules that it has no place for: a bias, or an adapter's."""
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(unused))
    if missing:
        raise error(f"{source} is incomplete: {len(missing)} weights are missing, the first is {missing[0]}")
    prefix = f"{model.base_model_prefix}."
    own = {name.split(".")[0] for name in model.state_dict()}
    odd = sorted(key for key in info["unexpected_keys"] if not key.endswith("position_ids"))
    inside = [key for key in odd if key.removeprefix(prefix).split(".")[0] in own or "lora_" in key]
    if inside:
        raise error(
            f"{source} holds {len(inside)} weights that a {type(model).__name__} has no place for, the first is "
            f"{inside[0]}: an adapter must be merged first, and a bias or another layer there cannot be converted"
        )
    if not odd:
        return ()
    return (f"{source}: {len(odd)} weights are no part of the encoder and were left out, the first is {odd[0]}",)
