"""Rates, parameter groups, stages and the order of samples."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError
from polytok.training.samples import share
from polytok.training.schedule import decayed_names, parameter_groups, rate_factor
from polytok.training.stages import Plan, weigh


def stage(name: str = "s", **kwargs: Any) -> Stage:
    return Stage(name=name, weights={"rec": 1.0}, **kwargs)


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    rates = [rate_factor(n, 100, 1100, 0.1) for n in (0, 25, 100, 600, 1100)]
    assert rates == pytest.approx([0, 0.25, 1, 0.55, 0.1])
    falling = [rate_factor(n, 100, 1100, 0.1) for n in range(100, 1101)]
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert rate_factor(5, 0, 5, 0.0) == pytest.approx(0)
    assert rate_factor(3, 10, 5, 0.0) == pytest.approx(0.3), "a warm-up longer than the run"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Conv1d(3, 4, 1))
        self.table = nn.Embedding(5, 3)
        self.query = nn.Parameter(torch.zeros(1, 4, 3))
        self.gain_weight = nn.Parameter(torch.ones(3))


def test_only_matrices_and_kernels_decay() -> None:
    assert decayed_names(Net()) == {"body.0.weight", "body.2.weight"}


def test_every_parameter_is_in_one_group_with_its_factors() -> None:
    net = Net()
    named = dict(net.named_parameters())
    stages = (stage(lr={"table.*": 0.1, "*": 1.0}), stage("t", train=("body.*",)))
    groups = parameter_groups(net, named, stages, 0.5)
    where = {id(p): g for g in groups for p in g["params"]}
    assert sum(len(g["params"]) for g in groups) == len(named) == len(where)
    assert where[id(net.table.weight)]["factors"] == (0.1, 1.0)
    assert where[id(net.table.weight)]["weight_decay"] == 0
    assert where[id(named["body.0.weight"])]["weight_decay"] == 0.5
    with pytest.raises(ConfigError, match="tabel"):
        parameter_groups(net, named, (stage(lr={"tabel.*": 0.1, "*": 1.0}),), 0.5)


def test_weights_decay_and_frozen_ones_do_not() -> None:
    """The optimiser leaves parameters without gradient alone, decay included."""
    net = Net()
    named = dict(net.named_parameters())
    groups = parameter_groups(net, named, (stage(),), 0.5)
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=True)
    before = {n: p.detach().clone() for n, p in named.items()}
    for name in ("body.0.weight", "body.0.bias"):
        named[name].grad = torch.zeros_like(named[name])
    optimizer.step()
    torch.testing.assert_close(named["body.0.weight"], before["body.0.weight"] * 0.95)
    for name in named.keys() - {"body.0.weight"}:
        assert torch.equal(named[name], before[name]), name


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(1, 9))
def test_plans_cover_every_step_once(budgets: list[int], batch: int) -> None:
    stages = [(stage(str(i)), n) for i, n in enumerate(budgets)]
    if not any(budgets):
        with pytest.raises(ConfigError, match="at least one sample"):
            Plan.of(stages, batch)
        return
    plan = Plan.of(stages, batch)
    owners = [plan.stages[plan.index(s)].name for s in range(plan.num_steps)]
    for i, n in enumerate(budgets):
        assert owners.count(str(i)) == -(-n // batch)
    assert owners == sorted(owners)
    assert all(0 <= plan.progress(s) < 1 for s in range(plan.num_steps))
    assert plan.progress(0) == 0


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 5))
def test_ranks_share_a_batch_in_order(first: int, size: int, world: int) -> None:
    parts = [share(first, size * world, rank, world) for rank in range(world)]
    assert [n for part in parts for n in part] == list(range(first, first + size * world))


def test_losses_are_weighed_in_fp32() -> None:
    losses = {"a": torch.tensor(2.0, dtype=torch.bfloat16), "b": torch.tensor(float("nan"))}
    total = weigh(losses, {"a": 0.25, "b": 0.0})
    assert total.dtype == torch.float32 and total.item() == 0.5
