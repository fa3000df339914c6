"""Lookup-free quantization: the sign of every channel is a bit of the id (arXiv 2310.05737)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from polytok.bottlenecks.bits import all_groups, check_bits, quantize_bits, signs_of
from polytok.bottlenecks.estimators import Estimator, straight_through
from polytok.core.contracts import Bottleneck, BottleneckOutput


class LookupFreeQuantizer(Bottleneck):
    """z (B, N, D) -> signs (B, N, D) in {-1, 1}; zero becomes -1.

    Args:
        bits: D, or how many of the D bits each vocabulary has: (9, 9) gives two of 512 codes.
            Channel j of a vocabulary is bit j of its id.
        entropy_temperature: of the entropy terms, 0.01 in the paper; None: no such terms. They are
            over the 2^b codes c of each vocabulary with logits 2 z.c / temperature, exact.
        estimator: how gradient reaches the input, see :mod:`polytok.bottlenecks.estimators`.

    The loss is ``vq/commit`` = MSE(sg q, z), unweighted.
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
        """Quantize in fp32; the latents are (B, N, D)."""
        with torch.autocast(z.device.type, enabled=False):
            return quantize_bits(
                z.float(),
                self.groups,
                scale=1.0,
                estimator=self.estimator,
                entropy_temperature=self.entropy_temperature,
            )

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Latents (B, n, D) of ids (B, n), or of probabilities (B, n, 2^b), per vocabulary.

        Raises:
            PolytokError: a vocabulary is missing; a part of the channels is no code.
        """
        return signs_of(all_groups(indices, num_levels, self.groups), self.groups)
