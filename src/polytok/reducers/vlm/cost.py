"""What a prompt costs the language model, in closed form: FLOPs of the prefill and bytes of KV."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def prefill_flops(config: Any, lengths: Sequence[int]) -> int:
    """FLOPs (two per multiply-add) of a prefill of one sequence; ``lengths[i]`` tokens in layer i.

    Per layer of width d with inner width m: 2 n d (queries and output) + 2 n d_kv (keys, values)
    + 2 n^2 d_q (logits and sums, as if nothing were masked) + 3 n d m (gated MLP), times two.
    Norms, embeddings and the output layer are left out.
    """
    return sum(_layer_flops(config, n) for n in lengths)


def _layer_flops(config: Any, n: int) -> int:
    d, inner = config.hidden_size, config.intermediate_size
    queries, keys = head_widths(config)
    return 2 * (2 * n * d * queries + 2 * n * d * keys + 2 * n * n * queries + 3 * n * d * inner)


def tower_flops(config: Any, tokens: int, layers: int) -> int:
    """FLOPs of a vision tower with plain MLPs on a tile of ``tokens``, without the embedding."""
    d, inner = config.hidden_size, config.intermediate_size
    return layers * 2 * (4 * tokens * d * d + 2 * tokens**2 * d + 2 * tokens * d * inner)


def kv_bytes(config: Any, lengths: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of keys and values of one sequence, ``lengths[i]`` tokens in layer i."""
    return 2 * sum(lengths) * head_widths(config)[1] * dtype.itemsize


def head_widths(config: Any) -> tuple[int, int]:
    """Width of all queries, and of all keys (grouped queries share theirs)."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * size, (getattr(config, "num_key_value_heads", None) or heads) * size
