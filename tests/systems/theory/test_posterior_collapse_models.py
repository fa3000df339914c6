"""Linear VAEs in torch: exact losses whose minima are the closed forms, and sampled ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from polytok.core.errors import ConfigError
from polytok.core.seeding import numpy_rng, torch_rng
from polytok.metrics import collapse_report
from polytok.systems.theory.posterior_collapse import (
    cvae_optimum,
    linear_vae_optimum,
    mhvae_optimum,
    spectra,
)
from polytok.systems.theory.posterior_collapse.models import (
    LinearCVAE,
    LinearMHVAE,
    LinearVAE,
    minimise,
    train,
)

COV5 = (6.0, 3.0, 1.2, 0.5, 0.2)
COV4 = (6.0, 2.0, 0.6, 0.1)


def covariance(values: tuple[float, ...]) -> np.ndarray:
    turn = np.linalg.qr(numpy_rng(0, "turn").normal(size=(len(values),) * 2))[0]
    return turn @ np.diag(values) @ turn.T


def joint(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mixing = numpy_rng(seed, "joint").normal(size=(7, 7))
    whole = mixing @ mixing.T / 4
    return whole[:3, :3], whole[3:, 3:], whole[:3, 3:]


def check(
    model: nn.Module, loss: Callable[[], Tensor], wanted: Any, values: Callable[[], Any]
) -> None:
    """L-BFGS reaches the loss to 1e-6 and the singular values to 1e-3."""
    found = minimise(model, loss, num_starts=3)
    assert found == pytest.approx(wanted.loss, abs=1e-6)
    if getattr(wanted, "kind", "unique") != "unique":
        return
    names = ("omega", "lam", "mu", "nu")
    for name, got in zip(names, values(), strict=False):
        assert got.numpy() == pytest.approx(np.sort(getattr(wanted, name))[::-1], abs=1e-3), name


@pytest.mark.parametrize(
    ("h", "e", "beta", "d", "fixed"),
    [
        (0.8, 1.3, 1.0, 4, None),
        (1.0, 0.7, 2.0, 7, None),
        (1.0, 0.7, 2.0, 4, (0.1, 0.3, 0.2, 0.6)),
        (0.8, 1.3, 1.0, 4, (0.5,) * 4),
    ],
)
def test_vaes_reach_the_closed_form(
    h: float, e: float, beta: float, d: int, fixed: tuple[float, ...] | None
) -> None:
    options: dict[str, Any] = {"eta_dec": h, "eta_enc": e, "beta": beta, "variances": fixed}
    cov = covariance(COV5)
    a = torch.from_numpy(cov)
    model = LinearVAE(5, d, **options).double()
    wanted = linear_vae_optimum(cov, latent_dim=d, **options)
    check(model, lambda: model.exact_loss(a), wanted, lambda: model.singular_values(a))
    if fixed is None:
        got = np.sort(model.variance().detach().numpy())
        assert got == pytest.approx(np.sort(wanted.variances), abs=1e-3)
        rows = model.encoder.weight.detach().norm(dim=1)
        # With learnable variances low rank is true collapse: whole rows of the encoder vanish.
        assert int((rows > 1e-3).sum()) == wanted.num_active


def test_another_target_reaches_the_closed_form() -> None:
    a, b, c = joint()
    options: dict[str, Any] = {"eta_dec": 0.5, "eta_enc": 0.9, "beta": 0.7}
    model = LinearVAE(3, 4, target_dim=4, **options).double()
    blocks = [torch.from_numpy(m) for m in (a, b, c)]
    wanted = linear_vae_optimum(a, target=b, cross=c, latent_dim=4, **options)
    check(
        model,
        lambda: model.exact_loss(*blocks),
        wanted,
        lambda: model.singular_values(blocks[0]),
    )


def test_conditional_vaes_reach_the_closed_form() -> None:
    a, b, c = joint()
    options: dict[str, Any] = {"eta_dec": 0.4, "eta_enc": 0.9, "beta": 0.7}
    model = LinearCVAE(3, 4, 4, **options).double()
    blocks = [torch.from_numpy(m) for m in (a, b, c)]
    wanted = cvae_optimum(a, b, c, latent_dim=4, **options)
    assert 0 < wanted.num_active < 4
    residual = torch.from_numpy(spectra.regression(a, b, c)[1])
    check(
        model,
        lambda: model.exact_loss(*blocks),
        wanted,
        lambda: model.singular_values(residual),
    )
    bypass = model.decoder.weight[:, 4:].detach().numpy()
    assert bypass == pytest.approx(wanted.regression, abs=1e-3)
    w1, w2 = (
        model.encoder.weight.detach().numpy()[:, :3],
        model.encoder.weight.detach().numpy()[:, 3:],
    )
    assert w1 == pytest.approx(-w2 @ wanted.regression, abs=1e-3)


HIERARCHIES = {
    "both active and collapsed": (0.5, 1.0, 1.0, 3.0, 0.3, None, (4, 4)),
    "noise in z2": (1.0, 1.0, 1.0, 0.5, 0.8, None, (5, 3)),
    "both fixed": (1.0, 0.8, 2.0, 1.0, 0.8, 0.2, (4, 4)),
    "both fixed, z2 partly collapsed": (0.5, 1.0, 1.0, 3.0, 0.3, 1.5, (3, 2)),
    "s1 learns": (0.7, 0.9, 1.0, 2.0, None, 0.9, (4, 4)),
    "both learn, beta2 above": (0.5, 1.0, 1.0, 2.0, None, None, (3, 2)),
    "both learn, equal": (0.5, 1.2, 2.0, 2.0, None, None, (3, 2)),
}


@pytest.mark.parametrize("name", HIERARCHIES)
def test_hierarchies_reach_the_closed_form(name: str) -> None:
    h, e, beta1, beta2, s1, s2, dims = HIERARCHIES[name]
    options: dict[str, Any] = {
        "eta_dec": h,
        "eta_enc": e,
        "beta1": beta1,
        "beta2": beta2,
        "variance1": s1,
        "variance2": s2,
    }
    cov = covariance(COV4)
    a = torch.from_numpy(cov)
    model = LinearMHVAE(4, dims, **options).double()
    wanted = mhvae_optimum(cov, latent_dims=dims, **options)
    check(model, lambda: model.exact_loss(a), wanted, lambda: model.singular_values(a))


def test_two_learnable_variances_fall_without_bound() -> None:
    """Along the path of the theory the loss falls by (beta1 - beta2) / 2 per mode and log t."""
    theta2, h, beta1, beta2 = 2.0, 0.5, 2.0, 1.0
    model = LinearMHVAE(1, (1, 1), eta_dec=h, beta1=beta1, beta2=beta2, variance1=None).double()
    share, b = beta1 * h**2 / theta2, beta2 / beta1
    losses = []
    for t in (1e2, 1e4, 1e6):
        lam = ((1 - share) * t) ** 0.5
        with torch.no_grad():
            model.encoder1.weight.fill_(lam / theta2**0.5)
            model.decoder1.weight.fill_(lam * theta2**0.5 / t)
            model.s1.log.fill_(np.log(share * t))
            model.decoder2.weight.fill_((t - b) ** 0.5)
            model.encoder2.weight.fill_((t - b) ** 0.5 / t)
            model.s2.log.fill_(np.log(b / t))
            losses.append(float(model.exact_loss(torch.full((1, 1), theta2).double())))
    fall = (beta1 - beta2) / 2 * np.log(1e2)
    assert np.diff(losses) == pytest.approx([-fall, -fall], rel=1e-6)


def models() -> list[tuple[nn.Module, tuple[Tensor, ...], Callable[[], Tensor]]]:
    a, b, c = joint()
    rows = torch.randn(200_000, 7, generator=torch_rng(0, "rows"), dtype=torch.float64)
    whole = np.block([[a, c], [c.T, b]])
    data = rows @ torch.from_numpy(np.linalg.cholesky(whole)).T
    x, y = data[:, :3], data[:, 3:]
    ta, tb, tc = (torch.from_numpy(m) for m in (a, b, c))
    vae = LinearVAE(4, 3, eta_dec=0.8, eta_enc=1.3, beta=0.5).double()
    mapped = LinearVAE(3, 3, target_dim=4, eta_dec=0.8, variances=(0.5, 1.0, 2.0)).double()
    cvae = LinearCVAE(3, 4, 2, eta_dec=0.8, beta=2.0).double()
    mhvae = LinearMHVAE(4, (3, 2), eta_dec=0.8, eta_enc=0.9, beta2=2.0, variance1=0.5).double()
    return [
        (vae, (y,), lambda: vae.exact_loss(tb)),
        (mapped, (x, y), lambda: mapped.exact_loss(ta, tb, tc)),
        (cvae, (x, y), lambda: cvae.exact_loss(ta, tb, tc)),
        (mhvae, (y,), lambda: mhvae.exact_loss(tb)),
    ]


@pytest.mark.parametrize("index", range(4))
@torch.no_grad()
def test_exact_losses_are_means_of_sampled_ones(index: int) -> None:
    model, tables, exact = models()[index]
    rng = torch_rng(1, "init")
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype) * 0.5)
    mean = float(model(*tables, rng=torch_rng(2, "noise")))
    assert mean == pytest.approx(float(exact()), rel=0.01)


def test_the_kl_is_that_of_torch_distributions() -> None:
    model = LinearVAE(5, 3, eta_dec=1.0, eta_enc=1.4)
    x = torch.randn(50, 5)
    mean, variance = model.moments(x)
    wanted = kl_divergence(Normal(mean, variance.sqrt()), Normal(0.0, 1.4)).mean(0)
    torch.testing.assert_close(model.kl(x), wanted)


def test_sampled_training_lands_near_the_closed_form() -> None:
    data = numpy_rng(0, "rows").normal(size=(2000, 5)) * np.sqrt(COV5)
    data -= data.mean(0)
    x = torch.from_numpy(data).float()
    wanted = linear_vae_optimum(data.T @ data / len(data), eta_dec=0.8, latent_dim=4)
    model = LinearVAE(5, 4, eta_dec=0.8)
    train(model, x, num_steps=1500, batch_size=256, lr=3e-2)
    with torch.no_grad():
        assert float(model.exact_loss(x.T @ x / len(x))) == pytest.approx(wanted.loss, rel=0.05)
        report = collapse_report(*(m.numpy() for m in model.moments(x)))
    assert report.num_directions == wanted.num_active
    omega, lam = model.singular_values(x.T @ x / len(x))
    top = wanted.num_active
    assert omega.numpy()[:top] == pytest.approx(wanted.omega[:top], rel=0.1, abs=0.05)
    assert lam.numpy()[:top] == pytest.approx(wanted.lam[:top], rel=0.1, abs=0.05)


def test_training_repeats_by_its_seed() -> None:
    x, losses = torch.randn(100, 4), []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = LinearVAE(4, 2, eta_dec=1.0)
        train(model, x, num_steps=5, seed=seed)
        losses.append(model.encoder.weight.detach().clone())
    assert torch.equal(losses[0], losses[1]) and not torch.equal(losses[0], losses[2])


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="eta_dec"):
        LinearVAE(4, 2, eta_dec=0.0)
    with pytest.raises(ConfigError, match="2 positive"):
        LinearVAE(4, 2, eta_dec=1.0, variances=(1.0, -1.0))
    with pytest.raises(ConfigError, match="2 positive"):
        LinearVAE(4, 2, eta_dec=1.0, variances=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="latent_dim"):
        LinearCVAE(2, 4, 0, eta_dec=1.0)
    with pytest.raises(ConfigError, match="beta2"):
        LinearMHVAE(4, (2, 2), eta_dec=1.0, beta2=float("inf"), variance1=1.0)
