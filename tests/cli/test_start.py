"""``--help`` and ``list`` start fast and import no torch; Ctrl-C ends with one line."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polytok import cli

PROBE = (
    "import sys\n"
    "from polytok.cli import run\n"
    "status = run({arguments!r})\n"
    "assert 'torch' not in sys.modules, 'torch was imported'\n"
    "sys.exit(status)\n"
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["encode", "--help"], ["decode", "--help"]]
)
def test_start_is_light(arguments: list[str]) -> None:
    best = float("inf")
    code = PROBE.format(arguments=arguments)
    # What is measured is a start from compiled modules, as installed ones are.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", code]
    for _ in range(10):
        start = _children_seconds()
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        best = min(best, _children_seconds() - start)
        if best < 0.5:  # a busy machine needs more tries
            break
    assert best < 0.5


def _children_seconds() -> float:
    # Processor time: what the clock on the wall shows depends on what else runs.
    spent = os.times()
    return spent.children_user + spent.children_system


def test_interrupts_end_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from polytok.cli import show

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "systems", stop)
    assert cli.run(["list"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


def test_interrupts_while_modules_load(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", stop)
    assert cli.run(["list"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
