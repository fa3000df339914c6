"""The command line: parse, call, show. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

__all__ = ["main"]

USAGE_ERROR = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``polytok``; bad input ends with one line on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that cannot be shown must not end a batch.
            stream.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit status."""
    try:
        return _run(list(arguments))
    except KeyboardInterrupt:
        # Imports take a while too, so an interrupt may come before a command has begun.
        return _fail("interrupted", INTERRUPTED)


def _run(arguments: list[str]) -> int:
    import typer
    from typer.exceptions import TyperException

    from polytok.cli.app import app
    from polytok.cli.interrupts import Heeded
    from polytok.core.errors import PolytokError, one_line

    try:
        with Heeded():
            status = typer.main.get_command(app).main(
                arguments, prog_name="polytok", standalone_mode=False
            )
    except typer.Exit as done:
        status = done.exit_code
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except TyperException as error:
        return _fail(" ".join(error.format_message().split()))
    except PolytokError as error:
        # On one line already, and whole: it may name everything that is wrong with a file.
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}" if error.filename else one_line(error))
    except MemoryError:
        return _fail("not enough memory for this input")
    if status == INTERRUPTED:
        # Typer turns an interrupt into this status, without a word.
        raise KeyboardInterrupt
    return status if isinstance(status, int) else 0


def _fail(message: str, status: int = USAGE_ERROR) -> int:
    from polytok.core.errors import escaped

    print(f"error: {escaped(message)}", file=sys.stderr)
    return status
