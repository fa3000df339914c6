"""Finite scalar quantization: every channel is rounded to a few levels (arXiv 2309.15505).

Two roundings of tanh: ``shifted`` is the paper's, whose even levels are not symmetric about zero;
``symmetric`` is that of arXiv 2411.19842, equation 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polytok.bottlenecks.codebook import check_levels, code_stats, lookup
from polytok.core.contracts import Bottleneck, BottleneckOutput
from polytok.core.errors import ConfigError, UnknownNameError

Form = Literal["shifted", "symmetric"]
FORMS = ("shifted", "symmetric")
MARGIN = 1e-3  # by which tanh is stretched, so that the outermost levels are reached
MOST_SHIFTED = 1000  # levels for which that margin stays below half a level
MOST_FP32, MOST_CODES = 1 << 24, 1 << 52  # integers that fp32 and float64 hold exactly


class FiniteScalarQuantizer(Bottleneck):
    """z (B, N, d) -> one id per token of prod(levels); d = number of levels.

    A channel's digit is the rounded stretch of tanh(z), its value lies in [-1, 1], and the id is
    the sum of the digits times the product of the levels before. There is no loss and nothing is
    learnt; gradient passes the rounding as if it were not there, and tanh as it is.

    Latents are not inputs: tanh bends what comes in, so a latent that is quantized again may get
    another id. It keeps its own if it enters as atanh of its stretch, less the shift.

    Args:
        levels: L per channel: 8, 5, 5, 5 gives 1000 codes. form: see the module.
    """

    counts: Tensor
    basis: Tensor
    constants: Tensor

    def __init__(self, levels: Sequence[int], *, form: Form = "shifted") -> None:
        super().__init__()
        _check(levels, form)
        self.levels, self.form = tuple(levels), form
        counts = torch.tensor(self.levels)
        basis = [math.prod(self.levels[:i]) for i in range(len(levels))]
        self.register_buffer("counts", counts, persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)
        make = _shifted if form == "shifted" else _symmetric
        self.register_buffer("constants", make(counts.double()).float(), persistent=False)

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (math.prod(self.levels),)

    @property
    def codes(self) -> Tensor:
        """All codes (K, d), made on the fly."""
        return self._values(torch.arange(self.vocab_sizes[0], device=self.counts.device))

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, d) in [-1, 1]."""
        # Sums of digits x products are integers that this float holds exactly, in any order.
        exact = torch.float32 if self.vocab_sizes[0] <= MOST_FP32 else torch.float64
        weights = self.basis.to(exact)
        latents, ids = _Round.apply(
            z.float(), self.constants, weights, self.form, self.vocab_sizes[0] - 1
        )
        stats = code_stats(ids, self.vocab_sizes[0])
        return BottleneckOutput(latents=latents, indices=(ids,), stats=stats)

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, d) of ids (B, n), or of probabilities (B, n, K) as soft tokens."""
        check_levels(indices, num_levels, 1)
        ids = indices[0]
        return lookup(ids, self.codes) if ids.is_floating_point() else self._values(ids)

    def _values(self, ids: Tensor) -> Tensor:
        digits = ids.unsqueeze(-1) // self.basis % self.counts
        *_, least, centre, unit = self.constants
        return (digits + least - centre) / unit


def _check(levels: Sequence[int], form: str) -> None:
    if form not in FORMS:
        raise UnknownNameError("form", form, FORMS)
    least, most = (3, MOST_SHIFTED) if form == "shifted" else (2, MOST_FP32)
    if not levels or min(levels) < least or max(levels) > most:
        told = f"levels={tuple(levels)} must be within {least}..{most} in the {form} form"
        hint = "; 2 levels need the symmetric form, or lookup-free quantization"
        raise ConfigError(told + (hint if form == "shifted" and 2 in levels else ""))
    if math.prod(levels) > MOST_CODES:
        raise ConfigError(f"levels={tuple(levels)} have more than 2^52 codes")


def _shifted(levels: Tensor) -> Tensor:
    """Rows: shift and gain of tanh, offset, least rounded value, centre and unit of the values."""
    half = (levels - 1) * (1 + MARGIN) / 2
    offset = torch.where(levels % 2 == 0, 0.5, 0.0)
    width = (levels / 2).floor()
    shift = torch.atanh(offset / half)
    return torch.stack([shift, half, -offset, -width, torch.zeros_like(levels), width])


def _symmetric(levels: Tensor) -> Tensor:
    """As :func:`_shifted`; rounding is by floor."""
    half = (levels - 1) / 2
    zero = torch.zeros_like(levels)
    return torch.stack([zero, half, half + 0.5, zero, half, half])


class _Round(torch.autograd.Function):
    """(..., d) -> rounded values (..., d) and ids (...); one saved tensor, few passes."""

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, constants: Tensor, weights: Tensor, form: str, most: int
    ) -> tuple[Tensor, Tensor]:
        shift, gain, offset, least, centre, unit = constants
        bent = torch.add(z, shift).tanh_()
        rounded = torch.addcmul(offset, bent, gain)
        rounded = rounded.round_() if form == "shifted" else rounded.floor_()
        ids = (rounded.to(weights) @ weights).sub_(least.to(weights) @ weights).long()
        # Inputs that are no numbers have no digits; their latents stay no numbers.
        ids.clamp_(0, most)
        ctx.save_for_backward(bent, gain / unit)
        ctx.mark_non_differentiable(ids)
        if form == "symmetric":  # else the centre is zero, and a pass can be saved
            rounded.sub_(centre)
        return rounded.div_(unit), ids

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None, None]:
        bent, slope = ctx.saved_tensors
        return (1 - bent.square()).mul_(slope).mul_(grad), None, None, None, None
