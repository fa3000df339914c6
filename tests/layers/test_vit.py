"""The plain block against torch's own attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers import SelfAttention, ViTBlock

DIM, HEADS = 24, 3


def jittered(module: nn.Module) -> nn.Module:
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


def torch_attention(layer: SelfAttention) -> nn.MultiheadAttention:
    """torch's attention with the same weights."""
    other = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    with torch.no_grad():
        other.in_proj_weight.copy_(layer.qkv.weight)
        other.in_proj_bias.copy_(layer.qkv.bias)
        other.out_proj.weight.copy_(layer.out.weight)
        other.out_proj.bias.copy_(layer.out.bias)
    return other


def masks() -> list[Tensor | None]:
    lengths = torch.tensor([2, 7])
    return [None, (torch.arange(7) < lengths[:, None])[:, None, None]]


@pytest.mark.parametrize("mask", masks(), ids=["whole", "ragged"])
def test_a_block_is_pre_norm_around_the_attention_of_torch(mask: Tensor | None) -> None:
    block, x = jittered(ViTBlock(DIM, HEADS)), torch.randn(2, 7, DIM)
    other = torch_attention(block.attention)
    y = F.layer_norm(x, (DIM,), block.norm_attention.weight, block.norm_attention.bias, 1e-5)
    padding = None if mask is None else ~mask[:, 0, 0]
    wanted = x + other(y, y, y, key_padding_mask=padding, need_weights=False)[0]
    hidden = F.layer_norm(wanted, (DIM,), block.norm_mlp.weight, block.norm_mlp.bias, 1e-5)
    hidden = F.gelu(hidden @ block.mlp.up.weight.T + block.mlp.up.bias)
    wanted = wanted + hidden @ block.mlp.down.weight.T + block.mlp.down.bias
    torch.testing.assert_close(block(x, mask=mask), wanted, atol=1e-5, rtol=1e-5)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="dim=24 is not a multiple of num_heads=5"):
        ViTBlock(DIM, 5)


def test_keys_can_start_near_queries() -> None:
    queries, keys, _ = SelfAttention(96, 2, key_similarity=0.7).qkv.weight.detach().chunk(3)
    assert float(F.cosine_similarity(queries.flatten(), keys.flatten(), dim=0)) == pytest.approx(
        0.7, abs=0.02
    )
    assert float(keys.std() / queries.std()) == pytest.approx(1, abs=0.02)
