"""FasterVLM and VTC-CLS: what their cards promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import polytok
from polytok.reducers.vlm.hosts import host_of
from reducers.vlm.models import FAMILIES, SIZE, batch, build, pixels, single
from reducers.vlm.reference import row_of


def eager_scores(model: Any, values: torch.Tensor, layers: list[int]) -> torch.Tensor:
    """(B, patches): the class token's row of eager maps, mean over heads, summed over layers."""
    tower = model.model.vision_tower
    tower.set_attn_implementation("eager")
    with torch.no_grad():
        maps = tower(values, output_attentions=True).attentions
    tower.set_attn_implementation("sdpa")
    return torch.stack([maps[i].mean(1)[:, 0, 1:] for i in layers]).sum(0)


@pytest.mark.parametrize(
    ("name", "options", "layers"),
    [
        ("fastervlm", {}, [2]),  # features are hidden state -2 of 4 layers
        ("fastervlm", {"layer": 3}, [3]),
        ("vtc-cls", {}, [0, 1, 2]),
        ("vtc-cls", {"window": 2}, [1, 2]),
        ("vtc-cls", {"layers": (0, -1)}, [0, 3]),
    ],
    ids=str,
)
def test_the_best_by_the_eager_map_are_kept(
    name: str, options: dict[str, Any], layers: list[int]
) -> None:
    model = build("llava")
    inputs = batch("llava", [single("llava", i) for i in range(3)])
    _, report = polytok.vlm(name, keep=7, **options).visual.prepare(model, inputs)
    scores = eager_scores(model, inputs["pixel_values"], layers)
    for image in range(3):
        expected = scores[image].topk(7).indices.sort().values
        assert torch.equal(report.kept(image), expected)


def test_a_window_of_one_layer_is_fastervlm() -> None:
    model, inputs = build("llava"), single("llava", 0)
    for keep in (1, 8, 40):
        kept = [
            polytok.vlm(name, keep=keep, **options).visual.prepare(model, inputs)[1].kept(0)
            for name, options in (
                ("fastervlm", {}),
                ("vtc-cls", {"window": 1}),
                ("vtc-cls", {"layers": (2,)}),
            )
        ]
        assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_features_are_rows_of_the_models_own_in_order(family: str) -> None:
    model, inputs = build(family), single(family, 1)
    method = polytok.vlm("vtc-cls", keep=0.4, row=row_of(family))
    prepared, report = method.visual.prepare(model, inputs)
    with torch.no_grad():
        features = host_of(model).encode(model, inputs).pooler_output[0]
    found = prepared["mm_encoder_outputs"]["image"].pooler_output
    found = found[0] if not isinstance(found, torch.Tensor) else found.flatten(0, 1)
    assert torch.equal(found, features[report.kept(0)])


def test_masking_before_the_projector_is_masking_after() -> None:
    model, inputs = build("llava"), single("llava", 0)
    prepared, report = polytok.vlm("fastervlm", keep=7).visual.prepare(model, inputs)
    with torch.no_grad():
        hidden = model.model.vision_tower(inputs["pixel_values"], output_hidden_states=True)
        before = hidden.hidden_states[-2][0, 1:][report.kept(0)]
        projected = model.model.multi_modal_projector(before)
    found = prepared["mm_encoder_outputs"]["image"].pooler_output[0]
    torch.testing.assert_close(found, projected, atol=1e-5, rtol=1e-5)


def test_every_tile_keeps_its_share_and_newlines_stay() -> None:
    model, inputs = build("llava_next"), single("llava_next", 0)
    layout = host_of(model).layouts(model, inputs)[0]
    _, report = polytok.vlm("fastervlm", keep=5).visual.prepare(model, inputs)
    assert report.per_tile(0) == (5,) * 5
    assert report.after == (25 + layout.others,)
    _, bare = polytok.vlm("fastervlm", keep=5, protect_newlines=False).visual.prepare(model, inputs)
    assert bare.after == (25,)
    _, total = polytok.vlm("fastervlm", total=23).visual.prepare(model, inputs)
    assert total.per_tile(0) == (7, 4, 4, 4, 4)  # the remainder goes to the thumbnail


def test_padding_that_is_cut_away_is_never_kept() -> None:
    model, inputs = build("llava_next"), single("llava_next", 0)
    layout = host_of(model).layouts(model, inputs)[0]
    assert sum(layout.capacity) < layout.tiles * layout.cells
    _, report = polytok.vlm("fastervlm", keep=layout.cells).visual.prepare(model, inputs)
    assert report.after == report.before  # a tile with fewer tokens keeps what it has


def test_presets_are_their_options() -> None:
    assert polytok.vlm("fastervlm-64") == polytok.vlm("fastervlm", keep=64)
    assert polytok.vlm("vtc-cls-128", window=3) == polytok.vlm("vtc-cls", keep=128, window=3)


def test_low_precision_scores_are_made_in_full() -> None:
    model = build("llava").to(torch.bfloat16)
    inputs = {**single("llava", 0), "pixel_values": pixels(1, 3, SIZE, SIZE, seed=1).bfloat16()}
    prepared, report = polytok.vlm("fastervlm", keep=7).visual.prepare(model, inputs)
    assert prepared["mm_encoder_outputs"]["image"].pooler_output[0].dtype == torch.bfloat16
    assert report.kv_after == report.kv_before * report.prompt_after[0] // report.prompt_before[0]
