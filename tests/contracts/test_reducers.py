"""Every registered reducer of images, and the baselines: one contract for all."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

import polytok
from polytok.core import registry
from polytok.core.config import from_dict, to_dict
from polytok.reducers import Reducer, Scores, TokenState, method_names
from polytok.reducers.methods import method

SYSTEMS = [s for s in registry.SYSTEMS.values() if (s.kind, s.modality) == ("reducer", "image")]
NAMES = method_names()
B, H, D, C = 3, 2, 6, 5


def case(patches: int, prefix: int, *, layer: int = 1) -> tuple[Scores, TokenState]:
    rng = torch.Generator().manual_seed(patches)
    length = patches + prefix
    q, k = (torch.randn(B, H, length, D, generator=rng) for _ in "qk")
    x = torch.randn(B, length, C, generator=rng)
    state = TokenState(num_patches=patches, prefix=prefix, layer=layer)
    return Scores(x, q, k, D**-0.5, None, prefix), state


def test_there_is_something_to_test() -> None:
    assert {"evit", "mctf", "diffrate", "tome"} <= {s.name for s in SYSTEMS}
    assert {"random", "uniform", "inverse"} <= set(NAMES)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda s: s.name)
def test_a_system_names_its_presets(system: registry.System) -> None:
    module = system.load()
    assert module.__doc__ and "arXiv" in module.__doc__
    assert tuple(module.PRESETS) == system.presets and system.name in system.presets
    assert all(isinstance(reducer, Reducer) for reducer in module.PRESETS.values())
    assert not system.default_weights


@pytest.mark.parametrize("name", NAMES)
def test_options_are_frozen_json(name: str) -> None:
    reducer = method(name)[1]
    assert from_dict(type(reducer), json.loads(json.dumps(to_dict(reducer)))) == reducer
    for option in dataclasses.fields(reducer):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(reducer, option.name, None)
    with pytest.raises(polytok.core.errors.PolytokError, match="unknown key"):
        method(name, no_such_option=1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("patches", "prefix"), [(16, 1), (25, 1), (49, 5), (20, 2)])
def test_a_map_keeps_what_was_asked_for(name: str, patches: int, prefix: int) -> None:
    reducer = method(name)[1]
    for keep in {patches - 1, -(-patches * 7 // 10), reducer.least(patches)}:
        scores, state = case(patches, prefix)
        chosen = reducer.choose(state, scores, keep)
        assert (chosen.num_inputs, chosen.count) == (patches, keep + reducer.extra)
        assert chosen.apply(scores.features()).shape == (B, keep + reducer.extra, C)
        group, anchor = chosen.group(), chosen.anchor()
        assert group.shape == (B, patches) and group.max() < chosen.count and group.min() >= -1
        assert torch.equal(group.gather(1, anchor), torch.arange(chosen.count).expand(B, -1))
        total = chosen.total(torch.ones(B, patches))
        assert (total >= 1 - 1e-6).all() and (total.sum(1) <= patches + 1e-3).all()


@pytest.mark.parametrize("name", NAMES)
def test_choosing_repeats_itself_and_leaves_its_inputs(name: str) -> None:
    reducer = method(name)[1]
    scores, state = case(25, 1)
    before = scores.x.clone()
    one = reducer.choose(state, scores, 18)
    two = reducer.choose(*reversed(case(25, 1)), 18)
    assert torch.equal(one.group(), two.group())
    assert torch.equal(scores.x, before)


@pytest.mark.parametrize("name", NAMES)
def test_samples_do_not_see_each_other(name: str) -> None:
    reducer = method(name)[1]
    scores, state = case(25, 1)
    whole = reducer.choose(state, scores, 18)
    alone = Scores(scores.x[:1], scores.q[:1], scores.k[:1], scores.scale, None, 1)
    first = reducer.choose(state, alone, 18)
    torch.testing.assert_close(first.apply(alone.features()), whole.apply(scores.features())[:1])


@pytest.mark.parametrize("name", NAMES)
def test_schedules_and_costs_fit_any_depth(name: str) -> None:
    reducer = method(name)[1]
    for depth in (12, 24):
        layers = reducer.layers(depth)
        assert layers and list(layers) == sorted(set(layers)) and layers[-1] < depth
        schedule = reducer.schedule(depth)
        kept = schedule.resolve(196, depth, extra=reducer.extra, least=reducer.least)
        assert len(kept) == depth and min(kept) >= 1 and kept[-1] < 196
    assert reducer.macs(197, 138, 384) >= 0
