"""Reads one row of a model's attention without the map, whatever kernel runs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.reducers.scores import CHUNK, attention_rows

Row = Literal["cls", "received", "last"]
Heads = Literal["keep", "merged"]

KERNELS = ("sdpa", "eager")


@dataclass(frozen=True)
class Tap:
    """One row of the attention of one layer.

    Args:
        layer: index into the layers of the tower.
        row: ``cls`` what the first token attends to; ``received`` the mean, over all tokens, of
            what they attend to; ``last`` what the last token attends to.
        heads: ``keep`` one row per head; ``merged`` one row, from queries and keys of all heads
            as if they were one (as PruMerge and DAMRO do).
    """

    layer: int
    row: Row = "cls"
    heads: Heads = "keep"


@dataclass(eq=False)
class Recorder:
    """Collects the rows of some taps while a tower runs: ``rows[tap]``, a list of (B, H, n).

    ``last`` (B,) is where the last token of each sample stands; None: at the end.
    """

    taps: tuple[Tap, ...]
    layer_of: dict[int, int]
    rows: dict[Tap, list[Tensor]] = field(default_factory=dict)
    last: Tensor | None = None

    def see(
        self, module: nn.Module, query: Tensor, key: Tensor, mask: Tensor | None, scale: float
    ) -> None:
        layer = self.layer_of.get(id(module))
        for tap in self.taps:
            if tap.layer == layer:
                row = attention_row(tap, query, key, mask, scale, self.last)
                self.rows.setdefault(tap, []).append(row)


class _Local(threading.local):
    recorder: Recorder | None = None


_LOCAL = _Local()


@torch.no_grad()
def attention_row(
    tap: Tap,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scale: float,
    last: Tensor | None = None,
) -> Tensor:
    """One row of softmax(query key^T * scale + mask): (B, heads, m) in float32.

    Queries (B, H, n, d), keys (B, G, m, d); takes O(m d) for ``cls`` and ``last``. The last query
    of each sample is its ``last`` (B,), where padding follows it.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    if tap.heads == "merged":
        scale *= key.shape[1] ** -0.5
        query, key = (x.transpose(1, 2).flatten(2)[:, None] for x in (query, key))
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -torch.inf)
    count = query.shape[2]
    if tap.row != "received":
        at = torch.zeros_like(query[:, :1, :1, :1], dtype=torch.long)
        if tap.row == "last":
            at = at + (count - 1 if last is None else last.view(-1, 1, 1, 1))
        bias = None if mask is None else mask.take_along_dim(at, 2)
        return attention_rows(query.take_along_dim(at, 2), key, scale, bias)[:, :, 0]
    total = query.new_zeros(key.shape[:3], dtype=torch.float32)
    for start in range(0, count, CHUNK):
        some = slice(start, start + CHUNK)
        bias = None if mask is None else mask[:, :, some]
        total += attention_rows(query[:, :, some], key, scale, bias).sum(2)
    return total / count


def _stock(kernel: str, module: nn.Module) -> Callable[..., Any]:
    if kernel == "eager":  # each modelling file has its own
        return sys.modules[type(module).__module__].eager_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS[kernel]


def _tapped(kernel: str) -> Callable[..., Any]:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **options: Any,
    ) -> Any:
        recorder = _LOCAL.recorder
        if recorder is not None:
            scale = options.get("scaling")
            scale = query.shape[-1] ** -0.5 if scale is None else scale
            recorder.see(module, query, key, attention_mask, scale)
        return _stock(kernel, module)(module, query, key, value, attention_mask, **options)

    return forward


def _register() -> None:
    """Register, once per process, a kernel that looks on for each stock kernel."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for kernel in KERNELS:
        name = _name(kernel)
        if name not in ALL_ATTENTION_FUNCTIONS:
            ALL_ATTENTION_FUNCTIONS.register(name, _tapped(kernel))
            ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS[kernel])


def _name(kernel: str) -> str:
    return f"polytok_tap_{kernel}"


@dataclass
class _Installed:
    kernel: str
    users: int = 0


_LOCK = threading.Lock()
_INSTALLED: WeakKeyDictionary[nn.Module, _Installed] = WeakKeyDictionary()


def check_kernel(tower: Any) -> None:
    """Refuse a model whose attention kernel shows no queries and keys.

    Raises:
        ConfigError: the kernel is neither ``sdpa`` nor ``eager``.
    """
    kernel = tower.config._attn_implementation
    if kernel not in (*KERNELS, *map(_name, KERNELS)):
        raise ConfigError(
            f"{type(tower).__name__} runs {kernel!r}, which gives no scores; call its "
            "set_attn_implementation('sdpa') first"
        )


@contextmanager
def recording(tower: Any, layers: nn.ModuleList, taps: tuple[Tap, ...]) -> Iterator[Recorder]:
    """Record ``taps`` of every call of ``tower`` in this thread; its kernel is put back after.

    Raises:
        ConfigError: the tower's kernel is neither ``sdpa`` nor ``eager``.
    """
    if not taps:
        yield Recorder((), {})
        return
    check_kernel(tower)
    _register()
    recorder = Recorder(taps, {id(m): i for i, layer in enumerate(layers) for m in layer.modules()})
    with _LOCK:
        found = _INSTALLED.setdefault(tower, _Installed(tower.config._attn_implementation))
        if not found.users:
            tower.set_attn_implementation(_name(found.kernel))
        found.users += 1
    before, _LOCAL.recorder = _LOCAL.recorder, recorder
    try:
        yield recorder
    finally:
        _LOCAL.recorder = before
        with _LOCK:
            found.users -= 1
            if not found.users:
                tower.set_attn_implementation(found.kernel)
                del _INSTALLED[tower]
