"""How much the methods of this family keep, said in three ways."""

from __future__ import annotations

from typing import Any

from polytok.core.errors import ConfigError
from polytok.reducers.vlm import Budget, PerTile, Total


def budget_of(keep: Any, ratio: float | None, total: int | None) -> Budget:
    """The budget of exactly one of: kept per tile, removed fraction, kept per image.

    Raises:
        ConfigError: none or several are given, or one is out of range.
    """
    given = {"keep": keep, "ratio": ratio, "total": total}
    if sum(value is not None for value in given.values()) != 1:
        raise ConfigError(
            "give one of keep (tokens per tile, or a kept fraction), ratio (the removed fraction) "
            f"and total (tokens per image); got {given}"
        )
    if total is not None:
        return Total(total)
    if ratio is not None:
        if not 0 <= ratio < 1:
            raise ConfigError(f"ratio={ratio}, the removed fraction, is not within [0, 1)")
        return PerTile(float(1 - ratio))
    return PerTile(keep)
