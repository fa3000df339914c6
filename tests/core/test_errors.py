"""Errors: one type to catch, one line to show."""

from __future__ import annotations

import pytest

from polytok.core import errors
from polytok.core.errors import PolytokError, UnknownNameError, escaped, one_line


def test_every_error_is_one_a_caller_can_catch() -> None:
    found = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(found) >= 6
    assert all(issubclass(e, PolytokError) and issubclass(e, ValueError) for e in found)


@pytest.mark.parametrize(
    ("name", "known", "text"),
    [
        ("vta", ["vat", "titok"], "unknown system 'vta'; did you mean 'vat'? (known: titok, vat)"),
        ("xyz", ["vat"], "unknown system 'xyz' (known: vat)"),
        ("xyz", [], "unknown system 'xyz' (known: none)"),
    ],
)
def test_unknown_names_suggest_the_nearest(name: str, known: list[str], text: str) -> None:
    assert str(UnknownNameError("system", name, known)) == text


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    long = one_line(ValueError("x" * 1000), limit=50)
    assert len(long) == 50 and long.endswith("...")


def test_escaped() -> None:
    assert escaped("küche 椅子: 1,000 µm") == "küche 椅子: 1,000 µm"
    assert escaped("a\nb\x1b[2J\t\udcff\u2028") == r"a\nb\x1b[2J\t\udcff\u2028"
