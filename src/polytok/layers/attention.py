"""Scaled dot-product attention, fused wherever torch can."""

from __future__ import annotations

import torch
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
    allowed = mask if bias is None else bias
    is_trained = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad)
    # torch's fused kernel is slow in bf16 on CPUs: forward and backward take 2 to 5 times as long.
    if is_trained and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _attend_in_steps(q, k, v, allowed, dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, dropout_p=dropout)


def _attend_in_steps(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, dropout: float
) -> Tensor:
    """The same by two matrix products."""
    # Autocast would copy logits and weights to fp32 and back; the softmax sums in fp32 anyway.
    with torch.autocast(q.device.type, enabled=False):
        logits = q * q.shape[-1] ** -0.5 @ k.mT
        if allowed is not None:
            is_mask = allowed.dtype == torch.bool
            logits = logits.masked_fill(~allowed, float("-inf")) if is_mask else logits + allowed
        return F.dropout(logits.softmax(-1).to(v.dtype), dropout) @ v
