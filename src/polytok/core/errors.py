"""Errors a user can cause. Each is a ValueError, so callers can catch one type."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PolytokError(ValueError):
    """Base of every error that polytok raises on purpose; its text is one line."""


class SignalError(PolytokError):
    """An input signal (mesh, image, ...) cannot be read or used."""


class FormatError(PolytokError):
    """A ``.ptk`` file is damaged, truncated or of an unknown version."""


class ConfigError(PolytokError):
    """A configuration has an unknown key or a value outside its range."""


class WeightsError(PolytokError):
    """Weights are missing, or do not belong to the system that should use them."""


class UnknownNameError(PolytokError):
    """A name is not registered."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        names = sorted(known)
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        super().__init__(f"unknown {kind} {name!r}{hint} (known: {', '.join(names) or 'none'})")


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return the message of ``error`` on one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def escaped(text: str) -> str:
    """Return ``text`` with what no line can show, such as a newline in a name, as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
