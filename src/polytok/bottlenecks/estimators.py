"""Gradient estimators of quantizers: the value is the code, the gradient reaches the input.

An estimator takes inputs z (..., d) and codes q (..., d) and returns a tensor that equals q bit for
bit. It carries gradient to z alone; codes learn from losses or from running means.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Estimator = Callable[[Tensor, Tensor], Tensor]

TINY = 1e-6


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The gradient of the output passes to z unchanged."""
    # z - sg z is exactly zero, so the value is q itself and decoding its index gives the same bits.
    return q.detach() + (z - z.detach())


def rotation(z: Tensor, q: Tensor) -> Tensor:
    """The gradient is turned and scaled as z must be to reach q (arXiv 2410.06424, equation 4).

    The map is ratio x (I - 2 r r^T + 2 v u^T) with u, v the directions of z and q and r that of
    u + v, all held constant. Where z or q is zero or they are opposite it does not exist, and the
    gradient passes unchanged.
    """
    z_norm = z.detach().norm(dim=-1, keepdim=True)
    q_norm = q.detach().norm(dim=-1, keepdim=True)
    u = z.detach() / z_norm.clamp(min=TINY)
    v = q.detach() / q_norm.clamp(min=TINY)
    middle = u + v
    length = middle.norm(dim=-1, keepdim=True)
    r = middle / length.clamp(min=TINY)
    turned = z - 2 * r * (r * z).sum(-1, keepdim=True) + 2 * v * (u * z).sum(-1, keepdim=True)
    turned = q_norm / z_norm.clamp(min=TINY) * turned
    exists = (z_norm > TINY) & (q_norm > TINY) & (length > TINY)
    return straight_through(turned.where(exists, z), q)
