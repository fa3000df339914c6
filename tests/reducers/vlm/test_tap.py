"""Rows of attention that are read beside the kernel equal those of the eager map."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.reducers.vlm import AttentionScore, Tap
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.tap import attention_row, recording
from reducers.vlm.models import build, single

TOWERS = ["llava", "llava_siglip", "llava_next", "internvl"]


def recorded(model: Any, inputs: dict[str, Any], taps: tuple[Tap, ...]) -> dict[Tap, list[Tensor]]:
    tower = host_of(model).tower(model)
    with torch.no_grad(), recording(tower.module, tower.layers, taps) as recorder:
        host_of(model).encode(model, inputs)
    return recorder.rows


def maps_of(model: Any, inputs: dict[str, Any]) -> tuple[Tensor, ...]:
    """The eager attention maps (B, H, n, n) of a tower."""
    tower = host_of(model).tower(model).module
    tower.set_attn_implementation("eager")
    tower.config.output_attentions = True  # not all towers take it as an argument
    pixels = inputs["pixel_values"].flatten(0, -4)
    with torch.no_grad():
        return tower(pixels).attentions


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("family", TOWERS)
def test_rows_equal_the_eager_map_in_every_layer(family: str, kernel: str) -> None:
    model, inputs = build(family, kernel), single(family, 0)
    depth = len(host_of(model).tower(model).layers)
    taps = tuple(Tap(i, row) for i in range(depth) for row in ("cls", "received", "last"))
    rows = recorded(model, inputs, taps)
    maps = maps_of(model, inputs)
    for tap in taps:
        found = torch.cat(rows[tap])
        row = {"cls": maps[tap.layer][:, :, 0], "last": maps[tap.layer][:, :, -1]}
        expected = row.get(tap.row, maps[tap.layer].mean(2))
        # What goes in already differs between kernels, more so in later layers.
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert found.std() > 1e-4  # far from uniform, or the test shows nothing


def test_windows_of_qwen_are_rows_of_the_eager_map() -> None:
    model, inputs = build("qwen2_5_vl"), single("qwen2_5_vl", 0)
    tower = host_of(model).tower(model)
    found = torch.cat(recorded(model, inputs, (Tap(1, "received"),))[Tap(1, "received")], -1)
    tower.module.set_attn_implementation("eager")
    seen: list[Tensor] = []
    attention = tower.layers[1].attn

    def spy(query: Tensor, key: Tensor) -> None:
        seen.append((query @ key.transpose(2, 3) * attention.scaling).softmax(-1).mean(2))

    from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as modeling

    original = modeling.eager_attention_forward
    modeling.eager_attention_forward = lambda module, q, k, *rest, **options: (
        spy(q, k) if module is attention else None,
        original(module, q, k, *rest, **options),
    )[1]
    try:
        with torch.no_grad():
            host_of(model).encode(model, inputs)
    finally:
        modeling.eager_attention_forward = original
    torch.testing.assert_close(found, torch.cat(seen, -1), atol=1e-6, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    heads=st.sampled_from([1, 2, 4]),
    count=st.integers(1, 600),
    seed=st.integers(0, 9),
    is_masked=st.booleans(),
)
def test_a_row_is_a_row_of_the_map(heads: int, count: int, seed: int, is_masked: bool) -> None:
    rng = torch.Generator().manual_seed(seed)
    query = torch.randn(2, heads, count, 8, generator=rng)
    key = torch.randn(2, 1, count, 8, generator=rng)
    mask = torch.rand(2, 1, count, count, generator=rng) > 0.5
    mask[..., 0] = True
    logits = query @ key.transpose(2, 3) * 0.3
    full = (logits.masked_fill(~mask, -torch.inf) if is_masked else logits).softmax(-1)
    given_mask = mask if is_masked else None
    for row, expected in (
        ("cls", full[:, :, 0]),
        ("last", full[:, :, -1]),
        ("received", full.mean(2)),
    ):
        found = attention_row(Tap(0, row), query, key, given_mask, 0.3)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_merged_heads_are_one_wide_head() -> None:
    query, key = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 5, 4)
    found = attention_row(Tap(0, "cls", "merged"), query, key, None, 4**-0.5)
    wide = [x.transpose(1, 2).reshape(2, 5, 12) for x in (query, key)]
    expected = (wide[0][:, :1] @ wide[1].transpose(1, 2) * 12**-0.5).softmax(-1)
    torch.testing.assert_close(found, expected)


def test_scores_do_not_depend_on_the_order_of_heads() -> None:
    query, key = torch.randn(1, 4, 9, 8), torch.randn(1, 4, 9, 8)
    order = torch.tensor([2, 0, 3, 1])
    for row in ("cls", "received"):
        a = attention_row(Tap(0, row), query, key, None, 1.0).mean(1)
        b = attention_row(Tap(0, row), query[:, order], key[:, order], None, 1.0).mean(1)
        torch.testing.assert_close(a, b)


def test_the_kernel_comes_back_when_the_last_thread_is_done() -> None:
    model, inputs = build("llava"), single("llava", 0)
    tower = host_of(model).tower(model)
    inside = threading.Barrier(2)
    rows: list[Tensor] = []

    def record() -> None:
        with torch.no_grad(), recording(tower.module, tower.layers, (Tap(0),)) as recorder:
            inside.wait(30)
            host_of(model).encode(model, inputs)
        rows.append(recorder.rows[Tap(0)][0])

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tower.module.config._attn_implementation == "sdpa"
    assert torch.equal(*rows)  # each saw its own call, once


def test_the_kernel_comes_back_after_an_exception() -> None:
    model = build("llava", "eager")
    tower = host_of(model).tower(model)
    with pytest.raises(RuntimeError), recording(tower.module, tower.layers, (Tap(0),)):
        raise RuntimeError
    assert tower.module.config._attn_implementation == "eager"


def test_without_taps_nothing_is_put_on() -> None:
    tower = host_of(build("llava")).tower(build("llava"))
    tower.module.config._attn_implementation_internal = "flash_attention_2"
    with recording(tower.module, tower.layers, ()) as recorder:
        assert tower.module.config._attn_implementation == "flash_attention_2"
    assert recorder.rows == {}
    with pytest.raises(ConfigError, match="gives no scores"):
        recording(tower.module, tower.layers, (Tap(0),)).__enter__()


def test_layers_that_cannot_score_are_refused() -> None:
    model = build("qwen2_5_vl")
    tower = host_of(model).tower(model)
    assert AttentionScore(row="received").taps(tower) == (Tap(3, "received"),)
    with pytest.raises(ConfigError, match=r"layer 0 cannot score; one of \[1, 3\] can"):
        AttentionScore(row="received", layers=(0,)).taps(tower)
    with pytest.raises(ConfigError, match="no class token; score with row='received'"):
        AttentionScore().taps(tower)
    siglip = build("llava_siglip")
    with pytest.raises(ConfigError, match="SiglipVisionModel has no class token"):
        AttentionScore().taps(host_of(siglip).tower(siglip))
    with pytest.raises(ConfigError, match="at least one layer"):
        AttentionScore(window=0)


def test_the_window_ends_where_features_come_from() -> None:
    model = build("llava")  # 4 layers, features from hidden state -2, the output of layer 2
    tower = host_of(model).tower(model)
    assert [tap.layer for tap in AttentionScore().taps(tower)] == [2]
    assert [tap.layer for tap in AttentionScore(window=2).taps(tower)] == [1, 2]
    assert [tap.layer for tap in AttentionScore(window=9).taps(tower)] == [0, 1, 2]
    assert [tap.layer for tap in AttentionScore(layers=(-1, 0)).taps(tower)] == [3, 0]
