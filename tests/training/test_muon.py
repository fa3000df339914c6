"""Muon: equal singular values, steps of AdamW's size, and AdamW for everything else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.training.muon import Muon, orthogonalised
from polytok.training.schedule import parameter_groups
from training._stub import STAGE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8), (3, 16, 16)])
def test_singular_values_become_nearly_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape) * 1e-3
    orthogonal = orthogonalised(matrix, dtype)
    assert orthogonal.dtype == matrix.dtype
    found = torch.linalg.svdvals(orthogonal)
    assert 0.6 < float(found.min()) <= float(found.max()) < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.cosine_similarity((left @ right).flatten(), orthogonal.flatten(), 0)
    assert float(cosine) > 0.97, "the singular vectors stay"


def groups_of(net: nn.Module, muon: tuple[str, ...]) -> list[dict[str, object]]:
    return parameter_groups(net, dict(net.named_parameters()), (STAGE,), 0.1, muon)


def moved(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What two steps on fixed gradients add to every parameter."""
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    for step in range(2):
        for i, parameter in enumerate(net.parameters()):
            rng = torch.Generator().manual_seed(10 * step + i)
            parameter.grad = torch.randn(parameter.shape, generator=rng)
        optimizer.step()
    return {n: p.detach() - before[n] for n, p in net.named_parameters()}


def net_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 48), nn.LayerNorm(48), nn.Linear(48, 16))


def test_only_named_matrices_leave_adamw() -> None:
    net, plain = net_of(), net_of()
    change = moved(net, Muon(groups_of(net, ("0.*",)), scale=1.0, lr=1e-2))
    wanted = moved(plain, torch.optim.AdamW(groups_of(plain, ()), lr=1e-2))
    same = {name for name in change if torch.equal(change[name], wanted[name])}
    assert same == set(change) - {"0.weight"}


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_step_has_the_size_of_one_of_adamw(scale: float) -> None:
    """The momentum of a first gradient has its direction, so the step has the full size."""
    net = net_of()
    optimizer = Muon(groups_of(net, ("2.*",)), scale=scale, lr=1e-2, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = net[2].weight.detach().clone()
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    size = float((net[2].weight.detach() - before).square().mean().sqrt())
    assert size == pytest.approx(0.2 * 1e-2 * scale, rel=0.2)


def test_queries_keys_and_values_are_three_maps() -> None:
    """A gradient of one alone moves that one alone, by a full step."""
    net = nn.Linear(16, 48, bias=False)
    optimizer = Muon(groups_of(net, ("weight",)), scale=1.0, lr=1e-2)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    before = net.weight.detach().clone()
    net.weight.grad = torch.zeros(48, 16)
    net.weight.grad[16:32] = torch.randn(16, 16)
    optimizer.step()
    change = (net.weight.detach() - before).view(3, 16, 16)
    assert not change[0].any() and not change[2].any()
    assert torch.linalg.svdvals(change[1]).min() > 0


def test_a_misspelt_glob_is_refused() -> None:
    with pytest.raises(ConfigError, match="blocs"):
        groups_of(net_of(), ("blocs.*",))
