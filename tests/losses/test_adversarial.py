"""Losses of critics: minima, signs, anchors, the adaptive weight."""

from __future__ import annotations

import pytest
import torch

from polytok.losses import LeCam, adaptive_weight, hinge_critic_loss, hinge_generator_loss


def test_the_hinge_rests_beyond_its_margins() -> None:
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])
    assert hinge_critic_loss(real, fake).item() == 0
    zero = torch.zeros(4, 1, 2, 2)
    assert hinge_critic_loss(zero, zero).item() == 1
    assert hinge_critic_loss(real - 3, fake).item() == pytest.approx((3 + 1) / 4)
    assert hinge_critic_loss(real, fake + 3).item() == pytest.approx((3 + 2) / 4)
    assert hinge_generator_loss(fake).item() == pytest.approx(1.5)


def test_critic_and_generator_pull_apart() -> None:
    real, fake = (torch.zeros(3, requires_grad=True) for _ in range(2))
    of_critic = torch.autograd.grad(hinge_critic_loss(real, fake), (real, fake))
    (of_generator,) = torch.autograd.grad(hinge_generator_loss(fake), fake)
    assert bool((of_critic[0] < 0).all()) and bool((of_critic[1] > 0).all())
    assert bool((of_generator < 0).all())


def test_anchors_are_running_means_of_the_other_side() -> None:
    lecam = LeCam(decay=0.75)
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([-4.0, -2.0])
    # Anchors of 0: relu(2 - 0)^2 + relu(0 + 3)^2.
    assert lecam(real, fake).item() == pytest.approx(13)
    lecam.update(real, fake)
    assert lecam.anchors.tolist() == pytest.approx([0.5, -0.75])
    assert lecam(real, fake).item() == pytest.approx(2.75**2 + 3.5**2)
    assert lecam(fake - 9, real + 9).item() == 0, "the wrong way round there is nothing to hold"
    assert set(lecam.state_dict()) == {"anchors"}


def test_the_adaptive_weight_makes_gradients_equally_long() -> None:
    reconstruction, adversarial = torch.randn(4, 5), torch.randn(4, 5, requires_grad=True)
    weight = adaptive_weight(reconstruction, adversarial)
    assert not weight.requires_grad
    length = float((weight * adversarial).detach().norm())
    assert length == pytest.approx(float(reconstruction.norm()), rel=1e-3)
    assert adaptive_weight(torch.ones(4) * 1e3, torch.zeros(4)).item() == 1e4
    assert adaptive_weight(torch.zeros(4), torch.ones(4)).item() == 0
