"""Closed-form global minimum of the linear two-level Markovian hierarchical VAE; pure NumPy.

q(z1|x) = N(W1 x, s1 I), q(z2|z1) = N(W2 z1, S2), p(z2) = N(0, e^2 I), p(z1|z2) = N(U2 z2, e^2 I),
p(x|z1) = N(U1 z1, h^2 I), with h = eta_dec and e = eta_enc. The loss, in nats and without the
decoder's normaliser, is

    E ||U1 z1 - x||^2 / (2 h^2) + beta1 E log q(z1|x) / p(z1|z2) + beta2 E KL(q(z2|z1) || p(z2)).

Per mode only t, the variance of z1, is unknown: given it, every other value is that of a linear
VAE. Source: arXiv 2306.05023, derived anew; both cases of a learnable s1 are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from polytok.systems.theory.posterior_collapse import spectra
from polytok.systems.theory.posterior_collapse.optima import (
    Mask,
    check_positive,
    latent_size,
    padded,
    rank_caveats,
)
from polytok.systems.theory.posterior_collapse.spectra import Array

Kind = Literal["unique", "flat", "unbounded"]


@dataclass(frozen=True, kw_only=True)
class HierarchicalOptimum:
    """The global minimum of a linear model with d1 and d2 latent dimensions on two levels.

    Args:
        kind: ``unique`` up to rotations and signs; ``flat``: a family of equal loss, of which one
            member is given; ``unbounded``: the loss has no minimum, and the values are limits.
        eigenvalues: (n,) theta^2 of the data, falling. threshold1, threshold2: z1, z2 know
            something of x in modes of larger eigenvalues.
        omega, lam: (d1,) singular values of U1 and of W1 A^(1/2). mu, nu: (d2,) of U2 and W2.
        variances1, variances2: of the posteriors. rate1: (d1,) E log q(z1|x) / p(z1|z2), which may
            be negative, as z2 has seen z1. kl2: (d2,) nats.
        active1: (d1,) modes of x in z1. active2: (d2,) z2 is used, if only for the noise of z1.
        loss: see the top of the file.
    """

    kind: Kind
    eigenvalues: Array
    threshold1: float
    threshold2: float
    omega: Array
    lam: Array
    mu: Array
    nu: Array
    variances1: Array
    variances2: Array
    rate1: Array
    kl2: Array
    active1: Mask
    active2: Mask
    loss: float
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Setting:
    """The numbers of the model; ``ratio`` is beta2 / beta1, None variances learn."""

    h: float
    e: float
    beta1: float
    beta2: float
    s1: float | None
    s2: float | None

    @property
    def ratio(self) -> float:
        return self.beta2 / self.beta1

    @property
    def floor(self) -> float:
        """z2 is used for a mode whose variance in z1 is above this."""
        return self.ratio * (self.e**2 if self.s2 is None else self.s2)


def mhvae_optimum(
    cov: ArrayLike,
    *,
    eta_dec: float,
    beta1: float = 1.0,
    beta2: float = 1.0,
    eta_enc: float = 1.0,
    latent_dims: Sequence[int] | None = None,
    variance1: float | None,
    variance2: float | None = None,
) -> HierarchicalOptimum:
    """Minimise a linear two-level VAE over data of a covariance (D, D).

    Args:
        latent_dims: d1 and d2, by default D and D. variance1, variance2: of every dimension of a
            level's posterior; None where they learn.

    Raises:
        SignalError: ``cov`` is no covariance. ConfigError: a number is not positive.

    If both variances learn, beta2 > beta1 empties z2, beta2 = beta1 leaves it undecided, and
    beta2 < beta1 has no minimum: fix or bound one of them.
    """
    check_positive(eta_dec=eta_dec, eta_enc=eta_enc, beta1=beta1, beta2=beta2)
    for name, value in (("variance1", variance1), ("variance2", variance2)):
        if value is not None:
            check_positive(**{name: value})
    eigenvalues = spectra.covariance_spectrum(cov)
    given = (None, None) if latent_dims is None else tuple(latent_dims)
    d1, d2 = (latent_size(d, len(eigenvalues)) for d in given)
    m = _Setting(eta_dec, eta_enc, beta1, beta2, variance1, variance2)
    found = _minimum(m, eigenvalues, d1, d2)
    return _limit(found) if found.kind == "unbounded" else found


def _minimum(m: _Setting, eigenvalues: Array, d1: int, d2: int) -> HierarchicalOptimum:
    """The minimum; where both variances learn, the stationary point without z2."""
    theta = np.sqrt(padded(eigenvalues, d1))
    has_second = np.arange(d1) < d2
    t = np.where(has_second, _spread(theta, m), _spread(theta, m, has_second=False))
    r = _noise_share(theta, t, m)
    s1, lam, omega = r * t, np.sqrt((1 - r) * t), theta * np.sqrt((1 - r) / t)
    mu, nu, s2 = _second(m, padded(t, d2))
    gain = padded(mu * nu, d1)
    rest = (1 - gain) ** 2 * t + padded(mu**2 * s2, d1)
    rate1 = (rest / m.e**2 - 1 - np.log(s1 / m.e**2)) / 2
    kl2 = ((nu**2 * padded(t, d2) + s2) / m.e**2 - 1 - np.log(s2 / m.e**2)) / 2
    error = (theta**2 * r).sum() + eigenvalues[d1:].sum()
    loss = error / (2 * m.h**2) + m.beta1 * rate1.sum() + m.beta2 * kl2.sum()
    threshold1, threshold2 = _thresholds(m)
    kind = _kind(m, is_scarce=d2 < d1)
    return HierarchicalOptimum(
        kind=kind,
        eigenvalues=eigenvalues,
        threshold1=threshold1,
        threshold2=threshold2,
        omega=omega,
        lam=lam,
        mu=mu,
        nu=nu,
        variances1=s1,
        variances2=s2,
        rate1=rate1,
        kl2=kl2,
        active1=lam > 0,
        active2=mu > 0,
        loss=float(loss),
        caveats=_caveats(m, kind, spectra.rank(eigenvalues), d1),
    )


def _limit(found: HierarchicalOptimum) -> HierarchicalOptimum:
    """Where a loss without minimum leads: z1 grows without bound in every mode that z2 serves."""
    served1, served2 = (
        np.arange(n) < min(len(found.lam), len(found.mu)) for n in (len(found.lam), len(found.mu))
    )
    return replace(
        found,
        omega=np.where(served1, 0.0, found.omega),
        lam=np.where(served1 & found.active1, np.inf, found.lam),
        mu=np.where(served2, np.inf, 0.0),
        nu=np.zeros_like(found.nu),
        variances1=np.where(served1, np.inf, found.variances1),
        variances2=np.where(served2, 0.0, found.variances2),
        rate1=np.where(served1, -np.inf, found.rate1),
        kl2=np.where(served2, np.inf, found.kl2),
        active2=served2,
        loss=-np.inf,
    )


def _spread(theta: Array, m: _Setting, *, has_second: bool = True) -> Array:
    """The best variance t of z1 per mode, with or without a dimension of z2 for it."""
    if m.s1 is None:
        # Data and z1 then meet only in s1 / t, so t is the same for every mode.
        is_used = has_second and m.s2 is not None and m.floor < m.e**2
        return np.full(len(theta), m.e**4 / m.floor if is_used else m.e**2)
    alone = theta * np.sqrt(m.s1) * m.e / (np.sqrt(m.beta1) * m.h)
    if not has_second:
        return np.maximum(alone, m.s1)
    if m.s2 is None:
        joint = theta**2 * m.s1 / (m.beta2 * m.h**2)
    else:
        root = np.sqrt(m.beta1 * m.beta2 * m.s2)
        joint = (theta**2 * m.s1 * m.e**2 / (m.h**2 * root)) ** (2 / 3)
    return np.maximum(np.where(joint > m.floor, joint, alone), m.s1)


def _noise_share(theta: Array, t: Array, m: _Setting) -> Array:
    """s1 / t: as in a VAE of weight beta1 where s1 learns."""
    if m.s1 is not None:
        return m.s1 / t
    limit = m.beta1 * m.h**2
    return np.where(theta**2 > limit, limit / np.maximum(theta**2, limit), 1.0)


def _second(m: _Setting, t: Array) -> tuple[Array, Array, Array]:
    """U2, W2 and S2 for variances t of z1: a VAE of decoder variance e^2, weight beta2 / beta1."""
    over = (t - m.floor).clip(min=0.0)
    if m.s2 is None:
        inside = np.maximum(t, m.floor)
        return np.sqrt(over) / m.e, m.e * np.sqrt(over) / inside, m.e**2 * m.floor / inside
    root = np.sqrt(m.ratio)
    mu = np.sqrt(root * (np.sqrt(t / m.s2) - root).clip(min=0.0))
    return mu, mu / (mu**2 + m.ratio), np.full(len(t), m.s2)


def _thresholds(m: _Setting) -> tuple[float, float]:
    """Eigenvalues above which z1 and z2 know something of x."""
    if m.s1 is None:
        first = m.beta1 * m.h**2
        is_used = _kind(m) == "unbounded" or (m.s2 is not None and m.floor < m.e**2)
        return first, first if is_used else np.inf
    p, q = m.beta2 * (m.e**2 if m.s2 is None else m.s2), m.beta1 * m.s1
    both = p if m.s2 is None else np.sqrt(p * q)
    scale = m.h**2 / m.e**2
    return float(min(q, both) * scale), float(max(p**2 / q, both) * scale)


def _kind(m: _Setting, *, is_scarce: bool = False) -> Kind:
    if m.s1 is not None:
        return "unique"
    if m.s2 is not None:
        # Every mode gains as much from z2, so that too few dimensions may go to any of them.
        return "flat" if is_scarce and m.floor < m.e**2 else "unique"
    if np.isclose(m.beta1, m.beta2, rtol=1e-12):
        return "flat"
    return "unique" if m.beta2 > m.beta1 else "unbounded"


def _caveats(m: _Setting, kind: Kind, rank: int, d1: int) -> tuple[str, ...]:
    out = rank_caveats(rank, d1)
    if kind == "unbounded":
        out.append("both variances learn and beta2 < beta1: z1 grows without bound; fix one")
    elif kind == "flat" and m.s2 is None:
        out.append("both variances learn and beta1 = beta2: nothing decides whether z2 is used")
    elif kind == "flat":
        out.append("nothing decides which modes of z1 the fewer dimensions of z2 serve")
    elif m.s1 is not None and m.s1 > m.floor:
        out.append("z2 is used even where z1 is noise, since variance1 is above its threshold")
    return tuple(out)
