"""Frozen dataclasses as configuration: strict in, plain JSON out."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, TypeVar

from polytok.core.errors import ConfigError, UnknownNameError

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Turn a (nested) dataclass into JSON-ready values; tuples become lists."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def from_dict(cls: type[C], values: dict[str, Any]) -> C:
    """Build dataclass ``cls`` from JSON values.

    Raises:
        UnknownNameError: a key is unknown; the message suggests the nearest one.
        ConfigError: a value has the wrong type.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__} takes a mapping, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise UnknownNameError(f"key of {cls.__name__}", key, names)
    try:
        return cls(**{k: _typed(v, hints[k], f"{cls.__name__}.{k}") for k, v in values.items()})
    except TypeError as error:
        raise ConfigError(f"{cls.__name__}: {error}") from error


def override(config: C, **changes: Any) -> C:
    """Return ``config`` with some fields replaced, checked like :func:`from_dict`."""
    return from_dict(type(config), {**to_dict(config), **changes})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(value, next(a for a in args if a is not type(None)), where)
    if origin is typing.Literal:
        if value not in args:
            raise ConfigError(f"{where}={value!r} is not one of {list(args)}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}={value!r} is not a list")
        if len(args) == 2 and args[1] is Ellipsis:
            return tuple(_typed(v, args[0], where) for v in value)
        if len(value) != len(args):
            raise ConfigError(f"{where} takes {len(args)} values, got {len(value)}")
        return tuple(_typed(v, a, where) for v, a in zip(value, args, strict=True))
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if type(value) is hint else from_dict(hint, value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (
        not isinstance(value, hint) or (hint in (int, float) and isinstance(value, bool))
    ):
        raise ConfigError(f"{where}={value!r} is not of type {hint.__name__}")
    return value
