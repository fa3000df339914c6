"""Every registered tool works: one small run of each, checked for what it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from polytok.core import registry

# A run of each registered tool that ends in seconds and asserts its promise.
RUNS: dict[str, Callable[[], None]] = {}


def test_every_tool_has_a_run() -> None:
    assert {s.name for s in registry.SYSTEMS.values() if s.kind == "tool"} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_tool_runs(name: str) -> None:
    system = registry.SYSTEMS[name]
    assert system.load().__doc__ and not system.default_weights
    RUNS[name]()
