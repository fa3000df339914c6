"""Giving a module other methods, and taking them away again, without touching its weights."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from polytok.core.errors import PolytokError


class Swapped:
    """Base of every mixin that a class swap puts in front of a module's own class.

    The class that results has the name of the module's own, so printing, saved configurations
    and libraries that look classes up by name see what they know. Instances pickle by their
    own class and the mixin.
    """

    plain_class: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _instance, (self.plain_class, type(self).__bases__[0]), self.__dict__.copy()


def check_own_forward(module: nn.Module) -> None:
    """Refuse a module whose instance has a forward that would hide that of any class.

    Raises:
        PolytokError: it has one.
    """
    own = module.__dict__.get("forward")
    if own is not None and getattr(own, "__self__", None) is not module:
        raise PolytokError(
            f"{type(module).__name__} has a forward on its instance, as hooks of accelerate leave "
            "it; a model without them works (accelerate.hooks.remove_hook_from_submodules)"
        )


def swap(module: nn.Module, mixin: Any) -> None:
    """Put ``mixin`` in front of the class of ``module``."""
    kind: Any = type(module)
    _forget_forward(module)
    module.__class__ = swapped_class(kind, mixin)


def unswap(module: Any) -> None:
    """Give a swapped module its own class back."""
    _forget_forward(module)
    module.__class__ = module.plain_class


def _forget_forward(module: nn.Module) -> None:
    # Recording outputs in transformers 4 leaves the bound forward of the class on the instance.
    module.__dict__.pop("forward", None)


@cache
def swapped_class(plain: Any, mixin: Any) -> Any:
    """The class of ``mixin`` before ``plain``; one per pair, so isinstance and pickles agree."""
    names = {
        "plain_class": plain,
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
    }
    return type(plain.__name__, (mixin, plain), names)


def _instance(plain: Any, mixin: Any) -> nn.Module:
    cls = swapped_class(plain, mixin)
    made: nn.Module = cls.__new__(cls)
    return made
