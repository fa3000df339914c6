"""Scores against the whole attention map, and that they are computed only when asked for."""

from __future__ import annotations

import pytest
import torch

from polytok.reducers import Scores, TokenState
from polytok.reducers.scores import (
    attention_received,
    attention_rows,
    class_row,
    sampled_received,
    spaced,
)

B, H, T, D = 2, 3, 11, 8


@pytest.fixture
def qk() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(B, H, T, D), torch.randn(B, H, T, D)


@pytest.fixture(params=[False, True], ids=["no sizes", "sizes"])
def bias(request: pytest.FixtureRequest) -> torch.Tensor | None:
    return (torch.rand(B, 1, 1, T) * 5 + 1).log() if request.param else None


def full(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * D**-0.5
    return (logits if bias is None else logits + bias).softmax(-1)


def test_the_class_row_is_the_maps_first(qk: tuple, bias: torch.Tensor | None) -> None:
    row = class_row(*qk, D**-0.5, bias)
    torch.testing.assert_close(row, full(*qk, bias)[:, :, 0].mean(1), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_attention_received_is_exact_in_any_chunks(
    qk: tuple, bias: torch.Tensor | None, chunk: int
) -> None:
    found = attention_received(*qk, D**-0.5, bias, chunk=chunk)
    torch.testing.assert_close(found, full(*qk, bias).mean((1, 2)), rtol=1e-6, atol=1e-7)


def test_all_queries_are_no_sample(qk: tuple) -> None:
    exact = attention_received(*qk, D**-0.5)
    torch.testing.assert_close(sampled_received(*qk, D**-0.5, queries=99), exact)
    few = sampled_received(*qk, D**-0.5, queries=3)
    torch.testing.assert_close(few.sum(1), torch.ones(B))
    assert not torch.allclose(few, exact)


@pytest.mark.parametrize("count", [1, 3, 10, 11])
def test_spaced_indices_differ(count: int) -> None:
    index = spaced(count, 11)
    assert len(set(index.tolist())) == count and index.min() >= 0 and index.max() < 11


def test_the_map_is_made_only_when_asked_for(qk: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    widest: list[int] = []

    def watched(q: torch.Tensor, *rest: object) -> torch.Tensor:
        widest.append(q.shape[2])
        return attention_rows(q, *rest)

    monkeypatch.setattr("polytok.reducers.scores.attention_rows", watched)
    scores = Scores(torch.randn(B, T, 4), *qk, D**-0.5, prefix=1)
    assert scores.class_row().shape == (B, T - 1) and scores.key_mean().shape == (B, T - 1, D)
    assert widest == [1]
    assert scores.attention() is scores.attention()
    assert widest == [1, T]


def test_half_precision_scores_are_float32(qk: tuple) -> None:
    row = class_row(*(t.bfloat16() for t in qk), D**-0.5)
    assert row.dtype == torch.float32


def test_sizes_are_added_to_logits_as_logs() -> None:
    state = TokenState(num_patches=2, prefix=1, size=torch.tensor([[1.0, 2.0, 4.0]]))
    bias = state.bias()
    assert bias is not None and bias.shape == (1, 1, 1, 3)
    torch.testing.assert_close(bias.exp().flatten(), torch.tensor([1.0, 2.0, 4.0]))
    assert TokenState(num_patches=2, prefix=1).bias() is None
