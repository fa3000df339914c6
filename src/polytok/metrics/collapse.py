"""Posterior collapse of Gaussian latents: measured on inputs, and predicted for a training loss.

docs/posterior-collapse.md explains the numbers. Importing this file imports no torch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.core.errors import ConfigError, SignalError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from polytok.core.contracts import Batch, Tokenizer

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Moments = dict[str, list[tuple["Tensor", "Tensor"]]]
ErrorKind = Literal["squared", "half_squared", "cross_entropy"]
Reduction = Literal["sum", "mean"]

ACTIVE_ABOVE = 0.01
# Second derivative of one element's loss by its output; cross-entropy in units of its target's
# standard deviation, where predictions are near the mean.
CURVATURE: dict[str, float] = {"squared": 2.0, "half_squared": 1.0, "cross_entropy": 1.0}


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """The beta-ELBO that a training loss, reconstruction + ``weight`` KL, amounts to.

    ``eta_dec2`` and ``beta`` are those of ||x - y||^2 / (2 eta_dec^2) + beta sum_j KL_j, and
    ``threshold`` is the eigenvalue of the target's covariance up to which a direction collapses.
    For ``cross_entropy`` take the covariance of targets divided by their standard deviations (the
    correlations); it holds to second order.

    Args:
        weight: of the KL. error: loss of one element. reduction, kl_reduction: over the
            ``elements`` of a target and over the ``units`` of a code.

    Raises:
        ConfigError: a name is unknown, a number is not positive, or a mean lacks its count.
    """

    weight: float
    error: ErrorKind = "squared"
    reduction: Reduction = "sum"
    elements: int | None = None
    kl_reduction: Reduction = "sum"
    units: int | None = None

    def __post_init__(self) -> None:
        if self.error not in CURVATURE:
            raise ConfigError(f"error={self.error!r} is not one of {', '.join(CURVATURE)}")
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ConfigError(f"weight={self.weight} is not a positive number")
        for name, how, count in (
            ("elements", self.reduction, self.elements),
            ("units", self.kl_reduction, self.units),
        ):
            if how not in ("sum", "mean"):
                raise ConfigError(f"reduction {how!r} is not one of sum, mean")
            if how == "mean" and (count is None or count < 1):
                raise ConfigError(f"a mean over {name} needs {name} >= 1, got {count}")

    @property
    def eta_dec2(self) -> float:
        return _count(self.reduction, self.elements) / CURVATURE[self.error]

    @property
    def beta(self) -> float:
        return self.weight / _count(self.kl_reduction, self.units)

    @property
    def threshold(self) -> float:
        return self.beta * self.eta_dec2


@dataclass(frozen=True, kw_only=True)
class CollapseReport:
    """What a Gaussian bottleneck says about its inputs; a unit is one number of a code.

    Args:
        num_items: inputs measured. unit_shape: of a code, such as (tokens, channels).
        kl: (U,) nats, mean over items. spread: (U,) variance over items of the posterior mean.
        active: (U,) ``spread`` above 0.01 (active units of Burda et al. 2016).
        silent_share: (U,) share of items whose KL is below ``eps``. collapsed: (U,) that share is
            at least 1 - ``delta``.
        spectrum: eigenvalues of the covariance of the posterior means, falling: their directions,
            unlike units, do not depend on rotations.
        rate: nats of all units, mean over items: a bound of what codes tell of inputs.
        information: a tighter bound of the same, see :func:`collapse_report`.
        threshold, num_predicted: what a direction of the target needs, and how many have it.
        cause: one sentence.
    """

    num_items: int
    unit_shape: tuple[int, ...]
    kl: Array
    spread: Array
    active: Mask
    silent_share: Array
    collapsed: Mask
    spectrum: Array
    rate: float
    information: float
    eps: float
    delta: float
    threshold: float | None
    num_predicted: int | None
    cause: str

    @property
    def num_units(self) -> int:
        return len(self.kl)

    @property
    def num_directions(self) -> int:
        """Directions in which posterior means vary by more than an active unit must."""
        return int((self.spectrum > ACTIVE_ABOVE).sum())

    def summary(self) -> dict[str, Any]:
        """The report without its arrays, ready for JSON."""
        return {
            "items": self.num_items,
            "unit_shape": list(self.unit_shape),
            "units": self.num_units,
            "active_units": int(self.active.sum()),
            "collapsed_units": int(self.collapsed.sum()),
            "active_directions": self.num_directions,
            "predicted_directions": self.num_predicted,
            "threshold": self.threshold,
            "kl_nats_per_unit": float(self.kl.mean()),
            "rate_nats": self.rate,
            "information_nats": self.information,
            "eps": self.eps,
            "delta": self.delta,
            "cause": self.cause,
        }


def collapse_report(
    mean: ArrayLike,
    variance: ArrayLike,
    *,
    eps: float = 0.01,
    delta: float = 0.05,
    eta_enc: float = 1.0,
    eigenvalues: ArrayLike | None = None,
    residual: ArrayLike | None = None,
    threshold: float | None = None,
) -> CollapseReport:
    """Judge posteriors N(mean, variance) of n inputs against the prior N(0, eta_enc^2).

    ``information`` bounds I(x; z) by sum_j (log(Var mean_j + E variance_j) - E log variance_j) / 2:
    the entropy of z is at most that of independent Gaussians of the same variances. It is never
    above ``rate``.

    Args:
        mean, variance: (n, ...) in any shape of units.
        eps, delta: a unit is collapsed if its KL is below ``eps`` nats on a share of 1 - ``delta``.
        eigenvalues: of the covariance of the decoder's target; with ``threshold``, see
            :class:`LossScale`, they say how many directions a linear model would use.
        residual: likewise of the target minus its regression on a condition that encoder and
            decoder see too; decides in place of ``eigenvalues``.

    Raises:
        SignalError: shapes differ, there are no inputs, or a number is not finite or a variance
            not positive. ConfigError: eps, delta or eta_enc is out of range, or eigenvalues come
            without a threshold.

    Source: Burda et al. 2016 (active units), arXiv 2306.05023 (the rest).
    """
    if not (eps > 0 and 0 <= delta < 1 and eta_enc > 0):
        raise ConfigError(f"eps={eps}, delta={delta}, eta_enc={eta_enc}: need > 0, [0, 1) and > 0")
    means, variances, shape = _posteriors(mean, variance)
    n = len(means)
    kl = (means**2 + variances) / eta_enc**2 - 1 - np.log(variances / eta_enc**2)
    kl = 0.5 * kl.clip(min=0.0)
    spread = means.var(axis=0)
    silent = (kl < eps).mean(axis=0)
    marginal = np.log(spread + variances.mean(axis=0)) - np.log(variances).mean(axis=0)
    lists = [None if v is None else np.asarray(v, np.float64) for v in (eigenvalues, residual)]
    above = [None if v is None else _above(v, threshold) for v in lists]
    allowed = above[0] if above[1] is None else above[1]
    active, collapsed = spread > ACTIVE_ABOVE * eta_enc**2, silent >= 1 - delta
    singular = np.linalg.svd(means - means.mean(axis=0), compute_uv=False)
    spectrum = singular**2 / (n * eta_enc**2)
    num_predicted = None if allowed is None else min(allowed, len(spread))
    found = _Findings(
        num_items=n,
        num_active=int(active.sum()),
        num_collapsed=int(collapsed.sum()),
        num_units=len(spread),
        delta=delta,
        num_directions=int((spectrum > ACTIVE_ABOVE).sum()),
        num_allowed=allowed,
        num_unconditional=above[0] if above[1] is not None else None,
        data_rank=None if lists[0] is None else int((lists[0] > 1e-12 * lists[0].max()).sum()),
        threshold=threshold,
    )
    return CollapseReport(
        num_items=n,
        unit_shape=shape,
        kl=kl.mean(axis=0),
        spread=spread,
        active=active,
        silent_share=silent,
        collapsed=collapsed,
        spectrum=spectrum,
        rate=float(kl.mean(axis=0).sum()),
        information=float(marginal.sum() / 2),
        eps=eps,
        delta=delta,
        threshold=threshold,
        num_predicted=num_predicted,
        cause=found.cause(),
    )


@contextmanager
def record_moments(model: nn.Module) -> Iterator[Moments]:
    """Collect mean and variance (B, N, d) of every Gaussian bottleneck while the block lasts.

    The dict has a list of batches, on the CPU, by the name of the bottleneck within ``model``.
    """
    from polytok.bottlenecks import GaussianBottleneck

    taken: Moments = defaultdict(list)
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, GaussianBottleneck):

            def take(
                part: GaussianBottleneck, args: tuple[Any, ...], _: Any, name: str = name
            ) -> None:
                mean, log_variance = part.moments(args[0].detach())
                taken[name].append((mean.detach().cpu(), log_variance.detach().exp().cpu()))

            hooks.append(module.register_forward_hook(take))
    try:
        yield taken
    finally:
        for hook in hooks:
            hook.remove()


def measure_collapse(
    model: Tokenizer, batches: Iterable[Batch], **options: Any
) -> dict[str, CollapseReport]:
    """A report per Gaussian bottleneck of a tokenizer, by its name, over batches of inputs.

    Args:
        options: of :func:`collapse_report`.

    Raises:
        ConfigError: the model has no Gaussian bottleneck. SignalError: there are no batches.
    """
    import torch

    from polytok.bottlenecks import GaussianBottleneck

    if not any(isinstance(m, GaussianBottleneck) for m in model.modules()):
        raise ConfigError(f"{type(model).__name__} has no Gaussian bottleneck")
    with record_moments(model) as taken, torch.no_grad():
        for batch in batches:
            model.encode(batch)
    return reports_of(taken, **options)


def reports_of(taken: Moments, **options: Any) -> dict[str, CollapseReport]:
    """A report per bottleneck from what :func:`record_moments` collected.

    Args:
        options: of :func:`collapse_report`.

    Raises:
        SignalError: nothing was collected.
    """
    if not taken:
        raise SignalError("no input went through a Gaussian bottleneck")
    return {
        name: collapse_report(
            *(
                np.concatenate([part.numpy() for part in column])
                for column in zip(*rows, strict=True)
            ),
            **options,
        )
        for name, rows in taken.items()
    }


@dataclass(frozen=True, kw_only=True)
class _Findings:
    """The counts that decide what is said of a bottleneck."""

    num_items: int
    num_active: int
    num_collapsed: int
    num_units: int
    delta: float
    num_directions: int
    num_allowed: int | None
    num_unconditional: int | None
    data_rank: int | None
    threshold: float | None

    def cause(self) -> str:
        """The likeliest reason for what is seen, as one sentence."""
        if self.num_items < 2:
            return "One input cannot show what varies between inputs."
        if self.data_rank == 0:
            return "The inputs do not differ, so there is nothing to encode."
        few = self.delta * self.num_units
        if self.num_collapsed <= few and self.num_active >= self.num_units - few:
            return (
                f"No collapse: {self.num_active:,} of {self.num_units:,} units tell inputs apart."
            )
        seen = (
            f"{self.num_active:,} of {self.num_units:,} units are active and "
            f"{self.num_collapsed:,} equal the prior"
        )
        if self.num_allowed is not None:
            return f"{seen}; {self._against_prediction(self.num_allowed)}."
        if not self.num_active and not self.num_collapsed:
            return (
                f"{seen}; their posteriors differ from the prior but not between inputs, as when "
                "variances are fixed or the encoder has not learned to look."
            )
        if self.num_collapsed:
            return (
                f"{seen}; the KL weight charges them more than the decoder gains, or the decoder "
                "learned to do without them before they said anything."
            )
        return f"{seen}; the others keep a constant mean, which costs nats and says nothing."

    def _against_prediction(self, allowed: int) -> str:
        # Items of few inputs span few directions: no more than that can be seen.
        visible = min(allowed, self.num_units, self.num_items - 1)
        if self.num_directions < 0.9 * visible:
            return (
                f"the loss lets {allowed:,} directions of the data through but only "
                f"{self.num_directions:,} are used: training lost them, so rest the KL at first"
            )
        if self.num_unconditional is not None and allowed < min(
            self.num_unconditional, self.num_units
        ):
            return (
                f"the condition explains the rest: it leaves {allowed:,} of "
                f"{self.num_unconditional:,} directions above the threshold {self.threshold:.3g}"
            )
        if self.data_rank is not None and self.data_rank <= allowed < self.num_units:
            return f"the data spans only {self.data_rank:,} directions, fewer than there are units"
        if allowed < self.num_units:
            return (
                f"the KL weight is the cause: {allowed:,} directions of the data are above its "
                f"threshold {self.threshold:.3g}"
            )
        return "the loss would let every unit through, and the directions in use are as many"


def _posteriors(mean: ArrayLike, variance: ArrayLike) -> tuple[Array, Array, tuple[int, ...]]:
    means, variances = (np.asarray(v, np.float64) for v in (mean, variance))
    if means.shape != variances.shape or means.ndim < 2 or not means.size:
        raise SignalError(
            f"means and variances are (n, ...) alike, got {means.shape} and {variances.shape}"
        )
    if not (np.isfinite(means).all() and np.isfinite(variances).all() and (variances > 0).all()):
        raise SignalError("posteriors have means or variances that are not finite, or no variance")
    flat = (len(means), -1)
    return means.reshape(flat), variances.reshape(flat), means.shape[1:]


def _above(eigenvalues: Array, threshold: float | None) -> int:
    if threshold is None or not threshold > 0:
        raise ConfigError(f"eigenvalues need a positive threshold beside them, got {threshold}")
    if not eigenvalues.size or not np.isfinite(eigenvalues).all():
        raise SignalError("a spectrum is a list of finite eigenvalues")
    return int((eigenvalues > threshold).sum())


def _count(reduction: Reduction, count: int | None) -> int:
    return count if reduction == "mean" and count else 1
