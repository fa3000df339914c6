"""Many jobs in many processes: one that hangs or crashes costs itself and no other."""

from __future__ import annotations

import _thread
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Generic, TypeVar

from polytok.core.errors import PolytokError, one_line

Job = TypeVar("Job")
Result = TypeVar("Result")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_QUEUED = 2
_TICK = 0.25
_GRACE = 10.0


class Failure:
    """Why a job has no result, on one line."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"Failure({self.reason!r})"


def run_jobs(
    function: Callable[[Job], Result],
    jobs: Sequence[Job],
    *,
    processes: int | None = None,
    time_limit: float = math.inf,
) -> Generator[tuple[Job, Result | Failure], None, None]:
    """Run ``function`` on each job in worker processes of one thread; yield as they finish.

    A job that raises or takes longer than ``time_limit`` seconds is a :class:`Failure`, and so is
    one that takes its process down. Closing the iterator, or an interrupt, stops the workers; they
    leave ``with`` and ``finally`` blocks as after any exception.

    Args:
        function: importable from its module, as each worker starts afresh.
        processes: None for one per core.
    """
    processes = processes or os.cpu_count() or 1
    for name in _THREADS:
        os.environ.setdefault(name, "1")
    rest, suspects = list(reversed(jobs)), list[Job]()
    while rest or suspects:
        # After a crash the jobs that were held go one by one, so that the culprit is found.
        is_alone = bool(suspects)
        queue = suspects if is_alone else rest
        crew = _Crew(function, 1 if is_alone else min(processes, len(queue)), time_limit)
        try:
            yield from crew.run(queue, 1 if is_alone else _QUEUED * processes)
        except BrokenProcessPool:
            if is_alone:
                yield crew.held.popitem()[1], Failure("its process died")
            suspects += crew.held.values()
        finally:
            crew.stop()


@contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, so that a terminated run cleans up like Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Crew(Generic[Job, Result]):
    """A pool of processes and the jobs it holds."""

    def __init__(self, function: Callable[[Job], Result], size: int, time_limit: float) -> None:
        context = multiprocessing.get_context("spawn")
        self.call = _Call(function, time_limit)
        self.pool = ProcessPoolExecutor(
            size, mp_context=context, initializer=_start, initargs=(os.getpid(),)
        )
        self.held: dict[Future[Any], Job] = {}

    def run(self, queue: list[Job], width: int) -> Iterator[tuple[Job, Result | Failure]]:
        while queue or self.held:
            while queue and len(self.held) < width:
                job = queue.pop()
                self.held[self.pool.submit(self.call, job)] = job
            for future in wait(self.held, return_when=FIRST_COMPLETED).done:
                result = future.result()
                yield self.held.pop(future), result

    def stop(self) -> None:
        for future in self.held:
            future.cancel()
        workers = list((self.pool._processes or {}).values()) if self.held else []
        for worker in workers:
            worker.terminate()
        # A worker that does not heed this must not keep the run from ending.
        last_resort = threading.Timer(_GRACE, _kill, [[w.pid for w in workers if w.pid]])
        last_resort.daemon = True
        last_resort.start()
        self.pool.shutdown(wait=True, cancel_futures=True)
        last_resort.cancel()


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class _Call(Generic[Job, Result]):
    """The function with its time limit, as sent to the workers."""

    def __init__(self, function: Callable[[Job], Result], time_limit: float) -> None:
        self.function, self.time_limit = function, time_limit

    def __call__(self, job: Job) -> Result | Failure:
        _Watch.deadline, _Watch.is_busy = time.monotonic() + self.time_limit, True
        try:
            return self.function(job)
        except _TooLateError:
            return Failure(f"took longer than {self.time_limit:g} s")
        except PolytokError as error:
            return Failure(one_line(error))
        except Exception as error:
            # One bad input must not end a run over thousands; its reason is kept.
            return Failure(f"{type(error).__name__}: {one_line(error)}")
        except _StopError:
            os._exit(1)
        finally:
            _Watch.deadline, _Watch.is_busy = math.inf, False


class _TooLateError(BaseException):
    """The time is over; not an Exception, so that no parser swallows it."""


class _StopError(BaseException):
    """The parent stops its workers."""


class _Watch:
    """What a worker's watching thread looks at."""

    deadline = math.inf
    is_busy = False


def _start(parent: int) -> None:
    """Set up a worker: the parent alone decides when it ends, or its own death does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _on_signal)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _on_signal(number: int, frame: FrameType | None) -> None:
    if time.monotonic() >= _Watch.deadline:
        raise _TooLateError
    if _Watch.is_busy:
        raise _StopError
    os._exit(1)


def _interrupt() -> None:
    """Signal the main thread, out of a system call where the platform can."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)


def _watch(parent: int) -> None:
    late_since = math.inf
    while os.getppid() == parent:
        time.sleep(_TICK)
        now = time.monotonic()
        if now < _Watch.deadline:
            late_since = math.inf
        elif late_since == math.inf:
            late_since = now
            _interrupt()
        elif now - late_since > _GRACE:
            # Compiled code that never returns cannot be interrupted.
            break
    os._exit(1)
