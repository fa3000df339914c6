"""Reports of Gaussian bottlenecks: counts, bounds, causes, and what a training loss amounts to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from polytok.bottlenecks import GaussianBottleneck
from polytok.core.contracts import Bottleneck, Codes, Tokenizer, TokenizerSpec
from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.core.seeding import numpy_rng
from polytok.metrics import (
    CollapseReport,
    LossScale,
    collapse_report,
    measure_collapse,
    record_moments,
)
from polytok.systems.theory.posterior_collapse import predict_collapse


def posteriors(spreads: list[float], n: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Means of these variances, and what is missing to a prior of variance 1."""
    means = numpy_rng(0, "means").normal(size=(n, len(spreads))) * np.sqrt(spreads)
    return means, np.broadcast_to(1.0 - np.asarray(spreads), means.shape)


def test_it_counts_units_and_nats() -> None:
    means, variances = posteriors([0.9, 0.5, 0.02, 0.0])
    report = collapse_report(means, variances)
    wanted = kl_divergence(
        Normal(torch.from_numpy(means), torch.from_numpy(variances.copy()).sqrt()), Normal(0.0, 1.0)
    )
    assert report.kl == pytest.approx(wanted.mean(0).numpy())
    assert report.rate == pytest.approx(float(wanted.sum(1).mean()))
    assert report.active.tolist() == [True, True, True, False]
    assert report.collapsed.tolist() == [False, False, False, True]
    assert report.num_directions == 3
    assert report.spectrum == pytest.approx(
        np.sort(np.linalg.eigvalsh(np.cov(means.T, bias=True)))[::-1], abs=1e-9
    )


def test_directions_do_not_depend_on_rotations() -> None:
    means, variances = posteriors([0.5, 0.5, 0.0, 0.0])
    turn = np.linalg.qr(numpy_rng(1, "turn").normal(size=(4, 4)))[0]
    turned = collapse_report(means @ turn, np.full_like(means, 0.5))
    assert turned.active.all() and turned.num_directions == 2
    assert collapse_report(means, variances).num_directions == 2


@given(
    shift=st.floats(-3, 3),
    spread=st.floats(0.0, 4.0),
    variance=st.floats(0.01, 3.0),
    units=st.integers(1, 4),
)
@settings(deadline=None, max_examples=40)
def test_the_information_bound_is_below_the_rate(
    shift: float, spread: float, variance: float, units: int
) -> None:
    means = shift + spread * numpy_rng(0, "any").normal(size=(50, units))
    report = collapse_report(means, np.full_like(means, variance))
    assert -1e-9 <= report.information <= report.rate + 1e-9


def test_the_information_of_a_gaussian_channel_is_exact() -> None:
    """One unit with Gaussian means: I = log(1 + S / N) / 2, the capacity at that power."""
    means = numpy_rng(2, "channel").normal(size=(200_000, 1)) * 2.0
    report = collapse_report(means, np.full_like(means, 0.5))
    assert report.information == pytest.approx(0.5 * np.log(1 + 4 / 0.5), rel=0.01)


def test_eps_and_delta_decide_collapse() -> None:
    means = np.zeros((100, 1))
    means[:7] = 2.0
    ones = np.ones_like(means)
    assert not collapse_report(means, ones).collapsed.any()
    assert collapse_report(means, ones, delta=0.1).collapsed.all()
    assert collapse_report(means, ones, eps=3.0).collapsed.all()
    assert collapse_report(means, ones).silent_share == pytest.approx([0.93])


def test_tokens_and_channels_are_units() -> None:
    means = numpy_rng(0, "tokens").normal(size=(64, 5, 3))
    report = collapse_report(means, np.full_like(means, 0.1))
    assert report.unit_shape == (5, 3) and report.num_units == 15
    flat = collapse_report(means.reshape(64, 15), np.full((64, 15), 0.1))
    assert flat.rate == pytest.approx(report.rate)


def cause(spreads: list[float], **options: Any) -> str:
    return collapse_report(*posteriors(spreads), **options).cause


CAUSES = {
    "No collapse: 2 of 2": lambda: cause([0.5, 0.5]),
    "One input": lambda: collapse_report(np.zeros((1, 2)), np.ones((1, 2))).cause,
    "do not differ": lambda: cause([0.5, 0.0], eigenvalues=[0.0, 0.0], threshold=1.0),
    "KL weight is the cause": lambda: cause([0.5, 0.0], eigenvalues=[3.0, 0.5], threshold=1.0),
    "spans only 1": lambda: cause([0.5, 0.0], eigenvalues=[3.0, 0.0], threshold=1.0),
    "training lost them": lambda: cause([0.5, 0.0], eigenvalues=[3.0, 2.0], threshold=1.0),
    "the condition explains": lambda: cause(
        [0.5, 0.0], eigenvalues=[3.0, 2.0], residual=[3.0, 0.1], threshold=1.0
    ),
    "charges them more": lambda: cause([0.5, 0.0]),
    "not between inputs": lambda: collapse_report(np.ones((9, 2)), np.full((9, 2), 0.5)).cause,
    "keep a constant mean": lambda: (
        collapse_report(np.stack([np.arange(9.0), np.ones(9)], 1), np.full((9, 2), 0.5)).cause
    ),
}


@pytest.mark.parametrize("words", CAUSES)
def test_the_cause_is_named(words: str) -> None:
    text = CAUSES[words]()
    assert words in text and text.endswith(".") and "\n" not in text


def test_a_report_is_json() -> None:
    import json

    report: CollapseReport = collapse_report(
        *posteriors([0.5, 0.0]), eigenvalues=[3.0, 0.5], threshold=1.0
    )
    facts = json.loads(json.dumps(report.summary()))
    assert facts["active_units"] == facts["collapsed_units"] == facts["predicted_directions"] == 1
    assert facts["threshold"] == 1.0 and facts["cause"] == report.cause


@pytest.mark.parametrize(
    ("mean", "variance", "options"),
    [
        (np.zeros((3, 2)), np.ones((3, 1)), {}),
        (np.zeros(3), np.ones(3), {}),
        (np.zeros((0, 2)), np.ones((0, 2)), {}),
        (np.full((3, 2), np.nan), np.ones((3, 2)), {}),
        (np.zeros((3, 2)), np.zeros((3, 2)), {}),
        (np.zeros((3, 2)), np.ones((3, 2)), {"eps": 0.0}),
        (np.zeros((3, 2)), np.ones((3, 2)), {"delta": 1.0}),
        (np.zeros((3, 2)), np.ones((3, 2)), {"eigenvalues": [1.0]}),
        (np.zeros((3, 2)), np.ones((3, 2)), {"eigenvalues": [], "threshold": 1.0}),
        (np.zeros((3, 2)), np.ones((3, 2)), {"eigenvalues": [np.nan], "threshold": 1.0}),
    ],
)
def test_bad_posteriors_are_refused(
    mean: np.ndarray, variance: np.ndarray, options: dict[str, Any]
) -> None:
    with pytest.raises(PolytokError):
        collapse_report(mean, variance, **options)


@pytest.mark.parametrize("error", ["squared", "half_squared"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("kl_reduction", ["sum", "mean"])
def test_a_loss_is_its_beta_elbo_up_to_a_factor(
    error: str, reduction: str, kl_reduction: str
) -> None:
    """Both objectives differ by one constant factor, whatever the error and the nats are."""
    elements, units, weight = 6, 4, 0.3
    scale = LossScale(
        weight=weight,
        error=error,
        reduction=reduction,
        elements=elements,
        kl_reduction=kl_reduction,
        units=units,
    )
    rng = numpy_rng(0, error, reduction, kl_reduction)
    ratios = []
    for _ in range(3):
        gap, kl = rng.normal(size=elements), rng.random(units)
        terms = gap**2 * (0.5 if error == "half_squared" else 1.0)
        loss = getattr(terms, reduction)() + weight * getattr(kl, kl_reduction)()
        elbo = (gap**2).sum() / (2 * scale.eta_dec2) + scale.beta * kl.sum()
        ratios.append(loss / elbo)
    assert ratios == pytest.approx([1.0] * 3)
    assert scale.threshold == pytest.approx(scale.beta * scale.eta_dec2)


def test_the_usual_losses_have_the_thresholds_of_the_docs() -> None:
    assert LossScale(weight=0.2, reduction="mean", elements=10).threshold == pytest.approx(1.0)
    assert LossScale(weight=0.2, error="half_squared").threshold == pytest.approx(0.2)
    assert LossScale(weight=0.2).threshold == pytest.approx(0.1)


def test_cross_entropy_is_to_second_order_a_squared_error_of_standardised_targets() -> None:
    p, gap = torch.tensor([0.1, 0.5, 0.8], dtype=torch.float64), 1e-4
    scale = LossScale(weight=1.0, error="cross_entropy", reduction="mean", elements=3)

    def loss(q: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy(q, p)

    rise = float(loss(p + gap) - loss(p))
    squares = float((gap**2 / (p * (1 - p))).sum())
    assert rise == pytest.approx(squares / (2 * scale.eta_dec2), rel=1e-2)


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 0.0},
        {"weight": float("nan")},
        {"weight": 1.0, "error": "l1"},
        {"weight": 1.0, "reduction": "median"},
        {"weight": 1.0, "reduction": "mean"},
        {"weight": 1.0, "kl_reduction": "mean", "units": 0},
    ],
)
def test_bad_losses_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        LossScale(**options)


class Small(Tokenizer):
    """Two Gaussian bottlenecks in a row; the first stands for the tokenizer's own."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = TokenizerSpec(modality="image", output=None, latent_dim=3)
        self.bottleneck: Bottleneck = GaussianBottleneck(4, 3)
        self.second = GaussianBottleneck(3, 2)

    def encode(self, batch: dict[str, Any], *, rng: torch.Generator | None = None) -> Codes:
        latents = self.bottleneck(batch["rows"], rng=rng).latents
        return Codes(latents=self.second(latents).latents)


def test_every_gaussian_bottleneck_is_measured() -> None:
    model = Small()
    batches = [{"rows": torch.randn(8, 5, 4)} for _ in range(3)]
    reports = measure_collapse(model, batches, eps=0.02)
    assert reports.keys() == {"bottleneck", "second"}
    assert {n: r.unit_shape for n, r in reports.items()} == {"bottleneck": (5, 3), "second": (5, 2)}
    mean, log_variance = model.bottleneck.moments(torch.cat([b["rows"] for b in batches]))
    wanted = collapse_report(mean.detach().numpy(), log_variance.detach().exp().numpy(), eps=0.02)
    assert reports["bottleneck"].rate == pytest.approx(wanted.rate)
    assert reports["bottleneck"].num_items == 24
    # The mean over units is the loss that the bottleneck itself charges.
    charged = torch.stack([model.bottleneck(b["rows"]).losses["kl"] for b in batches]).mean()
    assert reports["bottleneck"].kl.mean() == pytest.approx(float(charged.detach()), rel=1e-5)


def test_recording_ends_with_its_block_and_changes_nothing() -> None:
    model = Small()
    batch = {"rows": torch.randn(2, 5, 4)}
    before = model.encode(batch).latents
    with record_moments(model) as taken:
        inside = model.encode(batch).latents
    model.encode(batch)
    assert torch.equal(before, inside)
    assert [len(rows) for rows in taken.values()] == [1, 1]


def test_models_and_inputs_must_have_something_to_measure() -> None:
    with pytest.raises(ConfigError, match="no Gaussian"):
        measure_collapse(nn.Linear(2, 2), [])
    with pytest.raises(SignalError, match="no input"):
        measure_collapse(Small(), [])


def test_a_prediction_and_a_perfect_model_agree() -> None:
    eigenvalues = np.array([4.0, 2.0, 0.5])
    wanted = predict_collapse(eigenvalues=eigenvalues, eta_dec=1.0)
    means = numpy_rng(0, "perfect").normal(size=(5000, 3)) * wanted.lam
    report = collapse_report(
        means,
        np.broadcast_to(wanted.variances, means.shape),
        eigenvalues=eigenvalues,
        threshold=float(wanted.threshold[0]),
    )
    assert report.num_predicted == wanted.num_active == int(report.active.sum())
    assert report.kl == pytest.approx(wanted.kl, abs=0.02)
    assert "KL weight is the cause" in report.cause
