"""The text side of a student: sentences, the words of the figures, class constants, the fit of the projection."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from learning import LABELS, LEARN
from torch import Tensor
from torch.nn import functional as F

import fer_edge
from fer_edge.converters.student.language import TextRecipe, constants, default_constants, draw, fit_text_projection
from fer_edge.converters.student.sentences import TEMPLATES, descriptions, phrases
from fer_edge.converters.text import sentence_encoder
from fer_edge.labels import read_prompt_file
from lab.training_figures import HELD_OUT


def world(seed: int, noise: float = 0.15) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Five classes: normalised features (400, 12) around centres, their targets, and sentence vectors (30, 20) of each
    class around centres of their own, 20 to learn from and 10 to ask about."""
    generator = torch.Generator().manual_seed(seed)

    def around(centres: Tensor, rows: Tensor) -> Tensor:
        spread = torch.randn(len(rows), centres.shape[1], generator=generator)
        return F.normalize(centres[rows] + noise * spread, dim=-1)

    pictures = F.normalize(torch.randn(5, 12, generator=generator), dim=-1)
    language = F.normalize(torch.randn(5, 20, generator=generator), dim=-1)
    classes = torch.arange(400) % 5
    sentences = [around(language, torch.full((30,), k)) for k in range(5)]
    targets = F.one_hot(classes, 5).float()
    return around(pictures, classes), targets, [s[:20] for s in sentences], [s[20:] for s in sentences]


def test_the_fitted_text_side_knows_sentences_it_has_not_seen() -> None:
    """Classes are recognised by single sentences that took no part in the fit; without the fit they are not."""
    features, targets, known, unseen = world(0)
    recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02)
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    given, done = start[0].clone(), []

    def right(projection: Tensor) -> float:
        hits = [
            (features @ constants(torch.stack([s[j : j + 1] for s in unseen]), projection).T).argmax(1) == targets.argmax(1)
            for j in range(10)
        ]
        return float(torch.stack(hits).float().mean())

    r, scale = fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 1, done.append)
    assert right(start[0]) < 0.6
    assert right(r) > 0.95
    assert torch.equal(start[0], given)
    assert 0 < scale <= 100
    assert len(done) == 150
    assert done == sorted(done)
    assert done[-1] == 1.0
    again = fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 1)
    assert torch.equal(again[0], r)
    assert again[1] == scale
    assert not torch.equal(fit_text_projection(features, targets, known, known, start, torch.zeros(5), recipe, 2)[0], r)


def test_the_fit_discounts_what_is_frequent() -> None:
    """An adjustment that speaks for a class during the fit speaks against it afterwards."""
    features, targets, known, _ = world(3, noise=0.9)
    recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02)
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    shares = []
    for adjustment in (torch.zeros(5), torch.tensor([2.0, 0, 0, 0, 0])):
        r, _ = fit_text_projection(features, targets, known, known, start, adjustment, recipe, 1)
        shares.append(float(((features @ default_constants(known, r).T).argmax(1) == 0).float().mean()))
    assert shares[1] < shares[0] - 0.03


def test_the_label_sets_own_constants_count_most() -> None:
    """Where a label's own sentences mean something else than its other phrases, they win as their weight grows."""
    features, targets, known, _ = world(3, noise=0.9)
    told = [known[(k + 1) % 5] for k in range(5)]
    start = (torch.nn.init.orthogonal_(torch.empty(12, 20), generator=torch.Generator().manual_seed(1)), 12.0)
    right = []
    for weight in (0.0, 0.5, 1.0):
        recipe = TextRecipe(steps=150, batch=64, lr=1e-2, noise=0.02, told=weight)
        r, _ = fit_text_projection(features, targets, known, told, start, torch.zeros(5), recipe, 1)
        hits = (features @ default_constants(told, r).T).argmax(1) == targets.argmax(1)
        right.append(float(hits.float().mean()))
    assert right[0] < 0.2 < right[1] < right[2]
    assert right[2] > 0.45


def test_sentences_are_drawn_without_repeats_where_there_are_enough() -> None:
    groups = [torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3) for n in (10, 3, 5)]
    generator = torch.Generator().manual_seed(0)
    orders = set()
    for _ in range(20):
        drawn = draw(groups, 5, 0.0, generator)
        assert drawn.shape == (3, 5, 3)
        large, small, exact = (row[:, 0].tolist() for row in drawn)
        assert len(set(large)) == 5
        assert set(large) <= set(range(10))
        assert set(small[:3]) == {0, 1, 2}
        assert len(set(small[3:])) == 2
        assert sorted(exact) == [0, 1, 2, 3, 4]
        orders.add((*large, *small, *exact))
    assert len(orders) == 20
    calm, noisy = (draw([torch.zeros(400, 50)], 400, noise, generator) for noise in (0.0, 0.05))
    assert not calm.any()
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.05)
    one, two = (draw(groups, 4, 0.1, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(one, two)


def test_constants_are_means_of_unit_vectors_and_not_unit_themselves() -> None:
    vectors = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[3.0, 4.0], [6.0, 8.0]]])
    torch.testing.assert_close(constants(vectors, torch.eye(2)), torch.tensor([[0.3, 0.9], [0.6, 0.8]]))
    swapped = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    groups = [vectors[0], torch.tensor([[3.0, 4.0]])]
    torch.testing.assert_close(default_constants(groups, swapped), torch.tensor([[0.9, 0.3], [0.8, 0.6]]))


STEMS = (
    *(
        r"joy",
        r"rejoic",
        r"grie[fv]",
        r"calm",
        r"\brag(e|ing)\b",
        r"enrag",
        r"outrag",
        r"shock",
        r"revul",
        r"revol",
        r"terror",
    ),
    *(r"terrif", r"scorn", r"delight", r"sorr", r"seren", r"fur[iy]", r"astoni", r"loath", r"dread", r"disdain"),
)
"""Every form of the words that the language figures are measured with."""


def test_words_are_many_and_stand_under_one_label_each() -> None:
    words, told = read_prompt_file(LEARN / "words.toml"), descriptions()
    assert tuple(words) == tuple(told) == LABELS
    assert min(map(len, words.values())) >= 25
    every = [word.strip().lower() for group in words.values() for word in group]
    assert sorted(set(every)) == sorted(every)
    # Put into templates, they are still all different, and none is lost.
    sentences = [text for group in phrases().values() for text in group]
    assert len(sentences) == len(set(sentences))
    assert phrases()["fear"] == tuple(
        dict.fromkeys([*told["fear"], *(t.format(word) for word in words["fear"] for t in TEMPLATES)])
    )


def test_the_words_of_the_figures_are_kept_out() -> None:
    """Else the figures would say what the text side was told, and not what it found out."""
    measured = [word for words in HELD_OUT.values() for word in words]
    assert [word for word in measured if not any(re.search(stem, word) for stem in STEMS)] == []
    sentences = [text for group in phrases().values() for text in group]
    assert [text for text in sentences if any(re.search(stem, text.lower()) for stem in STEMS)] == []
    assert {len(words) for words in HELD_OUT.values()} == {len(LABELS)}


def bert(folder: Path, pooling: str | None = None) -> Path:
    """A sentence encoder as sentence-transformers saves one, small and random."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {
        word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", "happiness", "anger", ".", ";", "eyes"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    if pooling is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(pooling)
    return folder


def dense(folder: Path) -> Path:
    """As sentence-transformers lists the layers of a model that ends in a matrix product."""
    kinds = ("Transformer", "Pooling", "Dense")
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]))
    return folder


def adapted(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return folder


def test_a_sentence_encoder_is_whole_or_none(tmp_path: Path) -> None:
    """transformers fills missing weights with random numbers, other ones at every run."""
    from safetensors.torch import load_file, save_file

    whole = sentence_encoder(str(bert(tmp_path / "whole", '{"pooling_mode_mean_tokens": true}')))
    assert whole.encode(["a photo of anger", "a photo"]).shape == (2, 16)
    file = bert(tmp_path / "less") / "model.safetensors"
    weights = load_file(file)
    save_file({k: v for k, v in weights.items() if "layer.1." not in k}, file, metadata={"format": "pt"})
    with pytest.raises(fer_edge.LabelError, match=r"less is incomplete: \d+ weights are missing"):
        sentence_encoder(str(tmp_path / "less"))
    file.write_bytes(file.read_bytes()[:1000])
    for folder, words in (
        (tmp_path / "less", "not a readable sentence encoder"),
        (bert(tmp_path / "cls", '{"pooling_mode_cls_token": true}'), "mean pooling"),
        (bert(tmp_path / "half", '{"pooling_mode'), "not a readable sentence encoder"),
        (dense(bert(tmp_path / "dense")), "a layer Dense after its pooling"),
        (adapted(bert(tmp_path / "adapted")), "merge_and_unload"),
    ):
        with pytest.raises(fer_edge.LabelError, match=words):
            sentence_encoder(str(folder))
