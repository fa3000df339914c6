"""Multiply-accumulates of a vision transformer with fewer tokens: by formula, and counted.

What papers on token reduction call FLOPs are multiply-accumulates (MACs); so are these.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polytok.core.errors import ConfigError
from polytok.reducers.hosts.find import find_core
from polytok.reducers.methods import method as find_method
from polytok.reducers.reducer import Reducer
from polytok.reducers.schedule import Schedule
from polytok.reducers.swap import Swapped


@dataclass(frozen=True, kw_only=True)
class BlockCost:
    """MACs of one block.

    Args:
        qk, vo, mlp: per token, of the products for queries and keys, of those for values and
            output, and of the MLP. width: channels of all heads. dim: of the residual stream.
    """

    qk: int
    vo: int
    mlp: int
    width: int
    dim: int

    def plain(self, length: Any, after: Any = None) -> Any:
        """Of a block on ``length`` tokens whose MLP sees ``after`` of them."""
        after = length if after is None else after
        return (self.qk + self.vo) * length + 2 * self.width * length**2 + self.mlp * after

    def reduced(self, length: int, after: int, keep: int, reducer: Reducer) -> int:
        """Of a block that goes from ``length`` to ``after`` tokens, with the method's own cost."""
        own = reducer.macs(length, keep, self.dim)
        if reducer.where == "mid":
            return int(self.plain(length, after)) + own
        scored = self.qk * length + self.width * length**2
        if reducer.reuses_attention:
            return scored + self.vo * after + self.width * after**2 + self.mlp * after + own
        return int(self.plain(length if reducer.where == "output" else after)) + scored + own


@dataclass(frozen=True, kw_only=True)
class ModelCost:
    """MACs of a model for one image.

    Args:
        fixed: of what does not depend on the reduction, such as the patch embedding.
        tail: per patch token that is left behind the last block, such as of a pooling head.
    """

    fixed: int
    tail: int
    blocks: tuple[BlockCost, ...]
    patches: int
    prefix: int

    def plain(self) -> int:
        """Of the unreduced model."""
        length = self.patches + self.prefix
        blocks = sum(int(block.plain(length)) for block in self.blocks)
        return self.fixed + blocks + self.tail * self.patches

    def reduced(self, reducer: Reducer, schedule: Schedule) -> int:
        """Of the model under a schedule."""
        total, patches = self.fixed, self.patches
        for block, keep in zip(self.blocks, self.kept(reducer, schedule), strict=True):
            length = patches + self.prefix
            if keep >= patches:
                total += int(block.plain(length))
                continue
            patches = keep + reducer.extra
            total += block.reduced(length, patches + self.prefix, keep, reducer)
        return total + self.tail * patches

    def kept(self, reducer: Reducer, schedule: Schedule) -> tuple[int, ...]:
        """Patch tokens each block keeps."""
        return schedule.resolve(
            self.patches, len(self.blocks), extra=reducer.extra, least=reducer.least
        )

    def schedule(self, reducer: Reducer, macs: float, layers: Sequence[int] = ()) -> Schedule:
        """The highest equal keep ratio of some blocks that costs at most ``macs``.

        Args:
            layers: blocks that reduce; the method's usual ones if none are given.

        Raises:
            ConfigError: even the lowest ratio that the method can do costs more.
        """
        layers = tuple(layers) or reducer.layers(len(self.blocks))
        for thousandths in range(1000, 0, -1):
            schedule = Schedule.ratios(thousandths / 1000, layers)
            try:
                cost = self.reduced(reducer, schedule)
            except ConfigError:
                break
            if cost <= macs:
                return schedule
        raise ConfigError(
            f"no keep ratio of the blocks {list(layers)} brings the model to {macs / 1e9:.3f} GMAC"
        )


@torch.no_grad()
def cost(model: nn.Module, image: Tensor) -> ModelCost:
    """Measure a plain or reduced model's parts, by one plain forward of ``image`` (B, 3, H, W).

    Raises:
        PolytokError: the model is of no known family.
    """
    core, host = find_core(model)
    blocks = host.blocks(core)
    inside = {m for block in blocks for m in block.modules()}
    outside = [m for m in model.modules() if m not in inside]
    with _plain(model):
        fixed, behind, length = _observed(model, image, outside, blocks)
    prefix = host.prefix(core)
    patches = length - prefix
    return ModelCost(
        fixed=fixed + behind * prefix // length,
        tail=behind // length,
        blocks=tuple(_block_cost(host.linears(block), block) for block in blocks),
        patches=patches,
        prefix=prefix,
    )


def _observed(
    model: nn.Module, image: Tensor, modules: Sequence[nn.Module], blocks: Sequence[nn.Module]
) -> tuple[int, int, int]:
    """MACs of linear and convolution layers among ``modules``, and tokens at the first block.

    The MACs of layers that run on all tokens behind the last block come apart, second.
    """
    fixed: list[int] = []
    behind: list[int] = []
    lengths: list[int] = []

    def count(module: Any, inputs: Any, out: Tensor) -> None:
        macs = out[0].numel() * module.weight[0].numel()
        is_per_token = len(lengths) == 2 and out.ndim == 3 and out.shape[1] > lengths[1] // 2
        (behind if is_per_token else fixed).append(macs)

    hooks = [
        m.register_forward_hook(count) for m in modules if isinstance(m, (nn.Linear, nn.Conv2d))
    ]
    for block in (blocks[0], blocks[-1]):
        hooks.append(
            block.register_forward_pre_hook(lambda m, inputs: lengths.append(inputs[0].shape[1]))
        )
    try:
        model(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return sum(fixed), sum(behind), lengths[0]


def _block_cost(parts: tuple[nn.Module, nn.Module], block: nn.Module) -> BlockCost:
    attention, mlp = ([m for m in part.modules() if isinstance(m, nn.Linear)] for part in parts)
    out = attention[-1]
    width, dim = out.in_features, out.out_features
    # A fused product has rows for queries, keys and values; else the first two layers are q and k.
    fused = attention[0].out_features > 2 * width
    qk = 2 * width * dim if fused else sum(m.weight.numel() for m in attention[:2])
    total = sum(m.weight.numel() for m in attention)
    return BlockCost(
        qk=qk, vo=total - qk, mlp=sum(m.weight.numel() for m in mlp), width=width, dim=dim
    )


@torch.no_grad()
def counted_macs(model: nn.Module, image: Tensor) -> int:
    """MACs for one image by torch's counter, of matrix products and convolutions.

    Attention is computed unfused meanwhile, since the counter sees nothing of a fused one on CPUs.
    """
    learning = [p for p in model.parameters() if p.requires_grad]
    with unfused(model), FlopCounterMode(display=False) as counter:
        try:
            # The counter follows gradients, and stumbles over parameters that enter a layer.
            for parameter in learning:
                parameter.requires_grad_(False)
            model(image[:1])
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
    return counter.get_total_flops() // 2


@contextmanager
def unfused(model: nn.Module) -> Iterator[None]:
    """Explicit attention in every block of a model while the context lasts."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    changed: list[tuple[Any, str, Any]] = [
        (m, "fused_attn", False) for m in model.modules() if hasattr(m, "fused_attn")
    ]
    changed += [
        (c, "_attn_implementation", "eager")
        for c in configs.values()
        if hasattr(c, "_attn_implementation")
    ]
    before = [getattr(owner, name) for owner, name, _ in changed]
    try:
        for owner, name, value in changed:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(changed, before, strict=True):
            setattr(owner, name, value)


def _plain(model: nn.Module) -> Any:
    from polytok.reducers.api import paused

    is_reduced = any(isinstance(m, Swapped) for m in model.modules())
    return paused(model) if is_reduced else nullcontext()


def schedule_for(
    model: nn.Module, image: Tensor, method: str | Reducer, share: float, **options: Any
) -> Schedule:
    """The schedule of equal keep ratios that costs at most ``share`` of the plain model's MACs.

    Raises:
        ConfigError: ``share`` is outside (0, 1], or the method cannot reach it.
    """
    if not 0 < share <= 1:
        raise ConfigError(f"share={share} of the MACs is not within (0, 1]")
    found = cost(model, image)
    return found.schedule(find_method(method, **options)[1], share * found.plain())
