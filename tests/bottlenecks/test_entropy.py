"""Entropy terms against tables of all probabilities."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import (
    IBQ,
    BinarySphericalQuantizer,
    LookupFreeQuantizer,
    VectorQuantizer,
    entropy,
)
from polytok.core.errors import ConfigError


def brute(logits: Tensor) -> dict[str, Tensor]:
    """Both terms of logits (n, V), in float64."""
    p = logits.double().softmax(-1)
    mean = p.mean(0)
    sample = -torch.special.xlogy(p, p).sum(-1).mean()
    return {"vq/entropy_sample": sample, "vq/entropy_batch": torch.special.xlogy(mean, mean).sum()}


def check(losses: dict[str, Tensor], logits: Tensor, tolerance: float = 1e-4) -> None:
    for name, wanted in brute(logits).items():
        torch.testing.assert_close(losses[name].double(), wanted, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 3.0])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("size", [2, 64])
def test_vq_entropies_are_those_of_negative_squared_distances(
    temperature: float, metric: str, size: int
) -> None:
    quantizer = VectorQuantizer(size, 4, metric=metric, entropy_temperature=temperature)  # type: ignore[arg-type]
    z = torch.randn(3, 20, 4)
    unit = quantizer.normalise(z).double().flatten(0, 1)
    squares = torch.cdist(unit, quantizer.codes.double()).square()
    check(quantizer(z).losses, -squares / temperature, 1e-3)


def test_ibq_entropies_are_those_of_scores() -> None:
    quantizer, z = IBQ(40, 4, entropy_temperature=0.1), torch.randn(3, 20, 4)
    check(quantizer(z).losses, z.flatten(0, 1) @ quantizer.codes.T / 0.1, 1e-3)


def words(num_bits: int) -> Tensor:
    """All signs (2^b, b), bit j of the row's number in column j."""
    rows = [bits[::-1] for bits in itertools.product((-1.0, 1.0), repeat=num_bits)]
    return torch.tensor(rows)


@pytest.mark.parametrize("num_bits", [1, 2, 5, 6])
@pytest.mark.parametrize("temperature", [0.01, 1.0])
def test_lfq_entropies_are_those_of_all_words(num_bits: int, temperature: float) -> None:
    quantizer = LookupFreeQuantizer(num_bits, entropy_temperature=temperature)
    z = 0.3 * torch.randn(4, 15, num_bits)
    logits = 2 * z.flatten(0, 1) @ words(num_bits).T / temperature
    check(quantizer(z).losses, logits)


def test_bsq_entropies_are_those_of_all_words_of_the_sphere() -> None:
    quantizer = BinarySphericalQuantizer(6, entropy_temperature=0.2)
    z = torch.randn(4, 15, 6)
    unit = torch.nn.functional.normalize(z.flatten(0, 1), dim=-1)
    check(quantizer(z).losses, 2 * unit @ (words(6) / 6**0.5).T / 0.2)


def test_groups_are_summed_and_one_group_of_all_bits_is_the_whole() -> None:
    logits = torch.randn(30, 6)
    whole, parts = entropy.bit_entropies(logits, (6,)), entropy.bit_entropies(logits, (4, 2))
    split = [entropy.bit_entropies(part, (part.shape[1],)) for part in logits.split((4, 2), dim=1)]
    for name in whole:
        torch.testing.assert_close(parts[name], split[0][name] + split[1][name])
    # A token's bits are independent, those of a batch are not.
    torch.testing.assert_close(whole["vq/entropy_sample"], parts["vq/entropy_sample"])
    assert float(-whole["vq/entropy_batch"]) < float(-parts["vq/entropy_batch"])


def test_gradients_equal_those_of_the_table() -> None:
    z = (0.5 * torch.randn(1, 40, 6)).requires_grad_()
    losses = LookupFreeQuantizer(6, entropy_temperature=1.0)(z).losses
    table = brute(2 * z[0] @ words(6).T)
    for name, wanted in table.items():
        found = torch.autograd.grad(losses[name], z, retain_graph=True)[0]
        expected = torch.autograd.grad(wanted, z, retain_graph=True)[0]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-3)


def test_sure_and_even_choices_reach_the_bounds() -> None:
    z = (10 * words(4)[None]).requires_grad_()
    losses = LookupFreeQuantizer(4, entropy_temperature=0.01)(z).losses
    assert losses["vq/entropy_sample"].item() == pytest.approx(0, abs=1e-6)
    assert losses["vq/entropy_batch"].item() == pytest.approx(-4 * 0.6931472, rel=1e-5)
    sum(losses.values()).backward()
    assert bool(z.grad.isfinite().all())
    same = LookupFreeQuantizer(4, entropy_temperature=0.01)(torch.full((1, 9, 4), 5.0)).losses
    assert float(same["vq/entropy_batch"]) == pytest.approx(0, abs=1e-6)


def test_eighteen_bits_are_exact_without_a_table() -> None:
    # Independent bits over the batch: the entropy of the mean is the sum over bits.
    base = torch.randn(18)
    losses = entropy.bit_entropies(base.expand(50, 18), (18,))
    p = base.double().sigmoid()
    wanted = -(torch.special.xlogy(p, p) + torch.special.xlogy(1 - p, 1 - p)).sum()
    assert float(-losses["vq/entropy_batch"]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(losses["vq/entropy_sample"]) == pytest.approx(float(wanted), rel=1e-5)


def test_more_bits_than_a_table_can_hold_are_refused_with_the_way_out() -> None:
    quantizer = LookupFreeQuantizer(36, entropy_temperature=0.01)
    with pytest.raises(ConfigError, match=r"2\^36 codes: split the bits, 24 at most"):
        quantizer(torch.randn(1, 2, 36))


def test_nothing_is_computed_for_entropies_that_are_not_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("computed")

    for name in (
        "vq.code_entropies",
        "ibq.code_entropies",
        "bits.bit_entropies",
    ):
        monkeypatch.setattr(f"polytok.bottlenecks.{name}", refuse)
    for quantizer in (
        VectorQuantizer(8, 4),
        IBQ(8, 4),
        LookupFreeQuantizer(4),
        BinarySphericalQuantizer(4),
    ):
        assert not any("entropy" in name for name in quantizer(torch.randn(2, 3, 4)).losses)
