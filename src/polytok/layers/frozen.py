"""A module that is used and never trained: teachers, pretrained towers, reference copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class Frozen(nn.Module):
    """Hold a foreign module: gradient passes through it to its inputs, its weights get none.

    It is always in eval mode, and not among the parameters, buffers, children and state of what
    holds it, so optimisers, averages and saved files leave it out. ``.to()`` and its kind move it.

    Args:
        module: frozen in place; to go on training the original, give a copy.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # Torch registers what is assigned as an attribute, but does not look into a tuple.
        self._held = (module.requires_grad_(False).eval(),)
        self.train(False)

    @property
    def module(self) -> nn.Module:
        """The module that is held."""
        return self._held[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode, whatever ``mode`` is."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Every move and cast of a module comes through here.
        self.module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        """The class of the module, which torch does not list as a child."""
        return type(self.module).__name__
