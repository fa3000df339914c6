"""Counts follow from sizes alone, and are what is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import polytok
from polytok.core.errors import ConfigError, PolytokError
from polytok.reducers.vlm import Diverse, Layout, PerTile, Total, average_into_nearest, evenly, top
from polytok.reducers.vlm.budgets import spill
from polytok.reducers.vlm.hosts import host_of
from reducers.vlm.models import FAMILIES, batch, build, single
from reducers.vlm.reference import row_of


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fastervlm", {"keep": 3}),
        ("fastervlm", {"ratio": 0.6}),
        ("fastervlm", {"total": 5}),
        ("fastervlm", {"keep": 4, "diverse": 0.5}),
        ("vtc-cls", {"keep": 0.5}),
        ("hired", {"rate": 0.3}),
        ("hired", {"rate": 0.55, "alpha": 0.2}),
        ("random", {"keep": 2}),
        ("uniform", {"total": 5}),
        ("norm", {"keep": 0.5}),
    ],
    ids=str,
)
def test_the_count_from_sizes_is_the_count(family: str, name: str, options: dict[str, Any]) -> None:
    if name in ("fastervlm", "vtc-cls"):
        options = {**options, "row": row_of(family)}
    model, inputs = build(family), batch(family, [single(family, 0), single(family, 1)])
    plan = polytok.vlm(name, **options)
    try:
        counts = plan.visual.count(model, inputs)
        _, report = plan.visual.prepare(model, inputs)
    except PolytokError as error:
        assert name == "hired" and family in ("internvl", "qwen2_5_vl"), error
        return
    assert counts == [*report.after]
    assert all(b < a for a, b in zip(report.before, report.after, strict=True))
    for image in range(len(counts)):
        kept = report.kept(image)
        assert len(kept) == counts[image] and bool((kept.diff() > 0).all())


layouts = st.builds(
    lambda tiles, rows, columns, drop: Layout(
        tiles=tiles,
        grid=(rows, columns),
        source=torch.arange(tiles * rows * columns)[drop:],
        thumbnail=tiles - 1,
        tile_grid=(1, max(tiles - 1, 1)),
    ),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(0, 3),
).filter(lambda x: x.tokens > 0)


@settings(deadline=None)
@given(layout=layouts, data=st.data())
def test_a_total_is_spread_evenly_and_used_up(layout: Layout, data: st.DataObject) -> None:
    room = sum(layout.capacity)
    total = data.draw(st.integers(1, room))
    counts = Total(total)._counts(layout)
    assert sum(counts) == total == Total(total).count(layout)
    assert all(0 <= n <= c for n, c in zip(counts, layout.capacity, strict=True))
    if layout.capacity == (layout.cells,) * layout.tiles and counts[-1] < layout.cells:
        assert set(counts[:-1]) <= {total // layout.tiles}
    with pytest.raises(ConfigError, match="more than the"):
        Total(room + 1).count(layout)


@settings(deadline=None)
@given(layout=layouts, keep=st.floats(0.01, 1.0))
def test_a_fraction_is_rounded_and_never_nothing(layout: Layout, keep: float) -> None:
    counts = PerTile(keep)._counts(layout)
    wanted = max(1, round(keep * layout.cells))
    assert counts == tuple(min(wanted, n) for n in layout.capacity)


def test_spilling_fills_the_first_with_room() -> None:
    assert spill([5, 1, 1], [3, 2, 9], [1, 2]) == (3, 2, 2)


def test_published_ratios_give_published_counts() -> None:
    tile = Layout(tiles=1, grid=(24, 24), source=torch.arange(576))
    counts = [
        polytok.vlm("fastervlm", ratio=r).visual.budget.count(tile)
        for r in (0.25, 0.5, 0.75, 0.9, 0.95)
    ]
    assert counts == [432, 288, 144, 58, 29]
    assert polytok.vlm("fastervlm", ratio=0.778).visual.budget.count(tile) == 128


@pytest.mark.parametrize("keep", [0, -3, 0.0, 1.5, True, "64", None])
def test_a_keep_out_of_range_is_refused(keep: Any) -> None:
    with pytest.raises(ConfigError, match="keep"):
        polytok.vlm("fastervlm", keep=keep)


def test_other_numbers_out_of_range_are_refused() -> None:
    for options, words in (
        ({}, "give one of keep"),
        ({"keep": 3, "total": 4}, "give one of keep"),
        ({"ratio": 1.0}, "ratio=1.0"),
        ({"total": 0}, "total=0"),
    ):
        with pytest.raises(ConfigError, match=words):
            polytok.vlm("fastervlm", **options)
    model = build("llava")
    for options, words in (
        ({"keep": 65}, "keep=65 is more than the 64 tokens of a tile"),
        ({"total": 65}, "total=65 is more than the 64 tokens of an image"),
    ):
        with pytest.raises(ConfigError, match=words):
            polytok.vlm("fastervlm", **options).visual.prepare(model, single("llava", 0))


def nothing() -> torch.Tensor:
    raise AssertionError("these rules need no features")


def test_diverse_tokens_are_each_the_least_like_those_taken() -> None:
    features = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    candidates = torch.ones(2, 9, dtype=torch.bool)
    candidates[0, 3] = False
    found = Diverse(0.5)(scores, candidates, [5, 1], lambda: features)
    assert found.sum(1).tolist() == [5, 1] and not found[0, 3]
    assert found[1].nonzero().item() == int(scores[1].argmax())
    unit = torch.nn.functional.normalize(features[0], dim=-1)
    taken = [i for i in scores[0].argsort(descending=True).tolist() if i != 3][:3]
    while len(taken) < 5:
        rest = [i for i in range(9) if i not in (*taken, 3)]
        taken.append(min(rest, key=lambda i: float((unit[taken] @ unit[i]).max())))
    assert sorted(taken) == found[0].nonzero().flatten().tolist()
    assert torch.equal(
        Diverse(0.0)(scores, candidates, [5, 1], lambda: features),
        top(scores, candidates, [5, 1], nothing),
    )
    # A copy of a taken token comes last.
    features[0, 1] = features[0, int(scores[0].argmax())]
    assert not Diverse(1.0)(scores, candidates, [7, 1], lambda: features)[0, 1]
    with pytest.raises(ConfigError, match=r"diverse=2.0 is not within \[0, 1\]"):
        polytok.vlm("fastervlm", keep=2, diverse=2.0)


def test_the_best_are_the_best_of_each_tile() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 9.0], [5.0, 5.0, 5.0, 0.0]])
    candidates = torch.tensor([[True, True, True, False], [True] * 4])
    assert top(scores, candidates, [2, 2], nothing).tolist() == [
        [True, False, True, False],
        [True, True, False, False],
    ]
    assert evenly(scores, candidates, [1, 2], nothing).tolist() == [
        [False, True, False, False],
        [False, True, False, True],
    ]


def test_merging_averages_what_is_alike() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.1], [0.1, 4.0]])
    merged = average_into_nearest(features, torch.tensor([0, 1]))
    expected = torch.stack([features[[0, 2]].mean(0), features[[1, 3]].mean(0)])
    torch.testing.assert_close(merged.apply(features[None])[0], expected)
    assert merged.anchor()[0].tolist() == [0, 1]


def test_merging_all_keeps_all() -> None:
    model, inputs = build("llava"), single("llava", 0)
    features = host_of(model).encode(model, inputs).pooler_output[0].detach()
    merged = average_into_nearest(features, torch.arange(64))
    assert torch.equal(merged.apply(features[None])[0], features)
