"""The contract of every tokenizer: the eight stubs and everything registered."""

from __future__ import annotations

import functools
import io
import itertools

import pytest
import torch

from contracts.cases import CASES, Case, shape_batch, state, take
from polytok.core.contracts import Batch, Codes, StepContext, Tokenizer, TokenizerSpec
from polytok.core.errors import PolytokError

ITEMS = 3


def cases(keep: object = lambda case: True) -> pytest.MarkDecorator:
    """Parametrise over the cases that ``keep`` accepts."""
    chosen = [case for case in CASES if keep(case)]  # type: ignore[operator]
    assert chosen
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@functools.cache
def spec_of(case: Case) -> TokenizerSpec:
    return case.build().spec


def has_prefix(kind: str) -> object:
    return lambda case: spec_of(case).prefix == kind


def is_discrete(case: Case) -> bool:
    return spec_of(case).is_discrete


def has_decoder(case: Case) -> bool:
    return spec_of(case).output is not None


def built(case: Case) -> tuple[Tokenizer, Batch]:
    return case.build().eval(), case.batch(ITEMS)


def same(a: Codes, b: Codes) -> bool:
    """Whether two codes agree: ids exactly, latents to float error, valid tokens alone."""
    if a.latents is not None:
        return torch.allclose(a.latents, b.latents, atol=1e-5)
    mask = torch.ones_like(a.indices[0], dtype=torch.bool)
    if a.lengths is not None:
        if not torch.equal(a.lengths, b.lengths):
            return False
        mask = torch.arange(mask.shape[1]) < a.lengths[:, None]
    if len(a.indices) == 1:
        return torch.equal(a.indices[0][mask], b.indices[0][mask])
    return all(torch.equal(x, y) for x, y in zip(a.indices, b.indices, strict=True))


def values(model: Tokenizer, decoded: Batch, count: int) -> torch.Tensor:
    """The decoded signal as one tensor: a field is read at fixed points."""
    if model.spec.output == "field":
        queries = shape_batch(1)["queries"].expand(count, -1, -1)
        logits = decoded["field"](queries)
        assert logits.shape == queries.shape[:2]
        return logits
    key = {"vector": "rows"}.get(str(model.spec.output), str(model.spec.output))
    return decoded[key]


@cases()
@torch.no_grad()
def test_codes_follow_the_spec(case: Case) -> None:
    model, batch = built(case)
    codes, spec = model.encode(batch), model.spec
    assert len(codes) == ITEMS
    assert model.bottleneck.vocab_sizes == tuple(level.vocab for level in spec.levels)
    assert len(codes.indices) == len(spec.levels)
    for ids, level in zip(codes.indices, spec.levels, strict=True):
        assert ids.dtype == torch.int64
        assert ids.shape[0] == ITEMS
        assert level.count in (None, ids.shape[1])
        assert int(ids.min()) >= 0 and int(ids.max()) < level.vocab
    assert (codes.lengths is not None) == any(level.count is None for level in spec.levels)
    if not spec.is_discrete:
        assert codes.latents is not None
        assert codes.latents.shape[0] == ITEMS and codes.latents.shape[2] == spec.latent_dim
    for value in codes.meta.values():
        assert value.shape[0] == ITEMS


@cases()
@torch.no_grad()
def test_encode_is_deterministic_without_a_generator(case: Case) -> None:
    model, batch = built(case)
    first = model.encode(batch)
    torch.manual_seed(123)  # the global generator must not matter
    assert same(first, model.encode(batch))


@cases(lambda case: case.is_sampled)
@torch.no_grad()
def test_a_generator_samples_and_equal_seeds_give_equal_codes(case: Case) -> None:
    model, batch = built(case)
    draws = [model.encode(batch, rng=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert same(draws[0], draws[1])
    assert not same(draws[0], draws[2])


@cases()
@torch.no_grad()
def test_an_item_alone_has_the_code_it_has_in_a_batch(case: Case) -> None:
    model, batch = built(case)
    together = model.encode(batch)
    for item in range(ITEMS):
        assert same(model.encode(take(batch, slice(item, item + 1))), together[item])


@cases(has_decoder)
@torch.no_grad()
def test_decode_gives_the_kind_that_the_spec_names(case: Case) -> None:
    model, batch = built(case)
    codes = model.encode(batch)
    decoded = values(model, model.decode(codes), ITEMS)
    assert decoded.shape[0] == ITEMS
    assert decoded.is_floating_point() and bool(decoded.isfinite().all())
    assert torch.equal(decoded, values(model, model.decode(codes), ITEMS))
    if codes.lengths is None:
        alone = torch.cat([values(model, model.decode(codes[i]), 1) for i in range(ITEMS)])
        torch.testing.assert_close(alone, decoded, atol=1e-5, rtol=1e-5)


@cases(lambda case: not has_decoder(case))
def test_decode_raises_without_a_decoder(case: Case) -> None:
    model, batch = built(case)
    with pytest.raises(PolytokError, match="no decoder"):
        model.decode(model.encode(batch))


@cases(is_discrete)
@torch.no_grad()
def test_embed_gives_the_latents_bit_for_bit_in_eval(case: Case) -> None:
    model, batch = built(case)
    z = captured_input(model, batch)
    out = model.bottleneck(z)
    assert out.is_exact and out.indices is not None
    assert torch.equal(model.bottleneck.embed(out.indices), out.latents)
    # One-hot probabilities are soft tokens: the same up to the order of a sum.
    soft = [
        torch.nn.functional.one_hot(ids, vocab).to(out.latents.dtype)
        for ids, vocab in zip(out.indices, model.bottleneck.vocab_sizes, strict=True)
    ]
    torch.testing.assert_close(model.bottleneck.embed(soft), out.latents, atol=1e-5, rtol=1e-5)


@cases(lambda case: not is_discrete(case))
def test_embed_raises_for_continuous_codes(case: Case) -> None:
    model, _ = built(case)
    with pytest.raises(PolytokError, match="continuous"):
        model.bottleneck.embed((torch.zeros(1, 1, dtype=torch.int64),))


def captured_input(model: Tokenizer, batch: Batch) -> torch.Tensor:
    """What the bottleneck gets in a training step."""
    seen = []
    hook = model.bottleneck.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch, StepContext())
    hook.remove()
    return seen[0]


@cases(has_prefix("levels"))
@torch.no_grad()
def test_prefixes_of_levels_decode_and_see_no_later_level(case: Case) -> None:
    model, batch = built(case)
    codes = model.encode(batch)
    seen = []
    for count in range(1, len(model.spec.levels) + 1):
        part = codes.prefix(levels=count)
        seen.append(values(model, model.decode(part), ITEMS))
        poisoned = tuple(
            ids if level < count else (ids + 1) % model.spec.levels[level].vocab
            for level, ids in enumerate(codes.indices)
        )
        latents = model.bottleneck.embed(poisoned, num_levels=count)
        assert torch.equal(latents, model.bottleneck.embed(part.indices))
    assert torch.equal(seen[-1], values(model, model.decode(codes), ITEMS))
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))


@cases(has_prefix("tokens"))
@torch.no_grad()
def test_prefixes_of_tokens_decode_and_see_no_later_token(case: Case) -> None:
    model, batch = built(case)
    codes = model.encode(batch)
    full = values(model, model.decode(codes), ITEMS)
    for count in range(1, codes.indices[0].shape[1] + 1):
        part = codes.prefix(tokens=count)
        assert part.indices[0].shape[1] == count
        assert part.lengths is None or int(part.lengths.max()) <= count
        decoded = values(model, model.decode(part), ITEMS)
        if model.spec.output == "image":  # another picture of the same size
            assert decoded.shape == full.shape
            assert torch.equal(decoded, full) == (count == codes.indices[0].shape[1])
        else:
            torch.testing.assert_close(decoded, full[:, : decoded.shape[1]])


@cases()
def test_only_update_changes_state(case: Case) -> None:
    model, batch = built(case)
    before = state(model)
    with torch.no_grad():
        codes = model.encode(batch)
        if model.spec.output is not None:
            model.decode(codes)
        model(batch, StepContext())
    model.train()
    out = model(batch, StepContext(rng=torch.Generator().manual_seed(0)))
    sum(out.losses.values()).backward()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert out.bottleneck is not None
    model.bottleneck.update(out.bottleneck)
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, before[k])]
    assert all(key.startswith("bottleneck.") for key in changed)
    assert bool(changed) == model.spec.is_discrete


@cases()
def test_every_parameter_receives_gradient(case: Case) -> None:
    model, batch = case.build().train(), case.batch(ITEMS)
    out = model(batch, StepContext(rng=torch.Generator().manual_seed(0)))
    for name, loss in out.losses.items():
        assert loss.shape == () and bool(loss.isfinite()), name
    sum(out.losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


@cases()
@torch.no_grad()
def test_a_state_dict_carries_everything(case: Case) -> None:
    model, batch = built(case)
    with torch.no_grad():
        out = model(batch, StepContext())
        model.bottleneck.update(out.bottleneck)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    other = case.build().eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    codes = model.encode(batch)
    assert same(codes, other.encode(batch))
    if model.spec.output is not None:
        decoded = (values(m, m.decode(codes), ITEMS) for m in (model, other))
        assert torch.equal(*decoded)


@cases()
@torch.no_grad()
def test_codes_slice_join_and_move(case: Case) -> None:
    model, batch = built(case)
    codes = model.encode(batch)
    joined = Codes.cat([codes[0], codes[1:]])
    assert len(joined) == ITEMS and same(joined, codes)
    assert same(codes[-1], codes[ITEMS - 1])
    assert set(joined.meta) == set(codes.meta)
    for key, value in codes.meta.items():
        assert torch.equal(joined.meta[key], value)
    with pytest.raises(IndexError):
        codes[ITEMS]
    moved = codes.to("cpu", torch.float64)
    assert all(ids.dtype == torch.int64 for ids in moved.indices)
    assert moved.latents is None or moved.latents.dtype == torch.float64
    assert codes.to("meta")[0].to(device="meta").grid == codes.grid


@cases(lambda case: len(spec_of(case).levels) > 1)
@torch.no_grad()
def test_start_level_skips_levels(case: Case) -> None:
    model, batch = built(case)
    z = captured_input(model, batch)
    full = model.bottleneck(z)
    late = model.bottleneck(z, start_level=1)
    assert len(late.indices) == len(full.indices) - 1
    assert late.latents.shape == full.latents.shape
