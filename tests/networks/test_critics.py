"""Critics: what a logit sees, sizes, independence of the batch, the blur."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import nn

from polytok.core.errors import ConfigError, PolytokError
from polytok.networks.critics import (
    BlurPatchCritic,
    BlurPatchCriticConfig,
    PatchCritic,
    PatchCriticConfig,
)
from polytok.networks.critics.patch import Blur

PLAIN = PatchCriticConfig(width=4, groups=2)
BLURRED = BlurPatchCriticConfig(width=4, groups=2, grid=4)


def test_plain_logits_see_seventy_pixels() -> None:
    critic = PatchCritic(PLAIN)
    # Norms would mix places; without them a logit sees its patch alone.
    critic.layers = nn.Sequential(*(m for m in critic.layers if not isinstance(m, nn.GroupNorm)))
    image = torch.rand(1, 3, 160, 160, requires_grad=True)
    logits = critic(image)
    assert logits.shape == (1, 1, 18, 18)
    logits[0, 0, 9, 9].backward()
    assert image.grad is not None
    rows = image.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows.max() - rows.min()) + 1 == 70 == len(rows)


def test_the_published_sizes() -> None:
    """Parameters by the layers' arithmetic, as published: 64..512 and 128..512 channels."""
    plain = 3 * 64 * 16 + 64 + (64 * 128 + 128 * 256 + 256 * 512) * 16 + 2 * (128 + 256 + 512)
    plain += 512 * 16 + 1
    assert sum(p.numel() for p in PatchCritic().parameters()) == plain
    blur = 3 * 128 * 25 + 128 + (128 * 128 + 128 * 256 + 256 * 512) * 9 + 3 * (128 + 256 + 512)
    blur += 512 * 512 + 512 + 512 * 25 + 1
    assert sum(p.numel() for p in BlurPatchCritic().parameters()) == blur


@pytest.mark.parametrize("size", [8, 20, 32, 64])
def test_blurred_logits_are_as_many_for_any_size(size: int) -> None:
    assert BlurPatchCritic(BLURRED)(torch.rand(2, 3, size, size)).shape == (2, 1, 4, 4)


@pytest.mark.parametrize("critic", [PatchCritic(PLAIN), BlurPatchCritic(BLURRED)])
def test_a_score_does_not_depend_on_the_batch(critic: nn.Module) -> None:
    images = torch.rand(3, 3, 32, 32)
    alone = torch.cat([critic(image[None]) for image in images])
    torch.testing.assert_close(critic(images), alone)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_blur_is_a_convolution_of_every_second_place(size: tuple[int, int]) -> None:
    x = torch.rand(1, 2, *size)
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 64
    found = Blur()(x)[0].numpy()
    for mine, plane in zip(found, x[0].numpy(), strict=True):
        # SciPy centres four taps on the third, so its result at 2 i + 2 starts at row 2 i.
        whole = correlate(np.pad(plane, 1), taps, mode="constant")[2::2, 2::2]
        np.testing.assert_allclose(mine, whole[: mine.shape[0], : mine.shape[1]], atol=1e-6)
    assert found.shape[1:] == tuple((s + 1) // 2 for s in size)


def test_a_critic_learns_to_tell_noise_from_planes() -> None:
    critic = BlurPatchCritic(BLURRED)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-3)
    gaps = []
    for _ in range(60):
        real = torch.rand(8, 3, 1, 1).expand(8, 3, 16, 16)
        fake = (real + 0.3 * torch.randn(8, 3, 16, 16)).clamp(0, 1)
        optimizer.zero_grad()
        scores = critic(real), critic(fake)
        gaps.append(float(scores[0].detach().mean() - scores[1].detach().mean()))
        ((1 - scores[0]).relu().mean() + (1 + scores[1]).relu().mean()).backward()
        optimizer.step()
    assert abs(gaps[0]) < 0.2 and sum(gaps[-5:]) / 5 > 0.8


@pytest.mark.parametrize(
    "make",
    [
        lambda: PatchCriticConfig(width=30),
        lambda: BlurPatchCriticConfig(num_stages=0),
        lambda: BlurPatchCriticConfig(grid=0),
    ],
)
def test_sizes_are_checked(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]


def test_images_are_checked() -> None:
    with pytest.raises(PolytokError, match="at least 24 pixels"):
        PatchCritic(PLAIN)(torch.rand(1, 3, 16, 16))
    with pytest.raises(PolytokError, match=r"\(1, 1, 32, 32\)"):
        BlurPatchCritic(BLURRED)(torch.rand(1, 1, 32, 32))
