"""The table of families and methods, cell by cell: works exactly, or is refused before a change."""

from __future__ import annotations

import pytest
import torch

import polytok
from polytok.core.errors import PolytokError
from polytok.reducers import method_names, reduction_of, trace
from polytok.reducers.cost import unfused
from polytok.reducers.families import FAMILIES, Family
from polytok.reducers.hosts import find_core
from polytok.reducers.state import TokenState
from reducers.models import DEPTH, GRID, WORKING, build, image, label, logits

# One name per method: a preset that is only another list of counts is left out.
METHODS = [n for n in method_names() if "deit" not in n]
PATCHES = GRID * GRID


@pytest.mark.parametrize("family", FAMILIES, ids=label)
@torch.no_grad()
def test_every_cell_of_the_table_is_true(family: Family) -> None:
    model = build(family)
    keys, classes = list(model.state_dict()), [type(m) for m in model.modules()]
    pictures = image(family)
    plain = None if family.refused else logits(model(pictures))
    for name in METHODS:
        if family.cell(name):
            with pytest.raises(PolytokError) as refused:
                polytok.reduce(model, name, keep=0.7)
            assert "work" in str(refused.value) and "\n" not in str(refused.value)
        else:
            assert plain is not None
            polytok.reduce(model, name, keep={1: 0.7, 2: 0.7})
            assert list(model.state_dict()) == keys
            reduced = logits(model(pictures))
            assert reduced.isfinite().all() and not torch.equal(reduced, plain), name
            _check_counts(model, family, pictures)
            polytok.unreduce(model)
            assert torch.equal(logits(model(pictures)), plain)
        assert [type(m) for m in model.modules()] == classes


def _check_counts(model: torch.nn.Module, family: Family, pictures: torch.Tensor) -> None:
    reduction = reduction_of(model)
    keeps, extra = reduction.resolve(PATCHES, DEPTH), reduction.reducer.extra
    expected = [PATCHES, PATCHES, keeps[1] + extra, keeps[2] + extra, keeps[2] + extra]
    assert trace(model, pictures).tokens == tuple(n + family.prefix for n in expected)


@pytest.mark.parametrize("is_fused", [True, False], ids=["sdpa", "eager"])
@pytest.mark.parametrize("family", WORKING, ids=label)
@torch.no_grad()
def test_keeping_everything_is_bit_identical(family: Family, is_fused: bool) -> None:
    model = build(family)
    pictures = image(family)

    def check() -> None:
        plain = logits(model(pictures))
        for name in METHODS:
            if not family.cell(name):
                polytok.reduce(model, name, keep=1.0)
                assert torch.equal(logits(model(pictures)), plain), name
                polytok.unreduce(model)

    if is_fused:
        check()
    else:
        with unfused(model):
            check()


@pytest.mark.parametrize("is_fused", [True, False], ids=["sdpa", "eager"])
@pytest.mark.parametrize("family", WORKING, ids=label)
@torch.no_grad()
def test_the_parts_of_a_block_add_up_to_the_block(family: Family, is_fused: bool) -> None:
    """The host's pieces, put together, are the block's own forward: scales, norms, gates, RoPE."""
    model = build(family)
    core, host = find_core(model)
    block = host.blocks(core)[1]
    seen = {}
    block.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(x=args[0], kwargs=kwargs, out=out),
        with_kwargs=True,
    )

    def check() -> None:
        model(image(family))
        x = seen["x"]
        y = host.norm(block, x)
        rope = host.rope(seen["kwargs"], TokenState(num_patches=PATCHES, prefix=family.prefix))
        q, k, v = host.qkv(block, y, rope)
        out = host.project(block, y, host.attend(block, q, k, v, None))
        whole = host.mlp(block, host.add_attention(block, x, out))
        torch.testing.assert_close(whole, seen["out"], rtol=1e-5, atol=1e-5)
        apart = (*host.query_key(block, y, rope), host.value(block, y))
        for one, other in zip((q, k, v), apart, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)

    if is_fused:
        check()
    else:
        with unfused(model):
            check()


@pytest.mark.parametrize("family", WORKING, ids=label)
@torch.no_grad()
def test_log_sizes_equal_repeated_tokens(family: Family) -> None:
    """A token of size 2 is to the others what two equal tokens are, positions included."""
    model = build(family)
    core, host = find_core(model)
    block = host.blocks(core)[2]
    x = torch.randn(1, family.prefix + PATCHES, 48, generator=torch.Generator().manual_seed(4))
    q, k, v = host.qkv(block, host.norm(block, x), None)
    twice = [torch.cat([t, t[:, :, -1:]], 2) for t in (k, v)]
    bias = torch.zeros(x.shape[1])
    bias[-1] = torch.tensor(2.0).log()
    with_bias = host.attend(block, q, k, v, bias[None, None, None])
    explicit = ((q @ twice[0].transpose(-2, -1)) * host.scale(block)).softmax(-1) @ twice[1]
    torch.testing.assert_close(with_bias, explicit.transpose(1, 2).flatten(2), rtol=1e-5, atol=1e-5)
