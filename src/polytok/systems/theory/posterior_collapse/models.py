"""Linear VAEs as torch modules: exact losses without noise, and sampled ones as in training.

``exact_loss`` takes covariances of centred data and integrates the noise out; its minima are those
of ``optima`` and ``hierarchical``. ``forward`` takes centred data and draws. Both are the negative
beta-ELBO in nats without the decoder's normaliser. Source: arXiv 2306.05023.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.core.seeding import torch_rng
from polytok.systems.theory.posterior_collapse.optima import check_positive, latent_size

START_SPREAD = 0.5
STALL = 1e-12


class GlobalVariance(nn.Module):
    """Variances (d,) that do not depend on the input; learnable unless they are given."""

    def __init__(self, dim: int, fixed: Sequence[float] | None = None) -> None:
        super().__init__()
        start = torch.zeros(dim) if fixed is None else torch.as_tensor(fixed).log()
        if start.shape != (dim,) or not bool(start.isfinite().all()):
            raise ConfigError(f"variances={fixed} are not {dim} positive numbers")
        if fixed is None:
            self.log = nn.Parameter(start)
        else:
            self.register_buffer("log", start)

    def forward(self) -> Tensor:
        return self.log.exp()


class LinearVAE(nn.Module):
    """x (n, D) -> z (n, d) -> y (n, E), by default y = x.

    Args:
        variances: (d,) of the posterior, if they do not learn.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        dim: int,
        latent_dim: int,
        *,
        eta_dec: float,
        eta_enc: float = 1.0,
        beta: float = 1.0,
        variances: Sequence[float] | None = None,
        target_dim: int | None = None,
    ) -> None:
        super().__init__()
        check_positive(eta_dec=eta_dec, eta_enc=eta_enc, beta=beta)
        self.eta_dec, self.eta_enc, self.beta = eta_dec, eta_enc, beta
        size = latent_size(latent_dim, dim)
        self.encoder = nn.Linear(dim, size, bias=False)
        self.decoder = nn.Linear(size, target_dim or dim, bias=False)
        self.variance = GlobalVariance(size, variances)

    def forward(
        self, x: Tensor, target: Tensor | None = None, *, rng: torch.Generator | None = None
    ) -> Tensor:
        """Mean loss () of a sample per row; without a generator the noise is torch's global one."""
        mean, variance = self.moments(x)
        z = mean + variance.sqrt() * _noise(mean, rng)
        error = (self.decoder(z) - (x if target is None else target)).square().sum(-1).mean()
        return error / (2 * self.eta_dec**2) + self.beta * self.kl(x).sum()

    def exact_loss(
        self, cov: Tensor, target: Tensor | None = None, cross: Tensor | None = None
    ) -> Tensor:
        """The loss () over data of covariance (D, D); of another target: (E, E) and (D, E)."""
        w, u, variance = self.encoder.weight, self.decoder.weight, self.variance()
        b, c = (cov if target is None else target), (cov if cross is None else cross)
        error = _squared_error(w, u, cov, b, c) + (u.square() * variance).sum()
        kl = gaussian_kl(_mean_square(w, cov), variance, self.eta_enc)
        return error / (2 * self.eta_dec**2) + self.beta * kl.sum()

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (n, d) of the posterior."""
        mean = self.encoder(x)
        return mean, self.variance().expand_as(mean)

    def kl(self, x: Tensor) -> Tensor:
        """Nats (d,), mean over rows."""
        mean, variance = self.moments(x)
        return gaussian_kl(mean.square().mean(0), variance[0], self.eta_enc)

    def singular_values(self, cov: Tensor) -> tuple[Tensor, Tensor]:
        """omega and lambda (d,), falling, as :class:`~.optima.LinearOptimum` has them."""
        w, u = self.encoder.weight, self.decoder.weight
        return _singular(u, len(w)), _singular(w @ _root(cov), len(w))


class LinearCVAE(nn.Module):
    """Condition x (n, D), target y (n, E) -> z (n, d) -> y: W1 x + W2 y, U1 z + U2 x.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        condition_dim: int,
        dim: int,
        latent_dim: int,
        *,
        eta_dec: float,
        eta_enc: float = 1.0,
        beta: float = 1.0,
    ) -> None:
        super().__init__()
        check_positive(eta_dec=eta_dec, eta_enc=eta_enc, beta=beta)
        self.eta_dec, self.eta_enc, self.beta = eta_dec, eta_enc, beta
        size = latent_size(latent_dim, dim)
        self.encoder = nn.Linear(condition_dim + dim, size, bias=False)
        self.decoder = nn.Linear(size + condition_dim, dim, bias=False)
        self.variance = GlobalVariance(size)

    def forward(self, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Mean loss () of a sample per row; without a generator the noise is torch's global one."""
        mean, variance = self.moments(x, y)
        z = mean + variance.sqrt() * _noise(mean, rng)
        error = (self.decoder(torch.cat([z, x], -1)) - y).square().sum(-1).mean()
        kl = gaussian_kl(mean.square().mean(0), variance[0], self.eta_enc)
        return error / (2 * self.eta_dec**2) + self.beta * kl.sum()

    def exact_loss(self, cov: Tensor, target: Tensor, cross: Tensor) -> Tensor:
        """The loss () over data of covariances (D, D), (E, E) and (D, E)."""
        w, variance = self.encoder.weight, self.variance()
        u = self.decoder.weight
        joint = torch.cat([torch.cat([cov, cross], 1), torch.cat([cross.T, target], 1)])
        # The decoder sees z and x, both linear in (x, y).
        seen = torch.cat([w, torch.eye(*joint.shape).to(joint)[: len(cov)]])
        error = _squared_error(seen, u, joint, target, torch.cat([cross, target]))
        error = error + (u[:, : len(w)].square() * variance).sum()
        kl = gaussian_kl(_mean_square(w, joint), variance, self.eta_enc)
        return error / (2 * self.eta_dec**2) + self.beta * kl.sum()

    def moments(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance (n, d) of the posterior."""
        mean = self.encoder(torch.cat([x, y], -1))
        return mean, self.variance().expand_as(mean)

    def singular_values(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """omega of U1 and lambda of W2 Q^(1/2), (d,), for the residual covariance Q (E, E)."""
        w, u = self.encoder.weight, self.decoder.weight
        d = len(w)
        return _singular(u[:, :d], d), _singular(w[:, -len(residual) :] @ _root(residual), d)


class LinearMHVAE(nn.Module):
    """x (n, D) -> z1 (n, d1) -> z2 (n, d2), and back: the two-level Markovian hierarchical VAE.

    Args:
        variance1, variance2: of every dimension of a level's posterior; None where they learn.

    Raises:
        ConfigError: a number is not positive.
    """

    def __init__(
        self,
        dim: int,
        latent_dims: Sequence[int],
        *,
        eta_dec: float,
        eta_enc: float = 1.0,
        beta1: float = 1.0,
        beta2: float = 1.0,
        variance1: float | None,
        variance2: float | None = None,
    ) -> None:
        super().__init__()
        check_positive(eta_dec=eta_dec, eta_enc=eta_enc, beta1=beta1, beta2=beta2)
        self.eta_dec, self.eta_enc, self.beta1, self.beta2 = eta_dec, eta_enc, beta1, beta2
        d1, d2 = (latent_size(d, dim) for d in latent_dims)
        self.encoder1, self.decoder1 = (
            nn.Linear(dim, d1, bias=False),
            nn.Linear(d1, dim, bias=False),
        )
        self.encoder2, self.decoder2 = nn.Linear(d1, d2, bias=False), nn.Linear(d2, d1, bias=False)
        self.s1 = GlobalVariance(d1, None if variance1 is None else [variance1] * d1)
        self.s2 = GlobalVariance(d2, None if variance2 is None else [variance2] * d2)

    def forward(self, x: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Mean loss () of a sample per row; without a generator the noise is torch's global one."""
        s1, s2 = self.s1(), self.s2()
        mean1 = self.encoder1(x)
        z1 = mean1 + s1.sqrt() * _noise(mean1, rng)
        mean2 = self.encoder2(z1)
        z2 = mean2 + s2.sqrt() * _noise(mean2, rng)
        error = (self.decoder1(z1) - x).square().sum(-1).mean()
        rest = (z1 - self.decoder2(z2)).square().mean(0)
        rate1 = gaussian_kl(rest - s1, s1, self.eta_enc).sum()
        kl2 = gaussian_kl(mean2.square().mean(0), s2, self.eta_enc).sum()
        return error / (2 * self.eta_dec**2) + self.beta1 * rate1 + self.beta2 * kl2

    def exact_loss(self, cov: Tensor) -> Tensor:
        """The loss () over data of covariance (D, D)."""
        w1, u1, w2, u2 = (
            m.weight for m in (self.encoder1, self.decoder1, self.encoder2, self.decoder2)
        )
        s1, s2 = self.s1(), self.s2()
        error = _squared_error(w1, u1, cov, cov, cov) + (u1.square() * s1).sum()
        spread = w1 @ cov @ w1.T + s1.diag()
        rest = _mean_square(torch.eye(len(w1)).to(cov) - u2 @ w2, spread) + u2.square() @ s2
        rate1 = gaussian_kl(rest - s1, s1, self.eta_enc).sum()
        kl2 = gaussian_kl(_mean_square(w2, spread), s2, self.eta_enc).sum()
        return error / (2 * self.eta_dec**2) + self.beta1 * rate1 + self.beta2 * kl2

    def kl2(self, x: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Nats (d2,) of the upper level, mean over rows and one draw of z1 each."""
        mean1 = self.encoder1(x)
        mean2 = self.encoder2(mean1 + self.s1().sqrt() * _noise(mean1, rng))
        return gaussian_kl(mean2.square().mean(0), self.s2(), self.eta_enc)

    def singular_values(self, cov: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """omega, lambda, mu and nu, falling, as :class:`~.hierarchical.HierarchicalOptimum`."""
        w1, w2 = self.encoder1.weight, self.encoder2.weight
        d1, d2 = len(w1), len(w2)
        return (
            _singular(self.decoder1.weight, d1),
            _singular(w1 @ _root(cov), d1),
            _singular(self.decoder2.weight, d2),
            _singular(w2, d2),
        )


def gaussian_kl(mean_square: Tensor, variance: Tensor, eta_enc: float) -> Tensor:
    """Nats between N(mean, variance) and N(0, eta_enc^2), elementwise, given E mean^2."""
    ratio = variance / eta_enc**2
    return 0.5 * (mean_square / eta_enc**2 + ratio - 1 - ratio.log())


def minimise(
    model: nn.Module,
    loss_fn: Callable[[], Tensor],
    *,
    num_starts: int = 10,
    num_steps: int = 2000,
    seed: int = 0,
) -> float:
    """Lower an exact loss by L-BFGS from random starts; the model keeps the best, in its dtype.

    Use float64: in float32 the line search stops early. Returns the loss.
    """
    parameters = list(model.parameters())
    best, kept = math.inf, [p.detach().clone() for p in parameters]
    for start in range(num_starts):
        rng = torch_rng(seed, "start", start)
        with torch.no_grad():
            for p in parameters:
                p.normal_(std=START_SPREAD, generator=rng)
        loss = _descend(parameters, loss_fn, num_steps)
        if loss < best:
            best, kept = loss, [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for p, value in zip(parameters, kept, strict=True):
            p.copy_(value)
    return best


def train(
    model: nn.Module,
    *tables: Tensor,
    num_steps: int,
    batch_size: int = 128,
    lr: float = 1e-2,
    seed: int = 0,
) -> None:
    """Lower the sampled loss by Adam on random rows, the rate falling to zero along a cosine.

    Args:
        tables: (n, ...) arguments of the model's forward, row by row.
    """
    rng = torch_rng(seed, "train")
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        rows = torch.randint(len(tables[0]), (batch_size,), generator=rng)
        optimizer.zero_grad()
        model(*(t[rows] for t in tables), rng=rng).backward()
        optimizer.step()
        schedule.step()


def _descend(parameters: list[nn.Parameter], loss_fn: Callable[[], Tensor], steps: int) -> float:
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=steps,
        history_size=30,
        tolerance_grad=1e-10,
        tolerance_change=STALL,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_fn()
        loss.backward()
        return loss

    optimizer.step(closure)
    return float(loss_fn().detach())


def _noise(like: Tensor, rng: torch.Generator | None) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)


def _squared_error(w: Tensor, u: Tensor, cov: Tensor, target: Tensor, cross: Tensor) -> Tensor:
    """E ||U W x - y||^2, never as wide as data by data."""
    return (u.T @ u * (w @ cov @ w.T)).sum() - 2 * (u.T * (w @ cross)).sum() + target.trace()


def _mean_square(weight: Tensor, cov: Tensor) -> Tensor:
    """E (W x)^2 per row of W."""
    return (weight @ cov * weight).sum(-1)


def _singular(matrix: Tensor, size: int) -> Tensor:
    """Singular values (size,), with zeros for those beyond the smaller side."""
    values = torch.linalg.svdvals(matrix.detach())[:size]
    return torch.nn.functional.pad(values, (0, size - len(values)))


def _root(cov: Tensor) -> Tensor:
    """A factor R with R R^T = cov."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt()
