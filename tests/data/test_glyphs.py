"""The glyph canvas: what is where, and that energy says nothing."""

from __future__ import annotations

import pytest
import torch

from polytok.core.errors import ConfigError
from polytok.data.glyphs import CELLS, GlyphCanvas, Glyphs


def drawn(count: int = 400) -> tuple[GlyphCanvas, Glyphs]:
    canvas = GlyphCanvas()
    return canvas, canvas.draw(count, torch.Generator().manual_seed(1))


def cells_of(batch: Glyphs, side: int) -> torch.Tensor:
    """(B, cells, side, side) of the pictures."""
    grid = batch.image.view(-1, CELLS, side, CELLS, side).transpose(2, 3)
    return grid.reshape(len(batch.image), CELLS**2, side, side)


def test_informative_cells_hold_the_glyphs_of_the_label() -> None:
    canvas, batch = drawn()
    assert batch.image.shape == (400, 1, 64, 64) and batch.label.shape == (400, 10)
    assert torch.equal(batch.informative.sum(1), batch.label.sum(1))
    assert set(batch.label.sum(1).tolist()) == {1, 2, 3}
    # The most alike prototype of an informative cell is on the label nearly always.
    flat = canvas.prototypes.flatten(1)
    likeness = cells_of(batch, 8)[batch.informative].flatten(1) @ flat.T
    owner = batch.informative.nonzero()[:, 0]
    assert batch.label[owner, likeness.argmax(1)].float().mean() > 0.99


def test_energy_says_nothing() -> None:
    _, batch = drawn(2000)
    energy = cells_of(batch, 8).pow(2).mean((2, 3))
    here, there = energy[batch.informative].mean(), energy[~batch.informative].mean()
    assert abs(here / there - 1) < 0.02


def test_draws_repeat_and_glyphs_follow_their_seed() -> None:
    canvas, batch = drawn()
    assert torch.equal(drawn()[1].image, batch.image)
    assert not torch.equal(GlyphCanvas(seed=1).prototypes, canvas.prototypes)
    assert torch.equal((canvas.prototypes > 0).sum((1, 2)), torch.full((10,), 32))


def test_a_glyph_that_shines_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"contrast=1.1 must be at most twice noise=0.5"):
        GlyphCanvas(contrast=1.1)
