"""Contact sheets: every picture in its place, captions below."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from polytok.core.errors import PolytokError
from polytok.signals.sheet import sheet


def test_sheet_places_every_picture_and_caption() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    picture = Image.fromarray(noise)
    one = sheet([[("a", picture)]], gap=10, text=12)
    two = sheet([[("a", picture), ("b\nc", picture)], [("d", picture)]], gap=10, text=12)
    assert one.size == (48 + 20, 48 + 16 + 3 * 10)
    assert two.size == (2 * 48 + 30, 2 * 48 + 3 * 16 + 4 * 10)
    assert np.array_equal(np.asarray(two)[10:58, 68:116], noise)


def test_a_sheet_of_nothing_is_refused() -> None:
    with pytest.raises(PolytokError, match="at least one"):
        sheet([])
