"""Every registered tool works: one small run of each, checked for what it promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from polytok.core import registry
from polytok.systems.theory.posterior_collapse import linear_vae_optimum
from polytok.systems.theory.posterior_collapse.models import LinearVAE, minimise


def collapse_is_predicted() -> None:
    """A tiny linear VAE, optimised, has the closed form's loss and active units."""
    cov = torch.tensor([2.0, 1.0, 0.1], dtype=torch.float64).diag()
    wanted = linear_vae_optimum(cov.numpy(), eta_dec=0.6)
    model = LinearVAE(3, 3, eta_dec=0.6).double()
    loss = minimise(model, lambda: model.exact_loss(cov), num_starts=2)
    assert wanted.num_active == 2
    assert loss == pytest.approx(wanted.loss, abs=1e-6)


# A run of each registered tool that ends in seconds and asserts its promise.
RUNS: dict[str, Callable[[], None]] = {"posterior-collapse": collapse_is_predicted}


def test_every_tool_has_a_run() -> None:
    assert {s.name for s in registry.SYSTEMS.values() if s.kind == "tool"} == set(RUNS)


@pytest.mark.parametrize("name", sorted(RUNS))
def test_a_tool_runs(name: str) -> None:
    system = registry.SYSTEMS[name]
    assert system.load().__doc__ and not system.default_weights
    RUNS[name]()
