"""Finding the counts: a distribution over them per block, trained against a budget of MACs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers.api import applied
from polytok.reducers.cost import ModelCost, cost
from polytok.reducers.hosts import find_core
from polytok.reducers.passes import Pass
from polytok.reducers.reduction import Reduction, reduction_of
from polytok.reducers.schedule import Schedule
from polytok.reducers.state import TokenState
from polytok.systems.vit.diffrate.reducer import DiffRate

DEIT_SMALL = 4.6e9
EPS = 1e-6
STEPS = ("prune", "merge")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """How the counts are found.

    Args:
        share: target, as a share of the plain model's MACs, within (0, 1).
        granularity: between candidate counts. lr, last_lr: of AdamW, from first to last epoch.
        weight: of the squared distance to the target in GMAC, on the scale of DeiT-S; a model of
            other size is scaled to it.
        warmup_epochs: first epochs without the budget. epochs: passes over the loader.
        start: slope of the first logits; 0 gives every count the same chance, as published, so
            half of the tokens go at once; 0.1 begins near keeping all.
        is_even: begin instead with one keep ratio for every block, which costs the target. From
            ``start`` the budget removes all in the second block, and a short search stays there.
    """

    share: float = 0.6
    granularity: int = 4
    lr: float = 0.01
    last_lr: float = 0.001
    weight: float = 5.0
    epochs: int = 3
    warmup_epochs: int = 0
    start: float = 0.0
    is_even: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ConfigError(f"share={self.share} is not within (0, 1)")
        if self.granularity < 1 or self.epochs < 1 or self.start < 0:
            raise ConfigError("granularity and epochs must be at least 1, and start at least 0")
        if self.is_even and self.start:
            raise ConfigError(f"start={self.start} and is_even=True both say where to begin")


class Rates(nn.Module):
    """For every block but the first, a distribution over counts to prune to and to merge to.

    Args:
        patches, depth: of the model. granularity, start: see :class:`SearchConfig`.
    """

    candidates: Tensor

    def __init__(self, patches: int, depth: int, *, granularity: int, start: float = 0.0) -> None:
        super().__init__()
        if depth < 2 or patches <= granularity:
            raise ConfigError(f"{depth} blocks of {patches} patches leave nothing to search")
        counts = torch.arange(patches, 0, -granularity, dtype=torch.float32)
        self.register_buffer("candidates", counts)
        first = -start * torch.arange(len(counts), dtype=torch.float32)
        self.prune = nn.Parameter(first.repeat(depth - 1, 1))
        self.merge = nn.Parameter(first.repeat(depth - 1, 1))
        self.patches, self.depth = patches, depth

    @torch.no_grad()
    def begin(self, prune: Sequence[int], merge: Sequence[int]) -> None:
        """Make counts of patches, one per block, the means, by the logits that are least uneven."""
        places = torch.arange(len(self.candidates), dtype=torch.float64)
        for logits, counts in ((self.prune, prune), (self.merge, merge)):
            # Just below a count, which then is the mean rounded up.
            mean = torch.tensor(counts[1:], dtype=torch.float64)[:, None] - 0.5
            low, high = torch.full_like(mean, -50.0), torch.full_like(mean, 50.0)
            for _ in range(60):
                slope = (low + high) / 2
                found = ((-slope * places).softmax(-1) * self.candidates).sum(1, keepdim=True)
                is_low = found < mean
                low, high = torch.where(is_low, slope, low), torch.where(is_low, high, slope)
            logits.copy_(-slope * places)

    def kept(self, step: str, layer: int) -> Tensor:
        """Tokens that stay, with the class token: a whole number with the gradient of the mean."""
        mean = (self._chances(step, layer) * self.candidates).sum()
        return mean + (mean.ceil() - mean).detach() + 1

    def count(self, step: str, layer: int) -> int:
        """:meth:`kept` without gradient."""
        return int(self.kept(step, layer).detach())

    def survival(self, step: str, layer: int) -> Tensor:
        """(patches + 1,) chance that the token of each rank stays; the class token has rank 0."""
        ranks = torch.arange(self.patches + 1, device=self.candidates.device)
        stays = self.candidates + 1 > ranks[:, None]
        return (stays * self._chances(step, layer)).sum(1)

    def _chances(self, step: str, layer: int) -> Tensor:
        logits: Tensor = getattr(self, step)
        return logits[layer - 1].softmax(-1)

    def counts(self) -> dict[str, tuple[int, ...]]:
        """``prune`` and ``merge`` of :class:`DiffRate`: counts per block, with the class token."""
        first = self.patches + 1
        return {
            step: (first, *(max(self.count(step, i), 2) for i in range(1, self.depth)))
            for step in STEPS
        }

    def macs(self, found: ModelCost) -> Tensor:
        """MACs under the expected counts; both counts of a block get the smaller one's gradient."""
        length = torch.tensor(float(found.patches + found.prefix))
        total = torch.tensor(float(found.fixed))
        for layer, block in enumerate(found.blocks):
            after = length
            if layer:
                both = self.kept("prune", layer), self.kept("merge", layer)
                pair = [count + found.prefix - 1 for count in both]
                after = _least(length, *pair)
            total = total + block.plain(length, after)
            length = after
        return total + found.tail * (length - found.prefix)


def _least(before: Tensor, prune: Tensor, merge: Tensor) -> Tensor:
    """The smallest; its gradient goes to ``prune`` and ``merge`` alike and never to ``before``."""
    least = torch.minimum(before, torch.minimum(prune, merge)).detach()
    both = prune + merge
    return least + both - both.detach()


class SoftPass(Pass):
    """A forward pass that drops nothing: masks say what is gone, and carry the gradient."""

    rates: Rates

    def run(
        self, block: Any, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        host, layer = self.reduction.host, block.reduction_layer
        if host.rope(kwargs, TokenState(num_patches=1, prefix=1)) is not None:
            raise PolytokError("the search sorts patches, which rotary positions do not follow")
        if layer == 0:
            ones = torch.ones(x.shape[:2], device=x.device)
            self.soft = {0: (ones, ones)}
            self.states[0] = TokenState(num_patches=x.shape[1] - self.prefix, prefix=self.prefix)
        mask, size = self.soft[layer]
        y = host.norm(block, x)
        q, k, v = host.qkv(block, y, None)
        probs = policy_attention(q, k, host.scale(block), mask, size)
        out = (probs.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        x = host.add_attention(block, x, host.project(block, y, out))
        if layer:
            order = self._order(probs)
            x = x.gather(1, order[..., None].expand_as(x))
            x, mask, size = self._reduced(x, mask.gather(1, order), size.gather(1, order), layer)
        self.soft[layer + 1] = mask, size
        return host.mlp(block, x)

    def _order(self, probs: Tensor) -> Tensor:
        """(B, T): the prefix, then patches by falling attention of the class token."""
        score = probs[:, :, 0, self.prefix :].mean(1)
        ranked = score.argsort(1, descending=True) + self.prefix
        first = torch.arange(self.prefix, device=score.device).expand(len(score), -1)
        return torch.cat([first, ranked], 1)

    def _reduced(
        self, x: Tensor, mask: Tensor, size: Tensor, layer: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        left = int(mask[0].sum().round())
        for step in STEPS:
            count = self.rates.count(step, layer) + self.prefix - 1
            if count >= left:
                continue
            if step == "merge":
                x, size = self._merged(x, size, count, left)
            mask = mask * self._ranks(step, layer, count, x.shape[1])
            left = count
        return x, mask, size

    def _ranks(self, step: str, layer: int, count: int, length: int) -> Tensor:
        """(T,) 1 for the first ``count`` ranks, else 0; the gradient is that of their survival."""
        hard = (torch.arange(length) < count).to(self.rates.candidates)
        stays = F.pad(self.rates.survival(step, layer), (self.prefix - 1, 0), value=1.0)
        return hard + stays - stays.detach()

    def _merged(self, x: Tensor, size: Tensor, count: int, left: int) -> tuple[Tensor, Tensor]:
        """Means into the first ``count`` tokens from those up to ``left``, which stay, masked."""
        p = self.prefix
        reducer = self.reduction.reducer
        assert isinstance(reducer, DiffRate)
        merge = reducer.merged(x[:, p:left].detach(), count - p)
        x = torch.cat([x[:, :p], merge.apply(x[:, p:left]), x[:, count:]], 1)
        total = merge.total(size[:, p:left])
        return x, torch.cat([size[:, :p], total.clamp(min=1), size[:, count:]], 1)


def policy_attention(q: Tensor, k: Tensor, scale: float, mask: Tensor, size: Tensor) -> Tensor:
    """Attention (B, H, T, T) in float32 in which masked keys get nothing but from themselves.

    Args:
        mask: (B, T) 0 or 1, with gradient. size: (B, T) of the tokens.
    """
    logits = ((q * scale) @ k.transpose(-2, -1)).float() + size.log()[:, None, None]
    each = (logits - logits.amax(-1, keepdim=True).detach()).exp()
    own = torch.eye(mask.shape[1], device=mask.device)
    policy = mask[:, None] + (1 - mask[:, None]) * own
    each = each * policy[:, None]
    return (each + EPS / mask.shape[1]) / (each.sum(-1, keepdim=True) + EPS)


class RateSearch(nn.Module):
    """The rates of a model, and how far its MACs are from the target.

    Args:
        found: MACs of the model, see :func:`polytok.reducers.cost.cost`.
    """

    def __init__(self, found: ModelCost, config: SearchConfig) -> None:
        super().__init__()
        self.cost, self.config = found, config
        self.rates = Rates(
            self.cost.patches,
            len(self.cost.blocks),
            granularity=config.granularity,
            start=config.start,
        )
        if config.is_even:
            self.rates.begin(*self._even())

    def _even(self) -> tuple[list[int], tuple[int, ...]]:
        """Patches left by both steps at the one keep ratio that costs the target."""
        reducer = DiffRate()
        target = self.config.share * self.cost.plain()
        kept = self.cost.kept(reducer, self.cost.schedule(reducer, target))
        before = (self.cost.patches, *kept[:-1])
        return [reducer.pruned(n, k) for n, k in zip(before, kept, strict=True)], kept

    def excess(self) -> Tensor:
        """Squared distance of the MACs to the target, in GMAC of a model as large as DeiT-S."""
        plain = self.cost.plain()
        over = self.rates.macs(self.cost) / plain - self.config.share
        return (over * DEIT_SMALL / 1e9) ** 2

    def found(self) -> DiffRate:
        """The reducer with the counts as they are now."""
        counts = self.rates.counts()
        return DiffRate(prune=counts["prune"], merge=counts["merge"])

    @contextmanager
    def searching(self, model: nn.Module) -> Iterator[None]:
        """``model`` runs with masks for the rates while the context lasts, and weights stay.

        Raises:
            PolytokError: its head reads other tokens than the class token.
        """
        pool = getattr(find_core(model)[0], "global_pool", "token")
        if pool != "token":
            raise PolytokError(
                f"the head pools by {pool!r}, which would count masked tokens; a head that reads "
                "the class token works"
            )
        frozen = [p for p in model.parameters() if p.requires_grad]
        with applied(model, DiffRate(), schedule=Schedule()):
            reduction_of(model).make_pass = self._pass
            for parameter in frozen:
                parameter.requires_grad_(False)
            try:
                yield
            finally:
                for parameter in frozen:
                    parameter.requires_grad_(True)

    def _pass(self, reduction: Reduction, prefix: int, depth: int, schedule: Any) -> SoftPass:
        made = SoftPass(reduction, prefix, depth, schedule)
        made.rates = self.rates
        return made


def search_rates(
    model: nn.Module,
    loader: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    config: SearchConfig,
    *,
    logits: Callable[[Tensor], Tensor] | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> DiffRate:
    """Find the counts for a budget; the model's weights and modes stay as they are.

    Args:
        loader: called once per epoch; gives (images (B, 3, H, W), labels (B,)).
        logits: what to call on images; the model itself if not given.
        report: called with ``ce``, ``gmacs`` and ``accuracy`` of every step.

    Raises:
        PolytokError: the model is of no known family, has no class token, or rotary positions.
    """
    logits = model if logits is None else logits
    first = next(iter(loader()))[0]
    search = RateSearch(cost(model, first), config).to(first.device)
    optimizer = torch.optim.AdamW(search.rates.parameters(), lr=config.lr, weight_decay=0.0)
    with search.searching(model):
        for epoch in range(config.epochs):
            turn = (1 + math.cos(math.pi * epoch / config.epochs)) / 2
            optimizer.param_groups[0]["lr"] = config.last_lr + (config.lr - config.last_lr) * turn
            weight = config.weight if epoch >= config.warmup_epochs else 0.0
            for images, labels in loader():
                out = logits(images)
                ce = F.cross_entropy(out, labels)
                optimizer.zero_grad()
                (ce + weight * search.excess()).backward()
                optimizer.step()
                if report is not None:
                    hits = float((out.argmax(-1) == labels).float().mean())
                    gmacs = float(search.rates.macs(search.cost).detach()) / 1e9
                    report({"ce": float(ce.detach()), "gmacs": gmacs, "accuracy": hits})
    return search.found()
