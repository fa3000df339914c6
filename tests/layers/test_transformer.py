"""Transformer blocks: an oracle, symmetry, masks and dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from polytok.layers import Block, CrossBlock, FeedForward, compute_dtype
from polytok.layers.transformer import Attention

DIM, HEADS = 16, 2


def plain_attention(layer: Attention, x: Tensor, context: Tensor) -> Tensor:
    """The same attention head by head, with loops."""
    size = DIM // HEADS
    q, kv = x @ layer.to_q.weight.T, context @ layer.to_kv.weight.T
    heads = []
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        query = F.layer_norm(q[..., part], (size,), layer.norm_q.weight, layer.norm_q.bias, 1e-6)
        key = kv[..., :DIM][..., part]
        key = F.layer_norm(key, (size,), layer.norm_k.weight, layer.norm_k.bias, 1e-6)
        weights = (query @ key.transpose(-1, -2) / size**0.5).softmax(-1)
        heads.append(weights @ kv[..., DIM:][..., part])
    return torch.cat(heads, dim=-1) @ layer.out.weight.T + layer.out.bias


def norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    return F.layer_norm(x, (DIM,), layer.weight, layer.bias, 1e-6)


def jitter(module: torch.nn.Module) -> torch.nn.Module:
    """Move every parameter off its start, so that norms have scales and shifts to get right."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def test_a_block_is_pre_norm_attention_and_feed_forward() -> None:
    block, x = jitter(Block(DIM, HEADS)), torch.randn(2, 5, DIM)
    y = norm(block.norm_attention, x)
    wanted = x + plain_attention(block.attention, y, y)
    hidden = norm(block.norm_mlp, wanted) @ block.mlp.up.weight.T + block.mlp.up.bias
    wanted = wanted + F.gelu(hidden) @ block.mlp.down.weight.T + block.mlp.down.bias
    torch.testing.assert_close(block(x), wanted, atol=1e-5, rtol=1e-5)


def test_a_cross_block_reads_its_context() -> None:
    block, x, context = (
        jitter(CrossBlock(DIM, HEADS)),
        torch.randn(2, 5, DIM),
        torch.randn(2, 9, DIM),
    )
    read = plain_attention(
        block.attention, norm(block.norm_query, x), norm(block.norm_context, context)
    )
    wanted = x + read
    wanted = wanted + block.mlp(norm(block.norm_mlp, wanted))
    torch.testing.assert_close(block(x, context), wanted, atol=1e-5, rtol=1e-5)
    order = torch.randperm(9)
    torch.testing.assert_close(block(x, context[:, order]), wanted, atol=1e-5, rtol=1e-5)


def test_permuting_tokens_permutes_the_output() -> None:
    block, x, order = Block(DIM, HEADS), torch.randn(2, 7, DIM), torch.randperm(7)
    torch.testing.assert_close(block(x[:, order]), block(x)[:, order], atol=1e-5, rtol=1e-5)


def test_a_causal_mask_lets_no_token_see_later_ones() -> None:
    block, x = Block(DIM, HEADS), torch.randn(2, 7, DIM)
    mask = torch.ones(7, 7, dtype=torch.bool).tril()
    changed = x.clone()
    changed[:, 4:] += 1
    before, after = block(x, mask=mask), block(changed, mask=mask)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def test_normalised_queries_and_keys_keep_attention_tame() -> None:
    layer = Attention(DIM, HEADS)
    x = torch.randn(2, 5, DIM)
    with torch.no_grad():
        before = layer(x, x)
        layer.to_q.weight *= 1e3
        torch.testing.assert_close(layer(x, x), before, atol=1e-4, rtol=1e-3)


def test_the_feed_forward_has_the_ratio() -> None:
    layer = FeedForward(DIM, ratio=3)
    assert layer.up.out_features == layer.down.in_features == 3 * DIM


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="dim=16"):
        Block(16, 3)


def test_the_residual_stream_keeps_the_dtype_of_autocast() -> None:
    x = torch.randn(2, 5, DIM)
    assert compute_dtype(x) == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert compute_dtype(x) == torch.bfloat16
        block = Block(DIM, HEADS)
        assert block(x.to(torch.bfloat16)).dtype == torch.bfloat16
        out = CrossBlock(DIM, HEADS)(x, x)
    assert bool(out.isfinite().all())
