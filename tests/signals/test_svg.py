"""SVG as pixels: exact colours, aspect ratio, refusals."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.signals.svg import render

HALF = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 {height}">'
    '<rect width="5" height="{height}" fill="#f80"/></svg>'
)


def test_a_rectangle_is_drawn_to_the_pixel() -> None:
    image = np.asarray(render(HALF.format(height=10), 8))
    assert image.shape == (8, 8, 4)
    assert (image[:, :4] == (255, 136, 0, 255)).all() and (image[:, 4:] == 0).all()


def test_the_longest_side_has_the_size_asked_for() -> None:
    assert render(HALF.format(height=20), 16).size == (8, 16)
    assert render(HALF.format(height=5), 16).size == (16, 8)


@pytest.mark.parametrize("text", ["", "<svg", "hello", "<p/>"])
def test_what_is_no_svg_is_refused(text: str) -> None:
    with pytest.raises(SignalError, match="not a readable SVG"):
        render(text, 8)


def test_size_and_extra_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"size=0 is not within 1\.\.4096"):
        render(HALF.format(height=1), 0)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(PolytokError, match=r"polytok\[vector\]"):
        render(HALF.format(height=1), 8)
