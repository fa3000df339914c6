"""Ctrl-C, SIGTERM or SIGHUP ends a command, whatever library it comes in."""

from __future__ import annotations

import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not known everywhere
TICK = 0.05  # seconds
REPEAT = 0.1  # seconds; what comes sooner is one request sent twice, as some parents do


class Heeded:
    """While the block lasts, an interrupt is raised until it gets through.

    Termination counts as one, since only an exception lets files that are half written be removed.
    Some libraries catch every exception around their optional imports or their work; after that
    it is raised again. Whatever the block then ends with, it ends as interrupted. A second
    interrupt ends the process at once.
    """

    def __init__(self) -> None:
        self._old: dict[int, Any] = {}
        self._since: float | None = None
        self._has_timer = False

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            # One that is ignored, as under nohup, or that a caller handles stays as it is.
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._old[number] = signal.signal(number, self._on_signal)
        can_repeat = self._old and hasattr(signal, "setitimer")
        if can_repeat and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
            self._old[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_timer)
            self._has_timer = True

    def __exit__(self, *_: object) -> None:
        if self._has_timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        if self._since is not None:
            raise KeyboardInterrupt

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._since is None:
            self._since = now
            self._start_timer()
            raise KeyboardInterrupt
        if now - self._since > REPEAT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _on_timer(self, number: int, frame: FrameType | None) -> None:
        self._start_timer()
        if not _is_under_way(sys.exception()):
            raise KeyboardInterrupt

    def _start_timer(self) -> None:
        if self._has_timer:
            signal.setitimer(signal.ITIMER_REAL, TICK)


def _is_under_way(error: BaseException | None) -> bool:
    """Whether an interrupt is being handled, perhaps by what handles errors of its own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
