"""Configurations: strict in, plain JSON out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polytok.core.config import from_dict, override, to_dict
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Configuration of a part."""

    width: int = 8
    ratio: float = 0.5
    kind: Literal["sdf", "occupancy"] = "sdf"


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Configuration with every kind of field."""

    name: str
    slots: tuple[int, ...] = (1, 4)
    span: tuple[float, str] = (1.0, "m")
    inner: Inner = field(default_factory=Inner)
    parts: tuple[Inner, ...] = ()
    limit: int | None = None
    is_fast: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.slots:
            raise ConfigError("slots must not be empty")


def full(**changes: Any) -> Outer:
    values: dict[str, Any] = {
        "name": "a",
        "slots": (1, 2, 3),
        "inner": Inner(width=3),
        "parts": (Inner(), Inner(kind="occupancy")),
        "limit": 7,
        "is_fast": True,
        "extra": {"b": [1, "x"]},
    }
    return Outer(**{**values, **changes})


def test_round_trip_through_json() -> None:
    for config in (full(), Outer(name="b"), full(limit=None)):
        again = from_dict(Outer, json.loads(json.dumps(to_dict(config))))
        assert again == config
        assert isinstance(again.slots, tuple) and isinstance(again.parts, tuple)


@given(
    width=st.integers(),
    ratio=st.floats(allow_nan=False),
    kind=st.sampled_from(["sdf", "occupancy"]),
    slots=st.lists(st.integers(), min_size=1),
    limit=st.none() | st.integers(),
)
def test_any_values_round_trip(
    width: int, ratio: float, kind: Any, slots: list[int], limit: int | None
) -> None:
    config = Outer(
        name="x", slots=tuple(slots), limit=limit, inner=Inner(width=width, ratio=ratio, kind=kind)
    )
    assert from_dict(Outer, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "a", "slot": [1]}, "unknown key of Outer 'slot'; did you mean 'slots'?"),
        ({"name": "a", "inner": {"widht": 1}}, "key of Inner 'widht'; did you mean 'width'?"),
        ({"name": "a", "parts": [{"qq": 1}]}, "unknown key of Inner 'qq' "),
    ],
)
def test_unknown_keys_suggest_the_right_one(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnknownNameError) as caught:
        from_dict(Outer, values)
    assert message in str(caught.value)
    assert "known: " in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 3}, "Outer.name=3 is not of type str"),
        ({"slots": 4}, "Outer.slots=4 is not a list"),
        ({"slots": [1, "2"]}, "Outer.slots='2' is not of type int"),
        ({"slots": [1, True]}, "Outer.slots=True is not of type int"),
        ({"slots": []}, "must not be empty"),
        ({"span": [1.0]}, "Outer.span takes 2 values, got 1"),
        ({"limit": "x"}, "Outer.limit='x' is not of type int"),
        ({"limit": 1.5}, "Outer.limit=1.5 is not of type int"),
        ({"is_fast": 1}, "Outer.is_fast=1 is not of type bool"),
        ({"inner": {"kind": "udf"}}, "Inner.kind='udf' is not one of ['sdf', 'occupancy']"),
        ({"inner": {"ratio": "a"}}, "Inner.ratio='a' is not of type float"),
        ({"inner": 3}, "Inner takes a mapping, got int"),
        ({"name": None}, "Outer.name=None is not of type str"),
    ],
)
def test_wrong_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, {"name": "a", **changes})
    assert message in str(caught.value)


def test_missing_fields_are_named() -> None:
    with pytest.raises(ConfigError, match="'name'"):
        from_dict(Outer, {})


def test_whole_numbers_pass_for_floats() -> None:
    ratio = from_dict(Inner, {"ratio": 2}).ratio
    assert ratio == 2.0 and isinstance(ratio, float)


def test_override_checks_like_from_dict() -> None:
    config = full()
    changed = override(config, slots=[5], limit=None)
    assert (changed.slots, changed.limit, changed.inner) == ((5,), None, config.inner)
    assert config.slots == (1, 2, 3)
    for wrong in ({"slots": []}, {"slotz": [1]}, {"limit": "a"}):
        with pytest.raises(PolytokError):
            override(config, **wrong)
