"""Bits per byte: how well a language model predicts texts, whatever its tokenizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from polytok.core.errors import PolytokError, SignalError
from polytok.systems.text.zett.bytelevel import ByteLevel
from polytok.systems.text.zett.loading import LanguageModel

LN2 = math.log(2)


@dataclass(frozen=True)
class BitsPerByte:
    """What texts cost.

    Args:
        bits_per_byte: mean over all bytes of UTF-8. bits, bytes, tokens: totals.
        conventions: how it was counted.
    """

    bits_per_byte: float
    bits: float
    bytes: int
    tokens: int
    conventions: str

    @property
    def bytes_per_token(self) -> float:
        """Mean length of a token."""
        return self.bytes / max(self.tokens, 1)


@torch.no_grad()
def bits_per_byte(
    lm: LanguageModel,
    tokenizer: ByteLevel,
    texts: Sequence[str],
    *,
    context: int | None = None,
    batch_size: int = 32,
) -> BitsPerByte:
    """Score texts, each by itself, with a causal model as it is under a tokenizer.

    Every token is scored, the first after the model's start token; without one, it costs the bits
    of an even guess. A text longer than the context is read in windows that overlap by half, and a
    token is scored where it has most context. The end of a text costs nothing.

    Args:
        tokenizer: the model's own, or the one it was given. context: tokens per window with the
            start; the model's own limit if not given.

    Raises:
        SignalError: there is no byte to score. PolytokError: the model fills masks, or the context
            is below 4 tokens.
    """
    model = lm.model
    if lm.embeddings.is_masked:
        raise PolytokError("bits per byte need a model that continues texts; this one fills masks")
    limit = context or getattr(model.config, "max_position_embeddings", None) or 2048
    if limit < 4:
        raise PolytokError(f"context={limit} must be at least 4")
    first = None if lm.start is None else tokenizer.vocabulary.specials[lm.start]
    total = sum(len(text.encode()) for text in texts)
    if not total:
        raise SignalError("no byte to score: every text is empty")
    encoded = tokenizer.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    bits, windows = 0.0, []
    for ids in (e.ids for e in encoded):
        if first is None and ids:
            bits += math.log2(len(tokenizer))
        windows += _windows(ids if first is None else [first, *ids], limit)
    # Windows of like length stand together, so that little is padded.
    windows.sort(key=lambda w: len(w[0]))
    model.eval()
    for at in range(0, len(windows), batch_size):
        bits += _bits(model, windows[at : at + batch_size])
    return BitsPerByte(
        bits_per_byte=bits / total,
        bits=bits,
        bytes=total,
        tokens=sum(len(e.ids) for e in encoded),
        conventions=f"each text alone after {lm.start!r}, windows of {limit} overlap by half",
    )


def _windows(ids: list[int], limit: int) -> list[tuple[list[int], int]]:
    """Windows of at most ``limit`` ids, each with the place of the first that it scores."""
    if len(ids) < 2:
        return []
    out = [(ids[:limit], 1)]
    step = limit // 2
    end = limit
    while end < len(ids):
        stop = min(end + step, len(ids))
        out.append((ids[max(stop - limit, 0) : stop], limit - (stop - end)))
        end = stop
    return out


def _bits(model: Any, windows: Sequence[tuple[list[int], int]]) -> float:
    longest = max(len(ids) for ids, _ in windows)
    device = next(model.parameters()).device
    ids = torch.zeros(len(windows), longest, dtype=torch.long)
    seen, scored = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for row, (values, begin) in enumerate(windows):
        ids[row, : len(values)] = torch.tensor(values)
        seen[row, : len(values)] = True
        scored[row, begin : len(values)] = True
    ids, seen, scored = ids.to(device), seen.to(device), scored.to(device)
    logits = model(input_ids=ids, attention_mask=seen.long()).logits[:, :-1]
    each = F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return float((each * scored[:, 1:].flatten()).double().sum()) / LN2
