"""Cases of the theory of posterior collapse: a closed form and the model that should reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polytok.core.seeding import numpy_rng
from polytok.systems.theory.posterior_collapse import (
    cvae_optimum,
    linear_vae_optimum,
    mhvae_optimum,
    spectra,
)
from polytok.systems.theory.posterior_collapse.models import LinearCVAE, LinearMHVAE, LinearVAE

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Regime:
    """A closed form beside the model and the loss that it should minimise."""

    name: str
    optimum: Any
    model: nn.Module
    loss: Callable[[], Tensor]
    singular_values: Callable[[], tuple[Tensor, ...]]

    @property
    def wanted(self) -> list[Array]:
        names = ("omega", "lam", "mu", "nu")
        return [getattr(self.optimum, n) for n in names if hasattr(self.optimum, n)]


def regimes() -> Iterator[Regime]:
    """Every case of the theory, d below, at and above the rank of the data."""
    cov = covariance((6, 3, 1.2, 0.5, 0.2))
    for h, e, beta in ((0.8, 1.3, 1.0), (1.0, 0.7, 2.0), (0.5, 1.0, 0.5)):
        for d in (4, 7):
            yield vae(f"vae h={h} e={e} beta={beta} d={d}", cov, d, h, e, beta)
    for h, e, beta, fixed in (
        (0.8, 1.3, 1.0, (0.5, 0.5, 0.5, 0.5)),
        (1.0, 0.7, 2.0, (0.1, 0.3, 0.2, 0.6)),
        (0.5, 1.0, 1.0, (0.9, 1.2, 0.2, 0.4, 3.0, 0.1, 0.7)),
    ):
        name = f"vae, fixed variances h={h} e={e} beta={beta} d={len(fixed)}"
        yield vae(name, cov, len(fixed), h, e, beta, fixed)
    rng = numpy_rng(3, "joint")
    mixing = rng.normal(size=(8, 8)) * np.array([2, 1.5, 1, 1, 2, 1.4, 0.8, 0.5])
    joint = mixing @ mixing.T / 4
    blocks = (joint[:3, :3], joint[3:, 3:], joint[:3, 3:])
    singular = (np.diag([1.0, 0.5, 0.0]), blocks[1], np.diag([1, 1, 0]) @ blocks[2] * 0.2)
    for h, e, beta, d, (a, b, c) in (
        (0.7, 0.9, 1.5, 4, blocks),
        (0.3, 1.0, 1.0, 6, blocks),
        (0.5, 1.1, 2.0, 5, singular),
    ):
        rank = np.linalg.matrix_rank(a)
        yield cvae(
            f"cvae h={h} e={e} beta={beta} d={d}, condition of rank {rank}", a, b, c, d, h, e, beta
        )
    cov = covariance((6, 2, 0.6, 0.1))
    for h, e, beta1, beta2, s1, s2 in (
        (0.5, 1.0, 1.0, 1.0, 0.25, None),
        (0.5, 1.0, 1.0, 2.1, 0.5, None),
        (0.5, 1.0, 2.0, 1.0, 1.0, None),
        (1.0, 1.0, 1.0, 0.5, 0.8, None),
        (0.5, 1.0, 1.0, 3.0, 0.3, None),
        (0.5, 1.3, 1.5, 0.7, 0.9, None),
        (0.5, 1.0, 1.0, 1.0, 0.25, 0.3),
        (0.5, 1.2, 1.0, 2.0, 0.5, 0.7),
        (1.0, 0.8, 2.0, 1.0, 0.8, 0.2),
        (0.5, 1.2, 1.0, 2.0, None, 0.2),
        (0.7, 0.9, 1.0, 2.0, None, 0.9),
        (0.5, 1.0, 1.0, 2.0, None, None),
        (0.5, 1.2, 2.0, 2.0, None, None),
    ):
        yield mhvae(cov, (5, 3) if s1 and s1 > 0.75 else (4, 4), h, e, beta1, beta2, s1, s2)


def vae(
    name: str,
    cov: Array,
    d: int,
    h: float,
    e: float,
    beta: float,
    fixed: tuple[float, ...] | None = None,
) -> Regime:
    options: dict[str, Any] = {"eta_dec": h, "eta_enc": e, "beta": beta, "variances": fixed}
    model = LinearVAE(len(cov), d, **options).double()
    a = torch.from_numpy(cov)
    return Regime(
        name,
        linear_vae_optimum(cov, latent_dim=d, **options),
        model,
        lambda: model.exact_loss(a),
        lambda: model.singular_values(a),
    )


def cvae(
    name: str, a: Array, b: Array, c: Array, d: int, h: float, e: float, beta: float
) -> Regime:
    options: dict[str, Any] = {"eta_dec": h, "eta_enc": e, "beta": beta}
    model = LinearCVAE(len(a), len(b), d, **options).double()
    tensors = [torch.from_numpy(m) for m in (a, b, c)]
    residual = torch.from_numpy(spectra.regression(a, b, c)[1])
    return Regime(
        name,
        cvae_optimum(a, b, c, latent_dim=d, **options),
        model,
        lambda: model.exact_loss(*tensors),
        lambda: model.singular_values(residual),
    )


def mhvae(
    cov: Array,
    dims: tuple[int, int],
    h: float,
    e: float,
    beta1: float,
    beta2: float,
    s1: float | None,
    s2: float | None,
) -> Regime:
    options: dict[str, Any] = {
        "eta_dec": h,
        "eta_enc": e,
        "beta1": beta1,
        "beta2": beta2,
        "variance1": s1,
        "variance2": s2,
    }
    model = LinearMHVAE(len(cov), dims, **options).double()
    a = torch.from_numpy(cov)
    optimum = mhvae_optimum(cov, latent_dims=dims, **options)
    words = ", ".join(
        f"{k} {'learns' if v is None else f'= {v}'}" for k, v in (("s1", s1), ("s2", s2))
    )
    name = f"mhvae {words} h={h} e={e} beta1={beta1} beta2={beta2} d={dims[0]},{dims[1]}"
    return Regime(
        name,
        optimum,
        model,
        lambda: model.exact_loss(a),
        lambda: model.singular_values(a),
    )


def covariance(eigenvalues: tuple[float, ...], seed: int = 0) -> Array:
    """A covariance of these eigenvalues in a random basis."""
    basis = np.linalg.qr(numpy_rng(seed, "basis").normal(size=(len(eigenvalues),) * 2))[0]
    return basis @ np.diag(eigenvalues) @ basis.T
