"""Small BLIP-2s and InstructBLIPs with random weights, saved as Hugging Face folders: the mechanics of LLM features without
the 24 GB of the real ones. ``python -m lab.random_blip2 FOLDER [--instruct]``"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

WORDS = (
    "please play the role of a facial action describer . objectively describe detailed actions person in image what is this "
    "face picture answer : ?"
)


def write_tokenizer(folder: Path, start: str | None, end: str, pad: str) -> int:
    """Save a tokenizer of whole words, lower case, that puts ``start`` before a text and ``end`` behind it; returns how many
    tokens it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [pad, end, "[UNK]", *([start] if start else [])]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([*special, *WORDS.split()]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(token, vocabulary[token]) for token in (start, end) if token]
    template = f"{start} $A {end}" if start else f"$A {end}"
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=around)
    folder.mkdir(parents=True, exist_ok=True)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, pad_token=pad, unk_token="[UNK]").save_pretrained(
        folder
    )
    return len(vocabulary)


def write_blip2(folder: Path, instruct: bool = False, image: int = 32, text: int = 40, seed: int = 0) -> Any:
    """Save a random BLIP-2 (or InstructBLIP) with a T5 of width ``text`` into ``folder`` and return it, in eval mode.

    Weights are wider than at the start of a training, so that features of different faces differ."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        InstructBlipConfig,
        InstructBlipForConditionalGeneration,
    )

    tokens = write_tokenizer(folder, None, "</s>", "<pad>")
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": image, "patch_size": 8}
    former: dict[str, Any] = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    former |= {"encoder_hidden_size": 32, "cross_attention_frequency": 2, "vocab_size": tokens}
    t5 = {"model_type": "t5", "d_model": text, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": tokens}
    t5 |= {"feed_forward_proj": "gated-gelu", "eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}
    kind, made = (
        (InstructBlipConfig, InstructBlipForConditionalGeneration)
        if instruct
        else (Blip2Config, Blip2ForConditionalGeneration)
    )
    if instruct:
        former["vocab_size"] = write_tokenizer(folder / "qformer_tokenizer", "[CLS]", "[SEP]", "[PAD]")
    torch.manual_seed(seed)
    model = made(kind(vision_config=vision, qformer_config=former, text_config=t5, num_query_tokens=32))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 or "query_tokens" in name:
                weight.normal_(std=0.8 * weight.shape[-1] ** -0.5 if weight.ndim == 2 else 0.3)
    model = model.eval()
    model.save_pretrained(folder)
    return model


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--instruct", is_flag=True, help="An InstructBLIP, whose Q-Former reads the instruction.")
def blip2(folder: Path, instruct: bool) -> None:
    """Save a small random BLIP-2 into FOLDER."""
    write_blip2(folder, instruct)


if __name__ == "__main__":
    blip2()
