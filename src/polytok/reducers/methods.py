"""Reduction methods by name: those the registry knows, and baselines that stand beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polytok.core.config import override
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.core.registry import SYSTEMS
from polytok.reducers.baselines import BASELINES
from polytok.reducers.reducer import Reducer
from polytok.reducers.schedule import Schedule


def method_names() -> list[str]:
    """Every name that :func:`method` takes, sorted."""
    return sorted({*BASELINES, *_presets()})


def method(name: str | Reducer, **options: Any) -> tuple[str, Reducer]:
    """The name and the reducer of a method, with some of its options changed.

    Raises:
        UnknownNameError: the name or an option is unknown.
    """
    if isinstance(name, Reducer):
        return type(name).__name__.lower(), override(name, **options) if options else name
    if name in BASELINES:
        found = BASELINES[name]
    elif name in _presets():
        found = SYSTEMS[_presets()[name]].load().PRESETS[name]
    else:
        raise UnknownNameError("reduction method", name, method_names())
    return name, override(found, **options) if options else found


def schedule_of(reducer: Reducer, depth: int, **given: Any) -> Schedule:
    """The schedule that exactly one of ``keep``, ``r``, ``counts``, ``schedule`` says.

    One number is for the blocks that the method reduces in by default; none of them gives the
    method's own schedule.

    Raises:
        ConfigError: several are given, or one is out of range.
    """
    named = {k: v for k, v in given.items() if v is not None}
    if len(named) > 1:
        raise ConfigError(f"give one of {', '.join(sorted(named))}, not {len(named)}")
    if not named:
        return reducer.schedule(depth)
    (kind, value), layers = next(iter(named.items())), reducer.layers(depth)
    if kind == "keep":
        return Schedule.ratios(value, layers)
    if kind == "r":
        return Schedule.removals(value, layers)
    if kind == "counts":
        return Schedule.counts(value)
    return value if isinstance(value, Schedule) else Schedule.load(value)


def _presets() -> Mapping[str, str]:
    """Preset -> system, of the registered reducers of images."""
    return {
        preset: system.name
        for system in SYSTEMS.values()
        if (system.kind, system.modality) == ("reducer", "image")
        for preset in system.presets
    }
