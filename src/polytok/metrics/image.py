"""How close decoded images are to their sources: one protocol, fixed and written out.

Images are (B, C, H, W) with values in [0, 1], the first argument decoded, the second its source;
decoded values outside are clamped first. What a network judges names that network beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike
from torch import Tensor

from polytok.core.errors import PolytokError
from polytok.networks.pretrained.maps import FeatureMaps, map_distance

IMAGE_CONVENTIONS: Mapping[str, str] = {
    "psnr": "10 log10(1 / mean square error), values in [0, 1], per image, then the mean over "
    "images; equal images count as 100 dB",
    "ssim": "Wang et al. 2004: Gaussian window of 11x11, sigma 1.5, C1 = 0.01^2, C2 = 0.03^2 for "
    "values in [0, 1], covariance / n, whole windows alone, mean over places and channels",
    "ms_ssim": "Wang et al. 2003: 5 scales of weights 0.0448 0.2856 0.3001 0.2363 0.1333 by means "
    "of 2x2, window as in ssim, negative terms count as 0; sides of at least 176",
    "bits_per_pixel": "8 x bytes of the whole file / (width x height)",
    "feature_distance": "Frechet distance of Gaussians fitted to the named network's features, "
    "covariance / (n - 1); comparable under one network and one n alone",
    "classifier_agreement": "share of decoded images that the named classifier gives the label "
    "that it gives their sources",
    "perceptual_distance": "squared difference of the named network's features, each scaled to "
    "length 1, summed over channels, averaged over places and layers; within [0, 4]",
}
"""What each score means, for table headers and result files."""

LEAST_ERROR = 1e-10  # a mean square below this counts as equal: 100 dB
_SIZE, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2
_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_BATCH = 128


def psnr(image: Tensor, wanted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio (B,) of images (B, C, H, W) in dB; at most 100.

    The peak is 1; values outside [0, 1] are clamped first. The mean square is taken over all
    values of an image, so a mean over images is one of decibels, not of errors.
    """
    error = (image.float().clamp(0, 1) - wanted.float()).square().flatten(1).mean(1)
    return -10 * torch.log10(error.clamp(min=LEAST_ERROR))


def ssim(image: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity (B,) of images (B, C, H, W); 1 for equal ones.

    Source: Wang et al. 2004, see :data:`IMAGE_CONVENTIONS`.

    Raises:
        PolytokError: shapes differ, or a side is below 11 pixels.
    """
    whole, _ = _similarity(*_checked(image, wanted, _SIZE))
    return whole


def ms_ssim(image: Tensor, wanted: Tensor) -> Tensor:
    """Structural similarity over five scales (B,) of images (B, C, H, W); 1 for equal ones.

    Source: Wang et al. 2003, see :data:`IMAGE_CONVENTIONS`.

    Raises:
        PolytokError: shapes differ, or a side is below 176 pixels.
    """
    one, other = _checked(image, wanted, _SIZE << len(_SCALES) - 1)
    out = one.new_ones(len(one))
    for scale, weight in enumerate(_SCALES):
        whole, contrast = _similarity(one, other)
        is_last = scale == len(_SCALES) - 1
        out = out * (whole if is_last else contrast).clamp(min=0) ** weight
        if not is_last:
            one, other = F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)
    return out


def bits_per_pixel(num_bytes: int, width: int, height: int) -> float:
    """Bits of a file per pixel of its picture."""
    return 8 * num_bytes / (width * height)


def frechet_distance(features: ArrayLike, others: ArrayLike) -> float:
    """Frechet distance of Gaussians fitted to features (n, d) and (m, d), n, m >= 2.

    |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)), in float64. Source: Dowson & Landau 1982.

    Raises:
        PolytokError: a set has fewer than two members, or widths differ.
    """
    one, other = (np.asarray(x, np.float64) for x in (features, others))
    if not one.ndim == other.ndim == 2 or one.shape[1] != other.shape[1] or len(one) < 2:
        raise PolytokError(f"features (n, d), (m, d) are needed, got {one.shape}, {other.shape}")
    if len(other) < 2:
        raise PolytokError(f"two features or more are needed, got {len(other)}")
    mean = np.square(one.mean(0) - other.mean(0)).sum()
    first, second = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, other))
    # The eigenvalues of S1 S2 are those of S1^(1/2) S2 S1^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = vectors * np.sqrt(values.clip(min=0)) @ vectors.T
    both = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(min=0)).sum()
    return float(max(0.0, mean + np.trace(first) + np.trace(second) - 2 * both))


@torch.no_grad()
def feature_distance(features: Callable[[Tensor], Tensor], image: Tensor, wanted: Tensor) -> float:
    """Frechet distance of images (n, 3, H, W) and (m, 3, H, W) by a network's features.

    Args:
        features: (B, 3, H, W) in [0, 1] -> (B, d). Which network it is must be told with the
            number: it ranks sets under this network alone.
    """
    one, other = (
        torch.cat([features(part) for part in x.float().clamp(0, 1).split(_BATCH)]).cpu()
        for x in (image, wanted)
    )
    return frechet_distance(one.numpy(), other.numpy())


@torch.no_grad()
def classifier_agreement(
    classify: Callable[[Tensor], Tensor], image: Tensor, wanted: Tensor
) -> Tensor:
    """Whether a classifier gives decoded images the label it gives their sources: (B,) bool.

    Args:
        classify: (B, 3, H, W) in [0, 1] -> class scores (B, n).
    """
    image, wanted = _checked(image, wanted, 1)
    return torch.cat(
        [
            classify(a).argmax(-1) == classify(b).argmax(-1)
            for a, b in zip(image.split(_BATCH), wanted.split(_BATCH), strict=True)
        ]
    )


@torch.no_grad()
def perceptual_distance(net: FeatureMaps, image: Tensor, wanted: Tensor) -> Tensor:
    """Distance (B,) of decoded images from their sources by a network's maps, in [0, 4]."""
    image, wanted = _checked(image, wanted, 1)
    return torch.cat(
        [
            map_distance(net.maps(a), net.maps(b))
            for a, b in zip(image.split(_BATCH), wanted.split(_BATCH), strict=True)
        ]
    )


def _checked(image: Tensor, wanted: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if image.ndim != 4 or image.shape != wanted.shape:
        raise PolytokError(
            f"images of one shape (B, C, H, W) are needed, got {tuple(image.shape)} and "
            f"{tuple(wanted.shape)}"
        )
    if min(image.shape[-2:]) < least:
        height, width = image.shape[-2:]
        raise PolytokError(f"images are {width} x {height}, below {least} pixels a side")
    return image.float().clamp(0, 1), wanted.float()


def _similarity(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Means (B,) of the whole similarity, and of its part for contrast and structure."""
    # In float64: variances are small differences of large numbers.
    one, other = one.double(), other.double()
    products = torch.stack([one, other, one * one, other * other, one * other])
    mean_x, mean_y, xx, yy, xy = _blurred(products.flatten(0, 2)[:, None]).unflatten(
        0, products.shape[:3]
    )
    covariance = xy - mean_x * mean_y
    variances = xx - mean_x**2 + yy - mean_y**2
    contrast = (2 * covariance + _C2) / (variances + _C2)
    light = (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1)
    # (B, C, 1, h, w) -> (B,)
    whole = light * contrast
    return whole.flatten(1).mean(1).float(), contrast.flatten(1).mean(1).float()


def _blurred(planes: Tensor) -> Tensor:
    """Gaussian means over whole windows of planes (n, 1, H, W)."""
    at = torch.arange(_SIZE, dtype=planes.dtype, device=planes.device) - _SIZE // 2
    weights = torch.exp(-at.square() / (2 * _SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
