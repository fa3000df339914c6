"""Giving a module other methods, and taking them away again, without touching its weights."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn


class Swapped:
    """Base of every mixin that a class swap puts in front of a module's own class.

    The class that results has the name of the module's own, so printing, saved configurations
    and libraries that look classes up by name see what they know. Instances pickle by their
    own class and the mixin.
    """

    plain_class: Any

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _instance, (self.plain_class, type(self).__bases__[0]), self.__dict__.copy()


def swap(module: nn.Module, mixin: Any) -> None:
    """Put ``mixin`` in front of the class of ``module``."""
    kind: Any = type(module)
    module.__class__ = swapped_class(kind, mixin)


def unswap(module: Any) -> None:
    """Give a swapped module its own class back."""
    module.__class__ = module.plain_class


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
