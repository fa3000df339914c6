"""Attention against the formula, masks and biases."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polytok.layers import attend


def plain(q: Tensor, k: Tensor, v: Tensor, added: Tensor | float = 0.0) -> Tensor:
    logits = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + added
    return logits.softmax(-1) @ v


@pytest.fixture
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)


def test_it_is_softmax_attention(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    torch.testing.assert_close(attend(*qkv), plain(*qkv))


def test_a_mask_hides_and_a_bias_adds(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    mask = torch.rand(5, 7) < 0.6
    mask[:, 0] = True
    bias = torch.randn(3, 5, 7)
    hidden = torch.zeros(5, 7).masked_fill(~mask, float("-inf"))
    torch.testing.assert_close(attend(*qkv, mask=mask), plain(*qkv, hidden))
    torch.testing.assert_close(attend(*qkv, bias=bias), plain(*qkv, bias))
    torch.testing.assert_close(attend(*qkv, mask=mask, bias=bias), plain(*qkv, bias + hidden))


def test_what_is_masked_has_no_influence(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    mask = (torch.arange(7) < 4)[None]
    poisoned_k, poisoned_v = k.clone(), v.clone()
    poisoned_k[:, :, 4:], poisoned_v[:, :, 4:] = 1e4, 1e4
    left = attend(q, k, v, mask=mask)
    right = attend(q, poisoned_k, poisoned_v, mask=mask)
    assert torch.equal(left, right)
    torch.testing.assert_close(left, attend(q, k[:, :, :4], v[:, :, :4]))


def test_arguments_stay_as_they_are(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    bias = torch.zeros(5, 7)
    attend(*qkv, mask=(torch.arange(7) < 4)[None], bias=bias)
    assert not bool(bias.any())
