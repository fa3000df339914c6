"""Closed forms of collapse: what they say, what they survive, and that they need no torch."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.core.seeding import numpy_rng
from polytok.systems.theory.posterior_collapse import (
    LinearOptimum,
    cvae_optimum,
    linear_vae_optimum,
    mhvae_optimum,
    predict_collapse,
    spectra,
)

EIGENVALUES = np.array([6.0, 3.0, 1.2, 0.5, 0.2])
COV = np.diag(EIGENVALUES)
SCALES = st.floats(0.2, 3.0)


def rotation(size: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(numpy_rng(seed, "rotation").normal(size=(size, size)))[0]


def joint(seed: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of a covariance of 3 + 5 variables."""
    mixing = numpy_rng(seed, "joint").normal(size=(8, 8))
    whole = mixing @ mixing.T / 4
    return whole[:3, :3], whole[3:, 3:], whole[:3, 3:]


def test_it_imports_no_torch() -> None:
    code = (
        "import sys\n"
        "from polytok.systems.theory.posterior_collapse import predict_collapse\n"
        "assert predict_collapse(eigenvalues=[2, 1, .1], eta_dec=.5).num_active == 2\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@given(values=arrays(np.float64, 6, elements=st.floats(0.0, 50.0)), h=SCALES, e=SCALES, beta=SCALES)
@settings(deadline=None)
def test_the_loss_is_reverse_water_filling(
    values: np.ndarray, h: float, e: float, beta: float
) -> None:
    """Loss and nats of a learnable-variance VAE are sums over modes above the water level."""
    found = linear_vae_optimum(np.diag(values), eta_dec=h, eta_enc=e, beta=beta, latent_dim=4)
    theta2, level = np.sort(values)[::-1], beta * h**2
    above = theta2[:4][theta2[:4] > level]
    log = np.log(above / level)
    lost = theta2[len(above) :].sum() / h**2
    assert found.loss == pytest.approx((beta * (1 + log).sum() + lost) / 2, rel=1e-9, abs=1e-9)
    assert found.kl == pytest.approx(np.pad(log / 2, (0, 4 - len(above))), abs=1e-9)
    assert found.num_active == len(above)
    assert (found.collapsed == ~found.active).all()


@given(h=SCALES, e=SCALES, beta=SCALES, c=st.floats(0.3, 4.0))
@settings(deadline=None, max_examples=30)
def test_only_ratios_matter(h: float, e: float, beta: float, c: float) -> None:
    """Rotating data changes nothing; scaling it by c is scaling the decoder's noise by 1 / c."""
    base = linear_vae_optimum(COV, eta_dec=h, eta_enc=e, beta=beta)
    turn = rotation(5)
    turned = linear_vae_optimum(turn @ COV @ turn.T, eta_dec=h, eta_enc=e, beta=beta)
    near = {"rel": 1e-6, "abs": 1e-6}
    assert turned.omega == pytest.approx(base.omega, **near)
    assert turned.lam == pytest.approx(base.lam, **near)
    scaled = linear_vae_optimum(c**2 * COV, eta_dec=h, eta_enc=e, beta=beta)
    quiet = linear_vae_optimum(COV, eta_dec=h / c, eta_enc=e, beta=beta)
    if np.abs(EIGENVALUES * c**2 - beta * h**2).min() > 1e-9:
        assert (scaled.active == quiet.active).all()
    assert scaled.omega == pytest.approx(c * quiet.omega, **near)
    assert scaled.lam == pytest.approx(quiet.lam, **near)
    assert scaled.loss == pytest.approx(quiet.loss, **near)


def test_more_dimensions_than_rank_collapse() -> None:
    found = linear_vae_optimum(COV, eta_dec=0.1, latent_dim=9)
    assert found.num_active == 5 and found.collapsed[5:].all() and not found.kl[5:].any()
    assert "rank 5" in " ".join(found.caveats)


def test_fixed_variances_are_sorted_and_their_low_rank_is_no_collapse() -> None:
    shuffled = (0.6, 0.1, 0.3, 0.9)
    found = linear_vae_optimum(COV, eta_dec=1.0, beta=2.0, variances=shuffled)
    assert found.variances.tolist() == sorted(shuffled)
    assert found.threshold == pytest.approx(2.0 * np.sort(shuffled))
    assert not found.collapsed.any() and found.num_active < 4
    assert (found.kl > 0).all()
    prior = linear_vae_optimum(COV, eta_dec=1.0, beta=2.0, variances=(1.0,) * 4)
    assert prior.collapsed.tolist() == [False, False, True, True]


def test_a_learnable_variance_is_never_worse() -> None:
    free = linear_vae_optimum(COV, eta_dec=0.8, latent_dim=4)
    for fixed in ((0.5,) * 4, tuple(free.variances), (0.1, 0.3, 0.2, 0.6)):
        assert linear_vae_optimum(COV, eta_dec=0.8, variances=fixed).loss >= free.loss - 1e-9
    same = linear_vae_optimum(COV, eta_dec=0.8, variances=tuple(free.variances))
    assert same.loss == pytest.approx(free.loss) and same.omega == pytest.approx(free.omega)


def test_a_target_of_its_own_is_an_autoencoder_of_what_can_be_predicted() -> None:
    a, b, c = joint()
    itself = linear_vae_optimum(b, target=b, cross=b, eta_dec=0.5)
    plain = linear_vae_optimum(b, eta_dec=0.5)
    assert itself.loss == pytest.approx(plain.loss) and itself.omega == pytest.approx(plain.omega)
    other = linear_vae_optimum(a, target=b, cross=c, eta_dec=0.5)
    assert spectra.rank(other.eigenvalues) == 3 and other.loss > plain.loss
    with pytest.raises(ConfigError, match="both"):
        linear_vae_optimum(a, target=b, eta_dec=0.5)


def test_a_condition_takes_what_it_predicts() -> None:
    a, b, c = joint()
    plain = linear_vae_optimum(b, eta_dec=0.7)
    none = cvae_optimum(a, b, np.zeros_like(c), eta_dec=0.7)
    assert none.loss == pytest.approx(plain.loss) and none.num_active == plain.num_active
    some = cvae_optimum(a, b, c, eta_dec=0.7)
    assert some.num_active <= plain.num_active and some.loss < plain.loss
    assert (some.eigenvalues <= plain.eigenvalues + 1e-12).all()
    everything = cvae_optimum(b, b, b, eta_dec=0.7)
    assert everything.num_active == 0 and everything.collapsed.all()
    assert everything.regression == pytest.approx(np.eye(5), abs=1e-6)
    assert everything.loss == pytest.approx(0, abs=1e-9)


def test_a_singular_condition_uses_the_pseudo_inverse() -> None:
    a, b, c = joint()
    twice = np.block([[a, a], [a, a]])
    once = cvae_optimum(a, b, c, eta_dec=0.7)
    found = cvae_optimum(twice, b, np.concatenate([c, c]), eta_dec=0.7)
    assert found.loss == pytest.approx(once.loss)
    assert found.eigenvalues == pytest.approx(once.eigenvalues)


def test_hierarchies_lose_their_upper_level_as_its_weight_rises() -> None:
    options = {"eta_dec": 0.5, "variance1": 0.4}
    found = [mhvae_optimum(COV, beta2=b, **options) for b in (0.1, 0.3, 1.0, 3.0, 10.0)]
    kl2 = [f.kl2.sum() for f in found]
    assert all(b < a for a, b in pairwise(kl2) if a > 0)
    assert not found[-1].active2.any() and found[-1].active1.any()
    for f in found:
        informed = f.threshold2 < EIGENVALUES
        assert (informed == (f.active1 & f.active2)).all()
        assert ((f.threshold1 < EIGENVALUES) == f.active1).all()


def test_thresholds_hold_with_both_variances_fixed() -> None:
    for beta2 in (0.3, 1.0, 3.0):
        f = mhvae_optimum(COV, eta_dec=0.8, beta2=beta2, variance1=0.5, variance2=0.4)
        assert ((f.threshold1 < EIGENVALUES) == f.active1).all()
        assert ((f.threshold2 < EIGENVALUES) == (f.active1 & f.active2)).all()


def test_loud_lower_levels_keep_the_upper_one_busy_with_noise() -> None:
    found = mhvae_optimum(COV, eta_dec=2.0, beta2=0.5, variance1=0.9)
    silent = ~found.active1
    assert silent.any() and found.active2[silent].all()
    assert any("noise" in c for c in found.caveats)


def test_two_learnable_variances_are_degenerate() -> None:
    options = {"eta_dec": 0.5, "variance1": None}
    heavy = mhvae_optimum(COV, beta1=1.0, beta2=2.0, **options)
    assert heavy.kind == "unique" and not heavy.active2.any()
    plain = linear_vae_optimum(COV, eta_dec=0.5)
    assert heavy.loss == pytest.approx(plain.loss)
    flat = mhvae_optimum(COV, beta1=1.0, beta2=1.0, **options)
    assert flat.kind == "flat" and flat.loss == pytest.approx(plain.loss) and flat.caveats
    free = mhvae_optimum(COV, beta1=2.0, beta2=1.0, latent_dims=(5, 2), **options)
    assert free.kind == "unbounded" and free.loss == -np.inf and free.caveats
    assert np.isinf(free.lam[:2]).all() and np.isfinite(free.lam[2:]).all()
    assert free.active2.all() and not free.variances2.any()


def test_the_fourth_case_is_flat_where_modes_compete() -> None:
    options = {"eta_dec": 0.5, "variance1": None, "variance2": 0.2}
    assert mhvae_optimum(COV, latent_dims=(5, 5), **options).kind == "unique"
    assert mhvae_optimum(COV, latent_dims=(5, 2), **options).kind == "flat"


def test_predictions_from_data_covariance_and_eigenvalues_agree() -> None:
    data = numpy_rng(0, "data").normal(size=(500, 5)) * np.sqrt(EIGENVALUES) + 7.0
    by_data = predict_collapse(data=data, eta_dec=0.9)
    by_cov = predict_collapse(cov=np.cov(data.T, bias=True), eta_dec=0.9)
    by_values = predict_collapse(eigenvalues=by_cov.eigenvalues[::-1], eta_dec=0.9)
    for other in (by_cov, by_values):
        assert other.eigenvalues == pytest.approx(by_data.eigenvalues)
        assert other.loss == pytest.approx(by_data.loss)
    seen = predict_collapse(data=data[:, 2:], condition=data[:, :2], eta_dec=0.5)
    a, b, c = spectra.data_covariances(data[:, :2], data[:, 2:])
    assert seen.loss == pytest.approx(cvae_optimum(a, b, c, eta_dec=0.5).loss)


@pytest.mark.parametrize("shape", [(1, 4), (3, 4), (4, 4)])
def test_few_items_are_a_caveat(shape: tuple[int, int]) -> None:
    found = predict_collapse(data=numpy_rng(0, "few").normal(size=shape), eta_dec=0.1)
    assert found.num_active <= shape[0] - 1
    assert any("span at most" in c for c in found.caveats)


def test_data_that_does_not_vary_collapses_with_a_caveat() -> None:
    for source in ({"data": np.ones((10, 3))}, {"cov": np.zeros((3, 3))}):
        found: LinearOptimum = predict_collapse(eta_dec=1.0, **source)
        assert found.num_active == 0 and found.loss == 0 and found.collapsed.all()
        assert "does not vary" in found.caveats[0]
    assert mhvae_optimum(np.zeros((2, 2)), eta_dec=1.0, variance1=0.5).caveats


def test_modes_at_the_threshold_are_a_caveat() -> None:
    found = predict_collapse(eigenvalues=[2.0, 1.0, 0.5], eta_dec=1.0)
    assert found.num_active == 1
    assert any("threshold" in c for c in found.caveats)


def test_a_singular_covariance_is_a_result() -> None:
    tall = numpy_rng(1, "tall").normal(size=(6, 2))
    found = linear_vae_optimum((tall @ tall.T).astype(np.float32), eta_dec=0.1)
    assert found.num_active == 2


BAD = {
    "square": np.ones((2, 3)),
    "shape": np.ones(3),
    "symmetric": np.array([[1.0, 0.5], [0.1, 1.0]]),
    "negative": np.array([[1.0, 2.0], [2.0, 1.0]]),
    "NaN": np.array([[1.0, np.nan], [np.nan, 1.0]]),
    "infinite": np.array([[np.inf, 0.0], [0.0, 1.0]]),
    "real numbers": np.array([["a", "b"], ["c", "d"]]),
    "one shape": [[1.0], [1.0, 2.0]],
    "()": 3.0,
    "(0, 0)": np.zeros((0, 0)),
}


@pytest.mark.parametrize("text", BAD)
def test_no_covariance_is_refused(text: str) -> None:
    with pytest.raises(SignalError) as caught:
        linear_vae_optimum(BAD[text], eta_dec=1.0)
    assert text in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"eta_dec": 0.0},
        {"eta_dec": float("nan")},
        {"eta_dec": 1.0, "beta": -1.0},
        {"eta_dec": 1.0, "latent_dim": 0},
        {"eta_dec": 1.0, "eigenvalues": [1.0]},
        {"eta_dec": 1.0, "cov": None},
        {"eta_dec": 1.0, "condition": np.ones((2, 2))},
        {"eta_dec": 1.0, "cov": None, "eigenvalues": [-1.0, 2.0]},
        {"eta_dec": 1.0, "cov": None, "eigenvalues": []},
        {"eta_dec": 1.0, "cov": None, "data": np.ones((3, 2)), "condition": np.ones((2, 2))},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(PolytokError):
        predict_collapse(**{"cov": COV, **options})


def test_fixed_variances_and_blocks_must_fit() -> None:
    with pytest.raises(ConfigError, match="positive numbers"):
        linear_vae_optimum(COV, eta_dec=1.0, variances=(1.0, 0.0))
    with pytest.raises(ConfigError, match="2 positive"):
        linear_vae_optimum(COV, eta_dec=1.0, latent_dim=2, variances=(1.0, 1.0, 1.0))
    a, b, c = joint()
    with pytest.raises(SignalError, match="shape"):
        cvae_optimum(a, b, c.T, eta_dec=1.0)
    with pytest.raises(SignalError, match="negative"):
        cvae_optimum(a, b, 10 * c, eta_dec=1.0)
    with pytest.raises(ConfigError, match="variance1"):
        mhvae_optimum(COV, eta_dec=1.0, variance1=-1.0)
