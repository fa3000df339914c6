from __future__ import annotations

import math
import os
import time
from pathlib import Path

from polytok.core.errors import PolytokError
from polytok.data.workers import Failure, run_jobs


def outcome(results: list[tuple[str, object]]) -> dict[str, str]:
    return {j: repr(r) if isinstance(r, Failure) else str(r) for j, r in results}


def test_results_and_failures() -> None:
    """Workers import the function by name, so a function of the standard library serves."""
    jobs = [4.0, 9.0, -1.0, 16.0]
    got = dict(run_jobs(math.sqrt, jobs, processes=2))
    assert {j: r for j, r in got.items() if not isinstance(r, Failure)} == {4: 2, 9: 3, 16: 4}
    failure = got[-1.0]
    assert isinstance(failure, Failure) and failure.reason.startswith("ValueError")


def test_a_late_job_is_given_up() -> None:
    start = time.monotonic()
    got = dict(run_jobs(time.sleep, [0.01, 60.0, 0.02], processes=1, time_limit=1.0))
    late = got[60.0]
    assert isinstance(late, Failure) and late.reason == "took longer than 1 s"
    assert got[0.01] is None and got[0.02] is None
    assert time.monotonic() - start < 30


def test_a_crash_costs_one_job() -> None:
    got = dict(run_jobs(os._exit, [3], processes=2))
    assert isinstance(got[3], Failure) and got[3].reason == "its process died"


def test_closing_stops_the_workers() -> None:
    start = time.monotonic()
    results = run_jobs(time.sleep, [0.0, 60.0, 60.0], processes=2)
    assert next(results) == (0.0, None)
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 30


def test_a_polytok_error_is_its_own_text(tmp_path: Path) -> None:
    from polytok.signals.mesh import read

    job = str(tmp_path / "none.glb")
    got = dict(run_jobs(read, [job], processes=1))[job]
    assert isinstance(got, Failure) and got.reason == f"{job}: No such file or directory"
    assert issubclass(PolytokError, ValueError)
