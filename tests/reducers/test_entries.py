"""Every way into a reduced model: heads, features, intermediates, hidden states, wrappers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import polytok
from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers import Select, TokenMap, applied, paused, trace
from polytok.reducers.families import FAMILIES, Family
from polytok.reducers.reducer import Reducer, Where
from reducers.models import (
    DEPTH,
    GRID,
    IS_NEWER,
    WORKING,
    build,
    image,
    label,
    logits,
    tiny_deit,
    tiny_hf,
)

KEEP = {1: 0.7, 2: 0.7}
PATCHES = GRID * GRID
TIMM = [f for f in WORKING if f.library == "timm"]
HF = [f for f in WORKING if f.library == "transformers"]
DEIT = next(f for f in FAMILIES if f.name == "DeiT")


class Identity(Reducer):
    """Keeps every patch by a map that moves them all: backwards, then back at the next block."""

    def choose(self, state: Any, scores: Any, keep: int) -> TokenMap:
        index = torch.arange(state.patches - 1, -1, -1).expand(len(scores.x), -1)
        return Select(index, state.patches)


@dataclass(frozen=True, kw_only=True)
class Still(Reducer):
    """Takes blocks apart, and leaves every patch where it is."""

    place: Where = "mid"

    @property
    def where(self) -> Where:
        return self.place

    def choose(self, state: Any, scores: Any, keep: int) -> TokenMap:
        return Select(torch.arange(state.patches).expand(len(scores.x), -1), state.patches)


class Gated(import_hf("timm.layers").Attention):
    """timm's attention with the gate that no model of its own names yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, gated=True, **options)


class First(Reducer):
    """Keeps the first patches in order."""

    def choose(self, state: Any, scores: Any, keep: int) -> TokenMap:
        return Select(torch.arange(keep).expand(len(scores.x), -1), state.patches)


@pytest.mark.parametrize("family", TIMM, ids=label)
@torch.no_grad()
def test_features_and_head_of_timm_agree_with_the_whole(family: Family) -> None:
    model, x = build(family), image(family)
    polytok.reduce(model, "uniform", keep=KEEP)
    features = model.forward_features(x)
    assert features.shape[1] == trace(model, x).tokens[-1]
    torch.testing.assert_close(model.forward_head(features), model(x))


@pytest.mark.parametrize("family", TIMM, ids=label)
@torch.no_grad()
def test_intermediates_of_timm(family: Family) -> None:
    model, x = build(family), image(family)
    plain = model.forward_intermediates(x, indices=[0, 3], norm=True)
    polytok.reduce(model, "uniform", keep=KEEP)
    last, found = model.forward_intermediates(x, indices=[0, 3], output_fmt="NLC")
    tokens = trace(model, x).tokens
    assert [y.shape[1] + family.prefix for y in found] == [tokens[1], tokens[4]]
    torch.testing.assert_close(last, model.forward_features(x))
    with pytest.raises(PolytokError, match="restore='grid'"):
        model.forward_intermediates(x)
    polytok.unreduce(model)

    polytok.reduce(model, "uniform", keep=KEEP, restore="grid")
    last, found = model.forward_intermediates(x, indices=[0, 3], norm=True)
    assert [y.shape for y in found] == [y.shape for y in plain[1]]
    assert torch.equal(found[0], plain[1][0]) and not torch.equal(found[1], plain[1][1])
    assert last.shape == plain[0].shape == model.forward_features(x).shape
    assert torch.equal(
        last[:, family.prefix :].transpose(1, 2).unflatten(2, (GRID, GRID)), found[1]
    )
    pairs = model.forward_intermediates(x, 1, return_prefix_tokens=True, intermediates_only=True)
    if family.prefix:
        assert pairs[0][1].shape[1] == family.prefix
    stopped = model.forward_intermediates(x, [1], stop_early=True, intermediates_only=True)
    assert stopped[0].shape == plain[1][0].shape
    with paused(model):
        again = model.forward_intermediates(x, indices=[0, 3], norm=True)
    assert all(torch.equal(a, b) for a, b in zip(again[1], plain[1], strict=True))


@torch.no_grad()
def test_intermediates_as_a_dictionary() -> None:
    model, x = tiny_deit(), image(DEIT)
    plain = model.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    polytok.reduce(model, "evit", keep=1.0, restore="grid")
    found = model.forward_intermediates(x, 2, output_dict=True, return_prefix_tokens=True)
    assert found.keys() == plain.keys()
    assert torch.equal(found["image_features"], plain["image_features"])
    with pytest.raises(PolytokError, match="not within the blocks"):
        model.forward_intermediates(x, [9])


@torch.no_grad()
def test_feature_wrappers_of_timm_get_maps() -> None:
    options = {"features_only": True, "out_indices": (1, 3), "img_size": 64}
    small = {"embed_dim": 48, "depth": 4, "num_heads": 3}
    made = import_hf("timm").create_model("deit_small_patch16_224", **options, **small).eval()
    x = image(DEIT)
    plain = made(x)
    polytok.reduce(made, "evit", keep=KEEP, restore="grid")
    assert [y.shape for y in made(x)] == [y.shape for y in plain]
    assert "reduced by evit" in repr(made)


@pytest.mark.parametrize("family", HF, ids=label)
@torch.no_grad()
def test_hidden_states_of_transformers(family: Family) -> None:
    model, x = build(family), image(family)
    plain = model(x, output_hidden_states=True)
    polytok.reduce(model, "uniform", keep=KEEP)
    found = model(x, output_hidden_states=True)
    assert [h.shape[1] for h in found.hidden_states] == list(trace(model, x).tokens)
    with pytest.raises(PolytokError, match="no attention maps"):
        model(x, output_attentions=True)
    polytok.unreduce(model)
    if not IS_NEWER:
        return
    polytok.reduce(model, "uniform", keep=KEEP, restore="grid")
    found = model(x, output_hidden_states=True)
    assert [h.shape for h in found.hidden_states] == [h.shape for h in plain.hidden_states]
    assert torch.equal(found.hidden_states[1], plain.hidden_states[1])
    as_tuple = model(x, output_hidden_states=True, return_dict=False)
    assert all(torch.equal(a, b) for a, b in zip(as_tuple[-1], found.hidden_states, strict=True))


@pytest.mark.parametrize("family", WORKING, ids=label)
@torch.no_grad()
def test_moving_every_patch_changes_nothing(family: Family) -> None:
    """Positions follow their tokens: learned ones are in them, rotary ones are gathered."""
    model, x = build(family), image(family)
    plain = logits(model(x))
    keeps_all = {1: PATCHES, 2: PATCHES}
    polytok.reduce(model, Identity(), counts=keeps_all, restore="grid")
    polytok.reducers.reduction_of(model).resolve = lambda *_: (PATCHES, *[PATCHES - 1] * 2, PATCHES)
    torch.testing.assert_close(logits(model(x)), plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", WORKING, ids=label)
@torch.no_grad()
def test_dropped_patches_come_back_as_they_were(family: Family) -> None:
    model, x = build(family), image(family)
    polytok.reduce(model, First(), counts={2: 5}, restore="grid")
    recorded: list[Any] = []
    polytok.reducers.reduction_of(model).recorders.append(recorded)
    model(x)
    state = recorded[0].state
    whole = state.expand(torch.zeros(len(x), 5 + family.prefix, 48))
    assert torch.equal(
        whole[:, : 5 + family.prefix], torch.zeros_like(whole[:, : 5 + family.prefix])
    )
    assert torch.equal(whole[:, 5 + family.prefix :], state.before[0][:, 5 + family.prefix :])


@pytest.mark.parametrize("name", ["avg", "avgmax", "max", "map"])
@torch.no_grad()
def test_pooling_counts_tokens_by_their_size(name: str) -> None:
    """Merging equal tokens is exact, whatever the pooling: eight patches twice."""
    options = {"global_pool": name, "class_token": True, "pos_embed": "none"}
    model = build(DEIT, **options)
    half = torch.randn(1, 3, 4, 16, 2, 1, 16).expand(-1, -1, -1, -1, -1, 2, -1)
    x = half.reshape(1, 3, 64, 64)
    plain = model(x)
    polytok.reduce(model, "tome", counts={1: 8})
    group = trace(model, x).stages[0].group.view(4, 4)
    if torch.equal(group[:, ::2], group[:, 1::2]):
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-4)
    else:
        pytest.fail("equal patches were not merged with each other")


@torch.no_grad()
def test_a_call_may_override_the_keep_ratio() -> None:
    for model in (tiny_deit(), *([tiny_hf()] if IS_NEWER else [])):
        x = image(DEIT)
        plain = logits(model(x))
        polytok.reduce(model, "evit", keep={1: 0.5})
        reduced = logits(model(x))
        assert torch.equal(logits(model(x, keep=1.0)), plain)
        assert torch.equal(logits(model(x, keep=0.5)), reduced)
        counts = polytok.reducers.Schedule.counts({1: 8})
        assert torch.equal(logits(model(x, keep=counts)), reduced)
        assert not torch.equal(logits(model(x, keep={2: 0.5})), reduced)
        with pytest.raises(PolytokError, match="not within"):
            model(x, keep=0.0)


@torch.no_grad()
def test_batches_and_sizes_may_change_from_call_to_call() -> None:
    model = build(DEIT, dynamic_img_size=True)
    polytok.reduce(model, "tome", keep=KEEP)
    for batch, side in ((1, 64), (3, 64), (2, 96), (1, 48), (3, 64)):
        x = torch.randn(batch, 3, side, side)
        assert model(x).shape == (batch, 7)
        assert trace(model, x).tokens[0] == 1 + (side // 16) ** 2


@torch.no_grad()
def test_a_model_within_a_module_is_found() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_deit()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.inner(x)

    model, x = Wrapper(), image(DEIT)
    plain = model(x)
    polytok.reduce(model, "evit", keep=0.5)
    assert not torch.equal(model(x), plain)
    assert "reduced by evit: keep=0.5 in blocks 1" in repr(model)
    with paused(model):
        assert torch.equal(model(x), plain)
        assert "paused" in repr(model)
    polytok.unreduce(model)
    assert torch.equal(model(x), plain) and "reduced" not in repr(model)


@torch.no_grad()
def test_an_exception_leaves_the_model_as_it_was() -> None:
    model, x = tiny_deit(), image(DEIT)
    before, plain = set(model.__dict__), model(x)
    classes = [type(m) for m in model.modules()]
    for context in (applied(model, "evit", keep=0.5), applied(model, "tome", r=2)):
        with pytest.raises(ZeroDivisionError), context:
            assert not torch.equal(model(x), plain)
            with pytest.raises(KeyError), paused(model):
                raise KeyError
            assert not torch.equal(model(x), plain)
            _ = 1 / 0
        assert [type(m) for m in model.modules()] == classes
        assert set(model.__dict__) == before and torch.equal(model(x), plain)


def test_hooks_of_blocks_still_run() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep={1: 0.5})
    seen: list[int] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    model(image(DEIT))
    assert len(seen) == DEPTH and seen[1:] == [10, 10, 10]


@torch.no_grad()
def test_a_bound_forward_left_on_a_block_hides_nothing() -> None:
    """As recording hidden states leaves it in transformers 4, before and after reducing."""
    model, x = tiny_deit(), image(DEIT)
    plain = model(x)
    model.blocks[1].forward = model.blocks[1].forward
    polytok.reduce(model, "evit", keep={1: 0.5})
    reduced = model(x)
    assert not torch.equal(reduced, plain)
    model.blocks[1].forward = model.blocks[1].forward
    assert torch.equal(model(x), reduced)
    polytok.unreduce(model)
    assert torch.equal(model(x), plain)


DROPS = {
    "timm": {f"{name}_rate": 0.3 for name in ("attn_drop", "proj_drop", "drop_path", "pos_drop")},
    "transformers": {"attention_probs_dropout_prob": 0.3, "hidden_dropout_prob": 0.3},
}


def dropping(family: Family) -> nn.Module:
    """A model in training that drops all it can."""
    options = dict(DROPS[family.library])
    if "Dinov2" in family.example:
        options["drop_path_rate"] = 0.3
    return build(family, **options).train()


def still(model: nn.Module, place: Where) -> None:
    """Reduce a model in name only."""
    polytok.reduce(model, Still(place=place), counts={1: PATCHES, 2: PATCHES})
    polytok.reducers.reduction_of(model).resolve = lambda *_: (PATCHES, *[PATCHES - 1] * 2, PATCHES)


@pytest.mark.parametrize("is_fused", [True, False], ids=["sdpa", "eager"])
@pytest.mark.parametrize("family", WORKING, ids=label)
def test_training_drops_what_the_plain_model_drops(family: Family, is_fused: bool) -> None:
    model, x = dropping(family), image(family)
    if family.library == "transformers":
        model.set_attn_implementation("sdpa" if is_fused else "eager")
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = is_fused

    def out() -> torch.Tensor:
        torch.manual_seed(5)
        return logits(model(x))

    plain = out()
    assert not torch.equal(plain, logits(model(x)))
    for place in ("mid", "input", "output"):
        still(model, place)
        torch.testing.assert_close(out(), plain, rtol=1e-4, atol=1e-4)
        polytok.unreduce(model)


@pytest.mark.parametrize("options", [{"scale_attn_norm": True}, {"attn_layer": Gated}], ids=str)
@torch.no_grad()
def test_norms_and_gates_of_attention_are_kept(options: dict[str, Any]) -> None:
    model, x = tiny_deit(**options), image(DEIT)
    plain = model(x)
    for place in ("mid", "input", "output"):
        still(model, place)
        torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-4)
        polytok.unreduce(model)


@torch.no_grad()
def test_what_happens_within_the_context_is_the_callers() -> None:
    model = tiny_deit()
    with pytest.raises(KeyError), applied(model, "evit", keep=KEEP):
        polytok.unreduce(model)
        raise KeyError
    with applied(model, "evit", keep=KEEP):
        polytok.unreduce(model)
        polytok.reduce(model, "tome", keep=KEEP)
    assert "reduced by tome" in repr(model)
