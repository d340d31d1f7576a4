"""Where the two sides of the pairs come from: a CLIP's image features; and what an LLM with eyes, or a file, knows of the
same faces.

LLM features, as the reference computes them (Exp-CLIP ``models/BLIP2_T5.py`` and ``models/Exp_CLIP.py``): BLIP-2's Q-Former
looks at the face without text; its 32 projected query tokens and the embedded instruction (with EOS) go through T5's
encoder; the plain mean of its final-norm output over all tokens, normalised. InstructBLIP's Q-Former reads the instruction
too (Dai et al., NeurIPS 2023). Deviations: weights are in eval mode (the reference leaves the frozen LLM's dropout on), and
nothing is decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fer_edge.errors import ConversionError, UsageError
from fer_edge.image import ImageLike, to_input

from ..hub import check_weights, reason_of, refuse_adapters, unread_weights
from ..pixels import CLIP_MEAN, CLIP_STD, Statistics, own_pixels
from ..sources import open_encoder
from ..text import source_name, weights_sha256
from .cache import Side, Source
from .text_vectors import descriptions_source, vectors_source

INSTRUCTION = (
    "Please play the role of a facial action describer. Objectively describe the detailed facial actions of the person in "
    "the image."
)
"""The paper's (section 3.2)."""

Pixels = Literal["plain", "clip"]


@dataclass(frozen=True)
class Wanted:
    """Which two sides: names and settings alone, so that a worker on another machine can open them too. One of ``llm``,
    ``llm_features`` and ``descriptions`` (with ``text_model``) is given; ``device``: None: cuda where torch sees one."""

    encoder: str
    llm: str | None = None
    llm_features: Path | None = None
    descriptions: Path | None = None
    text_model: str | None = None
    instruction: str | None = None
    pixels: Pixels = "plain"
    batch: int = 16
    device: str | None = None


def open_sources(wanted: Wanted) -> tuple[tuple[Source, float], Source]:
    """((image side, logit scale), LLM side). Raises UsageError for settings that do not go together, ConversionError."""
    if sum(given is not None for given in (wanted.llm, wanted.llm_features, wanted.descriptions)) != 1:
        raise UsageError("give one source of LLM knowledge: --llm, --llm-features or --descriptions")
    if (wanted.descriptions is None) != (wanted.text_model is None):
        raise UsageError("--descriptions and --text-model go together")
    if wanted.instruction is not None and wanted.llm is None:
        raise UsageError("--instruction is what --llm is asked; features from a file have been made already")
    device = wanted.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("torch sees no CUDA device here; leave --device out")
    image = image_source(wanted.encoder, wanted.pixels, device, wanted.batch)
    if wanted.llm is not None:
        return image, llm_source(wanted.llm, wanted.instruction or INSTRUCTION, wanted.pixels, device, wanted.batch)
    if wanted.llm_features is not None:
        return image, vectors_source(wanted.llm_features)
    assert wanted.descriptions is not None
    assert wanted.text_model is not None
    return image, descriptions_source(wanted.descriptions, wanted.text_model)


def image_source(clip: str, pixels: Pixels = "plain", device: str = "cpu", batch: int = 64) -> tuple[Source, float]:
    """(image features E(x) of a CLIP, unnormalised and before any projection, and its logit scale). ``pixels``: "plain",
    value / 255, as the released heads were trained; "clip", with the CLIP's own mean and std. Raises ConversionError."""
    encoder = open_encoder(clip)
    if encoder.architecture != "vit":
        raise ConversionError(f"{clip} is a student; its projection is learned with it. Give a CLIP")
    half = device != "cpu"
    body = encoder.body.to(device)
    last = torch.from_numpy(encoder.last).to(device)
    statistics = _statistics(pixels, encoder.pixels)
    run = _Batches(lambda x: F.linear(body(x).float(), last), encoder.size, statistics, device, half, batch)
    settings = {"pixels": pixels, "half": str(half)}
    if pixels == "clip" and encoder.pixels != (CLIP_MEAN, CLIP_STD):
        settings["statistics"] = str(encoder.pixels)
    side = Side(encoder.source.source, encoder.source.sha256, len(encoder.last), settings)
    return Source(side, lambda pictures, names: run(pictures), batch, notes=encoder.notes), encoder.logit_scale


def llm_source(
    source: str, instruction: str = INSTRUCTION, pixels: Pixels = "plain", device: str = "cpu", batch: int = 8
) -> Source:
    """LLM features of a BLIP-2 or InstructBLIP whose language model is a T5. On a GPU in bf16. ``pixels``: "plain", value /
    255, as the reference does; "clip", with the mean and std of the model's own processor. Raises ConversionError."""
    model, tokens, asked, notes = _load_llm(source, instruction, torch.bfloat16 if device != "cpu" else torch.float32)
    sha = weights_sha256({k: v for k, v in model.state_dict().items() if v.is_floating_point()}, [tokens, asked])
    model = model.to(device)
    ids = torch.tensor([tokens], device=device)
    asked_ids = None if asked is None else torch.tensor([asked], device=device)

    def features(x: Tensor) -> Tensor:
        return llm_features(model, x.to(model.dtype), ids, asked_ids).float()

    size = int(model.config.vision_config.image_size)
    statistics = own_pixels(source, size)[0] if pixels == "clip" else (CLIP_MEAN, CLIP_STD)
    run = _Batches(features, size, _statistics(pixels, statistics), device, False, batch)
    dim = int(model.config.text_config.d_model)
    settings = {
        "kind": str(model.config.model_type),
        "instruction": instruction,
        "pixels": pixels,
        "dtype": str(model.dtype),
    }
    if statistics != (CLIP_MEAN, CLIP_STD):
        settings["statistics"] = str(statistics)
    return Source(Side(source_name(source), sha, dim, settings), lambda pictures, names: run(pictures), batch, notes=notes)


@torch.inference_mode()
def llm_features(model: Any, x: Tensor, tokens: Tensor, asked: Tensor | None) -> Tensor:
    """Normalised mean (N, P) of the T5 encoder's output for pixels (N, 3, S, S), the instruction's ``tokens`` (1, n) and,
    for InstructBLIP, those of its Q-Former (1, m)."""
    count = len(x)
    seen = model.vision_model(pixel_values=x).last_hidden_state
    whole = torch.ones(seen.shape[:-1], dtype=torch.long, device=x.device)
    queries = model.query_tokens.expand(count, -1, -1)
    if asked is None:
        found = model.qformer(query_embeds=queries, encoder_hidden_states=seen, encoder_attention_mask=whole)
    else:
        ids = asked.expand(count, -1)
        mask = torch.ones(count, queries.shape[1] + ids.shape[1], dtype=torch.long, device=x.device)
        found = model.qformer(
            input_ids=ids,
            attention_mask=mask,
            query_embeds=queries,
            encoder_hidden_states=seen,
            encoder_attention_mask=whole,
        )
    spoken = model.language_projection(found.last_hidden_state[:, : queries.shape[1]].to(x.dtype))
    encoder = model.language_model.encoder
    words = encoder.embed_tokens(tokens).expand(count, -1, -1)
    inputs = torch.cat([spoken, words.to(spoken.dtype)], 1)
    mask = torch.ones(inputs.shape[:-1], dtype=torch.long, device=x.device)
    said = encoder(inputs_embeds=inputs, attention_mask=mask).last_hidden_state
    return F.normalize(said.float().mean(1), dim=-1)


def _load_llm(source: str, instruction: str, dtype: torch.dtype) -> tuple[Any, list[int], list[int] | None, tuple[str, ...]]:
    """(model in eval mode without its decoder, tokens of the instruction for the T5, and for an InstructBLIP's Q-Former,
    notes on what of its files is left out)."""
    from transformers import (
        AutoConfig,
        AutoTokenizer,
        Blip2ForConditionalGeneration,
        InstructBlipForConditionalGeneration,
    )

    kinds = {"blip-2": Blip2ForConditionalGeneration, "instructblip": InstructBlipForConditionalGeneration}
    local = Path(source).exists()
    try:
        config = AutoConfig.from_pretrained(source, local_files_only=local)
        kind = kinds.get(config.model_type)
        if kind is None or config.use_decoder_only_language_model:
            raise ConversionError(
                f"{source} is a {config.model_type} model; LLM features come from a BLIP-2 or InstructBLIP with a T5 "
                "inside, or from a file (--llm-features, --descriptions)"
            )
        refuse_adapters(source)
        model, info = kind.from_pretrained(source, local_files_only=local, dtype=dtype, output_loading_info=True)
        tokens = AutoTokenizer.from_pretrained(source, local_files_only=local)(instruction)["input_ids"]
        asked = None
        if config.model_type == "instructblip":
            reader = AutoTokenizer.from_pretrained(source, subfolder="qformer_tokenizer", local_files_only=local)
            asked = reader(instruction)["input_ids"]
    except ConversionError:
        raise
    except Exception as error:  # a damaged file makes transformers and its readers raise what they like
        raise ConversionError(f"{source} is not a readable BLIP-2 ({reason_of(error)})") from error
    notes = (*check_weights(source, model, info), *unread_weights(source))
    _check_tokens(source, tokens, config.text_config)
    del model.language_model.decoder, model.language_model.lm_head  # half of the memory, and nothing is decoded
    return model.eval().requires_grad_(False), tokens, asked, notes


def _check_tokens(source: str, tokens: Sequence[int], text: Any) -> None:
    """Where tokenizer files are missing, transformers builds an empty one without a word."""
    if len(set(tokens)) < 5 or tokens[-1] != text.eos_token_id or max(tokens) >= text.vocab_size:
        raise ConversionError(
            f"{source} has no tokenizer that fits its language model; tokenizer.json or spiece.model must be there"
        )


def _statistics(pixels: Pixels, own: Statistics = (CLIP_MEAN, CLIP_STD)) -> tuple[Tensor, Tensor] | None:
    if pixels == "plain":
        return None
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in own)
    return mean, std


class _Batches:
    """Runs a model over pictures in batches, halved when the device's memory does not hold one."""

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        size: int,
        statistics: tuple[Tensor, Tensor] | None,
        device: str,
        half: bool,
        batch: int,
    ) -> None:
        self._model, self._size, self._statistics = model, size, statistics
        self._device, self._half, self._batch = device, half, batch

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[ImageLike]) -> NDArray[np.float32]:
        rows: list[NDArray[np.float32]] = []
        start = 0
        while start < len(pictures):
            part = pictures[start : start + self._batch]
            try:
                rows.append(self._run(part))
            except torch.OutOfMemoryError:
                if self._batch == 1:
                    raise
                torch.cuda.empty_cache()
                self._batch = max(1, self._batch // 2)
                continue
            start += len(part)
        return np.concatenate(rows)

    def _run(self, pictures: Sequence[ImageLike]) -> NDArray[np.float32]:
        crops = np.stack([to_input(picture, (self._size, self._size), "rgb") for picture in pictures])
        x = torch.from_numpy(crops).to(self._device).permute(0, 3, 1, 2).float() / 255
        if self._statistics is not None:
            mean, std = self._statistics
            x = (x - mean.to(x.device)) / std.to(x.device)
        with torch.autocast(self._device, torch.float16, enabled=self._half):
            features: NDArray[np.float32] = self._model(x).float().cpu().numpy()
        return features
