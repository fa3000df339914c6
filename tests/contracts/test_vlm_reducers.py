"""Every registered method for vision-language models, and every baseline, on every family.

A cell of the table works or is refused in one sentence; which, is written down here.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import polytok
from polytok.core.config import from_dict, to_dict
from polytok.core.errors import PolytokError
from polytok.reducers.vlm.hosts import HOSTS
from polytok.systems.vlm import baselines
from polytok.systems.vlm.api import methods
from reducers.vlm.models import batch, build, single
from reducers.vlm.reference import generated

# How each method is called, and how where there is no class token.
OPTIONS: dict[str, dict[str, Any]] = {
    "fastervlm": {"keep": 0.3},
    "vtc-cls": {"keep": 0.3},
    "hired": {"rate": 0.3},
    "dyvte": {"layer": 1},
    **{name: {"keep": 0.3} for name in baselines.CONFIGS},
}
HAS_ROW = ("fastervlm", "vtc-cls")
FAMILIES = ["llava", "llava_siglip", "llava_next", "internvl", "qwen2_5_vl"]
NO_CLS = ("llava_siglip", "qwen2_5_vl")
# Why a method cannot work on a family.
REFUSED = {
    **{(name, family): "no class token" for name in (*HAS_ROW, "hired") for family in NO_CLS},
    ("hired", "internvl"): "known grid of tiles",
}


def test_every_method_and_family_is_in_the_table() -> None:
    assert OPTIONS.keys() == {*methods(), *baselines.CONFIGS}
    assert {*HOSTS} <= {*FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", OPTIONS)
def test_a_cell_works_or_is_refused(name: str, family: str) -> None:
    model = build(family)
    inputs = batch(family, [single(family, 0), single(family, 1)])
    plain = generated(model, inputs, 2)
    plan = polytok.vlm(name, **OPTIONS[name])
    words = REFUSED.get((name, family))
    if words is not None:
        with pytest.raises(PolytokError, match=words) as caught, plan.applied(model):
            generated(model, inputs, 2)
        assert "\n" not in str(caught.value)
        if name not in HAS_ROW:
            return
        plan = polytok.vlm(name, **OPTIONS[name], row="received")
    with plan.applied(model) as run:
        found = generated(model, inputs, 2)
    assert run.report.kv_after < run.report.kv_before
    assert run.report.flops_after < run.report.flops_before
    assert found.sequences.shape == plain.sequences.shape
    assert all(x.isfinite().all() for x in found.logits)
    assert not torch.equal(found.logits[0], plain.logits[0])
    again = generated(model, inputs, 2)
    assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))
    with plan.applied(model):
        same = generated(model, inputs, 2)
    assert all(torch.equal(a, b) for a, b in zip(same.logits, found.logits, strict=True))


@pytest.mark.parametrize("name", methods())
def test_a_method_is_documented_and_its_presets_are_configurations(name: str) -> None:
    system = methods()[name]
    module = system.load()
    assert module.__doc__ and "arXiv" in module.__doc__
    assert dataclasses.is_dataclass(module.CONFIG)
    assert set(module.PRESETS) == set(system.presets)
    for preset, config in module.PRESETS.items():
        assert from_dict(module.CONFIG, to_dict(config)) == config
        assert polytok.vlm(preset) == config.plan()
        assert polytok.vlm(preset).name == name
