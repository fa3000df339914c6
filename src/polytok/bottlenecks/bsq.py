"""Binary spherical quantization: signs on the unit sphere (arXiv 2406.07548, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from polytok.bottlenecks.bits import all_groups, check_bits, quantize_bits, signs_of
from polytok.bottlenecks.codebook import to_unit
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.core.contracts import Bottleneck, BottleneckOutput


class BinarySphericalQuantizer(Bottleneck):
    """z (B, N, D) -> sign(u) / sqrt(D) (B, N, D) of u = z / |z|; zero becomes -1 / sqrt(D).

    Args:
        bits: D, or how many of the D bits each vocabulary has: (9, 9, 9, 9) gives four of 512
            codes. Channel j of a vocabulary is bit j of its id.
        entropy_temperature: of the entropy terms, 1 / tau of the paper; None: no such terms. They
            are over the 2^b codes c of each vocabulary with logits 2 u.c / temperature: the paper's
            grouped terms with one group per vocabulary, exact where there is one.
        estimator: how gradient reaches u, see :mod:`polytok.bottlenecks.estimators`.

    The loss is ``vq/commit`` = MSE(sg q, u), unweighted: the paper's squared length over D.
    """

    def __init__(
        self,
        bits: int | Sequence[int],
        *,
        entropy_temperature: float | None = None,
        estimator: Estimator = straight_through,
    ) -> None:
        super().__init__()
        self.groups = check_bits(bits)
        self.entropy_temperature, self.estimator = entropy_temperature, estimator

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return tuple(2**bits for bits in self.groups)

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        """Quantize in fp32; the latents are (B, N, D) of unit length."""
        with torch.autocast(z.device.type, enabled=False):
            return quantize_bits(
                to_unit(z.float()),
                self.groups,
                scale=1 / math.sqrt(z.shape[-1]),
                estimator=self.estimator,
                entropy_temperature=self.entropy_temperature,
            )

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of ids (B, n), or of probabilities (B, n, 2^b), per vocabulary.

        Raises:
            PolytokError: a vocabulary is missing; a part of the channels is no code.
        """
        signs = signs_of(all_groups(indices, num_levels, self.groups), self.groups)
        return signs * (1 / math.sqrt(signs.shape[-1]))
