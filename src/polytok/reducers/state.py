"""The state of the tokens during one forward pass: a value that the block loop hands on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polytok.reducers.maps import TokenMap


@dataclass(frozen=True)
class TokenState:
    """Which tokens are left, and what they stand for.

    Args:
        num_patches: patch tokens at the first block. prefix: class and register tokens, first.
        maps: every reduction so far, over the whole sequence.
        size: (B, prefix + patches) how many tokens each one stands for; None while all are 1.
        before: features before each map, kept only where dropped tokens are put back at the end.
        layer: of the block that runs.
    """

    num_patches: int
    prefix: int
    maps: tuple[TokenMap, ...] = ()
    size: Tensor | None = None
    before: tuple[Tensor, ...] = ()
    layer: int = 0

    @property
    def length(self) -> int:
        """Tokens left, with the prefix."""
        return self.maps[-1].count if self.maps else self.prefix + self.num_patches

    @property
    def patches(self) -> int:
        """Patch tokens left."""
        return self.length - self.prefix

    def after(
        self, x: Tensor, chosen: TokenMap, *, tracks_size: bool, keeps: bool = False
    ) -> TokenState:
        """The state after a map on the features ``x`` (B, n, C) of the whole sequence.

        Args:
            tracks_size: whether sizes are added up. keeps: whether ``x`` is kept for expanding.
        """
        size = self.size
        if tracks_size:
            ones = torch.ones(x.shape[:2], device=x.device) if size is None else size
            size = chosen.total(ones).detach()
        return replace(
            self,
            maps=(*self.maps, chosen),
            size=size,
            before=(*self.before, x) if keeps else self.before,
        )

    def bias(self) -> Tensor | None:
        """(B, 1, 1, n) log of the sizes, what attention adds to the logits of a key."""
        return None if self.size is None else self.size.log()[:, None, None]

    def group(self) -> Tensor:
        """(B, num_patches) int64: the patch token that stands for each patch, -1 where dropped.

        B is 1 while nothing was reduced.
        """
        if not self.maps:
            return torch.arange(self.num_patches)[None]
        chained = self.maps[0]
        for after in self.maps[1:]:
            chained = chained.then(after)
        group = chained.group()[:, self.prefix :]
        return torch.where(group < 0, group, group - self.prefix)

    def origin(self) -> Tensor | None:
        """(B, patches) int64: the patch whose place each patch token has; None: all in order."""
        if not self.maps:
            return None
        index = self.maps[0].anchor()
        for after in self.maps[1:]:
            index = index.gather(1, after.anchor())
        return index[:, self.prefix :] - self.prefix

    def expand(self, y: Tensor) -> Tensor:
        """Put tokens (B, n, C) back to (B, prefix + num_patches, C), in the order of the patches.

        A merged patch gets its token's row. A dropped one gets what it was when it was dropped,
        where that was kept, else zeros.
        """
        rest = self.before or (None,) * len(self.maps)
        for chosen, before in zip(reversed(self.maps), reversed(rest), strict=True):
            y = chosen.expand(y, before)
        return y
