"""Rationale metrics against SciPy and scikit-learn, example by example."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor

from polytok.core.errors import PolytokError
from polytok.metrics.rationale import (
    attention_entropy,
    average_precision,
    kendall_tau,
    pearson,
    top_f1,
)

B, T = 40, 9


@pytest.fixture
def mask() -> Tensor:
    return torch.arange(T) < torch.arange(B)[:, None] % (T - 1) + 2


def ranks(seed: int, levels: int) -> Tensor:
    """Values with many ties."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(levels, (B, T), generator=rng).float()


def words(values: Tensor, mask: Tensor) -> list[np.ndarray]:
    return [v[m].double().numpy() for v, m in zip(values, mask, strict=True)]


@pytest.mark.parametrize("levels", [3, 1000])
def test_correlations_are_scipys(mask: Tensor, levels: int) -> None:
    left, right = ranks(0, levels), ranks(1, levels)
    for mine, theirs in ((kendall_tau, stats.kendalltau), (pearson, stats.pearsonr)):
        found = mine(left, right, mask)
        for value, x, y in zip(found, words(left, mask), words(right, mask), strict=True):
            if len(set(x)) == 1 or len(set(y)) == 1:
                assert math.isnan(value)
            else:
                assert float(value) == pytest.approx(float(theirs(x, y).statistic), abs=1e-9)


def test_what_padding_holds_does_not_matter(mask: Tensor) -> None:
    left, right = ranks(0, 9), ranks(1, 9)
    rationale = ranks(2, 2).bool() | (torch.arange(T) == 0)
    dirty = left.masked_fill(~mask, torch.nan)
    for metric in (kendall_tau, pearson):
        assert torch.equal(
            metric(left, right, mask).nan_to_num(), metric(dirty, right, mask).nan_to_num()
        )
    clean = left.masked_fill(~mask, 0)
    assert torch.equal(
        average_precision(left, rationale, mask), average_precision(clean, rationale, mask)
    )


@pytest.mark.parametrize("levels", [3, 1000])
def test_average_precision_is_scikit_learns(mask: Tensor, levels: int) -> None:
    scores = ranks(0, levels)
    rationale = ranks(2, 2).bool() | (torch.arange(T) == 0)
    found = average_precision(scores, rationale, mask)
    pairs = zip(found, words(scores, mask), words(rationale, mask), strict=True)
    for value, x, y in pairs:
        assert float(value) == pytest.approx(average_precision_score(y, x), abs=1e-9)


def test_f1_of_the_top_words_is_scikit_learns(mask: Tensor) -> None:
    scores, rationale = ranks(0, 1000), ranks(2, 2).bool() | (torch.arange(T) == 0)
    found = top_f1(scores, rationale, mask, share=0.4)
    for value, x, y in zip(found, words(scores, mask), words(rationale, mask), strict=True):
        chosen = np.zeros(len(x), dtype=bool)
        chosen[np.argsort(-x, kind="stable")[: max(1, round(0.4 * len(x)))]] = True
        assert float(value) == pytest.approx(f1_score(y, chosen), abs=1e-6)


def test_a_text_without_a_rationale_is_undefined() -> None:
    scores, mask = torch.rand(1, 4), torch.ones(1, 4, dtype=torch.bool)
    none = torch.zeros(1, 4, dtype=torch.bool)
    assert average_precision(scores, none, mask).isnan().all()
    assert top_f1(scores, none, mask, share=0.5).isnan().all()


@given(st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=T))
@settings(max_examples=100, deadline=None)
def test_entropy_is_scipys_and_lies_between_one_word_and_all(values: list[float]) -> None:
    attention = torch.tensor([values]).softmax(-1)
    mask = torch.ones_like(attention, dtype=torch.bool)
    found = float(attention_entropy(attention, mask))
    assert found == pytest.approx(float(stats.entropy(attention[0].double().numpy())), abs=1e-5)
    assert -1e-6 <= found <= math.log(len(values)) + 1e-5
    share = float(attention_entropy(attention, mask, is_normalised=True))
    assert share == pytest.approx(found / math.log(len(values)), abs=1e-6)


def test_bad_input_is_refused_in_one_line() -> None:
    good, mask = torch.rand(2, 3), torch.ones(2, 3, dtype=torch.bool)
    for left, right, valid, text in (
        (good, torch.rand(2, 4), mask, "sizes do not match"),
        (good, good, torch.zeros(2, 3, dtype=torch.bool), "no valid words"),
        (good * torch.nan, good, mask, "not finite"),
    ):
        with pytest.raises(PolytokError, match=text) as error:
            kendall_tau(left, right, valid)
        assert "\n" not in str(error.value)
    for share in (0.0, 1.5):
        with pytest.raises(PolytokError, match=f"share={share}"):
            top_f1(good, good > 0.5, mask, share=share)
