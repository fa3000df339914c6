"""Which cell a token shows, against the models' own packing of features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import polytok
from polytok.core.errors import SignalError
from polytok.reducers.vlm import Layout, Tap
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.hosts.release import release_of
from reducers.vlm.models import IMAGE, NEXT_SIZES, SIZE, batch, build, padded, prompt, single

MODEL = build("llava_next")
FEATURES = torch.arange(5 * 64 * 32, dtype=torch.float32).view(5, 64, 32)


@settings(deadline=None, max_examples=40)
@given(height=st.integers(8, 200), width=st.integers(8, 200))
def test_sources_rebuild_the_packed_features_of_any_size(height: int, width: int) -> None:
    sizes = torch.tensor([[height, width]])
    layout = host_of(MODEL).layouts(MODEL, {"image_sizes": sizes})[0]
    features = FEATURES[: layout.tiles]
    newline = torch.full((32,), -7.0)
    (packed,), _ = MODEL.model.pack_image_features([features], sizes, "default", newline)
    cells = features.flatten(0, 1)[layout.source.clamp(min=0)]
    assert torch.equal(packed, torch.where(layout.source[:, None] < 0, newline, cells))
    assert layout.others == int((layout.source < 0).sum())
    assert sum(layout.capacity) + layout.others == layout.tokens
    boxes = layout.boxes(torch.arange(layout.tokens))
    assert torch.equal(boxes.isnan().any(-1), layout.source < 0)
    assert bool((boxes.nan_to_num(0.5) >= 0).all() and (boxes.nan_to_num(0.5) <= 1).all())


def test_a_picture_so_narrow_that_only_its_thumbnail_is_left() -> None:
    sizes = torch.tensor([[8, 129]])
    layout = host_of(MODEL).layouts(MODEL, {"image_sizes": sizes})[0]
    assert layout.capacity == (64, 0, 0) and layout.others == 0
    inputs = {
        **padded([prompt([64], 3, 0)]),
        "pixel_values": torch.randn(1, 3, 3, SIZE, SIZE),
        "image_sizes": sizes,
    }
    for name, options in (("fastervlm", {"keep": 5}), ("hired", {}), ("fastervlm", {"total": 9})):
        _, report = polytok.vlm(name, **options).visual.prepare(MODEL, inputs)
        assert report.per_tile(0)[1:] == (0, 0) and report.boxes(0).isfinite().all()


def test_layouts_of_every_family_count_its_features() -> None:
    for family in ("llava", "llava_siglip", "llava_next", "internvl", "qwen2_5_vl"):
        model = build(family)
        inputs = batch(family, [single(family, 0), single(family, 1)])
        host = host_of(model)
        with torch.no_grad():
            features = host.encode(model, inputs).pooler_output
        layouts = host.layouts(model, inputs)
        assert [x.tokens for x in layouts] == [len(x) for x in features], family


def test_a_class_token_among_the_tokens_is_kept_with_them() -> None:
    model = build("llava", vision_feature_select_strategy="full")
    layout = host_of(model).layouts(model, {"pixel_values": torch.zeros(1, 3, SIZE, SIZE)})[0]
    assert layout.tokens == 65 and layout.source[0] == -1
    assert layout.kept(torch.zeros(1, 64, dtype=torch.bool)).tolist() == [0]


def pooled(family: str, item: int, patches: Tensor) -> tuple[Any, Tensor, Layout]:
    """Scores of tokens, made from numbers for the patches in the order of the tower."""
    model, inputs = build(family), single(family, item)
    host = host_of(model)
    layouts = host.layouts(model, inputs)
    return model, host.pool(model, inputs, [patches], layouts)[0], layouts[0]


def test_a_score_of_internvl_is_the_mean_of_the_patches_of_its_token() -> None:
    # Row-major 8x8 patches; token (i, j) is made of the 2x2 patches at (2i, 2j).
    numbers = torch.randn(3, 2, 65)
    _, scores, layout = pooled("internvl", 1, numbers)
    grid = numbers[..., 1:].view(3, 2, 4, 2, 4, 2).mean((3, 5)).flatten(2)
    torch.testing.assert_close(scores, grid)
    assert scores.shape == (layout.tiles, 2, layout.cells) == (3, 2, 16)


def test_a_token_of_internvl_depends_on_the_patches_that_score_it() -> None:
    model, inputs = build("internvl"), single("internvl", 0)
    tower = model.model.vision_tower
    features = torch.randn(1, 65, tower.config.hidden_size, requires_grad=True)
    patches = features[:, 1:].reshape(1, 8, 8, -1)
    shuffled = model.model.pixel_shuffle(patches, scale_factor=0.5).reshape(1, 16, -1)
    shuffled[0, 6].sum().backward()
    used = features.grad[0, 1:].abs().sum(-1).nonzero().flatten()
    row = torch.zeros(1, 1, 65)
    row[..., 1 + used] = 1
    scores = host_of(model).pool(model, inputs, [row], host_of(model).layouts(model, inputs))[0]
    assert scores[0, 0].tolist() == [float(i == 6) for i in range(16)]


def test_scores_of_qwen_lie_where_its_tokens_do() -> None:
    # A patch that shines in one place, through the tower's own permutation, and back.
    model, inputs = build("qwen2_5_vl"), single("qwen2_5_vl", 0)
    visual, grid = model.model.visual, inputs["image_grid_thw"]
    index = release_of(model).window_order(visual, grid)
    assert not torch.equal(index, torch.arange(len(index)))  # windows do permute here
    host = host_of(model)
    layouts = host.layouts(model, inputs)
    for token in range(layouts[0].tokens):
        patches = torch.zeros(96, 1)
        patches[4 * token : 4 * token + 4] = 1
        line = patches.view(24, 4)[index].flatten()
        row = line.expand(1, 3, -1)
        scores = host.pool(model, inputs, [row], layouts)[0]
        assert scores.shape == (1, 3, 24)
        assert (scores[0] > 0).nonzero()[:, 1].unique().tolist() == [token]


def test_boxes_are_places_in_the_picture() -> None:
    whole = Layout(tiles=1, grid=(2, 4), source=torch.arange(8), thumbnail=0)
    assert whole.boxes(torch.tensor([5])).tolist() == [[0.25, 0.5, 0.5, 1.0]]
    # A tall picture in 2x2 tiles: columns are cut at both sides, the thumbnail shows all.
    model = build("llava_next")
    sizes = torch.tensor([NEXT_SIZES[0]])
    layout = host_of(model).layouts(model, {"image_sizes": sizes})[0]
    boxes = layout.boxes(torch.arange(layout.tokens))
    newlines = layout.source < 0
    assert torch.equal(boxes[:, 0].isnan(), newlines)
    tiles = boxes[64:][~newlines[64:]]
    assert tiles.amin(0)[:2].tolist() == [0, 0] and tiles.amax(0)[2:].tolist() == [1, 1]
    # Boxes of the tiles pave the picture once.
    area = ((tiles[:, 2] - tiles[:, 0]) * (tiles[:, 3] - tiles[:, 1])).sum()
    torch.testing.assert_close(area, torch.tensor(1.0))
    unknown = Layout(
        tiles=3, grid=(2, 2), source=torch.arange(12), tile_grid=None, thumbnail=2
    ).boxes(torch.tensor([0, 8]))
    assert unknown[0].isnan().all() and unknown[1].tolist() == [0, 0, 0.5, 0.5]
    frames = Layout(tiles=2, grid=(1, 2), source=torch.arange(4))
    assert frames.boxes(torch.tensor([3])).tolist() == [[0.5, 0, 1, 1]]


def test_runs_that_are_no_tiles_are_refused() -> None:
    model, inputs = build("internvl"), single("internvl", 0)
    ids = inputs["input_ids"].clone()
    ids[ids == IMAGE] = torch.where(torch.arange(16) < 15, IMAGE, 5)
    with pytest.raises(SignalError, match="15 image tokens is no multiple of the 16 of a tile"):
        host_of(model).layouts(model, {**inputs, "input_ids": ids})


def test_a_tap_is_a_name_for_a_row() -> None:
    assert Tap(1) == Tap(1, "cls", "keep") and len({Tap(1), Tap(1), Tap(2)}) == 2
