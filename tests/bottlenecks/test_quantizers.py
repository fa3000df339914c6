"""What every quantizer must do, whatever its kind."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from bottlenecks._kinds import KINDS, Kind, state_of, tokens
from polytok.bottlenecks import (
    GroupedQuantizer,
    LookupFreeQuantizer,
    ResidualQuantizer,
    codebook,
    entropy,
)
from polytok.core.contracts import Bottleneck
from polytok.core.errors import PolytokError

every = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def those(**wanted: bool) -> pytest.MarkDecorator:
    kinds = {n: k for n, k in KINDS.items() if all(getattr(k, a) == v for a, v in wanted.items())}
    return pytest.mark.parametrize("kind", kinds.values(), ids=kinds)


@every
@pytest.mark.parametrize("is_training", [False, True])
def test_embed_of_the_indices_is_the_output_bit_for_bit(kind: Kind, is_training: bool) -> None:
    quantizer = kind.build().train(is_training)
    z = tokens()
    out = quantizer(z.requires_grad_())
    assert out.is_exact
    assert out.latents.shape == (3, 11, kind.width) and out.latents.dtype == torch.float32
    assert torch.equal(quantizer.embed(out.indices), out.latents)
    with torch.no_grad():
        assert torch.equal(quantizer(z).latents, out.latents)


@every
@torch.no_grad()
def test_indices_are_ids_of_the_vocabularies(kind: Kind) -> None:
    quantizer = kind.build()
    out = quantizer(tokens(20))
    assert len(out.indices) == len(quantizer.vocab_sizes)
    for ids, size in zip(out.indices, quantizer.vocab_sizes, strict=True):
        assert ids.dtype == torch.int64 and ids.shape == (20, 11)
        assert int(ids.min()) >= 0 and int(ids.max()) < size
        assert len(ids.unique()) > 1


@those(is_projection=True)
@torch.no_grad()
def test_quantizing_the_output_changes_nothing(kind: Kind) -> None:
    quantizer = kind.build()
    out = quantizer(tokens(20))
    again = quantizer(out.latents)
    for first, second in zip(out.indices, again.indices, strict=True):
        assert torch.equal(first, second)
    torch.testing.assert_close(again.latents, out.latents, atol=1e-6, rtol=0)


@those(is_identity=True)
def test_gradient_passes_to_the_input_unchanged(kind: Kind) -> None:
    z = tokens().requires_grad_()
    kind.build().train()(z).latents.sum().backward()
    assert torch.equal(z.grad, torch.ones_like(z))


@those(is_scale_free=True)
@torch.no_grad()
def test_only_the_direction_of_the_input_counts(kind: Kind) -> None:
    quantizer, z = kind.build(), tokens(20)
    out, longer = quantizer(z), quantizer(z * 2.0**7)
    assert torch.equal(out.latents, longer.latents)
    uneven = quantizer(z * (0.1 + 10 * torch.rand(20, 11, 1)))
    for first, second in zip(out.indices, uneven.indices, strict=True):
        assert torch.equal(first, second)


@every
def test_chunks_change_nothing(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizer, z = kind.build(), tokens(20)
    found = []
    for chunk in (1 << 30, 3 * 64):
        monkeypatch.setattr(codebook, "CHUNK", chunk)
        monkeypatch.setattr(entropy, "CHUNK", chunk)
        quantizer.zero_grad()
        leaf = z.clone().requires_grad_()
        out = quantizer(leaf)
        (out.latents.square().sum() + sum(out.losses.values())).backward()
        grads = [leaf.grad, *(p.grad for p in quantizer.parameters())]
        found.append((out, grads))
    (whole, grads), (parts, others) = found
    for first, second in zip(whole.indices, parts.indices, strict=True):
        assert torch.equal(first, second)
    for name, loss in whole.losses.items():
        torch.testing.assert_close(parts.losses[name], loss, atol=1e-5, rtol=1e-5)
    for first, second in zip(grads, others, strict=True):
        assert (first is None) == (second is None)
        if first is not None:
            torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


@every
@pytest.mark.parametrize("is_training", [False, True])
def test_forward_and_embed_change_no_state(kind: Kind, is_training: bool) -> None:
    quantizer = kind.build().train(is_training)
    before = state_of(quantizer)
    rng = torch.Generator().manual_seed(0)
    out = quantizer(tokens(), rng=rng)
    quantizer.embed(quantizer(tokens()).indices)
    after = state_of(quantizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.is_grad_enabled() and out.latents.shape[:2] == (3, 11)


@those(has_codes=True)
def test_update_changes_buffers_and_only_them_before_restarts(kind: Kind) -> None:
    quantizer = kind.build().train()
    before = state_of(quantizer)
    quantizer.update(quantizer(tokens()))
    after = state_of(quantizer)
    parameters = dict(quantizer.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    moves = {"embedding.weight"} if "cvq" in kind_name(kind) else set()  # codes move to inputs
    assert changed and changed & parameters.keys() == moves


def kind_name(kind: Kind) -> str:
    return next(name for name, other in KINDS.items() if other is kind)


@those(has_codes=False)
def test_without_codes_update_and_start_change_nothing(kind: Kind) -> None:
    quantizer = kind.build().train()
    before = state_of(quantizer)
    quantizer.start(tokens(), rng=torch.Generator().manual_seed(0))
    quantizer.update(quantizer(tokens()))
    after = state_of(quantizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


@those(has_codes=True)
def test_start_makes_the_error_far_smaller_and_repeats_itself(kind: Kind) -> None:
    z = 3 * tokens(60)
    torch.manual_seed(1)
    quantizer = kind.build().eval()
    torch.manual_seed(1)
    twin = kind.build().eval()
    is_copy = kind_name(kind) not in ("ibq", "vq-mapped", "factorized")  # output copies input
    before = error_of(quantizer, z) if is_copy else 0.0
    for each in (quantizer, twin):
        each.start(z, rng=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, state_of(twin)[n]) for n, a in state_of(quantizer).items())
    if is_copy:
        assert error_of(quantizer, z) < 0.8 * before


@torch.no_grad()
def error_of(quantizer: Bottleneck, z: torch.Tensor) -> float:
    target = z if not is_unit(quantizer) else F.normalize(z, dim=-1)
    return float((quantizer(z).latents - target).square().mean())


def is_unit(quantizer: Bottleneck) -> bool:
    return getattr(quantizer, "metric", "") == "cosine" or "Cosine" in type(quantizer).__name__


@every
@torch.no_grad()
def test_probabilities_embed_as_soft_tokens(kind: Kind) -> None:
    quantizer = kind.build()
    indices = quantizer(tokens()).indices
    sizes = quantizer.vocab_sizes
    hard = [F.one_hot(i, size).float() for i, size in zip(indices, sizes, strict=True)]
    torch.testing.assert_close(
        quantizer.embed(hard), quantizer.embed(indices), atol=1e-5, rtol=1e-5
    )
    other = [(i + 1) % size for i, size in zip(indices, sizes, strict=True)]
    mixed = [(h + F.one_hot(o, s)) / 2 for h, o, s in zip(hard, other, sizes, strict=True)]
    mean = (quantizer.embed(indices) + quantizer.embed(other)) / 2
    torch.testing.assert_close(quantizer.embed(mixed), mean, atol=1e-5, rtol=1e-5)


@every
def test_the_maths_is_fp32_under_autocast_and_for_half_inputs(kind: Kind) -> None:
    if kind.width != tokens().shape[-1]:
        pytest.skip("its heads are the caller's and run in the caller's precision")
    quantizer, z = kind.build(), tokens()
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, embedded = quantizer(z), quantizer.embed(plain.indices)
    assert mixed.latents.dtype == torch.float32
    assert torch.equal(plain.latents, mixed.latents) and torch.equal(embedded, plain.latents)
    half = quantizer(z.bfloat16())
    assert torch.equal(half.latents, quantizer(z.bfloat16().float()).latents)


@every
def test_statistics_say_how_codes_are_used_and_carry_no_graph(kind: Kind) -> None:
    quantizer = kind.build()
    out = quantizer(tokens(20).requires_grad_())
    sizes = torch.tensor(quantizer.vocab_sizes)
    wanted = {"usage": [], "perplexity": []}
    for ids, size in zip(out.indices, quantizer.vocab_sizes, strict=True):
        p = torch.bincount(ids.flatten(), minlength=size).double() / ids.numel()
        wanted["usage"].append(float((p > 0).double().mean()))
        wanted["perplexity"].append(float((-torch.special.xlogy(p, p)).sum().exp()))
    for name, values in wanted.items():
        found = out.stats[name]
        torch.testing.assert_close(
            found.flatten(), torch.tensor(values), atol=1e-4, rtol=1e-4, msg=name
        )
    assert ("dead" in out.stats) == kind.has_codes
    if kind.has_codes:
        assert bool((out.stats["dead"] >= 0).all()) and bool((out.stats["dead"] < 1).all())
    assert bool((out.stats["perplexity"].flatten() <= sizes).all())
    tensors = [t for t in out.stats.values() if isinstance(t, torch.Tensor)]
    assert tensors and not any(tensor.requires_grad for tensor in tensors)


@every
def test_losses_are_named_scalars_and_something_teaches_every_parameter(kind: Kind) -> None:
    quantizer, z = kind.build().train(), tokens(20).requires_grad_()
    out = quantizer(z)
    assert all(name.startswith("vq/") and loss.shape == () for name, loss in out.losses.items())
    assert all(loss.requires_grad for loss in out.losses.values())
    (out.latents.square().mean() + sum(out.losses.values())).backward()
    assert bool(z.grad.any()) and bool(z.grad.isfinite().all())
    for name, parameter in quantizer.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


@every
@torch.no_grad()
def test_an_empty_batch_gives_an_empty_code(kind: Kind) -> None:
    quantizer = kind.build()
    out = quantizer(tokens(0))
    assert out.latents.shape == (0, 11, kind.width)
    assert all(ids.shape == (0, 11) and ids.dtype == torch.int64 for ids in out.indices)
    assert quantizer.embed(out.indices).shape == (0, 11, kind.width)
    before = state_of(quantizer)
    quantizer.update(out)
    for name, tensor in state_of(quantizer).items():
        assert bool(tensor.isfinite().all()), name
        if name.endswith("embedding.weight"):
            assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.tiny])
def test_the_smallest_sizes(name: str) -> None:
    tiny = KINDS[name].tiny
    assert tiny is not None
    quantizer = tiny().train()
    z = torch.tensor([[[0.3]]], requires_grad=True)
    out = quantizer(z)
    assert out.latents.shape == (1, 1, 1) and torch.equal(quantizer.embed(out.indices), out.latents)
    assert all(size in (2, 3) for size in quantizer.vocab_sizes)
    (out.latents.sum() + sum(out.losses.values())).backward()
    assert bool(z.grad.isfinite().all())
    quantizer.update(out)
    quantizer.start(torch.tensor([[[0.3], [-0.3]]]), rng=torch.Generator().manual_seed(0))
    signs = quantizer(torch.tensor([[[1.5], [-1.5]]])).latents.sign().flatten().tolist()
    assert signs == [1.0, -1.0]


@every
@torch.no_grad()
def test_levels_that_are_not_there_are_refused(kind: Kind) -> None:
    quantizer = kind.build()
    indices = quantizer(tokens()).indices
    for count in (0, len(indices) + 1, -1):
        with pytest.raises(PolytokError, match=f"num_levels={count} "):
            quantizer.embed(indices, num_levels=count)
    with pytest.raises(PolytokError, match=f"num_levels={len(indices)} "):
        quantizer.embed(indices[:-1], num_levels=len(indices))


@every
@torch.no_grad()
def test_a_saved_quantizer_gives_the_same_code(kind: Kind) -> None:
    quantizer, other, z = kind.build(), kind.build(), tokens()
    quantizer.update(quantizer(tokens()))
    other.load_state_dict(quantizer.state_dict())
    assert torch.equal(other(z).latents, quantizer(z).latents)


@every
def test_inputs_that_are_not_finite_get_ids_within_range(kind: Kind) -> None:
    quantizer, z = kind.build(), tokens(1)
    z[0, 0], z[0, 1] = torch.nan, torch.inf
    out = quantizer(z)
    for ids, size in zip(out.indices, quantizer.vocab_sizes, strict=True):
        assert int(ids.min()) >= 0 and int(ids.max()) < size


def test_every_kind_is_under_test() -> None:
    from polytok import bottlenecks

    quantizers = {
        n for n in bottlenecks.__all__ if n.endswith("Quantizer") or n in ("IBQ", "SimVQ")
    }
    assert quantizers == {type(kind.build()).__name__ for kind in KINDS.values()}


def test_bits_of_a_token_follow_from_the_vocabularies() -> None:
    assert math.prod(LookupFreeQuantizer((9, 9)).vocab_sizes) == 2**18
    grouped = GroupedQuantizer([KINDS["vq"].build(), KINDS["residual"].build().levels[0]])
    assert grouped.vocab_sizes == (32, 32)
    assert replace(KINDS["vq"], width=1).width == 1
    assert len(ResidualQuantizer([KINDS["vq"].build()] * 4).vocab_sizes) == 4
