"""Scaled dot-product attention, fused wherever torch can."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attend over heads with softmax scale 1/sqrt(d).

    Args:
        q: (B, H, N, d). k, v: (B, H, S, d).
        mask: bool, broadcastable to (B, H, N, S) from (N, S) up, True = may attend.
        bias: float, broadcastable likewise, added to the logits.
        dropout: share of the weights that are set to 0; the others grow by as much.

    Returns:
        (B, H, N, d).
    """
    if mask is not None and bias is not None:
        bias = bias.masked_fill(~mask, float("-inf"))
        mask = None
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask if bias is None else bias, dropout_p=dropout
    )
