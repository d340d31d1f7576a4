"""The projection from pairs of features: against the published recipe written plainly, against scikit-learn, and on planted
data with a known answer."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from torch.nn import functional as F

import fer_edge
from fer_edge.converters.transfer.fit import METHODS, FitRecipe, Fitted, fit, info_nce
from lab.planted import Plan, Planted, planted, shuffled, zero_shot

SMALL = Plan(faces=1500, test=500, image_dim=24, llm_dim=40, expression_dim=4, identity_dim=12)


@pytest.fixture(scope="module")
def small() -> Planted:
    return planted(SMALL)


@pytest.fixture(scope="module")
def data() -> Planted:
    return planted(Plan())


def plainly(image: torch.Tensor, llm: torch.Tensor, start: torch.Tensor, batches: list[torch.Tensor]) -> torch.Tensor:
    """The reference's training step, in float64, with its optimizer written out: v = 0.9 v + g + 1e-4 w; w -= 1e-3 v."""
    weight, speed = start.double().clone(), torch.zeros_like(start.double())
    t = F.normalize(llm.double(), dim=-1)
    for rows in batches:
        w = weight.clone().requires_grad_()
        z = image[rows].double() @ w.T
        logits = 100 * (z / z.norm(dim=-1, keepdim=True)) @ t[rows].T
        own = torch.arange(len(rows))
        (0.5 * F.cross_entropy(logits, own) + 0.5 * F.cross_entropy(logits.T, own)).backward()
        assert w.grad is not None
        speed = 0.9 * speed + w.grad + 1e-4 * weight
        weight = weight - 1e-3 * speed
    return weight


def test_the_published_recipe_to_the_letter(small: Planted) -> None:
    """Its batches and its start are drawn as the seed says; nothing else may differ."""
    recipe = FitRecipe(batch=256, epochs=2, seed=5)
    found = fit(small.image, small.llm, recipe)
    generator = torch.Generator().manual_seed(5)
    kept = torch.randperm(1500, generator=generator)
    bound = 1 / math.sqrt(24)
    start = torch.empty(40, 24).uniform_(-bound, bound, generator=generator)
    batches = []
    for _ in range(2):
        order = kept[torch.randperm(1500, generator=generator)]
        batches += [order[i * 256 : (i + 1) * 256] for i in range(5)]
    expected = plainly(small.image, small.llm, start, batches)
    assert float((found.weight.double() - start).abs().max()) > 1e-2
    torch.testing.assert_close(found.weight.double(), expected, atol=2e-5, rtol=1e-4)


def test_the_defaults_are_the_papers() -> None:
    recipe = FitRecipe()
    assert (recipe.method, recipe.epochs, recipe.batch, recipe.lr) == ("infonce", 5, 512, 1e-3)
    assert (recipe.momentum, recipe.weight_decay, recipe.seed, recipe.held_out) == (0.9, 1e-4, 1, 0.0)


def test_the_loss_is_symmetric() -> None:
    z, t = torch.randn(8, 6), torch.randn(8, 6)
    assert info_nce(z, t, 10.0)[0] == pytest.approx(float(info_nce(t, z, 10.0)[0]), rel=1e-6)
    loss, right = info_nce(t, t, 100.0)
    assert float(loss) < 1e-3
    assert float(right) == 1.0


def test_ridge_is_scikit_learns(small: Planted) -> None:
    found = fit(small.image, small.llm, FitRecipe(method="ridge", batch=256))
    """Without an intercept, because W is applied without one."""
    x, t = small.image.double().numpy(), small.llm.double().numpy()
    strength = 1e-2 * (x * x).mean() * len(x)
    expected = Ridge(alpha=strength, fit_intercept=False).fit(x, t - t.mean(0)).coef_
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=2e-3, atol=2e-5)


def test_the_first_canonical_directions_are_scikit_learns() -> None:
    """scikit-learn iterates, centres and has no ridge: the subspace of the four that correlate is what can be compared."""
    small = planted(replace(SMALL, offset=0.0, faces=6000))
    found = fit(small.image, small.llm, FitRecipe(method="cca", batch=256, rank=4, ridge=1e-6))
    assert found.weight.shape == (4, 24)
    x = small.image - small.image.mean(0)
    ours, _ = torch.linalg.qr(x @ found.weight.T)
    theirs = CCA(n_components=4, max_iter=2000).fit(x.numpy(), small.llm.numpy()).transform(x.numpy())
    other, _ = torch.linalg.qr(torch.from_numpy(theirs).float())
    assert float(torch.linalg.svdvals(ours.T @ other).min()) > 0.98


def test_before_there_is_little_and_the_ceiling_is_high(data: Planted) -> None:
    assert zero_shot(data, data.expression) > 0.98
    assert zero_shot(data, None) < zero_shot(data, data.expression) / 2


@pytest.mark.parametrize("method", ["ridge", "cca", "warm"])
def test_the_planted_expression_is_found(data: Planted, method: str) -> None:
    """And there is nothing to find in the LLM features of other faces: what cca and warm gain there is their whitening,
    which makes small whatever is large."""
    recipe = FitRecipe(method=method)  # type: ignore[arg-type]
    ceiling, before = zero_shot(data, data.expression), zero_shot(data, None)
    assert zero_shot(data, fit(data.image, data.llm, recipe).weight) >= 0.9 * ceiling
    wrong = shuffled(data)
    assert zero_shot(data, fit(wrong.image, wrong.llm, recipe).weight) <= before + (0.0 if method == "ridge" else 0.15)


def test_the_published_recipe_is_on_its_way(data: Planted) -> None:
    """In 80 steps of its small learning rate it goes part of the way; without knowledge it goes nowhere."""
    before, wrong = zero_shot(data, None), shuffled(data)
    right = zero_shot(data, fit(data.image, data.llm, FitRecipe()).weight)
    assert right > before + 0.03
    assert abs(zero_shot(data, fit(wrong.image, wrong.llm, FitRecipe()).weight) - before) < 0.03


@pytest.mark.parametrize("method", METHODS)
def test_a_seed_decides_everything(small: Planted, method: str) -> None:
    def weight(seed: int) -> torch.Tensor:
        recipe = FitRecipe(method=method, batch=128, epochs=1, held_out=0.2, seed=seed)  # type: ignore[arg-type]
        return fit(small.image, small.llm, recipe).weight

    assert torch.equal(weight(1), weight(1))
    assert not torch.allclose(weight(1), weight(2))


def test_half_precision_features_do(small: Planted) -> None:
    """As the cache stores them."""
    recipe = FitRecipe(method="ridge", batch=256)
    whole, half = (fit(x, t, recipe).weight for x, t in ((small.image, small.llm), (small.image.half(), small.llm.half())))
    torch.testing.assert_close(half, whole, atol=2e-3, rtol=0.05)


def test_the_last_batch_is_dropped_and_the_log_says_what_happened(small: Planted) -> None:
    said = []
    found = fit(small.image, small.llm, FitRecipe(batch=400, epochs=3, held_out=0.1), said.append)
    assert [e.epoch for e in found.epochs] == [0, 1, 2, 3]
    assert said == list(found.epochs[1:])
    assert found.kept == 3
    assert all(math.isfinite(e.held_out_loss) and 0 <= e.held_out_retrieval <= 1 for e in found.epochs)


def test_stopping_early_keeps_the_best_epoch() -> None:
    """Few faces: the held-out loss rises again, and training ends before its last epoch."""
    data = planted(replace(SMALL, faces=300))
    recipe = FitRecipe(method="warm", batch=64, epochs=60, lr=1e-2, held_out=0.3, patience=2, scale=10.0)
    found = fit(data.image, data.llm, recipe)
    assert len(found.epochs) < 60
    losses = [e.held_out_loss for e in found.epochs]
    assert losses[found.kept] == min(losses)
    assert found.kept > 0
    again = fit(data.image, data.llm, replace(recipe, patience=None, epochs=found.kept))
    assert torch.equal(found.weight, again.weight)


def wrong(image: torch.Tensor, llm: torch.Tensor, **recipe: object) -> Fitted:
    return fit(image, llm, FitRecipe(**recipe))  # type: ignore[arg-type]


def test_what_cannot_be_fitted(small: Planted) -> None:
    image, llm = small.image, small.llm
    with pytest.raises(fer_edge.UsageError, match="smaller --batch"):
        wrong(image[:100], llm[:100])
    with pytest.raises(fer_edge.UsageError, match="pairs"):
        wrong(image[:700], llm)
    with pytest.raises(fer_edge.UsageError, match="--held-out"):
        wrong(image, llm, patience=2)
    with pytest.raises(fer_edge.UsageError, match="fewer than two"):
        wrong(image, llm, held_out=1e-4, patience=2)
    with pytest.raises(fer_edge.UsageError, match="below 1"):
        wrong(image, llm, held_out=1.0)
    broken = llm.clone()
    broken[7, 3] = float("nan")
    with pytest.raises(fer_edge.ConversionError, match="LLM features hold NaN"):
        wrong(image, broken)


def test_a_fit_that_diverges_is_an_error(small: Planted) -> None:
    with pytest.raises(fer_edge.ConversionError, match="diverged in epoch 1"):
        fit(small.image, small.llm, FitRecipe(batch=128, lr=1e38))


def test_the_same_description_for_every_face_teaches_nothing(small: Planted) -> None:
    same = torch.ones_like(small.llm)
    with pytest.raises(fer_edge.ConversionError, match="the same for every face"):
        fit(small.image, same, FitRecipe(method="cca"))
