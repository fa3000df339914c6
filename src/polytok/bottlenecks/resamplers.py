"""Resamplers between M latent slots and the s_k slots of scale k (page next-scale, section 7).

Every resampler that is linear in the latents is a pair of fixed matrices per scale; the
attention resampler learns queries instead.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError, UnknownNameError
from polytok.layers import attend


class ScaleResampler(nn.Module):
    """Contract: ``down`` (B, M, d) -> (B, s_k, d), ``up`` back, identity where s_k = M.

    ``refine_shape`` tells how the M slots are laid out for the refinement after ``up``:
    (h, w) for a 2D convolution, (M,) for a 1D one, () for a layer per token.
    """

    refine_shape: tuple[int, ...] = ()

    def down(self, x: Tensor, level: int) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define down")

    def up(self, x: Tensor, level: int) -> Tensor:
        raise TypeError(f"{type(self).__name__} must define up")


class MatrixResampler(ScaleResampler):
    """Fixed matrices: ``down_k`` (s_k, M) and ``up_k`` (M, s_k)."""

    def __init__(
        self,
        slots: tuple[int, ...],
        down_fn: Callable[[Tensor, int], Tensor],
        up_fn: Callable[[Tensor, int], Tensor],
        refine_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.slots, self.refine_shape = slots, refine_shape
        full = slots[-1]
        for level, count in enumerate(slots):
            if count != full:
                down = down_fn(torch.eye(full), count)
                up = up_fn(torch.eye(count), full)
                self.register_buffer(f"down_{level}", down, persistent=False)
                self.register_buffer(f"up_{level}", up, persistent=False)

    def down(self, x: Tensor, level: int) -> Tensor:
        if self.slots[level] == self.slots[-1]:
            return x
        return self.get_buffer(f"down_{level}") @ x

    def up(self, x: Tensor, level: int) -> Tensor:
        if self.slots[level] == self.slots[-1]:
            return x
        return self.get_buffer(f"up_{level}") @ x


def _side(count: int) -> int:
    side = math.isqrt(count)
    if side * side != count:
        raise ConfigError(f"grid2d needs square slot counts, got {count}")
    return side


def grid2d(slots: tuple[int, ...], dim: int) -> ScaleResampler:
    """VAR's area-down and bicubic-up on a virtual sqrt(M) x sqrt(M) grid."""

    def resize(basis: Tensor, count: int, **kwargs: object) -> Tensor:
        here = _side(basis.shape[0])
        pictures = basis.T.reshape(1, -1, here, here)
        size = _side(count)
        return F.interpolate(pictures, size=(size, size), **kwargs).reshape(-1, count).T  # type: ignore[arg-type]

    return MatrixResampler(
        slots,
        lambda basis, count: resize(basis, count, mode="area"),
        lambda basis, count: resize(basis, count, mode="bicubic", align_corners=False),
        (_side(slots[-1]), _side(slots[-1])),
    )


def linear1d(slots: tuple[int, ...], dim: int) -> ScaleResampler:
    """Adaptive average pooling and linear interpolation along the slots; any counts."""
    return MatrixResampler(
        slots,
        lambda basis, count: F.adaptive_avg_pool1d(basis.T[None], count)[0].T,
        lambda basis, count: (
            F.interpolate(basis.T[None], size=count, mode="linear", align_corners=False)[0].T
        ),
        (slots[-1],),
    )


def nested(slots: tuple[int, ...], dim: int) -> ScaleResampler:
    """Scale k reads and writes the first s_k slots; the others stay zero."""
    return MatrixResampler(
        slots,
        lambda basis, count: basis[:count],
        lambda basis, count: F.pad(basis, (0, 0, 0, count - basis.shape[0])),
        (),
    )


class AttentionResampler(ScaleResampler):
    """Learned queries per scale attend to the residual, and M queries to the codes (G3PT)."""

    def __init__(self, slots: tuple[int, ...], dim: int) -> None:
        super().__init__()
        self.slots = slots
        full = slots[-1]
        self.coarse_queries = nn.ParameterList(
            nn.Parameter(torch.randn(count, dim) * 0.5) for count in slots if count != full
        )
        self.full_queries = nn.Parameter(torch.randn(full, dim) * 0.5)
        self.slot_keys = nn.Parameter(torch.randn(full, dim) * 0.5)
        self.down_kv = nn.Linear(dim, 2 * dim)
        self.up_kv = nn.Linear(dim, 2 * dim)
        for layer in (self.down_kv, self.up_kv):
            # Values start as the identity, so pooling starts as a weighted mean.
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.eye_(layer.weight.data[dim:])
            nn.init.zeros_(layer.bias)

    def down(self, x: Tensor, level: int) -> Tensor:
        if self.slots[level] == self.slots[-1]:
            return x
        keys, values = self.down_kv(x).chunk(2, dim=-1)
        queries = self.coarse_queries[level].expand(x.shape[0], -1, -1)
        return self._mix(queries, keys + self.slot_keys, values)

    def up(self, x: Tensor, level: int) -> Tensor:
        if self.slots[level] == self.slots[-1]:
            return x
        keys, values = self.up_kv(x).chunk(2, dim=-1)
        queries = self.full_queries.expand(x.shape[0], -1, -1)
        return self._mix(queries, keys + self.coarse_queries[level], values)

    @staticmethod
    def _mix(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        return attend(queries.unsqueeze(1), keys.unsqueeze(1), values.unsqueeze(1)).squeeze(1)


RESAMPLERS: dict[str, Callable[[tuple[int, ...], int], ScaleResampler]] = {
    "attn": AttentionResampler,
    "grid2d": grid2d,
    "linear1d": linear1d,
    "nested": nested,
}


def make_resampler(name: str, slots: tuple[int, ...], dim: int) -> ScaleResampler:
    """Build a resampler by name for growing slot counts.

    Raises:
        UnknownNameError: the name is unknown.
        ConfigError: the counts are empty, not positive, or shrink.
    """
    if name not in RESAMPLERS:
        raise UnknownNameError("resampler", name, RESAMPLERS)
    if not slots or slots[0] < 1 or any(b < a for a, b in itertools.pairwise(slots)):
        raise ConfigError(f"slots={slots} must be positive and must not shrink")
    return RESAMPLERS[name](slots, dim)
