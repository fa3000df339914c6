"""MACs by formula against torch's counter, published numbers, and schedules from a target."""

from __future__ import annotations

import pytest
import torch

import polytok
from polytok.core.errors import ConfigError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers import Schedule, reduction_of
from polytok.reducers.cost import cost, counted_macs, schedule_for, unfused
from polytok.reducers.families import FAMILIES, Family
from polytok.reducers.methods import method
from reducers.models import WORKING, build, image, label, tiny_deit, tiny_hf

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
# GMAC of EViT on DeiT-S: arXiv 2202.07800, table 1, and the official repository's README.
PUBLISHED = {0.9: 4.02, 0.7: 3.03, 0.5: 2.31}


@pytest.fixture(scope="module")
def deit_small() -> torch.nn.Module:
    return import_hf("timm").create_model("deit_small_patch16_224").eval()


def test_published_costs_of_evit(deit_small: torch.nn.Module) -> None:
    x = torch.zeros(1, 3, 224, 224)
    found = cost(deit_small, x)
    assert found.plain() / 1e9 == pytest.approx(4.60, abs=0.005)
    for keep, gmacs in PUBLISHED.items():
        polytok.reduce(deit_small, "evit", keep=keep)
        reduction = reduction_of(deit_small)
        formula = found.reduced(reduction.reducer, reduction.schedule)
        counted = counted_macs(deit_small, x)
        polytok.unreduce(deit_small)
        assert formula / 1e9 == pytest.approx(gmacs, abs=0.005)
        assert counted / 1e9 == pytest.approx(gmacs, abs=0.005)


def test_published_costs_of_mctf_and_diffrate(deit_small: torch.nn.Module) -> None:
    found = cost(deit_small, torch.zeros(1, 3, 224, 224))
    for name, gmacs in (("mctf", 2.60),):
        reducer = method(name)[1]
        assert found.reduced(reducer, reducer.schedule(12)) / 1e9 == pytest.approx(gmacs, rel=0.03)
    tiny = import_hf("timm").create_model("deit_tiny_patch16_224").eval()
    listed = method("diffrate-deit-tiny-0.8")[1]
    macs = cost(tiny, torch.zeros(1, 3, 224, 224)).reduced(listed, listed.schedule(12))
    assert macs / 1e9 == pytest.approx(0.8, rel=0.03)


@pytest.mark.parametrize("family", WORKING, ids=label)
def test_the_formula_of_every_family_is_what_is_counted(family: Family) -> None:
    model, x = build(family), image(family)
    found = cost(model, x)
    # The pooling of a map head has its own small attention, which only the counter sees.
    slack = 5e-3 if getattr(model, "attn_pool", None) is not None else 1e-3
    assert found.plain() == pytest.approx(counted_macs(model, x), rel=slack)
    polytok.reduce(model, "uniform", keep={1: 0.6, 3: 0.5})
    reduction = reduction_of(model)
    formula = found.reduced(reduction.reducer, reduction.schedule)
    assert formula == pytest.approx(counted_macs(model, x), rel=slack)
    assert cost(model, x) == found


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evit", {}),
        ("evit", {"fuse": False}),
        ("tome", {}),
        ("mctf", {}),
        ("mctf", {"ahead": "recompute"}),
        ("mctf", {"ahead": "behind"}),
        ("diffrate", {}),
        ("diffrate", {"prune_share": 1.0}),
        ("inverse", {}),
    ],
)
def test_what_a_method_itself_costs_is_counted(name: str, options: dict) -> None:
    for model in (tiny_deit(), tiny_hf()):
        found = cost(model, image(DEIT))
        polytok.reduce(model, name, keep={1: 0.8, 3: 0.8}, **options)
        reduction = reduction_of(model)
        formula = found.reduced(reduction.reducer, reduction.schedule)
        assert formula == pytest.approx(counted_macs(model, image(DEIT)), rel=0.03)


def test_schedules_meet_a_target_from_below() -> None:
    model, x = tiny_deit(), image(DEIT)
    found = cost(model, x)
    for share in (0.6, 0.8, 1.0):
        schedule = schedule_for(model, x, "evit", share)
        spent = found.reduced(method("evit")[1], schedule) / found.plain()
        assert share - 0.06 < spent <= share
    with pytest.raises(ConfigError, match="no keep ratio"):
        schedule_for(model, x, "evit", 0.05)
    with pytest.raises(ConfigError, match="not within"):
        schedule_for(model, x, "evit", 1.5)
    assert found.schedule(method("tome")[1], found.plain()) == Schedule.ratios(1.0, range(4))


def test_unfused_puts_everything_back() -> None:
    for model in (tiny_deit(), tiny_hf()):
        before = [getattr(m, "fused_attn", None) for m in model.modules()]
        kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
        with pytest.raises(ZeroDivisionError), unfused(model):
            _ = 1 / 0
        assert [getattr(m, "fused_attn", None) for m in model.modules()] == before
        assert getattr(getattr(model, "config", None), "_attn_implementation", None) == kernel
