"""Quantizers made of quantizers: residual, grouped, factorized, projected."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bottlenecks._kinds import state_of, tokens
from polytok.bottlenecks import (
    EMAQuantizer,
    FactorizedQuantizer,
    FiniteScalarQuantizer,
    GaussianBottleneck,
    GroupedQuantizer,
    LookupFreeQuantizer,
    ProjectedQuantizer,
    ResidualQuantizer,
    VectorQuantizer,
)
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError

SIZE, DIM, LEVELS = 16, 6, 4


def residual(**options: object) -> ResidualQuantizer:
    return ResidualQuantizer([VectorQuantizer(SIZE, DIM) for _ in range(LEVELS)], **options)  # type: ignore[arg-type]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_every_level_quantizes_what_is_left() -> None:
    quantizer, z = residual(), tokens()
    out = quantizer(z)
    rest = z
    for number, level in enumerate(quantizer.levels):
        ids = torch.cdist(rest.double(), level.codes.double()).argmin(-1)
        assert torch.equal(ids, out.indices[number])
        rest = rest - level.codes[ids]
        share = rest.square().mean() / z.square().mean()
        torch.testing.assert_close(out.stats["rest_energy"][number], share)
        prefix = quantizer.embed(out.indices, num_levels=number + 1)
        torch.testing.assert_close(prefix, z - rest, atol=1e-5, rtol=1e-5)
        assert torch.equal(prefix, quantizer.embed(out.indices[: number + 1]))


@torch.no_grad()
def test_levels_that_may_add_nothing_never_hurt() -> None:
    quantizer = residual()
    for level in quantizer.levels:
        level.embedding.weight[0] = 0.0
    rest = quantizer(tokens(40)).stats["rest_energy"]
    assert bool((rest <= torch.cat([torch.ones(1), rest[:-1]]) + 1e-6).all())


@torch.no_grad()
def test_started_levels_each_leave_less() -> None:
    quantizer, z = residual(), tokens(100)
    quantizer.start(z, rng=rng())
    rest = quantizer(z).stats["rest_energy"]
    assert float(rest[0]) < 1 and bool((rest.diff() < 0).all())


@pytest.mark.parametrize(("gradient", "times"), [("total", 1), ("each", LEVELS), ("chain", 1)])
def test_how_often_gradient_passes(gradient: str, times: int) -> None:
    z = tokens().requires_grad_()
    residual(gradient=gradient)(z).latents.sum().backward()
    torch.testing.assert_close(z.grad, torch.full_like(z, times))


def test_the_three_conventions_by_hand() -> None:
    z0 = tokens()
    for gradient in ("total", "each", "chain"):
        quantizer = residual(gradient=gradient)
        z, commit, passed = z0.clone().requires_grad_(), torch.zeros(()), torch.zeros_like(z0)
        rest = z
        for level in quantizer.levels:
            with torch.no_grad():
                q = level.codes[torch.cdist(rest, level.codes).argmin(-1)]
            commit = commit + (rest - q).square().mean() / LEVELS
            step = rest + (q - rest).detach()
            passed = passed + step
            rest = rest - (step if gradient == "chain" else step.detach())
        if gradient == "total":
            passed = z + (passed - z).detach()
        leaf = z0.clone().requires_grad_()
        out = quantizer(leaf)
        torch.testing.assert_close(out.latents, passed)
        torch.testing.assert_close(out.losses["vq/commit"], commit)
        for theirs, ours in (
            (commit, out.losses["vq/commit"]),
            (passed.square().sum(), out.latents.square().sum()),
        ):
            wanted = torch.autograd.grad(theirs, z, retain_graph=True)[0]
            found = torch.autograd.grad(ours, leaf, retain_graph=True)[0]
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_start_level_quantizes_what_earlier_levels_left_over() -> None:
    quantizer, z = residual(), tokens()
    full = quantizer(z)
    for first in range(1, LEVELS):
        before = quantizer.embed(full.indices, num_levels=first)
        late = quantizer(z - before, start_level=first)
        assert len(late.indices) == LEVELS - first
        for a, b in zip(late.indices, full.indices[first:], strict=True):
            assert torch.equal(a, b)
        skipped = state_of(quantizer.levels[first - 1])
        quantizer.update(late)
        assert all(
            torch.equal(t, state_of(quantizer.levels[first - 1])[n]) for n, t in skipped.items()
        )
        assert int(quantizer.levels[first].steps) == first  # once per pass that ran it


def test_dropped_items_keep_the_first_levels_alone() -> None:
    quantizer, z = residual(dropout=1.0, depths=(1, 3)).train(), tokens(200)
    leaf = z.clone().requires_grad_()
    out = quantizer(leaf, rng=rng())
    whole = quantizer.eval()(z)
    kept = torch.stack([(ids >= 0).all(1) for ids in out.indices]).sum(0)
    assert set(kept.tolist()) == {1, 3} and 60 < int((kept == 1).sum()) < 140
    for number, (ids, all_ids) in enumerate(zip(out.indices, whole.indices, strict=True)):
        assert torch.equal(ids[kept > number], all_ids[kept > number])
        assert bool((ids[kept <= number] == -1).all())
    assert torch.equal(quantizer.embed(out.indices), out.latents)
    for depth in (1, 3):
        wanted = quantizer.embed(whole.indices, num_levels=depth)
        torch.testing.assert_close(out.latents[kept == depth], wanted[kept == depth])
    out.latents.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_losses_of_dropped_items_are_zero() -> None:
    quantizer, z = residual(dropout=1.0, depths=(1,)).train(), tokens(9)
    dropped = quantizer(z, rng=rng())
    first = quantizer.levels[0](z)
    for name, loss in first.losses.items():
        torch.testing.assert_close(dropped.losses[name], loss / LEVELS)


def test_losses_of_a_level_count_by_the_share_of_the_items_that_it_ran_on() -> None:
    quantizer, z = residual(dropout=0.5).train(), tokens(60)
    out = quantizer(z, rng=rng())
    kept = torch.stack([(ids >= 0).all(1) for ids in out.indices])
    assert 10 < int(kept[-1].sum()) < int(kept[1].sum()) < 60
    rest, wanted = z, torch.zeros(())
    for level, those in zip(quantizer.levels, kept, strict=True):
        codes = level.codes[torch.cdist(rest, level.codes).argmin(-1)].detach()
        # A mean over the items, of which those that dropped the level have 0.
        each = (rest - codes).square().mean((1, 2))
        wanted = wanted + (each * those).mean() / LEVELS
        rest = rest - codes
    torch.testing.assert_close(out.losses["vq/commit"], wanted)


def test_nothing_is_dropped_in_eval_or_without_a_generator() -> None:
    quantizer, z = residual(dropout=1.0, depths=(1,)), tokens()
    for out in (quantizer.eval()(z, rng=rng()), quantizer.train()(z)):
        assert all(int(ids.min()) >= 0 for ids in out.indices)


@torch.no_grad()
def test_update_counts_only_the_items_that_a_level_ran_on() -> None:
    levels = [EMAQuantizer(SIZE, DIM, decay=0.0) for _ in range(2)]
    quantizer = ResidualQuantizer(levels, dropout=0.5, depths=(1,)).train()
    out = quantizer(tokens(50), rng=rng(1))
    ran = int((out.indices[1] >= 0).sum())
    assert 0 < ran < 550
    quantizer.update(out)
    assert float(levels[0].counts.sum()) == 550 and float(levels[1].counts.sum()) == ran


def test_a_shared_codebook_is_one() -> None:
    book = VectorQuantizer(SIZE, DIM)
    quantizer = ResidualQuantizer([book] * 3)
    assert sum(p.numel() for p in quantizer.parameters()) == SIZE * DIM
    quantizer.update(quantizer(tokens()))
    assert int(book.steps) == 3


def test_residual_options_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="gradient 'totl'; did you mean 'total'"):
        residual(gradient="totl")
    for depths in ((0,), (5,), ()):
        with pytest.raises(ConfigError, match="depths="):
            residual(depths=depths)
    with pytest.raises(ConfigError, match=r"dropout=1\.5"):
        residual(dropout=1.5)
    for levels in ([], [LookupFreeQuantizer((3, 3))], [GaussianBottleneck(4, 2)]):
        with pytest.raises(ConfigError, match="one vocabulary"):
            ResidualQuantizer(levels)


# Side by side.


@torch.no_grad()
def test_groups_quantize_their_own_channels() -> None:
    groups = [VectorQuantizer(SIZE, 2) for _ in range(3)]
    quantizer, z = GroupedQuantizer(groups), tokens()
    out = quantizer(z)
    for number, (group, share) in enumerate(zip(groups, z.chunk(3, -1), strict=True)):
        alone = group(share)
        assert torch.equal(out.indices[number], alone.indices[0])
        assert torch.equal(out.latents[..., 2 * number : 2 * number + 2], alone.latents)
    # A mean over equal shares of the channels is the mean over all.
    torch.testing.assert_close(out.losses["vq/commit"], (z - out.latents).square().mean())


@torch.no_grad()
def test_the_first_levels_of_all_groups_are_a_prefix() -> None:
    groups = [ResidualQuantizer([VectorQuantizer(size, 3) for size in (8, 16)]) for _ in range(2)]
    quantizer = GroupedQuantizer(groups)
    assert quantizer.vocab_sizes == (8, 8, 16, 16)
    out = quantizer(tokens())
    first = torch.cat([g.embed(out.indices[i : i + 1]) for i, g in enumerate(groups)], -1)
    assert torch.equal(quantizer.embed(out.indices, num_levels=2), first)
    for count in (1, 3):
        with pytest.raises(PolytokError, match=f"num_levels={count} must be a multiple of 2"):
            quantizer.embed(out.indices, num_levels=count)
    single = [group.embed(out.indices[i::2]) for i, group in enumerate(groups)]
    assert torch.equal(torch.cat(single, -1), out.latents)
    wanted = torch.stack([g.stats["usage"] for g in out.stats["groups"]], -1).flatten()
    assert torch.equal(out.stats["usage"], wanted) and wanted.shape == (4,)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PolytokError, match="7 channels do not split into 2 groups"):
        GroupedQuantizer([VectorQuantizer(4, 3)] * 2)(tokens(dim=7))
    for groups in ([], [VectorQuantizer(4, 3), residual()], [GaussianBottleneck(4, 2)]):
        with pytest.raises(ConfigError, match="the same number"):
            GroupedQuantizer(groups)


@torch.no_grad()
def test_branches_see_all_channels_and_are_told_apart() -> None:
    heads: list[nn.Module] = [nn.Linear(DIM, 4) for _ in range(3)]
    branches = [VectorQuantizer(SIZE, 4, metric="cosine") for _ in range(3)]
    quantizer, z = FactorizedQuantizer(heads, branches), tokens()
    out = quantizer(z)
    parts = [branch(head(z)) for head, branch in zip(heads, branches, strict=True)]
    assert torch.equal(out.latents, torch.cat([part.latents for part in parts], -1))
    assert [i.tolist() for i in out.indices] == [p.indices[0].tolist() for p in parts]
    a, b, c = (part.latents for part in parts)
    cosines = [
        (F.normalize(x, dim=-1) * F.normalize(y, dim=-1)).sum(-1)
        for x, y in ((a, b), (a, c), (b, c))
    ]
    wanted = torch.stack([cosine.square().mean() for cosine in cosines]).mean()
    torch.testing.assert_close(out.losses["vq/disentangle"], wanted)


def test_equal_branches_are_punished_fully_and_orthogonal_ones_not_at_all() -> None:
    from polytok.bottlenecks.factorized import disentangle

    x = torch.randn(2, 5, 4)
    assert float(disentangle([x, -3 * x])) == pytest.approx(1)
    pair = torch.eye(4)[:2]
    assert float(disentangle([pair[:1][None], pair[1:][None]])) == 0


def test_branches_that_do_not_fit_are_refused() -> None:
    book, head = VectorQuantizer(4, 4), nn.Identity()
    for heads, branches in (([head], [book]), ([head], [book, book]), ([], [])):
        with pytest.raises(ConfigError, match="must be 2 or more"):
            FactorizedQuantizer(heads, branches)
    with pytest.raises(ConfigError, match="the same number"):
        FactorizedQuantizer([head] * 2, [book, LookupFreeQuantizer((2, 2))])


@torch.no_grad()
def test_projections_lie_around_any_quantizer() -> None:
    inner = ResidualQuantizer([VectorQuantizer(SIZE, 3) for _ in range(2)])
    quantizer, z = ProjectedQuantizer(inner, DIM, 3), tokens()
    quantizer.start(z, rng=rng())
    out = quantizer(z)
    alone = inner(quantizer.project_in(z))
    torch.testing.assert_close(out.latents, quantizer.project_out(alone.latents))
    prefix = quantizer.embed(out.indices, num_levels=1)
    torch.testing.assert_close(prefix, quantizer.project_out(inner.embed(out.indices[:1])))
    quantizer.update(out)
    assert int(inner.levels[0].steps) == 1
    assert quantizer.vocab_sizes == (SIZE, SIZE)
    assert ProjectedQuantizer(FiniteScalarQuantizer((5, 5)), DIM, 2).vocab_sizes == (25,)


def test_late_levels_get_what_a_generator_predicts() -> None:
    quantizer: ResidualQuantizer = residual()
    out = quantizer(tokens())
    soft: list[Tensor] = [F.one_hot(ids, SIZE).float() for ids in out.indices]
    mixed = quantizer.embed([*out.indices[:2], *soft[2:]])
    torch.testing.assert_close(mixed, out.latents, atol=1e-5, rtol=1e-5)
