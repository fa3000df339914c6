"""Losses by a frozen teacher: gradient to the image alone, absent from what is saved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytok.core.errors import ConfigError
from polytok.losses import LogitLoss, PerceptualLoss
from polytok.metrics import perceptual_distance
from polytok.networks.pretrained import SmallMaps, SmallMapsConfig


def teacher() -> SmallMaps:
    """Random weights, with norms that have seen images, so that no map is all but constant."""
    torch.manual_seed(1)
    net = SmallMaps(SmallMapsConfig(num_classes=3, widths=(4, 8)))
    for _ in range(30):
        net(torch.rand(8, 3, 16, 16))
    return net


@pytest.mark.parametrize("kind", [PerceptualLoss, lambda net: LogitLoss(net, 16)])
def test_a_teacher_is_frozen_and_not_saved(kind: object) -> None:
    net = teacher()
    loss = kind(net)  # type: ignore[operator]
    holder = nn.ModuleDict({"loss": loss}).train()
    assert holder.state_dict() == {} and not list(holder.parameters())
    assert not any(m.training for m in net.modules())
    image, decoded = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16, requires_grad=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    value = loss(decoded, image)
    assert value.shape == () and value > 0 and loss(image, image).item() == 0
    value.backward()
    assert decoded.grad is not None and float(decoded.grad.abs().sum()) > 0
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_the_loss_is_the_mean_of_the_metric() -> None:
    net = teacher()
    image, decoded = torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16)
    wanted = perceptual_distance(net.eval(), decoded, image).mean()
    torch.testing.assert_close(PerceptualLoss(net)(decoded, image), wanted)


def test_descending_the_loss_recovers_what_the_teacher_sees() -> None:
    loss = PerceptualLoss(teacher())
    image = torch.rand(1, 3, 16, 16)
    decoded = torch.full_like(image, 0.5).requires_grad_()
    optimizer = torch.optim.Adam([decoded], 0.05)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(decoded, image)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.5 * values[0]


def test_scores_are_taken_at_the_teachers_size() -> None:
    net = teacher().eval()
    image, decoded = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)
    wanted = (net(decoded) - net(image)).square().mean()
    torch.testing.assert_close(LogitLoss(net, 16)(decoded, image), wanted)
    planes = [torch.full((2, 3, 16, 16), value) for value in (0.2, 0.9)]
    twice = [x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in planes]
    torch.testing.assert_close(LogitLoss(net, 16)(*twice), LogitLoss(net, 16)(*planes))
    with pytest.raises(ConfigError, match="size=0"):
        LogitLoss(net, 0)
    with pytest.raises(ConfigError, match="Linear gives no maps"):
        PerceptualLoss(nn.Linear(3, 3))
