"""How many patch tokens each block leaves: rules per block, resolved once per number of patches."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from polytok.core.config import from_dict, to_dict
from polytok.core.errors import ConfigError, PolytokError, one_line

Unit = Literal["ratio", "remove", "count"]
Rounding = Literal["ceil", "floor"]

Keep = float | Mapping[int, float] | Sequence[float]
Remove = int | float | tuple[int, float] | Mapping[int, float] | Sequence[float]
Counts = Mapping[int, int] | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one block does.

    Args:
        layer: of the block, from 0.
        unit: ``ratio`` of the patch tokens it keeps, within (0, 1]; how many it should ``remove``,
            a share of them when below 1; or the ``count`` it keeps.
    """

    layer: int
    unit: Unit
    value: float

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise ConfigError(f"layer {self.layer} is not a block; blocks count from 0")
        if self.unit == "ratio" and not 0 < self.value <= 1:
            raise ConfigError(f"keep {self.value} of layer {self.layer} is not within (0, 1]")
        if self.unit == "remove" and not 0 <= self.value < math.inf:
            raise ConfigError(f"r {self.value} of layer {self.layer} is below 0")
        is_whole = math.isfinite(self.value) and self.value == int(self.value)
        if self.unit == "count" and not (is_whole and self.value >= 1):
            raise ConfigError(f"count {self.value} of layer {self.layer} is not an integer >= 1")

    def kept(self, patches: int, rounding: Rounding, least: int) -> int:
        """How many of so many patch tokens stay, ``least`` or more for a removal.

        Raises:
            ConfigError: a ratio or count below ``least``.
        """
        if self.unit == "remove":
            gone = int(self.value * patches) if 0 < self.value < 1 else int(self.value)
            return max(patches - gone, min(least, patches))
        exact = self.value if self.unit == "count" else self.value * patches
        # 0.7 * 10 is a little above 7 in binary; what rounds to 9 digits is meant.
        whole = math.ceil if rounding == "ceil" else math.floor
        keep = min(max(whole(round(exact, 9)), 1), patches)
        if keep < min(least, patches):
            raise ConfigError(
                f"layer {self.layer} would keep {keep} of {patches} patch tokens, and this method "
                f"keeps at least {least}; use a higher keep or more layers"
            )
        return keep


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A rule for each block that reduces; the other blocks keep everything.

    Args:
        rules: at most one per layer, sorted by layer.
        rounding: of ratios; the published EViT rounds up.
    """

    rules: tuple[Rule, ...] = ()
    rounding: Rounding = "ceil"

    def __post_init__(self) -> None:
        layers = [rule.layer for rule in self.rules]
        if layers != sorted(set(layers)):
            raise ConfigError(f"layers {layers} of a schedule must rise, one rule for each")

    @classmethod
    def ratios(cls, keep: Keep, layers: Iterable[int] = (), **options: Any) -> Schedule:
        """Keep a share of the patch tokens: {layer: share}, a list, or one for ``layers``."""
        return cls(rules=_rules("ratio", _spread(keep, layers)), **options)

    @classmethod
    def removals(cls, r: Remove, layers: Iterable[int] = (), **options: Any) -> Schedule:
        """Remove so many: {layer: r}, a list per layer, one r for ``layers``, or ``(r, slope)``.

        ``(r, slope)`` removes r on average, from ``(1 - slope) r`` at the first of the layers,
        linearly, to ``(1 + slope) r`` at the last; slope within [-1, 1]. Below 1, r is a share.
        """
        if isinstance(r, tuple) and len(r) == 2:
            return cls(rules=_rules("remove", _sloped(r[0], r[1], [*layers])), **options)
        return cls(rules=_rules("remove", _spread(r, layers)), **options)

    @classmethod
    def counts(cls, counts: Counts, *, prefix: int = 0, **options: Any) -> Schedule:
        """Keep absolute numbers: {layer: count}, or one per layer.

        Args:
            prefix: prefix tokens that the counts include, as DiffRate's published lists do.
        """
        given: Any = counts
        if isinstance(given, str) or not isinstance(given, (Mapping, Sequence)):
            raise ConfigError(f"counts={counts!r} must be {{block: count}}, or a list per block")
        taken = {layer: _number(n) - prefix for layer, n in _spread(counts, ()).items()}
        return cls(rules=_rules("count", taken), **options)

    def like(self, keep: Schedule | Keep) -> Schedule:
        """A schedule for ``keep``: one share is for the layers of this one."""
        if isinstance(keep, Schedule):
            return keep
        layers = [rule.layer for rule in self.rules]
        return Schedule.ratios(keep, layers, rounding=self.rounding)

    @classmethod
    def load(cls, path: str | Path) -> Schedule:
        """Read the JSON that :meth:`save` wrote.

        Raises:
            PolytokError: it is missing or no schedule.
        """
        try:
            return from_dict(cls, json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise PolytokError(f"cannot read the schedule {path}: {one_line(error)}") from error

    def save(self, path: str | Path) -> None:
        """Write the schedule as JSON, in one step."""
        from polytok.core.files import write_text

        write_text(path, json.dumps(to_dict(self)) + "\n")

    def resolve(
        self, patches: int, depth: int, *, extra: int = 0, least: Any = None
    ) -> tuple[int, ...]:
        """Patch tokens kept by each of ``depth`` blocks, from ``patches`` at the first.

        Args:
            extra: tokens a reduction makes beyond those it keeps; they count in the next block.
            least: function patches -> fewest that one reduction can keep; any if not given.

        Raises:
            ConfigError: a rule is behind the last block, or keeps fewer than the method can.
        """
        if self.rules and self.rules[-1].layer >= depth:
            raise ConfigError(
                f"the schedule has a rule for layer {self.rules[-1].layer}, and the model has "
                f"layers 0..{depth - 1}"
            )
        rules = {rule.layer: rule for rule in self.rules}
        kept = []
        for layer in range(depth):
            keep = patches
            if layer in rules:
                floor = 1 if least is None else least(patches)
                keep = rules[layer].kept(patches, self.rounding, floor)
            kept.append(keep)
            patches = keep if keep >= patches else keep + extra
        return tuple(kept)

    def softened(self, share: float, *, steps: int = 10) -> Schedule:
        """Less of the reduction: ratio r becomes r + (1 - r) share, removals shrink likewise.

        ``share`` is rounded up to ``steps`` levels, so a ramp compiles few shapes; 0 is the
        schedule itself.

        Raises:
            ConfigError: ``share`` is outside [0, 1], or the schedule has absolute counts.
        """
        if not 0 <= share <= 1:
            raise ConfigError(f"share={share} is not within [0, 1]")
        level = math.ceil(round(share * steps, 9)) / steps
        return replace(self, rules=tuple(_soft(rule, level) for rule in self.rules))

    def __str__(self) -> str:
        units = {"ratio": "keep", "remove": "r", "count": "count"}
        parts = [
            f"{units[unit]}={value:g} in blocks {','.join(str(rule.layer) for rule in rules)}"
            for (unit, value), rules in groupby(self.rules, lambda rule: (rule.unit, rule.value))
        ]
        return "; ".join(parts) or "nothing"


def _soft(rule: Rule, share: float) -> Rule:
    if rule.unit == "count":
        raise ConfigError("a schedule of absolute counts has no softer form; use ratios")
    if rule.unit == "ratio":
        return replace(rule, value=rule.value + (1 - rule.value) * share)
    value = rule.value * (1 - share)
    return replace(rule, value=value if rule.value < 1 else float(int(value)))


def _rules(unit: Unit, values: Mapping[int, float]) -> tuple[Rule, ...]:
    for layer in values:
        if not isinstance(layer, int) or isinstance(layer, bool):
            raise ConfigError(f"layer {layer!r} is not an integer")
    return tuple(
        Rule(layer=layer, unit=unit, value=_number(values[layer])) for layer in sorted(values)
    )


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{value!r} in a schedule is not a number")
    return float(value)


def _spread(value: Any, layers: Iterable[int]) -> dict[int, float]:
    """Values by layer."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return dict(enumerate(value))
    return dict.fromkeys(layers, value)


def _sloped(r: Any, slope: Any, layers: list[int]) -> dict[int, float]:
    if not -1 <= _number(slope) <= 1:
        raise ConfigError(f"slope {slope} of r is not within [-1, 1]")
    last = max(len(layers) - 1, 1)
    exact = [_number(r) * (1 + slope * (2 * i / last - 1)) for i in range(len(layers))]
    if 0 < r < 1 and (most := max(exact, default=0)) >= 1:
        raise ConfigError(
            f"r=({r}, {slope}) would remove {most:g} of the patches of a block, and a share is "
            "below 1; use a smaller r or slope"
        )
    return dict(zip(layers, exact if 0 < r < 1 else map(int, exact), strict=True))
