"""Metrics of images."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_ERROR = 1e-10  # a mean square below this counts as equal: 100 dB


def psnr(image: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) of images (B, C, H, W) in dB; at most 100.

    The peak is 1; values outside [0, 1] are clamped first. The mean square is taken over all
    values of an image, so a mean over images is one of decibels, not of errors.
    """
    error = (image.float().clamp(0, 1) - wanted.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=LEAST_ERROR))
