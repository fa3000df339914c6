"""``--help`` and ``list`` start fast and import no torch; Ctrl-C ends with one line."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from polytok import cli

PROBE = (
    "import sys\n"
    "from polytok.cli import run\n"
    "status = run({arguments!r})\n"
    "assert 'torch' not in sys.modules, 'torch was imported'\n"
    "sys.exit(status)\n"
)


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["encode", "--help"]])
def test_start_is_light(arguments: list[str]) -> None:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        code = PROBE.format(arguments=arguments)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        best = min(best, time.perf_counter() - start)
    assert best < 0.5


def test_interrupts_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polytok.cli import show

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "systems", stop)
    assert cli.run(["list"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
