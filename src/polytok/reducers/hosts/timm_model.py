"""The block loop and the head of reduced timm models, the same for every family of timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polytok.core.errors import PolytokError
from polytok.reducers.hosts.base import Host
from polytok.reducers.passes import Pass, new_pass, refuse_mask
from polytok.reducers.reduction import Reduction
from polytok.reducers.state import TokenState
from polytok.reducers.swap import Swapped, swap

SPATIAL = "forward_intermediates(output_fmt='NCHW')"


class TimmHost(Host):
    """What the timm families share."""

    library = "timm"

    def blocks(self, core: Any) -> Sequence[nn.Module]:
        return list(core.blocks)

    def prefix(self, core: Any) -> int:
        return int(core.num_prefix_tokens)

    def has_class_token(self, core: Any) -> bool:
        return core.cls_token is not None

    def patcher(self, core: Any) -> nn.Module:
        module: nn.Module = core.patch_embed
        return module

    def grid(self, core: Any, size: tuple[int, int] | None = None) -> tuple[int, int]:
        patches = core.patch_embed
        # Stems of other libraries know one size.
        if size is None or not hasattr(patches, "dynamic_feat_size"):
            rows, columns = patches.grid_size
        else:
            rows, columns = patches.dynamic_feat_size(size)
        return int(rows), int(columns)

    def image_size(self, core: Any) -> tuple[int, int]:
        height, width = core.patch_embed.img_size
        return int(height), int(width)

    def embed(self, core: Any, image: Tensor) -> tuple[Tensor, list[dict[str, Any]]]:
        """Image -> tokens (B, prefix + patches, C), and the keyword arguments of each block."""
        x = core.norm_pre(core.patch_drop(core._pos_embed(core.patch_embed(image))))
        return x, [{}] * len(core.blocks)

    def install(self, core: Any, root: nn.Module) -> None:
        swap(core, ReducedTimm)

    def norm(self, block: Any, x: Tensor) -> Tensor:
        return block.norm1(x)

    def scale(self, block: Any) -> float:
        return float(block.attn.scale)

    def attend(self, block: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        attn = block.attn
        bias = None if bias is None else bias.to(q.dtype)
        if attn.fused_attn:
            drop = self.dropout(block)
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=drop)
        else:
            logits = (q * attn.scale) @ k.transpose(-2, -1)
            logits = logits if bias is None else logits + bias
            out = attn.attn_drop(logits.softmax(-1)) @ v
        return out.transpose(1, 2).flatten(2)

    def dropout(self, block: Any) -> float:
        return float(block.attn.attn_drop.p) if block.attn.training else 0.0

    def project(self, block: Any, y: Tensor, out: Tensor) -> Tensor:
        attn = block.attn
        out = attn.norm(out)
        gate = getattr(attn, "gate", None)
        out = out if gate is None else out * gate(y).sigmoid()
        return attn.proj_drop(attn.proj(out))

    def linears(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.attn, block.mlp


def rows(linear: nn.Module, y: Tensor, some: slice) -> Tensor:
    """Some outputs of a linear layer; a wrapped one computes all of them."""
    if type(linear) is not nn.Linear:
        return linear(y)[..., some]
    return F.linear(y, linear.weight[some], None if linear.bias is None else linear.bias[some])


def check_block(block: Any, plain: type[nn.Module], *attentions: type[nn.Module]) -> None:
    """Refuse a block or attention of another class than those whose parts are known.

    Raises:
        PolytokError: it is.
    """
    attn: Any = getattr(block, "attn", None)
    known = [a for a in attentions if isinstance(attn, a)]
    if not isinstance(block, plain) or not known:
        attention = type(attn).__name__
        raise PolytokError(
            f"blocks of {type(block).__name__} with {attention} are not known to token reduction; "
            f"{plain.__name__} with {' or '.join(a.__name__ for a in attentions)} works"
        )
    check_methods(block, plain, "forward")
    check_methods(attn, known[0], "forward")


def check_methods(module: nn.Module, plain: type[nn.Module], *names: str) -> None:
    """Refuse a subclass that replaces methods which the reduced loop replaces too.

    Raises:
        PolytokError: it does.
    """
    for name in names:
        if getattr(type(module), name) is not getattr(plain, name):
            raise PolytokError(
                f"{type(module).__name__} has its own {name}, which token reduction would bypass; "
                f"models with the {name} of {plain.__module__}.{plain.__name__} work"
            )


def check_pool(core: Any, restore: str) -> None:
    """Refuse a pooling that needs every patch in its place, unless they are put back.

    Raises:
        PolytokError: the head's attention pooling is of another class, or has positions.
    """
    pool = core.attn_pool
    plain = getattr(pool, "latent", None) is not None and getattr(pool, "pos_embed", None) is None
    if pool is not None and restore != "grid" and not plain:
        raise PolytokError(
            f"the head pools by {type(pool).__name__}, which needs every patch in its place; "
            "restore='grid' works"
        )


class ReducedTimm(Swapped):
    """In front of a timm model's class: its block loop hands a pass from block to block."""

    reduction: Reduction

    def extra_repr(self) -> str:
        return str(self.reduction)

    def forward(self, x: Tensor, *args: Any, keep: Any = None, **native: Any) -> Tensor:
        """As the plain model; ``keep`` overrides the schedule for this call."""
        if self.reduction.is_paused:
            return super().forward(x, *args, **native)  # type: ignore[misc]
        x, tokens = self._features(x, keep, *args, **native)
        return _headed(self, self.norm(x), tokens.state, self.reduction.restore)  # type: ignore

    def forward_features(self, x: Tensor, *args: Any, keep: Any = None, **native: Any) -> Tensor:
        """(B, prefix + patches left, C) after the last norm; every patch with restore='grid'."""
        if self.reduction.is_paused:
            return super().forward_features(x, *args, **native)  # type: ignore
        return self.norm(self._features(x, keep, *args, **native)[0])  # type: ignore

    def forward_intermediates(self, x: Tensor, indices: Any = None, **options: Any) -> Any:
        """As the plain model; ``output_fmt='NCHW'`` needs restore='grid'."""
        if self.reduction.is_paused:
            return super().forward_intermediates(x, indices, **options)  # type: ignore[misc]
        return _intermediates(self, x, indices, **options)

    def _features(
        self, x: Tensor, keep: Any, attn_mask: Any = None, is_causal: bool = False
    ) -> tuple[Tensor, Pass]:
        refuse_mask(attn_mask, is_causal)
        tokens = new_pass(self, keep)
        x, native = self.reduction.host.embed(self, x)  # type: ignore[attr-defined]
        for block, kwargs in zip(self.blocks, native, strict=True):  # type: ignore
            x = _block(self, block, x, tokens, kwargs)
        return x, tokens


def _block(core: Any, block: Any, x: Tensor, tokens: Pass, native: dict[str, Any]) -> Tensor:
    if core.grad_checkpointing and torch.is_grad_enabled():
        return checkpoint(block, x, use_reentrant=False, tokens=tokens, **native)
    return block(x, tokens=tokens, **native)


def _headed(core: Any, x: Tensor, state: TokenState, restore: str) -> Tensor:
    """Pool and classify; tokens that stand for several count as often."""
    if state.size is None or restore == "grid" or core.global_pool in ("", "token"):
        return core.forward_head(x)
    has_all = core.attn_pool is not None and not hasattr(core, "pool_include_prefix")
    first = 0 if has_all or getattr(core, "pool_include_prefix", False) else state.prefix
    x, size = x[:, first:], state.size[:, first:, None].to(x.dtype)
    if core.attn_pool is not None:
        pooled = core.attn_pool(x, attn_mask=size.log().transpose(1, 2)[:, None])
    else:
        mean = (x * size).sum(1) / size.sum(1)
        top = x.amax(1) if "max" in core.global_pool else mean
        pooled = {"avg": mean, "max": top, "avgmax": 0.5 * (mean + top)}[core.global_pool]
    return core.head(core.head_drop(core.fc_norm(pooled)))


def _intermediates(
    core: Any,
    x: Tensor,
    indices: Any,
    *,
    return_prefix_tokens: bool = False,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
    output_dict: bool = False,
    attn_mask: Any = None,
    is_causal: bool = False,
    keep: Any = None,
) -> Any:
    """What timm's forward_intermediates gives, by the reduced loop."""
    refuse_mask(attn_mask, is_causal)
    restores = core.reduction.restore == "grid"
    if output_fmt not in ("NCHW", "NLC"):
        raise PolytokError(f"output_fmt={output_fmt!r} is neither 'NCHW' nor 'NLC'")
    if output_fmt == "NCHW" and not restores:
        raise PolytokError(f"{SPATIAL} of a reduced model needs restore='grid', or use 'NLC'")
    taken = _taken(len(core.blocks), indices)
    grid = core.patch_embed.dynamic_feat_size(x.shape[-2:])
    tokens = new_pass(core, keep)
    x, native = core.reduction.host.embed(core, x)
    found = []
    whole = x
    for i, (block, kwargs) in enumerate(zip(core.blocks, native, strict=True)):
        x = whole = _block(core, block, x, tokens, kwargs)
        if i in taken:
            whole = x if i == len(core.blocks) - 1 else tokens.restored(x, i)
            found.append(core.norm(whole) if norm else whole)
        if stop_early and i == max(taken):
            break
    first = core.num_prefix_tokens
    maps = [y[:, first:] for y in found]
    if output_fmt == "NCHW":
        maps = [y.transpose(1, 2).unflatten(2, grid).contiguous() for y in maps]
    prefixes = [y[:, :first] for y in found] if return_prefix_tokens and first else None
    if output_dict:
        named: dict[str, Any] = {"image_intermediates": maps}
        named |= {} if prefixes is None else {"image_intermediates_prefix": prefixes}
        return named if intermediates_only else named | {"image_features": core.norm(whole)}
    out = maps if prefixes is None else list(zip(maps, prefixes, strict=True))
    return out if intermediates_only else (core.norm(whole), out)


def _taken(depth: int, indices: Any) -> set[int]:
    """Blocks whose outputs are wanted: the last n, those listed, or all."""
    if indices is None:
        return set(range(depth))
    listed = range(depth - indices, depth) if isinstance(indices, int) else indices
    wanted = {i + depth if i < 0 else i for i in listed}
    if not wanted or min(wanted) < 0 or max(wanted) >= depth:
        raise PolytokError(f"indices={indices!r} are not within the blocks 0..{depth - 1}")
    return wanted
