"""Closed-form global minima of linear VAEs and conditional VAEs; pure NumPy.

Encoder q(z|x) = N(W x, diag(sigma^2)), prior N(0, eta_enc^2 I), decoder N(U z, eta_dec^2 I), weight
beta of the KL. Data are centred. The loss is the negative beta-ELBO in nats without the decoder's
normaliser:

    E ||U z - y||^2 / (2 eta_dec^2) + beta E KL(q(z|x) || p(z)).

Source: "Beyond Vanilla Variational Autoencoders: Detecting Posterior Collapse in Conditional and
Hierarchical VAEs" (arXiv 2306.05023), derived anew and checked by optimisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import ConfigError
from polytok.systems.theory.posterior_collapse import spectra
from polytok.systems.theory.posterior_collapse.spectra import Array

Mask = NDArray[np.bool_]
NEAR = 0.01  # of the threshold: where training is slow to decide


@dataclass(frozen=True, kw_only=True)
class LinearOptimum:
    """The global minimum of a linear model with one level of d latent dimensions.

    Modes are sorted by falling eigenvalue; matrices are free up to rotations and signs, these
    numbers are not.

    Args:
        eigenvalues: (n,) theta^2, of what the latents may carry. threshold: (d,) mode i is
            active if and only if its eigenvalue is above ``threshold[i]``.
        omega: (d,) singular values of the decoder U. lam: (d,) of the encoder W A^(1/2), in
            coordinates where the input is white.
        variances: (d,) of the posterior. kl: (d,) nats, mean over the data.
        active: (d,) modes that carry information. collapsed: (d,) dimensions whose posterior is
            the prior; with fixed variances an inactive mode need not be one.
        loss: the negative beta-ELBO. regression: (E, D) the part of a conditional decoder that
            bypasses the latents, else None.
        caveats: what the input makes special, a sentence each.
    """

    eigenvalues: Array
    threshold: Array
    omega: Array
    lam: Array
    variances: Array
    kl: Array
    active: Mask
    collapsed: Mask
    loss: float
    regression: Array | None = None
    caveats: tuple[str, ...] = ()

    @property
    def num_active(self) -> int:
        return int(self.active.sum())


def linear_vae_optimum(
    cov: ArrayLike,
    *,
    eta_dec: float,
    beta: float = 1.0,
    eta_enc: float = 1.0,
    latent_dim: int | None = None,
    variances: Sequence[float] | None = None,
    target: ArrayLike | None = None,
    cross: ArrayLike | None = None,
) -> LinearOptimum:
    """Minimise a linear VAE over data of a covariance.

    Args:
        cov: (D, D) of the input x, centred. target, cross: (E, E) and (D, E) covariances of what
            is decoded, y, and of x with y; by default y = x.
        latent_dim: d, by default D. variances: (d,) of the posterior, if they do not learn.

    Raises:
        SignalError: a covariance is none. ConfigError: a number is not positive.

    With learnable variances mode i is active iff theta_i^2 > t = beta eta_dec^2; then
    sigma_i^2 = t eta_enc^2 / theta_i^2 and KL_i = log(theta_i^2 / t) / 2: reverse water-filling.
    With fixed ones iff theta_i^2 > beta sigma_i^2 eta_dec^2 / eta_enc^2.
    """
    if (target is None) != (cross is None):
        raise ConfigError("a target needs both target= and cross=")
    if target is None or cross is None:
        eigenvalues, unexplained = spectra.covariance_spectrum(cov), 0.0
    else:
        _, residual = spectra.regression(cov, target, cross)
        unexplained = float(np.trace(residual))
        eigenvalues = spectra.covariance_spectrum(np.asarray(target, np.float64) - residual)
    return spectrum_optimum(
        eigenvalues,
        eta_dec=eta_dec,
        beta=beta,
        eta_enc=eta_enc,
        latent_dim=latent_dim,
        variances=variances,
        unexplained=unexplained,
    )


def cvae_optimum(
    cov: ArrayLike,
    target: ArrayLike,
    cross: ArrayLike,
    *,
    eta_dec: float,
    beta: float = 1.0,
    eta_enc: float = 1.0,
    latent_dim: int | None = None,
) -> LinearOptimum:
    """Minimise a linear conditional VAE: encoder W1 x + W2 y, decoder U1 z + U2 x, target y.

    U2 = ``regression`` carries all that x says about y, and the latents see the residual alone: a
    mode collapses iff its eigenvalue of Q = B - C^T A^+ C is at most beta eta_dec^2. ``lam`` is
    that of W2 Q^(1/2).

    Args:
        cov: A (D, D) of the condition x. target: B (E, E) of y. cross: C (D, E).

    Raises:
        SignalError: the three are not blocks of one covariance. ConfigError: as for the VAE.
    """
    weights, residual = spectra.regression(cov, target, cross)
    return spectrum_optimum(
        spectra.covariance_spectrum(residual),
        eta_dec=eta_dec,
        beta=beta,
        eta_enc=eta_enc,
        latent_dim=latent_dim,
        regression=weights,
    )


def predict_collapse(
    *,
    eta_dec: float,
    beta: float = 1.0,
    cov: ArrayLike | None = None,
    data: ArrayLike | None = None,
    eigenvalues: ArrayLike | None = None,
    condition: ArrayLike | None = None,
    latent_dim: int | None = None,
) -> LinearOptimum:
    """Predict which latent dimensions of a (conditional) VAE will carry information.

    Args:
        cov, data, eigenvalues: exactly one of a covariance (D, D), a table (n, D), a spectrum (D,).
        condition: (n, E) what encoder and decoder also see of each row of ``data``.

    Raises:
        SignalError: the input is not what it should be. ConfigError: not exactly one is given, or
            a number is out of range.
    """
    if [cov is None, data is None, eigenvalues is None].count(False) != 1:
        raise ConfigError("give exactly one of a covariance, data and eigenvalues")
    if condition is not None and data is None:
        raise ConfigError("a condition needs the data that it belongs to")
    weights: Array | None = None
    caveats: tuple[str, ...] = ()
    if cov is not None:
        values = spectra.covariance_spectrum(cov)
    elif eigenvalues is not None:
        values = spectra.checked_eigenvalues(eigenvalues)
    elif data is not None:
        values, weights, caveats = _spectrum_of(data, condition)
    return spectrum_optimum(
        values,
        eta_dec=eta_dec,
        beta=beta,
        latent_dim=latent_dim,
        regression=weights,
        caveats=caveats,
    )


def _spectrum_of(
    data: ArrayLike, condition: ArrayLike | None
) -> tuple[Array, Array | None, tuple[str, ...]]:
    """Eigenvalues of data (n, D) less what a condition (n, E) explains, its regression, caveats."""
    table = spectra.checked_data(data)
    few = f"{len(table)} items span at most {len(table) - 1} directions"
    if condition is None:
        caveats = (few,) if len(table) <= table.shape[1] else ()
        return spectra.data_spectrum(table), None, caveats
    a, b, c = spectra.data_covariances(condition, table)
    weights, residual = spectra.regression(a, b, c)
    by_chance = f"{few}, so that a condition of {len(a)} numbers explains all of them by chance"
    caveats = (by_chance,) if len(table) <= len(a) + 1 else ()
    return spectra.covariance_spectrum(residual), weights, caveats


def spectrum_optimum(
    eigenvalues: Array,
    *,
    eta_dec: float,
    beta: float = 1.0,
    eta_enc: float = 1.0,
    latent_dim: int | None = None,
    variances: Sequence[float] | None = None,
    unexplained: float = 0.0,
    regression: Array | None = None,
    caveats: tuple[str, ...] = (),
) -> LinearOptimum:
    """The minimum for falling eigenvalues (n,); the other functions of this file end here.

    Args:
        unexplained: variance of the target that no latent can carry.
    """
    check_positive(eta_dec=eta_dec, beta=beta, eta_enc=eta_enc)
    d = latent_size(latent_dim, len(eigenvalues) if variances is None else len(variances))
    theta = np.sqrt(padded(eigenvalues, d))
    if variances is None:
        threshold = np.full(d, beta * eta_dec**2)
        active = theta**2 > threshold
        spent = np.where(active, threshold / np.where(active, theta, 1.0) ** 2, 1.0)
        sigma2 = eta_enc**2 * spent
        omega = np.sqrt((theta**2 - threshold).clip(min=0.0)) / eta_enc
        lam = eta_enc * np.sqrt(1.0 - spent)
    else:
        # The loss is least where the quietest dimensions carry the largest modes.
        sigma2 = np.sort(_fixed(variances, d))
        noise = np.sqrt(beta * sigma2) * eta_dec / eta_enc
        threshold, active = noise**2, theta > noise
        over = (theta - noise).clip(min=0.0)
        omega = np.sqrt(over * noise / sigma2)
        lam = np.sqrt(over * sigma2 / noise)
    kl = (lam**2 / eta_enc**2 + sigma2 / eta_enc**2 - 1 - np.log(sigma2 / eta_enc**2)) / 2
    error = ((omega * lam - theta) ** 2 + omega**2 * sigma2).sum()
    left = error + eigenvalues[d:].sum() + unexplained
    return LinearOptimum(
        eigenvalues=eigenvalues,
        threshold=threshold,
        omega=omega,
        lam=lam,
        variances=sigma2,
        kl=kl,
        active=active,
        collapsed=~active & np.isclose(sigma2, eta_enc**2),
        loss=float(left / (2 * eta_dec**2) + beta * kl.sum()),
        regression=regression,
        caveats=(*caveats, *_caveats(eigenvalues, threshold, is_fixed=variances is not None)),
    )


def _caveats(eigenvalues: Array, threshold: Array, *, is_fixed: bool) -> list[str]:
    d = len(threshold)
    out = rank_caveats(spectra.rank(eigenvalues), d)
    near = np.abs(padded(eigenvalues, d) - threshold) <= NEAR * threshold
    if near.any():
        out.append(
            f"{int(near.sum())} modes lie within 1% of the threshold, where training is slow"
        )
    if is_fixed:
        out.append("with fixed variances an inactive mode is low rank, not a collapsed dimension")
    return out


def rank_caveats(rank: int, latent_dim: int) -> list[str]:
    """What there is to say of data with fewer directions than there are latent dimensions."""
    if rank == 0:
        return ["the data does not vary: there is nothing to encode"]
    if latent_dim > rank:
        return [
            f"{latent_dim} dimensions for data of rank {rank}: the others have nothing to carry"
        ]
    return []


def padded(values: Array, size: int) -> Array:
    """The first ``size`` values, zeros after the last."""
    return np.pad(values[:size], (0, max(0, size - len(values))))


def latent_size(latent_dim: int | None, default: int) -> int:
    """The number of latent dimensions.

    Raises:
        ConfigError: it is not positive.
    """
    size = default if latent_dim is None else latent_dim
    if size < 1:
        raise ConfigError(f"latent_dim={size} is below 1")
    return size


def check_positive(**values: float) -> None:
    """Refuse numbers that are not positive and finite.

    Raises:
        ConfigError: the first such number.
    """
    for name, value in values.items():
        if not (np.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value} is not a positive number")


def _fixed(variances: Sequence[float], latent_dim: int) -> Array:
    fixed = np.asarray(variances, np.float64)
    if fixed.shape != (latent_dim,) or not (np.isfinite(fixed) & (fixed > 0)).all():
        raise ConfigError(f"variances={list(variances)} are not {latent_dim} positive numbers")
    return fixed
