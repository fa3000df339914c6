"""Image metrics against their definitions and against scikit-image and SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.core.seeding import numpy_rng, torch_rng
from polytok.metrics import (
    IMAGE_CONVENTIONS,
    bits_per_pixel,
    classifier_agreement,
    feature_distance,
    frechet_distance,
    ms_ssim,
    perceptual_distance,
    psnr,
    ssim,
)
from polytok.networks.pretrained import SmallMaps, SmallMapsConfig

WANG = {
    "data_range": 1.0,
    "gaussian_weights": True,
    "sigma": 1.5,
    "use_sample_covariance": False,
    "channel_axis": 0,
}


def pictures(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Blotches (count, 3, height, width), and the same with noise that grows."""
    rng = torch_rng(1, "pictures")
    coarse = torch.rand(count, 3, height // 4, width // 4, generator=rng)
    wanted = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.randn(wanted.shape, generator=rng)
    strength = torch.linspace(0.02, 0.4, count)[:, None, None, None]
    return (wanted + strength * noise).clamp(0, 1), wanted


def test_decibels_follow_the_mean_square_of_each_image() -> None:
    wanted = torch.full((3, 3, 4, 5), 0.5)
    image = wanted.clone()
    image[1] += 0.1
    image[2, 0, 0, 0] += 0.3
    found = psnr(image, wanted).tolist()
    assert found == pytest.approx([100, 20, -10 * math.log10(0.09 / 60)], rel=1e-4)


def test_what_cannot_be_shown_does_not_count() -> None:
    black = torch.zeros(1, 3, 12, 12)
    assert psnr(black - 5, black).item() == pytest.approx(100)
    assert psnr(black + 5, black).item() == pytest.approx(0, abs=1e-6)
    assert ssim(black - 5, black).item() == pytest.approx(1)


@pytest.mark.parametrize("size", [(11, 11), (32, 24), (37, 64)])
def test_ssim_is_that_of_scikit_image(size: tuple[int, int]) -> None:
    image, wanted = pictures(5, *size)
    theirs = [
        structural_similarity(a.double().numpy(), b.double().numpy(), **WANG)
        for a, b in zip(image, wanted, strict=True)
    ]
    np.testing.assert_allclose(ssim(image, wanted).numpy(), theirs, atol=1e-6)
    assert ssim(wanted, wanted).tolist() == [1.0] * 5


def test_ms_ssim_is_the_product_over_scales() -> None:
    image, wanted = pictures(2, 176, 192)
    for one, other, found in zip(image, wanted, ms_ssim(image, wanted).tolist(), strict=True):
        product, weights = 1.0, (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
        for scale, weight in enumerate(weights):
            # With a huge K1 the term of lightness is 1, which leaves contrast and structure.
            light = {"K1": 0.01 if scale == 4 else 1e8}
            a, b = one.double().numpy(), other.double().numpy()
            product *= structural_similarity(a, b, **WANG, **light) ** weight
            one, other = (nn.functional.avg_pool2d(x, 2) for x in (one, other))
        assert found == pytest.approx(product, abs=1e-5)
    assert ms_ssim(wanted, wanted).tolist() == pytest.approx([1, 1])


def test_images_that_cannot_be_compared_are_refused() -> None:
    small = torch.rand(1, 3, 10, 20)
    with pytest.raises(PolytokError, match="20 x 10, below 11 pixels"):
        ssim(small, small)
    with pytest.raises(PolytokError, match="below 176"):
        ms_ssim(torch.rand(1, 3, 175, 200), torch.rand(1, 3, 175, 200))
    with pytest.raises(PolytokError, match="of one shape"):
        ssim(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 17))


def test_bits_per_pixel() -> None:
    assert bits_per_pixel(64, 64, 64) == 0.125


def test_frechet_distance_is_that_of_the_matrix_root() -> None:
    rng = numpy_rng(0)
    one = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6))
    other = 1 + rng.normal(size=(150, 6)) @ rng.normal(size=(6, 6))
    first, second = np.cov(one.T), np.cov(other.T)
    wanted = np.square(one.mean(0) - other.mean(0)).sum()
    wanted += np.trace(first + second - 2 * np.real(sqrtm(first @ second)))
    assert frechet_distance(one, other) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(one, one[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(one, one + 2) == pytest.approx(24, rel=1e-9)
    # Fewer features than dimensions: the covariance is singular.
    assert frechet_distance(one[:4], one[:4]) == pytest.approx(0, abs=1e-6)
    with pytest.raises(PolytokError, match="features"):
        frechet_distance(one, other[:, :3])
    with pytest.raises(PolytokError, match="two features"):
        frechet_distance(one, other[:1])


def test_feature_distance_sees_all_images_once() -> None:
    image, wanted = pictures(3, 16, 16)
    image, wanted = image.repeat(50, 1, 1, 1), wanted.repeat(50, 1, 1, 1)
    seen = []

    def colours(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x.mean((2, 3))

    found = feature_distance(colours, image, wanted)
    whole = [x.mean((2, 3)).numpy() for x in (image, wanted)]
    assert found == pytest.approx(frechet_distance(*whole), rel=1e-6, abs=1e-12)
    assert sum(seen) == 300 and max(seen) < 150


def test_agreement_compares_labels_of_pairs() -> None:
    def brightest(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    wanted = torch.eye(3)[:, :, None, None].expand(3, 3, 4, 4)
    image = wanted[[0, 2, 2]]
    assert classifier_agreement(brightest, image, wanted).tolist() == [True, False, True]


def test_perceptual_distance_is_that_of_unit_features() -> None:
    torch.manual_seed(3)
    net = SmallMaps(SmallMapsConfig(num_classes=2, widths=(4, 6))).eval()
    image, wanted = pictures(3, 16, 16)
    found = perceptual_distance(net, image, wanted)
    by_hand = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for one, other in zip(net.maps(image), net.maps(wanted), strict=True):
            one, other = (nn.functional.normalize(x.double(), dim=1) for x in (one, other))
            by_hand += (one - other).square().sum(1).mean((1, 2)) / 2
    torch.testing.assert_close(found.double(), by_hand, atol=1e-5, rtol=1e-4)
    assert bool((found[1:] > found[:-1]).all()), "more noise is further away"
    assert perceptual_distance(net, wanted, wanted).tolist() == [0, 0, 0]


def test_every_metric_says_what_it_is() -> None:
    assert set(IMAGE_CONVENTIONS) == {
        "psnr", "ssim", "ms_ssim", "bits_per_pixel", "feature_distance", "classifier_agreement",
        "perceptual_distance",
    }  # fmt: skip
