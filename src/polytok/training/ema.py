"""An average of the weights over training, in fp32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def own_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by name that the model owns: those in its state, each tied one once."""
    kept = model.state_dict(keep_vars=True)
    return {name: p for name, p in model.named_parameters() if name in kept}


class WeightAverage:
    """Exponential moving average: a <- a + (1 - d) (w - a), d = min(decay, (1 + n) / (10 + n)).

    Args:
        parameters: the weights w to follow, by name.
        decay: the largest d, in [0, 1); 0 follows the weights exactly.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay, self.num_updates = decay, 0
        self.parameters = dict(parameters)
        self.average = {n: p.detach().float().clone() for n, p in parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights after an optimiser step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [p.detach().float() for p in self.parameters.values()]
        torch._foreach_lerp_(list(self.average.values()), weights, 1 - decay)

    @torch.no_grad()
    def follow(self, name: str) -> None:
        """Restart the average of one parameter at its present value."""
        self.average[name].copy_(self.parameters[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor], num_updates: int) -> None:
        """Continue a saved average."""
        for name, value in self.average.items():
            value.copy_(tensors[name])
        self.num_updates = num_updates

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """Replace the weights by their average."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.average[name])

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Hold the average in the model for a block, then put the weights back bit for bit."""
        kept = {n: p.detach().clone() for n, p in self.parameters.items()}
        self.copy_to_model()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in self.parameters.items():
                    parameter.copy_(kept[name])
