"""What tail token drop does to TiTok, as its card says (sections 3, 7 and 10)."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.cases import image_batch, take
from polytok.core.contracts import Codes, StepContext
from polytok.core.errors import ConfigError, PolytokError, UnknownNameError
from polytok.core.seeding import torch_rng
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.one_d_piece import preset, token_contribution
from polytok.systems.image.titok import TailDropConfig, TiTok

MICRO = preset("one-d-piece-micro")
TOKENS = MICRO.num_latents


def built(**changes: object) -> TiTok:
    torch.manual_seed(0)
    return TiTok(replace(MICRO, **changes)).eval()


def context(seed: int = 0) -> StepContext:
    return StepContext(rng=torch_rng(seed))


def kept(model: TiTok, step: StepContext) -> int:
    """How many tokens a training step decodes."""
    seen: list[Tensor] = []
    hook = model.from_code.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(image_batch(1), step)
    hook.remove()
    return seen[0].shape[1]


@torch.no_grad()
def test_a_prefix_decodes_as_its_latents_do_and_the_whole_as_titok_does() -> None:
    model, batch = built(), image_batch(3)
    plain = built(tail_drop=None)
    plain.load_state_dict(model.state_dict())
    codes = model.encode(batch)
    latents = model.bottleneck(model.features(batch["image"])).latents
    for count in range(1, TOKENS + 1):
        wanted = model.picture(latents[:, :count]).clamp(0, 1)
        assert torch.equal(model.decode(codes.prefix(tokens=count))["image"], wanted)
    assert torch.equal(plain.encode(batch).indices[0], codes.indices[0])
    assert torch.equal(plain.decode(codes)["image"], model.decode(codes)["image"])
    with pytest.raises(PolytokError, match="decodes whole codes of 16 only"):
        plain.decode(codes.prefix(tokens=3))


def test_without_draws_a_step_is_a_step_of_titok_bit_for_bit() -> None:
    model, plain, batch = built().train(), built(tail_drop=None).train(), image_batch(3)
    outs = [m(batch, StepContext()) for m in (model, plain)]
    for out in outs:
        torch.stack(list(out.losses.values())).sum().backward()
    assert outs[0].losses.keys() == outs[1].losses.keys()
    assert all(torch.equal(v, outs[1].losses[k]) for k, v in outs[0].losses.items())
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


@torch.no_grad()
def test_lengths_are_uniform_never_zero_and_whole_in_eval() -> None:
    model, draws = built().train(), 200
    counts = Counter(kept(model, context(seed)) for seed in range(draws))
    assert set(counts) == set(range(1, TOKENS + 1))
    # Chi-square with 15 degrees of freedom is below 37.7 for all but one of 1000 seeds.
    assert sum((counts[n] - draws / TOKENS) ** 2 for n in counts) / (draws / TOKENS) < 37.7
    assert kept(model, context(5)) == kept(model, context(5))
    assert {kept(model.eval(), context(seed)) for seed in range(20)} == {TOKENS}


def test_dropped_tokens_learn_from_the_codebook_alone() -> None:
    model, batch, step = built().train(), image_batch(3), context(1)
    count = kept(model, step)
    assert 1 < count < TOKENS
    seen: list[Tensor] = []
    model.to_code.register_forward_hook(lambda _, __, out: (out.retain_grad(), seen.append(out))[0])
    out = model(batch, step)
    whole = model(batch, StepContext())
    for name in ("vq/commit", "vq/codebook"):
        assert torch.equal(out.losses[name], whole.losses[name])
    out.losses["mse"].backward(retain_graph=True)
    grad = seen[0].grad.abs().sum((0, 2))
    assert bool(grad[:count].all()) and not bool(grad[count:].any())
    out.losses["vq/commit"].backward()
    assert bool(seen[0].grad.abs().sum((0, 2)).all())


def test_a_length_per_sample_makes_losses_independent_of_the_batch() -> None:
    model, batch = built(tail_drop=TailDropConfig(per_sample=True)).train(), image_batch(4)
    together = model(batch, context(0))
    alone = [model(take(batch, slice(i, i + 1)), context(i)) for i in range(4)]
    mean = torch.stack([out.losses["mse"] for out in alone]).mean()
    torch.testing.assert_close(together.losses["mse"], mean, atol=1e-5, rtol=1e-5)
    pictures = torch.cat([out.output["image"] for out in alone])
    torch.testing.assert_close(together.output["image"], pictures, atol=1e-5, rtol=1e-5)
    other = model({**batch, "seed": batch["seed"] + 50}, context(0))
    assert not torch.equal(other.losses["mse"], together.losses["mse"])


@torch.no_grad()
def test_a_batch_may_mix_lengths() -> None:
    model, batch = built(), image_batch(4)
    codes = replace(model.encode(batch), lengths=torch.tensor([1, 9, TOKENS, 4]))
    together = model.decode(codes)["image"]
    for item, length in enumerate(codes.lengths.tolist()):
        alone = Codes(indices=(codes.indices[0][item : item + 1, :length],))
        torch.testing.assert_close(
            together[item : item + 1], model.decode(alone)["image"], atol=1e-5, rtol=1e-5
        )
    for bad in ([0, 1, 1, 1], [TOKENS + 1, 1, 1, 1]):
        with pytest.raises(PolytokError, match=r"are not within 1..16"):
            model.decode(replace(codes, lengths=torch.tensor(bad)))


@torch.no_grad()
def test_the_contribution_of_a_token_is_what_changes_with_it() -> None:
    model, image = built(), image_batch(2)["image"]
    found = token_contribution(model, image, rng=torch_rng(1))
    assert found.shape == (2, TOKENS, 32, 32)
    assert torch.equal(found, token_contribution(model, image, rng=torch_rng(1)))
    (ids,) = model.encode({"image": image}).indices
    step = torch.randint(1, 256, (2,), generator=torch_rng(1))
    ids[:, 0] = (ids[:, 0] + step) % 256
    changed = model.decode(Codes(indices=(ids,)))["image"]
    whole = model.decode(model.encode({"image": image}))["image"]
    torch.testing.assert_close(found[:, 0], (changed - whole).abs().mean(1))
    # With all codes alike no token matters.
    model.bottleneck.embedding.weight.copy_(model.bottleneck.embedding.weight[:1].expand(256, -1))
    assert not bool(token_contribution(model, image, rng=torch_rng(1)).any())


def test_published_sizes_and_rates() -> None:
    for size, width in (("s", 512), ("b", 768), ("l", 1024)):
        config = preset(f"one-d-piece-{size}-256")
        assert (config.encoder.dim, config.num_latents, config.layout) == (width, 256, "legacy")
        assert math.ceil(math.log2(config.codebook_size) * 256 / 8) == 384
        assert config.tail_drop == TailDropConfig(distribution="uniform", min_keep=1)
    tiny = preset("one-d-piece-tiny")
    assert (tiny.size, tiny.num_latents, tiny.layout, tiny.pixels) == (64, 64, "plain", "")
    with pytest.raises(ConfigError, match=r"min_keep=17 is not within 1..16"):
        built(tail_drop=TailDropConfig(min_keep=17))
    with pytest.raises(UnknownNameError, match="one-d-piece-tin"):
        preset("one-d-piece-tin")


def test_counted_tokens_shorten_files_by_what_each_place_says() -> None:
    model = built()
    whole = image_batch(48)["image"]
    batches = [{"image": part} for part in whole.split(8)]
    counted = model.counted(batches)
    ids = torch.cat([model.encode(batch).indices[0] for batch in batches])
    assert torch.equal(counted.encode(batches[0]).indices[0], ids[:8]), "it is the same model"
    places, codes = counted.token_counts.shape
    seen = torch.stack([torch.bincount(ids[:, k], minlength=codes) for k in range(places)])
    shared = seen.sum(0) * (256 / seen.sum())
    torch.testing.assert_close(counted.token_counts / 16, seen + shared, atol=1 / 32, rtol=0)
    size = model.config.size
    plain, better = (ImageCodec(m, size=size, name="a", weights="0" * 8) for m in (model, counted))
    code = Codes(
        indices=(ids[:1],),
        meta={"size": torch.tensor([[size, size]]), "tiles": torch.ones(1, dtype=torch.int64)},
    )
    [short], [long] = better.pack(code), plain.pack(code)
    assert len(short) < len(long)
    assert torch.equal(better.unpack(short).indices[0], ids[:1])
    with pytest.raises(ConfigError, match="no codes to count"):
        replace(MICRO, bottleneck="gaussian", has_token_counts=True)
