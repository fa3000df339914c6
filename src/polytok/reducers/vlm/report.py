"""What a reduction did to one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from polytok.reducers.maps import TokenMap
from polytok.reducers.vlm.cost import kv_bytes, prefill_flops
from polytok.reducers.vlm.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Report:
    """Tokens and costs before and after; sums over the rows of the batch.

    Args:
        before, after: visual tokens per image.
        prompt_before, prompt_after: valid tokens per row, text included.
        flops_before, flops_after: of the prefill, see :func:`prefill_flops`.
        kv_before, kv_after: bytes of keys and values after the prefill.
        layouts: per image, where its tokens come from.
        maps: per image, where each of its tokens went.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    prompt_before: tuple[int, ...]
    prompt_after: tuple[int, ...]
    flops_before: int
    flops_after: int
    kv_before: int
    kv_after: int
    layouts: tuple[Layout, ...]
    maps: tuple[TokenMap, ...]

    def kept(self, image: int) -> Tensor:
        """(k,) int64 indices, ascending, of the kept tokens of an image among its tokens."""
        return self.maps[image].anchor()[0]

    def boxes(self, image: int) -> Tensor:
        """(k, 4) left, top, right, bottom of its kept tokens in the picture, in [0, 1]."""
        return self.layouts[image].boxes(self.kept(image))

    def per_tile(self, image: int) -> tuple[int, ...]:
        """Kept tokens of each tile of an image."""
        layout = self.layouts[image]
        source = layout.source[self.kept(image).cpu()]
        tiles = source[source >= 0] // layout.cells
        return tuple(tiles.bincount(minlength=layout.tiles).tolist())

    def __str__(self) -> str:
        flops = f"{_short(self.flops_before / 1e9)} -> {_short(self.flops_after / 1e9)} GFLOPs"
        memory = f"{_short(self.kv_before / 1e6)} -> {_short(self.kv_after / 1e6)} MB"
        tokens = f"{sum(self.before)} -> {sum(self.after)}"
        return f"visual tokens {tokens}, prefill {flops}, KV {memory}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def with_layers(report: Report, model: Any, lengths: Sequence[Sequence[int]]) -> Report:
    """The report when tokens also left between layers: ``lengths[row][layer]`` of the prompts."""
    config = model.config.get_text_config()
    return replace(
        report,
        flops_after=sum(prefill_flops(config, row) for row in lengths),
        kv_after=sum(kv_bytes(config, row, model.dtype) for row in lengths),
    )


def make_report(
    model: Any,
    layouts: Sequence[Layout],
    maps: Sequence[TokenMap],
    valid: tuple[Tensor, Tensor],
) -> Report:
    """Count what ``maps`` did; ``valid`` are the masks (B, n) of the prompts before and after."""
    config = model.config.get_text_config()
    rows = [tuple(int(n) for n in mask.sum(-1)) for mask in valid]
    depth = config.num_hidden_layers
    dtype = model.dtype
    flops = [sum(prefill_flops(config, [n] * depth) for n in row) for row in rows]
    memory = [sum(kv_bytes(config, [n] * depth, dtype) for n in row) for row in rows]
    return Report(
        before=tuple(x.tokens for x in layouts),
        after=tuple(x.count for x in maps),
        prompt_before=rows[0],
        prompt_after=rows[1],
        flops_before=flops[0],
        flops_after=flops[1],
        kv_before=memory[0],
        kv_after=memory[1],
        layouts=tuple(layouts),
        maps=tuple(maps),
    )
