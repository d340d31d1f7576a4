"""Label sets: the score is the paper's formula, the prompts are the paper's, prompt files are read or refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fer_edge import LabelError
from fer_edge.bundle import label_set, open_bundle
from fer_edge.classifier import DEFAULT_BUNDLE
from fer_edge.labels import (
    LABEL_SETS,
    PAPER_LABELS,
    PROMPT_TYPES,
    SYNONYMS,
    LabelSet,
    built_in_prompts,
    check_labels,
    hidden_character,
    is_one_line,
    read_prompt_file,
    softmax,
)

Numbers = NDArray[np.float64]


def made(seed: int, labels: int = 5, dim: int = 32, scale: float = 100.0, temperature: float = 1.0) -> LabelSet:
    """A label set whose constants are means of unit vectors, as compiled ones are."""
    prompts = np.random.default_rng(seed).normal(size=(labels, 3, dim))
    constants = (prompts / np.linalg.norm(prompts, axis=-1, keepdims=True)).mean(1).astype(np.float32)
    names = tuple(f"label {k}" for k in range(labels))
    return LabelSet("made", names, constants, scale, temperature, tuple((name,) for name in names))


def formula(labels: LabelSet, feature: Numbers) -> tuple[Numbers, Numbers]:
    """logit_k = s <f/|f|, c_k> and softmax(logits / temperature), one by one in float64."""
    length = float(np.sqrt(np.sum(feature * feature)))
    logits = [labels.logit_scale * sum(feature / length * c.astype(np.float64)) for c in labels.constants]
    powers = [np.exp((z - max(logits)) / labels.temperature) for z in logits]
    return np.array(logits), np.array(powers) / sum(powers)


SEED = st.integers(0, 1 << 30)
FEW = settings(max_examples=60, deadline=None, database=None)


@FEW
@given(seed=SEED, scale=st.floats(1, 100), temperature=st.floats(0.25, 20))
def test_scores_are_the_formula(seed: int, scale: float, temperature: float) -> None:
    labels = made(seed, scale=scale, temperature=temperature)
    features = np.random.default_rng(seed + 1).normal(size=(3, 32)).astype(np.float32)
    logits, scores = labels.logits(features), labels.scores(features)
    assert logits.shape == scores.shape == (3, 5)
    assert logits.dtype == scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
    for i, feature in enumerate(features):
        expected_logits, expected_scores = formula(labels, feature.astype(np.float64))
        np.testing.assert_allclose(logits[i], expected_logits, atol=1e-4)
        np.testing.assert_allclose(scores[i], expected_scores, atol=3e-4)
        np.testing.assert_allclose(labels.scores(feature), scores[i], atol=1e-4)


def test_scores_by_hand() -> None:
    constants = np.array([[1, 0], [0, 1], [0, -0.5]], np.float32)
    labels = LabelSet("hand", ("a", "b", "c"), constants, 10.0, 2.0, ((), (), ()))
    feature = np.array([3, 4], np.float32)
    np.testing.assert_allclose(labels.logits(feature), [6, 8, -4], rtol=1e-6)
    powers = np.exp([3, 4, -2])
    np.testing.assert_allclose(labels.scores(feature), powers / powers.sum(), rtol=1e-6)


@FEW
@given(seed=SEED, power=st.integers(-30, 30))
def test_a_features_length_does_not_matter(seed: int, power: int) -> None:
    labels = made(seed)
    feature = np.random.default_rng(seed + 1).normal(size=32).astype(np.float32)
    scaled = (feature.astype(np.float64) * 10.0**power).astype(np.float32)
    np.testing.assert_allclose(labels.scores(scaled), labels.scores(feature), atol=1e-4)


def test_constants_are_not_normalised() -> None:
    labels = made(3)
    half = LabelSet("half", labels.labels, labels.constants * np.float32(0.5), labels.logit_scale, 1.0, labels.prompts)
    feature = np.ones(32, np.float32)
    np.testing.assert_allclose(half.logits(feature), labels.logits(feature) / 2, rtol=1e-6)


def test_a_feature_of_nothing_is_undecided() -> None:
    np.testing.assert_allclose(made(1).scores(np.zeros(32, np.float32)), 0.2)


def test_softmax_of_far_apart_logits() -> None:
    np.testing.assert_array_equal(softmax(np.array([1e4, 0, -1e4], np.float32)), [1, 0, 0])
    np.testing.assert_allclose(softmax(np.full((2, 4), -1e30, np.float32)), 0.25)


@pytest.mark.parametrize("prompt_type", ["P1", "P2", "P3"])
def test_prompts_are_the_papers(data: Path, prompt_type: str) -> None:
    paper = json.loads((data / "expclip_prompts.json").read_text())
    built = built_in_prompts(PAPER_LABELS, prompt_type)
    assert {label: list(prompts) for label, prompts in built.items()} == paper[prompt_type]
    assert list(built) == paper["label_order"] == list(PAPER_LABELS)


def test_label_order() -> None:
    seven = ("happiness", "sadness", "neutral", "anger", "surprise", "disgust", "fear")
    assert LABEL_SETS["rafdb7"] == seven
    assert LABEL_SETS["ferplus8"] == (*seven, "contempt")
    assert LABEL_SETS["mafw11"] == (*seven, "contempt", "anxiety", "helplessness", "disappointment")
    opened = open_bundle(DEFAULT_BUNDLE)
    for ref in opened.manifest.label_sets:
        assert ref.labels == LABEL_SETS[ref.name] == label_set(opened, ref.name).labels


def test_synonyms_lead_to_labels() -> None:
    assert set(SYNONYMS.values()) <= set(PAPER_LABELS)
    assert not set(SYNONYMS) & set(PAPER_LABELS)
    assert all(word == word.lower().strip() for word in SYNONYMS)


def test_prompt_types() -> None:
    for name in PROMPT_TYPES:
        prompts = built_in_prompts(["fear", "joy"], name)
        assert list(prompts) == ["fear", "joy"]
        for label, sentences in prompts.items():
            assert len(sentences) == len(set(sentences)) == len(PROMPT_TYPES[name])
            assert all(label in s and "{" not in s for s in sentences)
    with pytest.raises(LabelError, match="P1, P2, P3"):
        built_in_prompts(PAPER_LABELS, "P9")


JSON = '{"zest": "full of zest.", "awe": ["in awe.", "größte Ehrfurcht ☺", "line\\nbreak"], "a b": ["x"]}'
TOML = 'zest = "full of zest."\nawe = ["in awe.", "größte Ehrfurcht ☺", "line\\nbreak"]\n"a b" = ["x"]\n'


@pytest.mark.parametrize(("name", "text"), [("a.json", JSON), ("A.JSON", JSON), ("a.toml", TOML), ("labels.txt", TOML)])
def test_prompt_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    if text is TOML and sys.version_info < (3, 11):
        with pytest.raises(LabelError, match=r"Python 3\.11; write JSON"):
            read_prompt_file(tmp_path / name)
        return
    prompts = read_prompt_file(tmp_path / name)
    awe = ("in awe.", "größte Ehrfurcht ☺", "line\nbreak")
    assert list(prompts.items()) == [("zest", ("full of zest.",)), ("awe", awe), ("a b", ("x",))]


BAD_JSON = [
    *("", "{", "[]", "{}", "null", "3", '"text"', '["anger"]', "NaN", "[" * 100_000, '{"a":' * 100_000),
    *('{"a": []}', '{"a": ""}', '{"a": " "}', '{"a": ["x", ""]}', '{"a": 3}', '{"a": null}', '{"a": [3]}', '{"a": [["x"]]}'),
    *(
        '{"a": {"b": "x"}}',
        '{"": "x"}',
        '{" ": "x"}',
        '{"a\\nb": 3}',
        '{"a\\nb": "x"}',
        '{"a\\u0000": "x"}',
        '{"\\ud800": "x"}',
    ),
    *('{"a": "\\ud800"}', '{"a": "x\\u0000"}', '{"a": "\\u001b[31m"}', '{"a": "x", "a": "y"}', '{"a\\u2028b": "x"}'),
]
BAD_TOML = [
    *("", "# nothing", "a", "a = ", "a = 3", "a = []", 'a = ""', 'a = ["x", 3]', '[a]\nb = "x"', '"" = "x"', 'a.b = "x"'),
    *('a = "x"\na = "y"', '"a\\nb" = 3', '"a\\nb" = "x"', "a = 2020-01-01", "a = " + "[" * 100_000, 'a = "x\\u0000"'),
]


@pytest.mark.parametrize(
    ("name", "text"),
    [*(("a.json", t) for t in BAD_JSON), *(("a.toml", t) for t in BAD_TOML), ("a.json", TOML), ("a.toml", JSON)],
    ids=lambda t: t[:30] or "empty",
)
def test_bad_prompt_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    refused(tmp_path / name)


HIDDEN = (
    "\n\t\x1b\x7f\x85\u00ad\u034f\u061c\u115f\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u202a\u202e"
    "\u2060\u2066\u2069\u3164\ufe0f\ufeff\uffa0\U000e0041"
)


@pytest.mark.parametrize("c", HIDDEN, ids=lambda c: f"U+{ord(c):04X}")
def test_characters_that_nobody_sees_are_refused_in_labels(tmp_path: Path, c: str) -> None:
    """Two labels that look the same, or a line that reads backwards. In a prompt, joiners belong to the sentence."""
    assert hidden_character(f"jo{c}y") == c
    (tmp_path / "a.json").write_text(json.dumps({f"jo{c}y": "x", "joy": "y"}))
    with pytest.raises(LabelError, match=f"U\\+{ord(c):04X}"):
        read_prompt_file(tmp_path / "a.json")
    refused(tmp_path / "a.json")


@pytest.mark.parametrize("label", ["joy", "größte Ehrfurcht", "فرح", "שמחה", "喜び", "आनंद", "☺", "a-b_c d", "ö", "o\u0308"])
def test_labels_of_any_script(label: str) -> None:
    assert hidden_character(label) is None
    check_labels((label, "other"), "here")


def test_labels_that_make_no_set() -> None:
    for labels, words in (((), "at least two labels"), (("joy",), "it has 1"), (("joy", "joy"), "'joy' comes twice")):
        with pytest.raises(LabelError, match=f"here: .*{words}"):
            check_labels(labels, "here")


def refused(file: Path) -> None:
    """Reading the file is a LabelError of one line that names it."""
    with pytest.raises(LabelError) as caught:
        read_prompt_file(file)
    assert len(str(caught.value).splitlines()) == 1
    assert str(file) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name in ("none.json", "none.toml", "a\0b.toml", "x" * 5000):
        refused(tmp_path / name)
    refused(tmp_path)
    for name in ("a.json", "a.toml"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00 = 'x'")
        refused(tmp_path / name)


@FEW
@given(text=st.text(max_size=80), suffix=st.sampled_from([".json", ".toml"]))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str) -> None:
    file = tmp_path_factory.getbasetemp() / f"any{suffix}"
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        prompts = read_prompt_file(file)
    except LabelError as error:
        message = str(error)
        assert_one_line(message, file)
        return
    assert prompts
    assert all(label.strip() and is_one_line(label) and sentences for label, sentences in prompts.items())


def assert_one_line(message: str, file: Path) -> None:
    assert len(message.splitlines()) == 1
    assert str(file) in message


@FEW
@given(
    table=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1).filter(
            lambda label: label.strip() and hidden_character(label) is None
        ),
        st.lists(
            st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(str.strip),
            min_size=1,
            max_size=3,
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_language_comes_through(tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[str]]) -> None:
    file = tmp_path_factory.getbasetemp() / "language.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    assert list(read_prompt_file(file).items()) == [(label, tuple(prompts)) for label, prompts in table.items()]


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-20, 1.0, 1e20]))
def test_score_one_equals_scores(seed: int, size: float) -> None:
    """The path that predict takes, and the path of batches."""
    rng = np.random.default_rng(seed)
    labels = LabelSet("x", tuple("abcdef"), rng.normal(size=(6, 16)).astype(np.float32) / 4, 50.0, 1.7, (("p",),) * 6)
    feature = (rng.normal(size=16) * size).astype(np.float32)
    np.testing.assert_allclose(labels.score_one(feature), labels.scores(feature), atol=1e-5)
    assert sum(labels.score_one(feature)) == pytest.approx(1, abs=1e-12)
