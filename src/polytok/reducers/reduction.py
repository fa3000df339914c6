"""What is applied to a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

from polytok.core.errors import PolytokError
from polytok.reducers.hosts.base import Host
from polytok.reducers.reducer import Reducer
from polytok.reducers.schedule import Schedule
from polytok.reducers.swap import Swapped


@dataclass
class Reduction:
    """What is applied to a model.

    Args:
        method: the name it was asked for by. restore: ``grid`` puts dropped and merged tokens
            back at the end, ``none`` leaves the shorter sequence.
        recorders: lists that every pass is appended to.
        make_pass: makes the passes of the model instead of :class:`Pass`, for training.
    """

    method: str
    reducer: Reducer
    schedule: Schedule
    host: Host
    restore: str = "none"
    is_paused: bool = False
    recorders: list[list[Any]] = field(default_factory=list)
    make_pass: Callable[..., Any] | None = None

    def __str__(self) -> str:
        restored = ", restored to the grid" if self.restore == "grid" else ""
        paused = ", paused" if self.is_paused else ""
        changed = [
            f", {f.name}={getattr(self.reducer, f.name)!r}"
            for f in fields(self.reducer)
            if getattr(self.reducer, f.name) != f.default
        ]
        return f"reduced by {self.method}: {self.schedule}{''.join(changed)}{restored}{paused}"

    def resolve(
        self, patches: int, depth: int, schedule: Schedule | None = None
    ) -> tuple[int, ...]:
        """Patch tokens that each block keeps, see :meth:`Schedule.resolve`."""
        schedule = self.schedule if schedule is None else schedule
        return schedule.resolve(patches, depth, extra=self.reducer.extra, least=self.reducer.least)


def find_core(model: nn.Module) -> Any:
    """The vision transformer of a reduced model; None where nothing is applied."""
    for module in model.modules():
        if isinstance(module, Swapped) and "reduction" in module.__dict__:
            return module
    return None


def core_of(model: nn.Module) -> Any:
    """The vision transformer of a reduced model.

    Raises:
        PolytokError: nothing is applied.
    """
    if (core := find_core(model)) is None:
        raise PolytokError("the model is not reduced; call polytok.reduce(model) first")
    return core


def reduction_of(model: nn.Module) -> Reduction:
    """What is applied to a model; its schedule may be replaced, as training with a ramp does.

    Raises:
        PolytokError: nothing is.
    """
    reduction: Reduction = core_of(model).reduction
    return reduction
