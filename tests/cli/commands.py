"""How tests run a command."""

from __future__ import annotations

from polytok import cli


def run(*arguments: object) -> int:
    """Run a command in this process; returns its exit status."""
    return cli.run([str(a) for a in arguments])
