"""Token maps: how n tokens become m. Pure tensors, made once per reduction, used many times.

Legend: B batch, n tokens before, m tokens after, C channels. Every map has a static ``count`` m.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Backend = Literal["scatter", "onehot"]


class TokenMap(ABC):
    """From ``num_inputs`` tokens to ``count`` tokens, the same numbers for every sample."""

    num_inputs: int

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of tokens after."""

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """Features (B, n, C) -> (B, m, C)."""

    @abstractmethod
    def total(self, size: Tensor) -> Tensor:
        """How much every new token stands for: (B, n) -> (B, m), sums over its sources."""

    @abstractmethod
    def group(self) -> Tensor:
        """(B, n) int64: which new token each old one went to, -1 where it was dropped."""

    @abstractmethod
    def anchor(self) -> Tensor:
        """(B, m) int64: the old token whose place each new one takes."""

    @abstractmethod
    def behind(self, prefix: int) -> TokenMap:
        """The same map behind ``prefix`` tokens that stay first and as they are."""

    def expand(self, y: Tensor, rest: Tensor | None = None) -> Tensor:
        """Undo: (B, m, C) -> (B, n, C), every old token gets its new one's row.

        Args:
            rest: (B, n, C) rows of dropped tokens; zeros if not given.
        """
        group = self.group()
        rows = _gather(y, group.clamp(min=0))
        return torch.where(group[..., None] < 0, 0 if rest is None else rest, rows)

    def then(self, after: TokenMap) -> TokenMap:
        """This map, and ``after`` on what it gives."""
        return Chain(self, after)


@dataclass(frozen=True)
class Select(TokenMap):
    """Keep tokens, in the order of ``index`` (B, m)."""

    index: Tensor
    num_inputs: int

    @property
    def count(self) -> int:
        return self.index.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        return _gather(x, self.index)

    def total(self, size: Tensor) -> Tensor:
        return size.gather(1, self.index)

    def group(self) -> Tensor:
        return _places(self.index, self.num_inputs, fill=-1)

    def anchor(self) -> Tensor:
        return self.index

    def behind(self, prefix: int) -> Select:
        return Select(_shift(self.index, prefix), self.num_inputs + prefix)


@dataclass(frozen=True)
class Fuse(TokenMap):
    """Keep ``index`` (B, k); the others become one last token, a sum by ``weights`` (B, n).

    Weights are used as they are, not normalised; those of kept tokens do not count.
    """

    index: Tensor
    weights: Tensor
    num_inputs: int

    @property
    def count(self) -> int:
        return self.index.shape[1] + 1

    def _rest(self) -> Tensor:
        return self.weights.scatter(1, self.index, 0)

    def apply(self, x: Tensor) -> Tensor:
        # A sum of products instead of a matrix product, which autocast would round.
        fused = (self._rest()[..., None].to(x.dtype) * x).sum(1, keepdim=True)
        return torch.cat([_gather(x, self.index), fused], 1)

    def total(self, size: Tensor) -> Tensor:
        fused = size.scatter(1, self.index, 0).sum(1, keepdim=True)
        return torch.cat([size.gather(1, self.index), fused], 1)

    def group(self) -> Tensor:
        return _places(self.index, self.num_inputs, fill=self.index.shape[1])

    def anchor(self) -> Tensor:
        heaviest = self.weights.scatter(1, self.index, float("-inf")).argmax(1, keepdim=True)
        return torch.cat([self.index, heaviest], 1)

    def behind(self, prefix: int) -> Fuse:
        weights = F.pad(self.weights, (prefix, 0))
        return Fuse(_shift(self.index, prefix), weights, self.num_inputs + prefix)


@dataclass(frozen=True)
class Merge(TokenMap):
    """Hard merge: token i goes to new token ``assign[i]``, features as weighted means.

    Sums and counts instead of a scatter by mean, which exporters lack.

    Args:
        assign: (B, n) int64 in 0..m-1; every new token has a source.
        index: (B, m) int64 the destination among the old tokens, whose place a new token takes.
        weights: (B, n) > 0 of the mean; equal if not given.
        discount: (B, n) factor on the sizes that are added up.
        backend: ``onehot`` sums by a matrix product, for runtimes without scatter-add.
    """

    assign: Tensor
    index: Tensor
    weights: Tensor | None = None
    discount: Tensor | None = None
    backend: Backend = "scatter"

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return self.assign.shape[1]

    @property
    def count(self) -> int:
        return self.index.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        if self.weights is None:
            ones = torch.ones_like(self.assign, dtype=x.dtype)
            return self.add(x) / self.add(ones[..., None])
        weights = self.weights[..., None].to(x.dtype)
        floor = torch.finfo(x.dtype).tiny
        return self.add(x * weights) / self.add(weights).clamp(min=floor)

    def total(self, size: Tensor) -> Tensor:
        counted = size if self.discount is None else size * self.discount
        return self.add(counted[..., None])[..., 0]

    def group(self) -> Tensor:
        return self.assign

    def anchor(self) -> Tensor:
        return self.index

    def behind(self, prefix: int) -> Merge:
        return Merge(
            assign=_shift(self.assign, prefix),
            index=_shift(self.index, prefix),
            weights=None if self.weights is None else F.pad(self.weights, (prefix, 0), value=1.0),
            discount=None
            if self.discount is None
            else F.pad(self.discount, (prefix, 0), value=1.0),
            backend=self.backend,
        )

    def add(self, x: Tensor) -> Tensor:
        """Sums over the sources of each new token, (B, n, C) -> (B, m, C)."""
        if self.backend == "onehot":
            new = torch.arange(self.count, device=x.device)
            return _product(self.assign[:, None] == new[:, None], x)
        empty = x.new_zeros(x.shape[0], self.count, x.shape[2])
        return empty.scatter_add(1, self.assign[..., None].expand_as(x), x)


@dataclass(frozen=True)
class Mix(TokenMap):
    """Every new token is a mixture of all old ones: ``weights`` (B, m, n)."""

    weights: Tensor

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return self.weights.shape[2]

    @property
    def count(self) -> int:
        return self.weights.shape[1]

    def apply(self, x: Tensor) -> Tensor:
        return _product(self.weights, x)

    def total(self, size: Tensor) -> Tensor:
        share = self.weights / self.weights.sum(1, keepdim=True)
        return _product(share, size[..., None])[..., 0]

    def group(self) -> Tensor:
        return self.weights.argmax(1)

    def anchor(self) -> Tensor:
        return self.weights.argmax(2)

    def behind(self, prefix: int) -> Mix:
        padded = F.pad(self.weights, (prefix, 0, prefix, 0))
        first = torch.arange(prefix, device=padded.device)
        padded[:, first, first] = 1
        return Mix(padded)


@dataclass(frozen=True)
class Chain(TokenMap):
    """Two maps, one after the other."""

    first: TokenMap
    second: TokenMap

    @property
    def num_inputs(self) -> int:  # type: ignore[override]
        return self.first.num_inputs

    @property
    def count(self) -> int:
        return self.second.count

    def apply(self, x: Tensor) -> Tensor:
        return self.second.apply(self.first.apply(x))

    def total(self, size: Tensor) -> Tensor:
        return self.second.total(self.first.total(size))

    def group(self) -> Tensor:
        first = self.first.group()
        return torch.where(first < 0, first, self.second.group().gather(1, first.clamp(min=0)))

    def anchor(self) -> Tensor:
        return self.first.anchor().gather(1, self.second.anchor())

    def expand(self, y: Tensor, rest: Tensor | None = None) -> Tensor:
        between = None if rest is None else self.first.apply(rest)
        return self.first.expand(self.second.expand(y, between), rest)

    def behind(self, prefix: int) -> Chain:
        return Chain(self.first.behind(prefix), self.second.behind(prefix))


def _product(a: Tensor, x: Tensor) -> Tensor:
    """a @ x in the type of x, which autocast would round."""
    if not torch.is_autocast_enabled(x.device.type):  # exporters know no other types anyway
        return a.to(x.dtype) @ x
    with torch.autocast(x.device.type, enabled=False):
        return a.to(x.dtype) @ x


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def _shift(index: Tensor, prefix: int) -> Tensor:
    """Indices behind a prefix that maps to itself."""
    first = torch.arange(prefix, device=index.device).expand(index.shape[0], prefix)
    return torch.cat([first, index + prefix], 1)


def _places(index: Tensor, num_inputs: int, *, fill: int) -> Tensor:
    """(B, n): the place of each token in ``index``, ``fill`` where it is not there."""
    places = torch.arange(index.shape[1], device=index.device).expand_as(index)
    return index.new_full((index.shape[0], num_inputs), fill).scatter(1, index, places)
