"""Applying a reduction to a model somebody already has, and taking it away again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import nn

from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers.hosts.find import find_core
from polytok.reducers.methods import method as find_method
from polytok.reducers.methods import schedule_of
from polytok.reducers.passes import ReducedBlock
from polytok.reducers.reducer import Reducer
from polytok.reducers.reduction import Reduction, reduction_of
from polytok.reducers.reduction import find_core as find_reduced
from polytok.reducers.schedule import Counts, Keep, Remove, Schedule
from polytok.reducers.swap import Swapped, check_own_forward, swap, unswap
from polytok.reducers.versions import warn_untested

M = TypeVar("M", bound=nn.Module)


def reduce(
    model: M,
    method: str | Reducer = "evit",
    *,
    keep: Keep | None = None,
    r: Remove | None = None,
    counts: Counts | None = None,
    schedule: Schedule | str | Path | None = None,
    restore: Literal["none", "grid"] = "none",
    **options: Any,
) -> M:
    """Make a vision transformer process fewer tokens, in place; returns the same object.

    Give at most one of ``keep``, ``r``, ``counts`` and ``schedule``, see :class:`Schedule`; with
    none the method's published schedule holds. State-dict keys, inputs and outputs stay; a
    block that keeps everything runs its own forward.

    Args:
        model: of a known family, or a module that holds one such model.
        method: a name of :func:`method_names`, or a reducer.
        keep: share of the patch tokens: {block: share}, a list, or one for the usual blocks.
        r: how many to remove, likewise. counts: how many to keep. schedule: an object or JSON.
        restore: ``grid`` puts every patch back in its place behind the last block.
        options: of the method, such as ``fuse=False``.

    Raises:
        PolytokError: the model, method or schedule cannot work; nothing was changed.
    """
    core, host = find_core(model)
    if isinstance(core, Swapped):
        raise PolytokError(
            f"the model is {reduction_of(core)} already; call polytok.unreduce(model) first"
        )
    if restore not in ("none", "grid"):
        raise ConfigError(f"restore={restore!r} is neither 'none' nor 'grid'")
    name, reducer = find_method(method, **options)
    host.check(core, model, reducer, restore)
    blocks = host.blocks(core)
    reducer.check(len(blocks))
    planned = schedule_of(reducer, len(blocks), keep=keep, r=r, counts=counts, schedule=schedule)
    for module in (core, *blocks):
        check_own_forward(module)
    if reducer.needs_cls and not host.has_class_token(core):
        raise PolytokError(
            f"{name} ranks patches by the class token, and {type(core).__name__} has none here; "
            "methods without one work, such as 'tome', 'mctf', 'uniform' and 'random'"
        )
    reduction = Reduction(name, reducer, planned, host, restore)
    rows, columns = host.grid(core)
    reduction.resolve(rows * columns, len(blocks))
    warn_untested(host.library)
    try:
        _set(core, "reduction", reduction)
        for layer, block in enumerate(blocks):
            _set(block, "reduction_layer", layer)
            swap(block, ReducedBlock)
        host.install(core, model)
    except BaseException:
        _unswap_all(model)
        core.__dict__.pop("reduction", None)
        raise
    return model


def _set(module: nn.Module, name: str, value: Any) -> None:
    # Past nn.Module, which would look for a parameter or module of this name.
    module.__dict__[name] = value


def unreduce(model: M) -> M:
    """Take a reduction away; the model is what it was.

    Raises:
        PolytokError: none is applied.
    """
    reduction_of(model)
    _unswap_all(model)
    return model


def _unswap_all(model: nn.Module) -> None:
    for module in [m for m in model.modules() if isinstance(m, Swapped)]:
        unswap(module)
        for name in ("reduction", "reduction_layer", "prefix"):
            module.__dict__.pop(name, None)


@contextmanager
def applied(model: M, method: str | Reducer = "evit", **options: Any) -> Iterator[M]:
    """Reduce a model while the context lasts; an exception leaves it as it was too."""
    reduction = reduction_of(reduce(model, method, **options))
    try:
        yield model
    finally:
        core = find_reduced(model)
        if core is not None and core.reduction is reduction:
            unreduce(model)


@contextmanager
def paused(model: M) -> Iterator[M]:
    """The plain model while the context lasts, without taking the reduction away.

    Raises:
        PolytokError: none is applied.
    """
    reduction = reduction_of(model)
    before, reduction.is_paused = reduction.is_paused, True
    try:
        yield model
    finally:
        reduction.is_paused = before
