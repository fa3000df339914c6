"""How benchmarks run their shapes: no process is left when one is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROGRAM = """
import os, sys, time
from pathlib import Path
import _results

def work(item):
    (Path(sys.argv[1]) / str(os.getpid())).touch()
    time.sleep(60)
    return []

if __name__ == "__main__":
    items = [_results.Item("val", str(n), "pack", Path("none.zip")) for n in range(4)]
    results = _results.Results("none", {}, folder=Path(sys.argv[1]))
    _results.run(items, work, results, processes=2)
"""


def is_running(process: int) -> bool:
    """Whether a process has not ended; one that has may still be listed."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_pool_ends_with_the_program_that_began_it(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    begun = tmp_path / "begun"
    begun.mkdir()
    program = subprocess.Popen(
        [sys.executable, str(script), str(begun)],
        env={**os.environ, "PYTHONPATH": str(BENCHMARKS)},
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(begun.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        pool = [int(path.name) for path in begun.iterdir()]
        assert len(pool) == 2 and all(map(is_running, pool))
    finally:
        program.send_signal(signal.SIGKILL)
        program.wait()
    deadline = time.monotonic() + 20
    while any(map(is_running, pool)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, pool))
