"""Decoding that is pushed away from a second, worse look at the picture (VCD, DAMRO)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers.vlm.hosts.base import cache_name, text_positions
from polytok.reducers.vlm.hosts.release import call_of
from polytok.reducers.vlm.reduction import Reduction
from polytok.reducers.vlm.threads import paused


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Logits l become (1 + alpha) l - alpha c where l >= max l + log beta, else -inf.

    c are the logits of the same text after the visual tokens that ``negative`` leaves. The cut is
    VCD's plausibility rule, arXiv 2311.16922, equation 4. Costs a second forward pass per token.

    Raises:
        ConfigError: ``alpha`` is negative or ``beta`` outside [0, 1].
    """

    negative: Reduction
    alpha: float = 1.0
    beta: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf or not 0 <= self.beta <= 1:
            raise ConfigError(
                f"alpha={self.alpha} must be 0 or more, beta={self.beta} within [0, 1]"
            )

    @torch.no_grad()
    def processor(self, model: Any, inputs: Mapping[str, Any]) -> ContrastProcessor:
        """A logits processor for one call of ``model.generate`` on these inputs."""
        prepared, _ = self.negative.prepare(model, inputs)
        return ContrastProcessor(model, prepared, self.alpha, self.beta)


def contrasted(logits: Tensor, negative: Tensor, alpha: float, beta: float) -> Tensor:
    """Combine the logits (B, V) of both branches; implausible tokens get -inf."""
    cut = logits.amax(-1, keepdim=True) + (math.log(beta) if beta > 0 else -math.inf)
    found = (1 + alpha) * logits - alpha * negative
    return found.masked_fill(logits < cut, -torch.inf)


class ContrastProcessor:
    """Holds the second branch with its own cache: the prompt first, then a token per call.

    Good for one call of ``generate`` without beams, since rows must not change places.
    """

    def __init__(self, model: Any, prepared: dict[str, Any], alpha: float, beta: float) -> None:
        self.model, self.alpha, self.beta = model, alpha, beta
        self.prompt = dict(call_of(model, prepared))
        self.mask: Tensor = self.prompt.pop("attention_mask")
        positions = self.prompt.pop("position_ids", None)
        self.positions: Tensor = text_positions(self.mask) if positions is None else positions
        self.cache: Any = None

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.cache is None:
            negative = self._several(self._forward(**self.prompt), len(input_ids))
        else:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
            self.positions = self.positions[..., -1:] + 1
            negative = self._forward(input_ids=input_ids[:, -1:])
        return contrasted(scores, negative.to(scores), self.alpha, self.beta)

    def _several(self, logits: Tensor, rows: int) -> Tensor:
        """Copy prompts that several answers go on from."""
        if (copies := rows // len(logits)) > 1:
            self.cache.batch_repeat_interleave(copies)
            self.mask = self.mask.repeat_interleave(copies, 0)
            self.positions = self.positions.repeat_interleave(copies, -2)
        return logits.repeat_interleave(copies, 0)

    def _forward(self, **options: Any) -> Tensor:
        name = cache_name(self.model)
        with paused():
            found = self.model(
                **options,
                **{name: self.cache},
                attention_mask=self.mask,
                position_ids=self.positions,
                use_cache=True,
                logits_to_keep=1,
            )
        self.cache = found[name]
        return found.logits[:, -1].float()
