"""A draft of a code: the latents that conditions lead to expect, which can steer what is drawn."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from polytok.bottlenecks import MultiScaleVQ
from polytok.core.errors import ConfigError
from polytok.generators.cond import Cond, SlotConditioner
from polytok.generators.process import Query, Step
from polytok.layers import Block, CrossBlock, compute_dtype
from polytok.networks.pretrained import Tower


class Draft(nn.Module):
    """Latents (R, M, d) that condition tokens (R, m, W) lead to expect, read by M queries."""

    def __init__(self, dim: int, num_heads: int, count: int, code_dim: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(count, dim) * 0.3)
        self.blocks = nn.ModuleList([CrossBlock(dim, num_heads), Block(dim, num_heads)])
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.to_latents = nn.Linear(dim, code_dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Read tokens where ``mask`` (R, m) is True."""
        queries = self.queries.expand(len(tokens), -1, -1)
        read, mix = self.blocks
        x = read(queries.to(compute_dtype(queries)), tokens, mask=mask[:, None, None])
        return self.to_latents(self.norm(mix(x))).float()


class DraftConditioner(SlotConditioner):
    """Condition tokens, from which a draft can be read.

    A draft learns by squared error, without codes: a tower learns more from that in minutes than
    from the ids of codes in hours.

    Args:
        towers, dim: see :class:`SlotConditioner`. num_heads: of the blocks that draft.
        count, code_dim: M and d of the latents.

    Raises:
        ConfigError: there are no towers.
    """

    def __init__(
        self, towers: Mapping[str, Tower], dim: int, *, num_heads: int, count: int, code_dim: int
    ) -> None:
        super().__init__(towers, dim)
        if not towers:
            raise ConfigError("a draft needs conditions, and there are no towers")
        self.draft = Draft(dim, num_heads, count, code_dim)

    def expected(self, cond: Cond) -> Tensor:
        """The draft (R, M, d) of conditions."""
        assert cond.tokens is not None
        assert cond.mask is not None
        latents: Tensor = self.draft(cond.tokens, cond.mask)
        return latents


class DraftExpert:
    """Adds -strength |code - rest|^2 to the logits of every id of a multi-scale code.

    The rest is what the draft still has over the scales drawn so far, brought to the scale. A
    net draws one of many shapes that fit the conditions; the more strength, the nearer it stays
    to their mean, which a large one encodes.

    Args:
        draft: (B, M, d). quantizer: of the codes. strength: at least 0.
    """

    def __init__(self, draft: Tensor, quantizer: MultiScaleVQ, strength: float) -> None:
        if not 0 <= strength < float("inf"):
            raise ConfigError(f"draft={strength} is not a finite number of at least 0")
        self.draft, self.quantizer, self.strength = draft, quantizer, strength

    def __call__(self, query: Query, step: Step) -> Tensor:
        """What to add (B, n, V) to the logits of a query of one scale."""
        rest = self.quantizer.resampler.down(self.draft, step.number)
        if query.inp is not None:
            rest = rest - query.inp
        codes = self.quantizer.embedding.weight
        # |rest|^2 is the same for all ids.
        return self.strength * (2 * rest @ codes.T - codes.square().sum(1))
