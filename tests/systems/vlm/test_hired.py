"""HiRED: budgets by content, against the published procedure written out with loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import polytok
from polytok.core.errors import ConfigError
from polytok.reducers.vlm import AttentionScore, Layout, Tap, VisualTokens
from polytok.reducers.vlm.hosts import host_of
from polytok.systems.vlm.hired import HiREDConfig, TileBudget
from reducers.vlm.models import NEXT_SIZES, batch, build, single

MODEL = build("llava_next")
TOWER = host_of(MODEL).tower(MODEL)


def layout_of(down: int, across: int, side: int) -> Layout:
    tiles = 1 + down * across
    return Layout(
        tiles=tiles,
        grid=(side, side),
        source=torch.arange(tiles * side * side),
        tile_grid=(down, across),
        thumbnail=0,
    )


def tokens_of(layout: Layout, early: Tensor, late: Tensor) -> VisualTokens:
    """Tokens of one image with given rows (tiles, cells) in layers 0 and 2."""
    return VisualTokens(
        features=[torch.zeros(layout.tokens, 1)],
        layouts=[layout],
        tower=TOWER,
        rows={Tap(0): [early[:, None]], Tap(2): [late[:, None]]},
    )


def published(
    early: Tensor, late: Tensor, grid: tuple[int, int], rate: float, alpha: float
) -> list[set[int]]:
    """The kept cells of every tile, as the card tells the official procedure."""
    tiles, cells = late.shape
    total = int(tiles * cells * rate)
    full = min(int(total * alpha), cells)
    rest = min(total - full, (tiles - 1) * cells)
    best = [sorted(range(cells), key=lambda c, t=t: -late[t, c].item()) for t in range(tiles)]
    kept = [set(best[0][:full])] + [set() for _ in range(tiles - 1)]
    marked = sorted(range(cells), key=lambda c: -early[0, c].item())[: int(cells * (1 - alpha))]
    if rest > 0 and marked:
        run = cells // (grid[0] * grid[1])
        counts = [sum(run * i <= c < run * (i + 1) for c in marked) for i in range(tiles - 1)]
        for i, count in enumerate(counts):
            budget = min(int(count / sum(counts) * rest + 1e-9), cells)
            kept[i + 1] = set(best[i + 1][:budget])
    return kept


@settings(deadline=None, max_examples=60)
@given(
    grid=st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 4)]),
    rate=st.floats(0.05, 0.95),
    alpha=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_published_procedure(
    grid: tuple[int, int], rate: float, alpha: float, seed: int
) -> None:
    layout = layout_of(*grid, side=8)
    rng = torch.Generator().manual_seed(seed)
    early, late = (torch.rand(layout.tiles, 64, generator=rng) for _ in range(2))
    plan = HiREDConfig(rate=rate, alpha=alpha, partition="rows", exact_total=False).plan()
    cells = plan.visual.choose(tokens_of(layout, early, late))[0].anchor()[0]
    found = [{int(c) % 64 for c in cells if c // 64 == t} for t in range(layout.tiles)]
    assert found == published(early, late, grid, rate, alpha)


@settings(deadline=None, max_examples=60)
@given(
    grid=st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 1)]),
    rate=st.floats(0.05, 1),
    alpha=st.floats(0, 1),
    exact=st.booleans(),
    drop=st.integers(0, 60),
    seed=st.integers(0, 99),
)
def test_no_budget_is_overrun_and_exact_ones_are_used_up(
    grid: tuple[int, int], rate: float, alpha: float, exact: bool, drop: int, seed: int
) -> None:
    whole = layout_of(*grid, side=6)
    layout = Layout(
        tiles=whole.tiles,
        grid=whole.grid,
        source=whole.source[: whole.tokens - drop if whole.tiles > 2 else None],
        tile_grid=grid,
        thumbnail=0,
    )
    rng = torch.Generator().manual_seed(seed)
    early, late = (torch.rand(layout.tiles, 36, generator=rng) for _ in range(2))
    config = HiREDConfig(rate=rate, alpha=alpha, exact_total=exact)
    budget = config.plan().visual.budget
    tokens = tokens_of(layout, early, late)
    counts = budget.allocate(tokens, 0)
    assert sum(counts) <= max(int(layout.tiles * 36 * rate), 0)
    assert all(0 <= n <= 36 for n in counts)
    kept = config.plan().visual.choose(tokens)[0].count
    assert kept <= budget.count(layout) + layout.others
    if exact:
        assert kept == sum(counts) + layout.others == budget.count(layout) + layout.others
        assert all(n <= room for n, room in zip(counts, layout.capacity, strict=True))


@pytest.mark.parametrize("corner", range(4))
def test_areas_find_the_quarter_with_content_and_rows_do_not(corner: int) -> None:
    layout = layout_of(2, 2, side=24)
    rows, columns = torch.arange(576) // 24, torch.arange(576) % 24
    inside = (rows // 12 == corner // 2) & (columns // 12 == corner % 2)
    early = torch.where(inside, 1.0, 0.0) + 0.01 * torch.rand(576)
    tokens = tokens_of(layout, early.expand(5, -1), torch.rand(5, 576))
    shares = {}
    for partition in ("area", "rows"):
        # alpha 0.75 marks as many cells as a quarter has.
        plan = HiREDConfig(alpha=0.75, partition=partition).plan()
        counts = plan.visual.budget.allocate(tokens, 0)[1:]
        shares[partition] = [n / sum(counts) for n in counts]
    assert shares["area"][corner] > 0.6
    same_half = [i for i in range(4) if i // 2 == corner // 2]
    left, right = (shares["rows"][i] for i in same_half)
    assert abs(left - right) < 0.02  # left and right look alike: the published code's flaw


def test_tokens_of_a_672_picture() -> None:
    layout = layout_of(2, 2, side=24)
    budget = HiREDConfig(rate=0.2).plan().visual.budget
    assert budget.count(layout) == int(2880 * 0.2) == 576


def test_the_whole_rate_is_the_model_itself() -> None:
    inputs = batch("llava_next", [single("llava_next", 0), single("llava_next", 1)])
    for options in ({}, {"partition": "rows", "exact_total": False}, {"alpha": 0.1}):
        prepared, report = polytok.vlm("hired", rate=1.0, **options).visual.prepare(MODEL, inputs)
        assert prepared["pixel_values"] is inputs["pixel_values"]
        assert report.after == report.before


def test_extreme_shares() -> None:
    inputs = single("llava_next", 0)
    only = polytok.vlm("hired", rate=0.15, alpha=1.0).visual.prepare(MODEL, inputs)[1]
    assert only.per_tile(0) == (48, 0, 0, 0, 0)
    capped = polytok.vlm("hired", rate=0.9, alpha=1.0).visual.prepare(MODEL, inputs)[1]
    assert capped.per_tile(0) == (64, 0, 0, 0, 0)
    none = polytok.vlm("hired", rate=0.15, alpha=0.0).visual.prepare(MODEL, inputs)[1]
    assert none.per_tile(0) == (0, 12, 12, 12, 12)  # everything is marked: areas alone


@pytest.mark.parametrize("options", [{}, {"partition": "rows", "exact_total": False}], ids=str)
def test_a_batch_of_several_grids(options: dict[str, Any]) -> None:
    inputs = batch("llava_next", [single("llava_next", 0), single("llava_next", 1)])
    method = polytok.vlm("hired", rate=0.3, **options)
    _, report = method.visual.prepare(MODEL, inputs)
    layouts = host_of(MODEL).layouts(MODEL, inputs)
    for image, layout in enumerate(layouts):
        newlines = int((layout.source < 0).sum())
        assert report.after[image] - newlines <= int(layout.tiles * 64 * 0.3)
        kept = report.kept(image)
        assert int((layout.source[kept] < 0).sum()) == newlines == layout.others
        boxes = report.boxes(image)[layout.source[kept] >= 0]
        assert bool((boxes >= 0).all() and (boxes <= 1).all())
    assert [x.tile_grid for x in layouts] == [(2, 2), (1, 2)] and len(NEXT_SIZES) == 2


def test_one_tile_uses_its_whole_budget() -> None:
    model, inputs = build("llava"), single("llava", 0)
    assert polytok.vlm("hired", rate=0.3).visual.prepare(model, inputs)[1].after == (19,)
    published_code = polytok.vlm("hired", rate=0.3, exact_total=False)
    assert published_code.visual.prepare(model, inputs)[1].after == (
        9,
    )  # alpha of it, the rest unused


def test_numbers_and_models_that_do_not_fit_are_refused() -> None:
    for options, words in (
        ({"rate": 0.0}, "rate=0.0 must be in"),
        ({"rate": 1.1}, "rate=1.1 must be in"),
        ({"alpha": -0.1}, r"alpha=-0.1 in \[0, 1\]"),
    ):
        with pytest.raises(ConfigError, match=words):
            polytok.vlm("hired", **options)
    with pytest.raises(ConfigError, match="use fastervlm with total="):
        polytok.vlm("hired").visual.prepare(build("internvl"), single("internvl", 1))
    assert polytok.vlm("hired").visual.prepare(build("internvl"), single("internvl", 0))[
        1
    ].after == (3,)
    budget = TileBudget(
        rate=0.5, alpha=0.5, partition="area", exact_total=True, early=AttentionScore()
    )
    frames = Layout(tiles=2, grid=(2, 2), source=torch.arange(8))
    with pytest.raises(ConfigError, match="needs a thumbnail"):
        budget.count(frames)


@pytest.mark.parametrize("item", [0, 1])
@pytest.mark.parametrize("rate", [0.55, 0.8, 0.95])
def test_what_prepare_keeps_is_the_published_choice(rate: float, item: int) -> None:
    inputs = single("llava_next", item)
    alpha = 0.3
    method = polytok.vlm("hired", rate=rate, alpha=alpha, partition="rows", exact_total=False)
    _, report = method.visual.prepare(MODEL, inputs)
    layout = host_of(MODEL).layouts(MODEL, inputs)[0]
    tower = TOWER.module
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(inputs["pixel_values"][0, : layout.tiles], output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    early, late = (maps[i].mean(1)[:, 0, 1:] for i in (0, TOWER.feature_layer))
    cells = published(early, late, layout.tile_grid, rate, alpha)
    chosen = {64 * tile + cell for tile, some in enumerate(cells) for cell in some}
    expected = [i for i, c in enumerate(layout.source.tolist()) if c < 0 or c in chosen]
    assert report.kept(0).tolist() == expected
    assert len(expected) < layout.tokens
