"""Closed forms against what torch counts and what a cache holds."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import polytok
from polytok.reducers.vlm.cost import kv_bytes, prefill_flops, tower_flops
from polytok.reducers.vlm.hosts.base import cache_name
from reducers.vlm.models import DECODER, FAMILIES, build, single
from reducers.vlm.reference import row_of


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_the_prefill_are_those_that_torch_counts(family: str) -> None:
    # Fused attention on a CPU counts as nothing, so eager.
    model = build(family, "eager")
    embeds = torch.randn(1, 37, DECODER["hidden_size"])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.model.language_model(inputs_embeds=embeds)
    config = model.config.get_text_config()
    found = prefill_flops(config, [37] * DECODER["num_hidden_layers"])
    counts = {name: sum(x.values()) for name, x in counter.get_flop_counts().items()}
    # Some releases make the angles of positions by a matrix product.
    angles = sum(count for name, count in counts.items() if name.endswith(".rotary_emb"))
    assert counts["Global"] - angles == found


def test_flops_of_the_tower_are_those_that_torch_counts() -> None:
    tower = build("llava", "eager").model.vision_tower
    encoder = next(m for m in tower.modules() if type(m).__name__ == "CLIPEncoder")
    x = torch.randn(1, 65, 24)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(inputs_embeds=x)
    counted = sum(counter.get_flop_counts()["Global"].values())
    assert counted == tower_flops(tower.config, 65, 4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [None, 1])
def test_bytes_are_those_of_the_cache(family: str, layer: int | None) -> None:
    model, inputs = build(family), single(family, 0)
    method = polytok.vlm("fastervlm", keep=3, row=row_of(family))
    if layer is not None:
        method = method | polytok.vlm("dyvte", layer=layer)
    with method.applied(model) as run, torch.no_grad():
        cache = model(**inputs)[cache_name(model)]
        held = sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    assert run.report.kv_after == held
    with torch.no_grad():
        cache = model(**inputs)[cache_name(model)]
    assert run.report.kv_before == sum(x.keys.nbytes + x.values.nbytes for x in cache.layers)
    config = model.config.get_text_config()
    lengths = [x.get_seq_length() for x in cache.layers]
    assert run.report.flops_before == prefill_flops(config, lengths)
    assert kv_bytes(config, lengths, torch.bfloat16) * 2 == run.report.kv_before
