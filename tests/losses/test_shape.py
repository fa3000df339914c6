"""Losses on fields: the signs, the band, the minimum."""

from __future__ import annotations

import pytest
import torch

from polytok.losses import overlap_loss, signed_distance_loss, soft_occupancy_loss
from polytok.losses.shape import soft_occupancy

BAND = 0.05


def test_soft_occupancy_is_one_inside_and_linear_over_the_band() -> None:
    sdf = torch.tensor([-1.0, -BAND, -BAND / 2, 0.0, BAND / 2, BAND, 1.0])
    wanted = torch.tensor([1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0])
    torch.testing.assert_close(soft_occupancy(sdf, BAND), wanted)


def test_a_perfect_field_has_the_least_loss() -> None:
    sdf = torch.linspace(-0.2, 0.2, 41)[None]
    target = (-sdf / BAND).clamp(-0.999999, 0.999999)
    assert float(signed_distance_loss(target.atanh(), sdf, band=BAND)) < 1e-5
    occupancy = soft_occupancy(sdf, BAND).clamp(1e-6, 1 - 1e-6)
    best = soft_occupancy_loss(occupancy.logit(), sdf, band=BAND)
    entropy = -(occupancy * occupancy.log() + (1 - occupancy) * (1 - occupancy).log()).mean()
    torch.testing.assert_close(best, entropy, atol=1e-4, rtol=1e-3)
    for loss in (signed_distance_loss, soft_occupancy_loss):
        noisy = loss(target.atanh() + torch.randn(41), sdf, band=BAND)
        assert float(noisy) > float(loss(target.atanh(), sdf, band=BAND))


@pytest.mark.parametrize("loss", [signed_distance_loss, soft_occupancy_loss, overlap_loss])
def test_gradient_raises_logits_inside_and_lowers_them_outside(loss: object) -> None:
    logits = torch.zeros(1, 2, requires_grad=True)
    loss(logits, torch.tensor([[-0.3, 0.3]]), band=BAND).backward()  # type: ignore[operator]
    assert float(logits.grad[0, 0]) < 0 < float(logits.grad[0, 1])


@pytest.mark.parametrize("loss", [signed_distance_loss, soft_occupancy_loss, overlap_loss])
def test_distances_beyond_the_band_are_all_alike(loss: object) -> None:
    logits = torch.randn(2, 9)
    sign = torch.where(torch.rand(2, 9) < 0.5, -1.0, 1.0)
    near = loss(logits, sign * BAND, band=BAND)  # type: ignore[operator]
    far = loss(logits, sign * 7, band=BAND)  # type: ignore[operator]
    torch.testing.assert_close(near, far)


def test_swapping_inside_and_outside_negates_the_best_logits() -> None:
    logits, sdf = torch.randn(3, 20), 0.1 * torch.randn(3, 20)
    for loss in (signed_distance_loss, soft_occupancy_loss):
        torch.testing.assert_close(loss(logits, sdf, band=BAND), loss(-logits, -sdf, band=BAND))


def test_overlap_is_lost_share_of_the_union() -> None:
    sdf = torch.tensor([[-1.0] * 30 + [1.0] * 70])
    logits = torch.full((1, 100), -50.0)
    logits[0, 15:45] = 50.0  # 15 hits, 15 missed, 15 false
    wanted = 1 - (15 + 1) / (45 + 1)
    assert float(overlap_loss(logits, sdf, band=BAND)) == pytest.approx(wanted, abs=1e-6)
    assert float(overlap_loss(-sdf * 50, sdf, band=BAND)) < 1e-6


def test_overlap_is_averaged_over_shapes_not_over_queries() -> None:
    sdf, logits = 0.1 * torch.randn(3, 40), torch.randn(3, 40)
    alone = [overlap_loss(logits[i : i + 1], sdf[i : i + 1], band=BAND) for i in range(3)]
    torch.testing.assert_close(overlap_loss(logits, sdf, band=BAND), torch.stack(alone).mean())


def test_half_precision_logits_are_taken_in_fp32() -> None:
    logits, sdf = torch.randn(2, 9).bfloat16(), 0.1 * torch.randn(2, 9)
    for loss in (signed_distance_loss, soft_occupancy_loss, overlap_loss):
        assert loss(logits, sdf, band=BAND).dtype == torch.float32
