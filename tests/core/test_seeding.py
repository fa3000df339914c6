"""Seeds: the same on every machine, different for different keys."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from polytok.core.seeding import derive, numpy_rng, torch_rng


def test_seeds_never_change() -> None:
    """Data order and initial weights of old runs depend on these numbers."""
    assert derive(0) == 4761921975702974394
    assert derive(1, "points", 2) == 1705238267888365975


@given(
    seed=st.integers(),
    keys=st.lists(st.integers() | st.sampled_from(["", "a", "points"]), max_size=3),
)
def test_seeds_fit_every_generator(seed: int, keys: list[int | str]) -> None:
    value = derive(seed, *keys)
    assert 0 <= value < 2**63
    assert value == derive(seed, *keys)


def test_every_key_matters() -> None:
    seeds = {derive(s, k, i) for s in range(20) for k in ("a", "b") for i in range(20)}
    seeds |= {derive(s) for s in range(20)} | {derive(s, "a") for s in range(20)}
    assert len(seeds) == 800 + 40


def test_generators_repeat_and_differ() -> None:
    a, b, c = (numpy_rng(*k).random(8) for k in ((1, "x"), (1, "x"), (1, "y")))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    d, e, f = (torch.rand(8, generator=torch_rng(*k)) for k in ((1, "x"), (1, "x"), (2, "x")))
    assert torch.equal(d, e) and not torch.equal(d, f)


def test_making_a_generator_leaves_the_global_one_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    torch_rng(99)
    assert torch.equal(torch.rand(1), expected)
