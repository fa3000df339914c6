"""Quantizers without a table: finite scalars and signs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from polytok.bottlenecks import (
    BinarySphericalQuantizer,
    FiniteScalarQuantizer,
    LookupFreeQuantizer,
)
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError

FORMS = ("shifted", "symmetric")
LEVELS = [(3,), (5, 3), (8, 5, 4), (7, 5, 5), (8, 6, 5)]


def grid(channels: int, steps: int = 42) -> Tensor:
    """A grid (1, steps^channels, channels), even after tanh, that almost reaches its ends."""
    line = torch.atanh(torch.linspace(-0.9999, 0.9999, steps))
    return torch.cartesian_prod(*[line] * channels).view(1, -1, channels)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_all_codes_and_no_others_are_reached(levels: tuple[int, ...], form: str) -> None:
    quantizer = FiniteScalarQuantizer(levels, form=form)  # type: ignore[arg-type]
    out = quantizer(grid(len(levels)))
    assert quantizer.vocab_sizes == (math.prod(levels),)
    assert out.indices[0].unique().tolist() == list(range(math.prod(levels)))
    values = [sorted(column.unique().tolist()) for column in out.latents[0].T]
    assert [len(v) for v in values] == list(levels)
    for found, count in zip(values, levels, strict=True):
        if form == "symmetric" or count % 2:
            assert found == [-v for v in reversed(found)]
            assert found[-1] == 1.0
        else:
            assert found[0] == -1.0 and found[-1] == pytest.approx(1 - 2 / count)
        gaps = [b - a for a, b in itertools.pairwise(found)]
        assert max(gaps) - min(gaps) < 1e-6


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_ids_count_the_first_channel_fastest(form: str) -> None:
    quantizer = FiniteScalarQuantizer((4, 3, 5), form=form)  # type: ignore[arg-type]
    codes = quantizer.codes
    for number, (c, b, a) in enumerate(itertools.product(range(5), range(3), range(4))):
        for column, digit in zip(codes.T, (a, b, c), strict=True):
            assert column[number] == column.unique().sort().values[digit]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_bounded_values_are_rounded_to_the_nearest_and_stay(form: str) -> None:
    levels = (8, 7, 6, 5, 4, 3)
    quantizer = FiniteScalarQuantizer(levels, form=form)  # type: ignore[arg-type]
    z = 2 * torch.randn(1, 4000, 6)
    out = quantizer(z)
    shift, gain, offset, _, centre, unit = quantizer.constants.double()
    bounded = (torch.tanh(z.double() + shift) * gain + offset - centre) / unit
    if form == "symmetric":
        bounded = bounded - 0.5 / unit  # its floor of x + 1/2 rounds x
    assert float(((out.latents - bounded) * unit).abs().max()) <= 0.5 + 1e-5
    # Quantizing is a projection of the bounded values: their inputs give the same ids.
    stretched = out.latents.double() * unit + centre - offset + (form == "symmetric") * 0.5
    inside = (stretched / gain).clamp(-1 + 1e-9, 1 - 1e-9)
    again = quantizer((torch.atanh(inside) - shift).float())
    assert torch.equal(again.indices[0], out.indices[0])


def published(z: float, levels: int, form: str) -> float:
    """One channel, in numbers: 2309.15505, appendix A.1, and 2411.19842, equation 7."""
    if form == "symmetric":
        steps = levels - 1
        return 2 * math.floor(steps * (math.tanh(z) + 1) / 2 + 0.5) / steps - 1
    half = (levels - 1) * 1.001 / 2
    offset = 0.0 if levels % 2 else 0.5
    shift = math.atanh(offset / half)
    return round(math.tanh(z + shift) * half - offset) / (levels // 2)


@pytest.mark.parametrize("levels", [3, 4, 5, 8, 1000])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_values_are_those_of_the_papers(form: str, levels: int) -> None:
    z = torch.cat([torch.linspace(-9, 9, 1801), torch.linspace(-1, 1, 777)]).double()
    found = FiniteScalarQuantizer((levels,), form=form)(z.view(1, -1, 1)).latents.flatten()  # type: ignore[arg-type]
    wanted = torch.tensor([published(v, levels, form) for v in z.tolist()])
    # At edges between levels fp32 may fall to the other side.
    apart = (found - wanted).abs() > 1e-6
    assert float(apart.float().mean()) < (0.01 if levels < 1000 else 0.05)
    assert float((found - wanted).abs().max()) <= 2 / (levels - 1) + 1e-5
    if form == "shifted":
        # Zero is a value of its own: the shift brings it to the middle of its level.
        assert not float(found[900])


@torch.no_grad()
def test_the_margin_reaches_the_outermost_levels() -> None:
    for levels in (3, 5, 8, 999, 1000):
        quantizer = FiniteScalarQuantizer((levels,))
        ends = quantizer(torch.tensor([[[-20.0], [20.0]]])).indices[0]
        assert ends.tolist() == [[0, levels - 1]]


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_latents_enter_again_through_atanh_alone(form: str) -> None:
    quantizer = FiniteScalarQuantizer((8, 5), form=form)  # type: ignore[arg-type]
    codes = quantizer.codes[None]
    assert not torch.equal(quantizer(codes).indices[0], torch.arange(40)[None])
    shift, gain, offset, _, centre, unit = quantizer.constants
    middle = codes * unit + centre - offset + (form == "symmetric") * 0.5
    entered = torch.atanh((middle / gain).clamp(-1 + 1e-6, 1 - 1e-6)) - shift
    assert torch.equal(quantizer(entered).indices[0], torch.arange(40)[None])


def test_there_is_no_second_gradient_to_be_wrong() -> None:
    z = torch.randn(1, 4, 2, requires_grad=True)
    out = FiniteScalarQuantizer((8, 5))(z).latents.square().sum()
    (first,) = torch.autograd.grad(out, z, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_that_of_the_bounded_value(form: str) -> None:
    quantizer = FiniteScalarQuantizer((8, 5, 4), form=form)  # type: ignore[arg-type]
    z = torch.randn(2, 30, 3, requires_grad=True)
    weight = torch.randn(2, 30, 3)
    shift, gain, _, _, _, unit = quantizer.constants
    wanted = torch.autograd.grad((torch.tanh(z + shift) * gain / unit * weight).sum(), z)[0]
    found = torch.autograd.grad((quantizer(z).latents * weight).sum(), z)[0]
    torch.testing.assert_close(found, wanted)


@torch.no_grad()
def test_ids_beyond_what_fp32_holds_are_exact() -> None:
    levels = (1000,) * 4  # 10^12 codes
    quantizer = FiniteScalarQuantizer(levels)
    ids = torch.randint(math.prod(levels), (5, 40))
    shift, gain, offset, _, _, unit = quantizer.constants.double()
    inside = ((quantizer.embed([ids]).double() * unit - offset) / gain).clamp(-1 + 1e-12, 1 - 1e-12)
    z = torch.atanh(inside) - shift
    out = quantizer(z)
    assert torch.equal(quantizer.embed(out.indices), out.latents)
    exact = ids - out.indices[0]
    digits = torch.stack([out.indices[0] // 1000**k % 1000 for k in range(4)], -1)
    wanted = torch.stack([ids // 1000**k % 1000 for k in range(4)], -1)
    # fp32 inputs may land one level off where tanh is flat, never elsewhere.
    assert int((digits - wanted).abs().max()) <= 1 and float((exact == 0).float().mean()) > 0.5


@pytest.mark.parametrize(
    ("levels", "form", "words"),
    [
        ((2, 3), "shifted", "2 levels need the symmetric form"),
        ((1, 3), "symmetric", "within 2.."),
        ((), "shifted", "within 3..1000"),
        ((1001,), "shifted", "within 3..1000"),
        ((1 << 20,) * 3, "symmetric", r"more than 2\^52 codes"),
    ],
)
def test_levels_that_cannot_be_are_refused(levels: tuple[int, ...], form: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FiniteScalarQuantizer(levels, form=form)  # type: ignore[arg-type]


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'shifted'"):
        FiniteScalarQuantizer((5,), form="shift")  # type: ignore[arg-type]


BITS = pytest.mark.parametrize("build", [LookupFreeQuantizer, BinarySphericalQuantizer])


@BITS
@torch.no_grad()
def test_every_word_is_reached_and_bit_j_is_channel_j(build: type) -> None:
    quantizer = build(5)
    ids = torch.arange(32)[None]
    latents = quantizer.embed([ids])
    for channel in range(5):
        assert torch.equal(latents[0, :, channel] > 0, (ids[0] >> channel) & 1 == 1)
    out = quantizer(latents * torch.rand(1, 32, 1).clamp(min=0.1))
    assert torch.equal(out.indices[0], ids)
    scale = 1.0 if build is LookupFreeQuantizer else 5**-0.5
    assert torch.equal(out.latents, latents)
    torch.testing.assert_close(latents.abs(), torch.full_like(latents, scale))


@BITS
@torch.no_grad()
def test_zero_is_a_cleared_bit(build: type) -> None:
    out = build(3)(torch.zeros(1, 1, 3))
    assert out.indices[0].item() == 0 and bool((out.latents < 0).all())


@BITS
@torch.no_grad()
def test_split_words_hold_the_same_bits(build: type) -> None:
    z = torch.randn(3, 20, 9)
    whole, split = build(9)(z), build((5, 4))(z)
    assert torch.equal(whole.latents, split.latents)
    low, high = split.indices
    assert torch.equal(low + (high << 5), whole.indices[0])
    with pytest.raises(PolytokError, match="a token needs all its bits"):
        build((5, 4)).embed([low])


@torch.no_grad()
def test_words_of_52_bits_are_exact() -> None:
    signs = torch.randint(2, (1, 50, 52)) * 2.0 - 1
    quantizer = LookupFreeQuantizer(52)
    out = quantizer(signs)
    wanted = [sum(1 << j for j, s in enumerate(row) if s > 0) for row in signs[0].tolist()]
    assert out.indices[0][0].tolist() == wanted
    assert torch.equal(quantizer.embed(out.indices), signs)
    for bits in (53, 0, (), (4, 0)):
        with pytest.raises(ConfigError, match="bits="):
            LookupFreeQuantizer(bits)


def test_commitment_is_the_mean_squared_distance_to_the_signs() -> None:
    z = torch.randn(2, 7, 6, requires_grad=True)
    loss = LookupFreeQuantizer(6)(z).losses["vq/commit"]
    torch.testing.assert_close(loss, (z - z.detach().sign()).square().mean())
    unit = torch.nn.functional.normalize(z, dim=-1)
    loss = BinarySphericalQuantizer(6)(z).losses["vq/commit"]
    torch.testing.assert_close(loss, (unit - z.detach().sign() / 6**0.5).square().mean())


@torch.no_grad()
def test_the_error_on_the_sphere_is_bounded() -> None:
    # The paper's bound of the expected squared error: below 2 - 2 / sqrt(D).
    for dim in (2, 8, 32):
        z = torch.randn(1, 2000, dim)
        unit = torch.nn.functional.normalize(z, dim=-1)
        error = (BinarySphericalQuantizer(dim)(z).latents - unit).square().sum(-1)
        assert float(error.max()) <= 2 - 2 / math.sqrt(dim) + 1e-5
