"""Train on random prefixes of a sequence, so that every prefix of it means something."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError

Distribution = Literal["uniform", "powers", "geometric"]
RARITY = 0.01  # of the longest prefix against the shortest, when lengths are geometric


def length_odds(
    distribution: Distribution, num_tokens: int, *, min_keep: int = 1
) -> dict[int, float]:
    """The probability of every length that is drawn, from the shortest to the longest.

    ``uniform``: each length from ``min_keep`` to ``num_tokens`` alike (One-D-Piece's tail drop);
    ``powers``: the powers of two among them and the whole, alike (FlexTok's nested dropout);
    ``geometric``: each is rarer than the one before by the same factor, the whole 100 times rarer
    than ``min_keep``.

    Raises:
        ConfigError: ``min_keep`` is not within 1..num_tokens.
    """
    if not 1 <= min_keep <= num_tokens:
        raise ConfigError(f"min_keep={min_keep} is not within 1..{num_tokens}")
    lengths = range(min_keep, num_tokens + 1)
    weights = dict.fromkeys(lengths, 1.0)
    if distribution == "powers":
        weights = {n: 1.0 for n in lengths if n & (n - 1) == 0 or n == num_tokens}
    elif distribution == "geometric":
        weights = {n: RARITY ** ((n - min_keep) / max(1, len(lengths) - 1)) for n in lengths}
    total = sum(weights.values())
    return {n: weight / total for n, weight in weights.items()}


class PrefixDropout(nn.Module):
    """Keep a random prefix of token sequences (B, N, C) in training; do nothing in eval.

    Args:
        num_tokens: N of a whole sequence. min_keep, distribution: see :func:`length_odds`.
    """

    def __init__(
        self, num_tokens: int, *, min_keep: int = 1, distribution: Distribution = "uniform"
    ) -> None:
        super().__init__()
        odds = length_odds(distribution, num_tokens, min_keep=min_keep)
        self._lengths, self._steps = list(odds), list(accumulate(odds.values()))

    def draw(self, rng: torch.Generator) -> int:
        """One length, from a generator of the CPU, so that every device draws the same."""
        point = float(torch.rand((), dtype=torch.float64, generator=rng))
        return self._lengths[min(bisect_right(self._steps, point), len(self._lengths) - 1)]

    def forward(
        self, x: Tensor, rng: torch.Generator | Sequence[torch.Generator] | None
    ) -> tuple[Tensor, Tensor | None]:
        """The kept tokens, and how many of each sequence are valid (None: all that are left).

        Args:
            x: (B, N, C).
            rng: one generator draws one length, to which the whole batch is cut; B generators draw
                a length per sequence, and the batch is cut to the longest; None keeps everything.
        """
        if not self.training or rng is None:
            return x, None
        if isinstance(rng, torch.Generator):
            return x[:, : self.draw(rng)], None
        lengths = [self.draw(generator) for generator in rng]
        return x[:, : max(lengths)], torch.tensor(lengths, device=x.device)
