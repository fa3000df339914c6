"""The Gaussian bottleneck: moments, KL, and where its noise comes from."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from polytok.bottlenecks import GaussianBottleneck
from polytok.bottlenecks.gaussian import LOG_VARIANCE_RANGE
from polytok.core.errors import PolytokError


@pytest.fixture
def gaussian() -> GaussianBottleneck:
    return GaussianBottleneck(8, 5)


def moments(module: GaussianBottleneck, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    mean, log_variance = module.to_moments(z).chunk(2, -1)
    return mean, (0.5 * log_variance).exp()


def test_the_kl_is_that_of_torch_distributions(gaussian: GaussianBottleneck) -> None:
    z = torch.randn(3, 7, 8)
    mean, sigma = moments(gaussian, z)
    wanted = kl_divergence(Normal(mean, sigma), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(gaussian(z).losses["kl"], wanted)


def test_the_kl_vanishes_for_a_standard_normal_only(gaussian: GaussianBottleneck) -> None:
    with torch.no_grad():
        gaussian.to_moments.weight.zero_()
        gaussian.to_moments.bias.zero_()
    assert float(gaussian(torch.randn(2, 3, 8)).losses["kl"].detach()) == 0
    with torch.no_grad():
        gaussian.to_moments.bias[0] = 1.0
    assert float(gaussian(torch.randn(2, 3, 8)).losses["kl"].detach()) == pytest.approx(0.5 / 5)


def test_without_noise_it_is_the_mean(gaussian: GaussianBottleneck) -> None:
    z = torch.randn(3, 7, 8)
    mean, _ = moments(gaussian, z)
    assert torch.equal(gaussian(z).latents, mean)
    assert torch.equal(gaussian(z, noise=torch.zeros(3, 7, 5)).latents, mean)


def test_samples_have_the_moments(gaussian: GaussianBottleneck) -> None:
    with torch.no_grad():
        gaussian.to_moments.bias[5:] = 0.0
    z = torch.randn(1, 1, 8).expand(20000, 1, 8)
    draws = gaussian(z, rng=torch.Generator().manual_seed(0)).latents
    mean, sigma = moments(gaussian, z[:1])
    torch.testing.assert_close(draws.mean(0, keepdim=True), mean, atol=0.05, rtol=0)
    torch.testing.assert_close(draws.std(0, keepdim=True), sigma, atol=0.03, rtol=0.03)


def test_equal_seeds_give_equal_samples_and_given_noise_wins(gaussian: GaussianBottleneck) -> None:
    z, noise = torch.randn(2, 3, 8), torch.randn(2, 3, 5)
    first, again, other = (
        gaussian(z, rng=torch.Generator().manual_seed(s)).latents for s in (4, 4, 5)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    with_both = gaussian(z, rng=torch.Generator().manual_seed(4), noise=noise).latents
    assert torch.equal(with_both, gaussian(z, noise=noise).latents)


def test_noise_is_drawn_where_the_generator_is(
    gaussian: GaussianBottleneck, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[torch.device] = []
    draw = torch.randn

    def watched(*shape: object, device: torch.device, generator: torch.Generator) -> torch.Tensor:
        asked.append(device)
        return draw(*shape, device=device, generator=generator)

    monkeypatch.setattr(torch, "randn", watched)
    generator = torch.Generator().manual_seed(0)
    gaussian.to("meta")
    out = gaussian(torch.empty(2, 3, 8, device="meta"), rng=generator)
    assert asked == [generator.device] and out.latents.device.type == "meta"


def test_gradient_reaches_both_heads_through_the_sample(gaussian: GaussianBottleneck) -> None:
    z = torch.randn(2, 3, 8, requires_grad=True)
    gaussian(z, noise=torch.randn(2, 3, 5)).latents.square().sum().backward()
    weight = gaussian.to_moments.weight.grad
    assert bool(weight[:5].any()) and bool(weight[5:].any()) and bool(z.grad.any())


def test_extreme_inputs_stay_finite(gaussian: GaussianBottleneck) -> None:
    z = torch.full((1, 2, 8), 1e4)
    out = gaussian(z, noise=torch.ones(1, 2, 5))
    assert bool(out.latents.isfinite().all()) and bool(out.losses["kl"].isfinite())
    assert LOG_VARIANCE_RANGE == (-30.0, 20.0)


def test_it_is_continuous(gaussian: GaussianBottleneck) -> None:
    out = gaussian(torch.randn(2, 3, 8))
    assert gaussian.vocab_sizes == () and out.indices is None
    with pytest.raises(PolytokError, match="continuous"):
        gaussian.embed((torch.zeros(1, 1, dtype=torch.int64),))


def test_moments_are_fp32_under_autocast(gaussian: GaussianBottleneck) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        out = gaussian(torch.randn(2, 3, 8))
    assert out.latents.dtype == torch.float32 and out.losses["kl"].dtype == torch.float32
