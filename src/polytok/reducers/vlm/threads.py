"""Which plan each thread has on which model, and the methods that ask for it."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from polytok.reducers.vlm.run import Run


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


@dataclass
class _Wrapped:
    """What a model had of its own where ours hides the methods of its class."""

    own: dict[str, Any]
    users: int = 0


_LOCK = threading.Lock()
_WRAPPED: WeakKeyDictionary[Any, _Wrapped] = WeakKeyDictionary()


def wrap(model: Any) -> None:
    """Let ``generate`` and ``print`` of a model ask for the thread's run; once per user."""
    with _LOCK:
        if model not in _WRAPPED:
            ours = {"generate": _generating(model, model.generate), "extra_repr": _naming(model)}
            _WRAPPED[model] = _Wrapped({name: vars(model).get(name) for name in ours})
            for name, method in ours.items():
                setattr(model, name, method)
        _WRAPPED[model].users += 1


def unwrap(model: Any) -> None:
    """Take one user off; with the last, the model has its own methods again."""
    with _LOCK:
        wrapped = _WRAPPED[model]
        wrapped.users -= 1
        if wrapped.users:
            return
        del _WRAPPED[model]
        for name, own in wrapped.own.items():
            delattr(model, name)
            if own is not None:
                setattr(model, name, own)


def _naming(model: Any) -> Callable[[], str]:
    def extra_repr() -> str:
        run = run_on(model)
        return "" if run is None else f"plan: {run.plan.name}"

    return extra_repr


def _generating(model: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    names = list(signature(original).parameters)

    @wraps(original)
    def generate(*args: Any, **options: Any) -> Any:
        run = run_on(model)
        if run is None:
            warnings.warn(
                "a plan is applied to this model in another thread; this call runs without one. "
                "Apply it in this thread, or pass what prepare(model, inputs) returns",
                stacklevel=2,
            )
            return original(*args, **options)
        options.update(zip(names, args, strict=False))
        if (ids := options.pop("inputs", None)) is not None:
            options["input_ids"] = ids
        return run.generate(original, options)

    return generate
