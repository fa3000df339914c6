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


@pytest.mark.parametrize("kind", ["none", "mask", "bias"])
def test_training_in_bf16_agrees_with_the_formula(
    qkv: tuple[Tensor, Tensor, Tensor], kind: str
) -> None:
    mask = torch.arange(35).reshape(5, 7) % 3 > 0
    bias = torch.randn(3, 5, 7)
    options = {"none": {}, "mask": {"mask": mask}, "bias": {"bias": bias}}[kind]
    added = {"none": 0.0, "mask": torch.zeros(5, 7).masked_fill(~mask, float("-inf")), "bias": bias}
    exact = [x.clone().requires_grad_() for x in qkv]
    plain(*exact, added[kind]).square().sum().backward()
    halves = [x.bfloat16().requires_grad_() for x in qkv]
    out = attend(*halves, **options)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    for half, whole in zip(halves, exact, strict=True):
        error = (half.grad - whole.grad).norm() / whole.grad.norm()
        assert error < 0.03


def test_dropout_in_bf16_keeps_the_mean() -> None:
    q = torch.zeros(1, 1, 1, 8).bfloat16().requires_grad_()
    k, v = torch.zeros(1, 1, 4096, 8).bfloat16(), torch.ones(1, 1, 4096, 8).bfloat16()
    dropped = attend(q, k, v, dropout=0.5).detach()
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.1)
    assert not attend(q, k, v, dropout=1.0).detach().any()
