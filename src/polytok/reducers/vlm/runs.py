"""Which plan each thread has on which model: found by hooks, so that threads do not meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polytok.reducers.vlm.plan import Run


class _Local(threading.local):
    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.is_paused = False


_LOCAL = _Local()


def run_on(model: Any) -> Run | None:
    """The run of this thread on a model, unless paused."""
    if _LOCAL.is_paused:
        return None
    return next((run for run in _LOCAL.runs if run.model is model), None)


def enter(run: Run) -> None:
    """Make a run this thread's run on its model."""
    _LOCAL.runs.append(run)


def leave(run: Run) -> bool:
    """Take it back; False when this thread has no such run."""
    found = any(other is run for other in _LOCAL.runs)
    _LOCAL.runs = [other for other in _LOCAL.runs if other is not run]
    return found


@contextmanager
def paused() -> Iterator[None]:
    """Models run as they are in this thread."""
    before, _LOCAL.is_paused = _LOCAL.is_paused, True
    try:
        yield
    finally:
        _LOCAL.is_paused = before
