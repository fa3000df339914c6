"""Resamplers: pooling and lifting by the formulas, identity at full length."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from polytok.bottlenecks import RESAMPLERS, make_resampler
from polytok.core.errors import ConfigError, UnknownNameError

SLOTS = (1, 4, 9, 16)
DIM = 6
every = pytest.mark.parametrize("name", sorted(RESAMPLERS))
linear = pytest.mark.parametrize("name", ["grid2d", "linear1d", "nested"])


def test_the_four_of_the_page_are_there() -> None:
    assert sorted(RESAMPLERS) == ["attn", "grid2d", "linear1d", "nested"]


@every
def test_shapes_and_identity_at_full_length(name: str) -> None:
    resampler = make_resampler(name, SLOTS, DIM)
    x = torch.randn(3, SLOTS[-1], DIM)
    for level, count in enumerate(SLOTS):
        coarse = resampler.down(x, level)
        assert coarse.shape == (3, count, DIM)
        assert resampler.up(coarse, level).shape == x.shape
    assert resampler.down(x, len(SLOTS) - 1) is x
    assert resampler.up(x, len(SLOTS) - 1) is x


@every
def test_a_scale_of_full_length_is_the_identity_wherever_it_stands(name: str) -> None:
    resampler = make_resampler(name, (4, 16, 16), DIM)
    x = torch.randn(2, 16, DIM)
    assert torch.equal(resampler.down(x, 1), x) and torch.equal(resampler.up(x, 1), x)


@every
def test_items_do_not_mix(name: str) -> None:
    resampler = make_resampler(name, SLOTS, DIM)
    x = torch.randn(3, SLOTS[-1], DIM)
    for level in range(len(SLOTS)):
        both = resampler.up(resampler.down(x, level), level)
        alone = resampler.up(resampler.down(x[1:2], level), level)
        torch.testing.assert_close(both[1:2], alone, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["grid2d", "linear1d"])
@pytest.mark.parametrize("slots", [SLOTS, (1, 9, 49, 100)])
def test_rows_sum_to_one_so_constants_survive(name: str, slots: tuple[int, ...]) -> None:
    resampler = make_resampler(name, slots, DIM)
    constant = torch.randn(1, 1, DIM).expand(2, slots[-1], DIM)
    for level, count in enumerate(slots):
        coarse = resampler.down(constant, level)
        torch.testing.assert_close(coarse, constant[:, :count])
        torch.testing.assert_close(resampler.up(coarse, level), constant)


def test_linear1d_pools_with_weights_that_are_means() -> None:
    resampler = make_resampler("linear1d", (1, 3, 7, 10), DIM)
    for level, count in enumerate((1, 3, 7)):
        down, up = resampler.get_buffer(f"down_{level}"), resampler.get_buffer(f"up_{level}")
        assert down.shape == (count, 10) and up.shape == (10, count)
        for matrix in (down, up):
            assert float(matrix.min()) >= 0
            torch.testing.assert_close(matrix.sum(1), torch.ones(len(matrix)))
        # Every slot is read, and reading is local: each row is one run.
        assert bool((down.sum(0) > 0).all())
        for row in down:
            on = row.nonzero().flatten()
            assert int(on[-1] - on[0]) == len(on) - 1


def test_grid2d_is_interpolate_on_the_virtual_grid() -> None:
    resampler = make_resampler("grid2d", SLOTS, DIM)
    x = torch.randn(3, 16, DIM)
    picture = x.transpose(1, 2).unflatten(-1, (4, 4))
    for level, side in enumerate((1, 2, 3)):
        pooled = F.interpolate(picture, size=(side, side), mode="area")
        coarse = resampler.down(x, level)
        torch.testing.assert_close(coarse, pooled.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)
        lifted = F.interpolate(pooled, size=(4, 4), mode="bicubic", align_corners=False)
        torch.testing.assert_close(
            resampler.up(coarse, level), lifted.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5
        )
    assert resampler.refine_shape == (4, 4)


def test_nested_reads_and_writes_a_prefix() -> None:
    resampler = make_resampler("nested", (1, 3, 8), DIM)
    x = torch.randn(2, 8, DIM)
    for level, count in enumerate((1, 3)):
        coarse = resampler.down(x, level)
        assert torch.equal(coarse, x[:, :count])
        lifted = resampler.up(coarse, level)
        assert torch.equal(lifted[:, :count], coarse)
        assert not bool(lifted[:, count:].any())


@linear
def test_fixed_matrices_have_no_parameters_and_are_not_saved(name: str) -> None:
    resampler = make_resampler(name, SLOTS, DIM)
    assert not list(resampler.parameters())
    assert not resampler.state_dict()


@linear
def test_they_are_linear(name: str) -> None:
    resampler = make_resampler(name, SLOTS, DIM)
    x, y = torch.randn(2, 2, 16, DIM)
    for level in range(len(SLOTS)):
        both = resampler.down(2 * x - 3 * y, level)
        parts = 2 * resampler.down(x, level) - 3 * resampler.down(y, level)
        torch.testing.assert_close(both, parts, atol=1e-5, rtol=1e-5)


def test_attention_starts_as_a_weighted_mean() -> None:
    resampler = make_resampler("attn", SLOTS, DIM)
    constant = torch.randn(1, 1, DIM).expand(2, 16, DIM)
    for level, count in enumerate(SLOTS[:-1]):
        coarse = resampler.down(constant, level)
        assert coarse.shape == (2, count, DIM)
        torch.testing.assert_close(coarse, constant[:, :count], atol=1e-5, rtol=1e-5)


def test_attention_passes_gradient_to_input_and_every_parameter() -> None:
    resampler = make_resampler("attn", SLOTS, DIM)
    x = torch.randn(2, 16, DIM, requires_grad=True)
    total = sum(resampler.up(resampler.down(x, level), level).square().sum() for level in range(3))
    total.backward()
    assert bool(x.grad.any())
    for name, parameter in resampler.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_attention_tells_slots_apart() -> None:
    resampler = make_resampler("attn", SLOTS, DIM)
    x = torch.randn(1, 16, DIM)
    swapped = x[:, torch.randperm(16)]
    assert not torch.allclose(resampler.down(x, 1), resampler.down(swapped, 1), atol=1e-4)


@pytest.mark.parametrize("slots", [(), (0, 4), (4, 1), (9, 4, 16)])
def test_slots_that_shrink_or_vanish_are_refused(slots: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="slots"):
        make_resampler("linear1d", slots, DIM)


def test_grid2d_needs_squares_and_names_must_exist() -> None:
    with pytest.raises(ConfigError, match="5"):
        make_resampler("grid2d", (1, 5, 9), DIM)
    with pytest.raises(UnknownNameError, match="did you mean 'linear1d'"):
        make_resampler("linear1", SLOTS, DIM)
