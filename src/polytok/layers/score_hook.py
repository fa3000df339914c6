"""Add a tensor to the attention scores of a module, or read them, without touching its code.

Supported is every attention module whose forward calls ``scaled_dot_product_attention`` or a
softmax exactly once: polytok's own, timm's fused or not, Hugging Face's with
``attn_implementation`` "sdpa" or "eager". Others (flash or flex kernels,
``nn.MultiheadAttention``, compiled modules, blocks of several attentions) are refused when they
are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polytok.core.errors import PolytokError

_SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)


@contextmanager
def added_scores(module: nn.Module, bias: Tensor) -> Iterator[None]:
    """While the block lasts, add ``bias`` to the scores of ``module`` before their softmax.

    Gradient flows back to ``bias``. What is masked stays masked. Blocks nest: biases add up.

    Args:
        bias: float, broadcastable to (B, H, N, S), from (N, S) up.

    Raises:
        PolytokError: when the module is called: it computes its scores in a way that is not
            supported, or the bias does not fit them.
    """
    with _intercepted(module, bias=bias):
        yield


@contextmanager
def read_scores(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the scores of ``module``, (B, H, N, S) per call, with masks and biases added.

    They carry gradient.

    Raises:
        PolytokError: when the module is called: its way of computing scores is not supported.
    """
    found: list[Tensor] = []
    with _intercepted(module, found=found):
        yield found


@contextmanager
def _intercepted(
    module: nn.Module, *, bias: Tensor | None = None, found: list[Tensor] | None = None
) -> Iterator[None]:
    calls: list[_Interception] = []

    def enter(*_: Any) -> None:
        calls.append(_Interception(bias, found))
        calls[-1].__enter__()

    def leave(_: nn.Module, __: Any, output: Any) -> None:
        call = calls.pop()
        call.__exit__(None, None, None)
        # Without an output the module has failed, and its own error is on its way.
        if output is not None and call.count != 1:
            raise PolytokError(
                f"{type(module).__name__} computes {call.count} softmaxes that can be seen, not "
                "one; choose a single attention module, with sdpa or eager attention"
            )

    handles = (
        module.register_forward_pre_hook(enter, prepend=True),
        module.register_forward_hook(leave, always_call=True),
    )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Interception(TorchFunctionMode):
    """Changes or keeps the scores of the softmaxes that this thread computes meanwhile."""

    def __init__(self, bias: Tensor | None, found: list[Tensor] | None) -> None:
        super().__init__()
        self.bias, self.found, self.count = bias, found, 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.count += 1
            return self._attend(*args, **kwargs)
        if func in _SOFTMAXES:
            self.count += 1
            return self._softmax(func, *args, **kwargs)
        return func(*args, **kwargs)

    def _softmax(self, func: Any, scores: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.found is not None:
            self.found.append(scores)
        if self.bias is not None:
            scores = scores + _fitting(self.bias, tuple(scores.shape)).to(scores.dtype)
        return func(scores, *args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        shape = (*query.shape[:-1], key.shape[-2])
        if is_causal:
            attn_mask = torch.ones(shape[-2:], dtype=torch.bool, device=query.device).tril()
        if self.found is not None:
            groups = query.shape[-3] // key.shape[-3] if enable_gqa else 1
            keys = key.repeat_interleave(groups, dim=-3) if groups > 1 else key
            factor = query.shape[-1] ** -0.5 if scale is None else scale
            self.found.append(_masked(factor * query @ keys.mT, attn_mask))
        if self.bias is not None:
            bias = _fitting(self.bias, shape).to(query.dtype)
            attn_mask = _masked(bias.expand(shape), attn_mask)
        return F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=attn_mask,
            dropout_p=dropout_p,
            scale=scale,
            enable_gqa=enable_gqa,
        )


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return scores
    return scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask


def _fitting(bias: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        is_fitting = torch.broadcast_shapes(bias.shape, shape) == shape
    except RuntimeError:
        is_fitting = False
    if not is_fitting:
        raise PolytokError(f"a bias {tuple(bias.shape)} does not fit scores {shape}")
    return bias
