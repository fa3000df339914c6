"""PSNR against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from polytok.metrics import psnr


def test_decibels_follow_the_mean_square_of_each_image() -> None:
    wanted = torch.full((3, 3, 4, 5), 0.5)
    image = wanted.clone()
    image[1] += 0.1
    image[2, 0, 0, 0] += 0.3
    found = psnr(image, wanted).tolist()
    assert found == pytest.approx([100, 20, -10 * math.log10(0.09 / 60)], rel=1e-4)


def test_what_cannot_be_shown_does_not_count() -> None:
    black = torch.zeros(1, 3, 2, 2)
    assert psnr(black - 5, black).item() == pytest.approx(100)
    assert psnr(black + 5, black).item() == pytest.approx(0, abs=1e-6)
