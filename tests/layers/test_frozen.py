"""Frozen: gradient goes through, nothing changes it, and nobody lists or saves it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from polytok.core import hub
from polytok.layers import Frozen
from polytok.training.ema import WeightAverage, own_parameters


@dataclass(frozen=True)
class Config:
    """What hub writes beside the weights."""


class Foreign(nn.Module):
    """Has all that a module can have: weights, a buffer, and behaviour that depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.batch_norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, *, factor: float = 1.0) -> torch.Tensor:
        return factor * self.dropout(self.batch_norm(self.linear(x)))


class Owner(nn.Module):
    """A model that trains a head on top of a foreign module."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = Frozen(Foreign())
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen(x, factor=2.0))


def values(module: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in module.state_dict().values()]


def test_gradient_passes_and_the_weights_get_none() -> None:
    foreign, x = Foreign(), torch.randn(3, 4, requires_grad=True)
    wanted = torch.autograd.grad(foreign.eval()(x).square().sum(), x)[0]
    frozen = Frozen(foreign)
    frozen(x).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, wanted)
    assert wanted.abs().min() > 0
    assert all(p.grad is None and not p.requires_grad for p in foreign.parameters())


def test_it_is_nobodys_parameter_buffer_module_or_state() -> None:
    owner = Owner()
    names = {"head.weight", "head.bias"}
    assert dict(owner.named_parameters()).keys() == names
    assert owner.state_dict().keys() == names
    assert own_parameters(owner).keys() == names
    assert WeightAverage(own_parameters(owner), 0.9).average.keys() == names
    assert not list(owner.buffers())
    assert not any(isinstance(m, (Foreign, nn.BatchNorm1d)) for m in owner.modules())
    assert "Foreign" in repr(owner)


def test_training_leaves_it_bit_for_bit() -> None:
    owner, x = Owner(), torch.randn(8, 4)
    before, head = values(owner.frozen.module), owner.head.weight.detach().clone()
    owner.requires_grad_(True).train()
    for _ in range(3):
        owner(x).square().sum().backward()
        with torch.no_grad():
            for parameter in owner.parameters():
                parameter -= 0.01 * parameter.grad + 0.1 * parameter
    owner.apply(lambda m: nn.init.zeros_(m.weight) if isinstance(m, nn.Linear) else None)
    assert not torch.equal(owner.head.weight, head)
    after = values(owner.frozen.module)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_it_stays_in_eval_mode() -> None:
    owner = Owner().train()
    assert owner.training
    owner.frozen.train()
    assert not owner.frozen.training
    assert not any(m.training for m in owner.frozen.module.modules())
    x = torch.randn(8, 4)
    assert torch.equal(owner.frozen(x), owner.frozen(x))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_it_moves_and_is_cast_with_its_owner(device: str) -> None:
    owner = Owner().to(device, torch.float64)
    held = [*owner.frozen.module.parameters(), *owner.frozen.module.buffers()]
    assert {t.device.type for t in held} == {device}
    assert {t.dtype for t in held} == {torch.float64, torch.int64}
    assert owner(torch.randn(3, 4, dtype=torch.float64, device=device)).dtype == torch.float64
    assert not any(p.requires_grad for p in owner.frozen.module.parameters())


def test_a_copy_has_its_own() -> None:
    owner = Owner()
    twin = copy.deepcopy(owner)
    with torch.no_grad():
        twin.frozen.module.linear.weight.zero_()
    assert owner.frozen.module.linear.weight.abs().min() > 0


def test_saved_weights_leave_it_out(tmp_path: Path) -> None:
    owner, twin = Owner(), Owner()
    hub.save_pretrained(owner, Config(), tmp_path, system="s", preset="p")
    before = values(twin.frozen.module)
    hub.load_weights(twin, tmp_path)
    assert torch.equal(twin.head.weight, owner.head.weight)
    after = values(twin.frozen.module)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
