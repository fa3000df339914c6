"""Anchored latents: where they sit, and what reaches them from the planes and back."""

from __future__ import annotations

import pytest
import torch

from polytok.core.errors import ConfigError
from polytok.layers import PLANE_AXES, AnchorExchange
from polytok.layers.anchors import RADIUS, cell_centres, octahedral_anchors, plane_links


def test_anchors_lie_on_a_sphere_and_balance() -> None:
    anchors = octahedral_anchors(100)
    torch.testing.assert_close(anchors.norm(dim=-1), torch.full((100,), RADIUS))
    torch.testing.assert_close(anchors.mean(0), torch.zeros(3), atol=1e-6, rtol=0)
    assert float(torch.pdist(anchors).min()) > 0.05


@pytest.mark.parametrize("count", [1, 4, 9, 64, 100, 256])
def test_anchors_cover_both_hemispheres_in_the_order_of_the_grid(count: int) -> None:
    anchors, side = octahedral_anchors(count), int(count**0.5)
    assert anchors.shape == (count, 3) and bool(anchors.isfinite().all())
    grid = anchors.unflatten(0, (side, side))
    if side >= 8:  # neighbours on the grid are neighbours in space
        for steps in (grid.diff(dim=0), grid.diff(dim=1)):
            assert float(steps.norm(dim=-1).max()) < 6 * RADIUS / side
        assert float(anchors[:, 2].min()) < -0.6 < 0.6 < float(anchors[:, 2].max())


def test_a_count_that_is_no_square_is_refused() -> None:
    with pytest.raises(ConfigError, match="99 anchored latents"):
        octahedral_anchors(99)


def test_links_are_strongest_at_the_cell_an_anchor_projects_to() -> None:
    anchors, size = octahedral_anchors(64), 8
    links, cells = plane_links(anchors, size), cell_centres(size)
    for plane, axes in enumerate(PLANE_AXES):
        nearest = cells[links[plane].argmax(1)]
        assert float((nearest - anchors[:, list(axes)]).abs().max()) <= 1 / size + 1e-6


@torch.no_grad()
def test_a_plane_cell_reaches_the_latents_near_it_and_no_others() -> None:
    exchange, size = AnchorExchange(8, 64, 8), 8
    tokens = torch.zeros(1, 3 * size**2, 8)
    tokens[0, 5 * size + 2] = torch.randn(8)  # plane xy, row 5 (y), column 2 (x)
    reached = exchange.gather(tokens)[0].norm(dim=-1)
    away = (octahedral_anchors(64)[:, :2] - cell_centres(size)[5 * size + 2]).norm(dim=-1)
    assert float(reached[away > 1.0].max()) < 1e-3 * float(reached.max())
    assert float(away[reached.argmax()]) < 0.25


@torch.no_grad()
def test_unrelated_tokens_keep_their_variance_both_ways() -> None:
    exchange = AnchorExchange(64, 100, 8)
    assert exchange.gather(torch.randn(4, 192, 64)).var() == pytest.approx(1, abs=0.2)
    assert exchange.spread(torch.randn(4, 100, 64)).var() == pytest.approx(1, abs=0.2)


def test_both_ways_keep_items_apart_and_pass_gradients() -> None:
    exchange = AnchorExchange(8, 16, 4)
    planes = torch.randn(3, 48, 8, requires_grad=True)
    latents = exchange.gather(planes)
    back = exchange.spread(latents)
    assert latents.shape == (3, 16, 8) and back.shape == planes.shape
    back[1].square().sum().backward()
    assert planes.grad is not None
    assert [bool(g.any()) for g in planes.grad] == [False, True, False]
    assert all(p.grad is not None and bool(p.grad.any()) for p in exchange.parameters())
