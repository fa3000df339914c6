"""What joins a generator of codes with its tokenizer's codec, whatever the signal is."""

from __future__ import annotations

import torch
from torch import nn

from polytok.core.contracts import TokenizerSpec
from polytok.core.errors import ConfigError
from polytok.systems.codec import Codec

MICRO_BATCH = 4  # items that are drawn together, always as many: floats depend on the batch size


class CodeGenerator:
    """What ``polytok.load`` returns for a generator.

    Args:
        codec: of the tokenizer whose codes are drawn.
        name: preset or weights tag. weights: fingerprint, 8 hex digits.
    """

    def __init__(self, model: nn.Module, codec: Codec, *, name: str, weights: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self.codec, self.name, self.weights = codec, name, weights

    @property
    def spec(self) -> TokenizerSpec:
        return self.codec.spec

    @property
    def device(self) -> torch.device:
        """Where the model computes; codes stay on the CPU."""
        return next(self.model.parameters()).device


def check_count(count: int, most: int) -> None:
    """Refuse a number of items that is out of range.

    Raises:
        ConfigError: it is not within 1..most.
    """
    if not 1 <= count <= most:
        raise ConfigError(f"count={count} is not within 1..{most}")
