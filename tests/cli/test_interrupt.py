"""Ctrl-C and termination at any time: what is finished stays, and nothing is left half written."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from polytok import cli

LIMIT = 30  # seconds; the commands take twice as long if nothing ends them
# Under nohup, and in the background of a script, signals are ignored from the start.
COMMAND = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
from polytok import cli
from polytok.cli import show

def wait():
    print("ready", flush=True)
    time.sleep(60)

def command(*_, **__):
    {body}

show.systems = command
{before}
sys.exit(cli.run(["list"]))
"""
SWALLOW = """
    try:
        wait()
    except BaseException:
        pass
    {then}
"""
LIBRARY = """
import sys
try:
    sys.modules["__main__"].wait()
    has_extras = True
except BaseException:
    has_extras = False
"""


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a command of the given body and waits until it prints that it is ready."""
    with ExitStack() as stack:

        def start(body: str, before: str = "") -> subprocess.Popen[str]:
            command = [sys.executable, "-c", COMMAND.format(body=body, before=before)]
            process = subprocess.Popen(
                command,
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            return process

        yield start


@pytest.mark.parametrize(
    "body",
    [
        "import greedy; time.sleep(60)",
        SWALLOW.format(then="time.sleep(60)"),
        SWALLOW.format(then="raise ValueError('what was caught broke something')"),
        SWALLOW.format(then="return"),
    ],
)
def test_libraries_that_catch_everything_lose_no_interrupt(
    body: str, start: Start, tmp_path: Path
) -> None:
    (tmp_path / "greedy.py").write_text(LIBRARY)
    process = start(body)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=LIMIT) == ("", "error: interrupted\n")
    assert process.returncode == cli.INTERRUPTED


def test_cleaning_up_is_interrupted_by_a_second_interrupt_alone(start: Start) -> None:
    process = start("""
    try:
        wait()
    finally:
        time.sleep(0.5)
        print("clean", flush=True)
        time.sleep(60)
    """)
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None and process.stdout.readline() == "clean\n"
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=LIMIT) == -signal.SIGINT


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_file_is_written_leaves_nothing(
    number: signal.Signals, start: Start, tmp_path: Path
) -> None:
    process = start("""
    from polytok.core.files import atomic_path

    with atomic_path("box.ptk") as aside:
        aside.write_bytes(b"half")
        wait()
    """)
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(number)
    assert process.communicate(timeout=LIMIT) == ("", "error: interrupted\n")
    assert process.returncode == cli.INTERRUPTED
    assert not list(tmp_path.iterdir())


def test_a_signal_that_is_ignored_stays_ignored(start: Start) -> None:
    process = start(
        """
    import signal

    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    print("ready", flush=True)
    time.sleep(1)
    """,
        before="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)",
    )
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=LIMIT) == ("", "")
    assert process.returncode == 0


@pytest.mark.parametrize("when", ["work", "write"])
def test_interrupted_batch(
    when: str,
    model: Path,
    box: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from polytok.systems.shape.codec import ShapeCodec

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.glb", "b.glb", "c.glb"):
        (folder / name).write_bytes(box.read_bytes())
    write, encode = Path.write_bytes, ShapeCodec.encode
    calls: list[object] = []

    def stop_while_writing(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == 2:
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt
        return write(path, data)

    def stop_while_encoding(codec: ShapeCodec, item: object, **options: int) -> object:
        calls.append(item)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(codec, item, **options)

    if when == "write":
        monkeypatch.setattr(Path, "write_bytes", stop_while_writing)
    else:
        monkeypatch.setattr(ShapeCodec, "encode", stop_while_encoding)
    arguments = ["encode", str(folder), "-o", str(out), "--model", str(model)]
    assert cli.run(arguments) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
    assert len(calls) == 2
    assert [p.name for p in out.iterdir()] == ["a.ptk"]
