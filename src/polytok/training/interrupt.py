"""Stopping a run cleanly: Ctrl-C, a termination signal, or the end of its time."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """A context that turns the first SIGINT or SIGTERM into a request to stop.

    A second signal acts as if there were no context. Outside the main thread, where Python allows
    no handlers, only the time limit works.

    Args:
        limit_minutes: ask to stop after this long; None = never.
    """

    def __init__(self, limit_minutes: float | None = None) -> None:
        self.reason = ""
        self._end = None if limit_minutes is None else time.monotonic() + 60 * limit_minutes
        self._old: dict[int, Any] = {}

    @property
    def is_due(self) -> bool:
        """Whether the run should save and stop; ``reason`` then says why."""
        if not self.reason and self._end is not None and time.monotonic() >= self._end:
            self.reason = "its time is over"
        return bool(self.reason)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.reason = f"it was interrupted by {signal.Signals(number).name}"
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}
