"""Mechanism checks of VAT's tokenizer, on the tiny preset with random weights.

Sampler checks (teacher inputs) run on the quantizer; those of the generator come with it. Parity
with VAR's quantizer (on its own code) is in tests/parity.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from contracts.cases import shape_batch
from polytok import bitstream
from polytok.core.contracts import Codes, StepContext
from polytok.core.errors import ConfigError, SignalError, UnknownNameError
from polytok.networks.decoders.triplane import sample_planes
from polytok.systems.shape.vat import PRESETS, VAT, preset

ITEMS = 3
TINY = PRESETS["vat-512b-tiny"]
FILE_OVERHEAD = 30  # prefix 10, centre and scale 16, checksum 4


def build(**changes: object) -> VAT:
    return VAT(dataclasses.replace(TINY, **changes))


def same_ids(a: Codes, b: Codes) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.indices, b.indices, strict=True))


@pytest.fixture
def model() -> VAT:
    return build().eval()


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return shape_batch(ITEMS, points=200)


def read(model: VAT, codes: Codes, batch: dict[str, Tensor]) -> Tensor:
    return model.decode(codes)["field"](batch["queries"])


# 1, 2, 3: codes


@torch.no_grad()
def test_the_output_is_the_sum_of_the_scales_and_rest_is_what_misses(
    model: VAT, batch: dict[str, Tensor]
) -> None:
    quantizer = model.bottleneck.quantizer
    z = model.bottleneck.gaussian(model.encoder(batch["points"], batch["normals"])).latents
    out = quantizer(z)
    lifts = [
        quantizer.phi(quantizer.resampler.up(quantizer.embedding.weight[ids], level), level)
        for level, ids in enumerate(out.indices)
    ]
    torch.testing.assert_close(torch.stack(lifts).sum(0), out.latents, atol=1e-6, rtol=1e-6)
    # What is missing follows from the prefixes; what the quantizer took for it must agree.
    table, prefix = quantizer.embedding.weight.double(), torch.zeros_like(z)
    for level, lifted in enumerate(lifts):
        met = quantizer.resampler.down(z - prefix, level)
        assert torch.equal(out.indices[level], torch.cdist(met.double(), table).argmin(-1))
        torch.testing.assert_close(out.stats["inputs"][level], met, atol=1e-6, rtol=1e-5)
        prefix = prefix + lifted
        torch.testing.assert_close(out.stats["prefixes"][level], prefix, atol=1e-6, rtol=1e-6)
        energy = (z - prefix).square().mean() / z.square().mean()
        torch.testing.assert_close(out.stats["rest_energy"][level], energy, atol=0, rtol=1e-5)


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@torch.no_grad()
def test_bytes_and_back_decode_identically(
    model: VAT, batch: dict[str, Tensor], levels: int
) -> None:
    codes = model.encode(batch).prefix(levels=levels)
    field = read(model, codes, batch)
    for item in range(ITEMS):
        data = bitstream.pack(codes[item], model.spec, weights="00c0ffee")
        bits = 6 * sum(TINY.slots[:levels])
        assert len(data) == FILE_OVERHEAD + -(-bits // 8)
        assert len(data) <= 512
        back = bitstream.unpack(data, model.spec, weights="00c0ffee")
        for ids, wanted in zip(back.indices, codes[item].indices, strict=True):
            assert torch.equal(ids, wanted)
        torch.testing.assert_close(back.meta["centre"], codes[item].meta["centre"])
        torch.testing.assert_close(back.meta["scale"], codes[item].meta["scale"])
        one = {"queries": batch["queries"][item : item + 1]}
        torch.testing.assert_close(read(model, back, one), field[item : item + 1])


@pytest.mark.parametrize("name", [n for n in PRESETS if n.startswith("vat-512b")])
def test_a_512_byte_preset_fits_whatever_its_ids_are(name: str) -> None:
    config = preset(name)
    bits = (config.codebook_size - 1).bit_length() * sum(config.slots)
    assert FILE_OVERHEAD <= 32
    assert -(-bits // 8) <= 480
    # One boundary gives a whole file of 230 to 256 bytes.
    if name != "vat-512b-tiny":
        bits_of = (config.codebook_size - 1).bit_length()
        files = [
            FILE_OVERHEAD + -(-bits_of * sum(config.slots[:k]) // 8)
            for k in range(1, len(config.slots) + 1)
        ]
        assert any(230 <= size <= 256 for size in files)


@torch.no_grad()
def test_a_prefix_uses_no_code_of_a_later_scale(model: VAT, batch: dict[str, Tensor]) -> None:
    codes = model.encode(batch)
    for levels in range(1, len(TINY.slots)):
        poisoned = dataclasses.replace(
            codes,
            indices=(
                *codes.indices[:levels],
                *((ids + 7) % TINY.codebook_size for ids in codes.indices[levels:]),
            ),
        )
        part = read(model, codes.prefix(levels=levels), batch)
        assert torch.equal(part, read(model, poisoned.prefix(levels=levels), batch))
        assert not torch.equal(part, read(model, poisoned, batch))
        latents = model.bottleneck.embed(poisoned.indices, num_levels=levels)
        assert torch.equal(latents, model.bottleneck.embed(codes.indices[:levels]))


# 4: variational quantization without variance


def silence(model: VAT) -> None:
    """Make sigma vanish: the log-variance head gives its least value."""
    head = model.bottleneck.gaussian.to_moments
    with torch.no_grad():
        head.weight[TINY.code_dim :] = 0.0
        head.bias[TINY.code_dim :] = -1e4


@torch.no_grad()
def test_without_variance_it_is_the_plain_multi_scale_quantizer(batch: dict[str, Tensor]) -> None:
    model = build().train()
    silence(model)
    z = model.encoder(batch["points"], batch["normals"])
    noise = torch.randn(ITEMS, TINY.num_latents, TINY.code_dim)
    noisy = model.bottleneck(z, noise=noise)
    mean = model.bottleneck.gaussian.to_moments(z)[..., : TINY.code_dim]
    plain = model.bottleneck.quantizer(mean)
    for found, wanted in zip(noisy.indices, plain.indices, strict=True):
        assert torch.equal(found, wanted)
    torch.testing.assert_close(noisy.latents, plain.latents, atol=1e-5, rtol=1e-5)
    # Without noise at all (the plain arm of the ablation) it is bit for bit the same.
    silent = model.bottleneck(z)
    assert torch.equal(silent.latents, plain.latents)
    assert torch.equal(silent.losses["vq"], plain.losses["vq"])


def test_the_plain_arm_draws_nothing_and_charges_no_kl(batch: dict[str, Tensor]) -> None:
    model = build(is_variational=False).train()
    out = model(batch, StepContext())
    other = model({**batch, "seed": batch["seed"] + 1}, StepContext())
    assert set(out.losses) == {"rec", "vq"}
    assert torch.equal(out.losses["rec"], other.losses["rec"])


@torch.no_grad()
def test_a_single_scale_is_ordinary_vector_quantization(batch: dict[str, Tensor]) -> None:
    model = build(slots=(16,), refine_ratio=0.0).eval()
    codes = model.encode(batch)
    z = model.bottleneck.gaussian(model.encoder(batch["points"], batch["normals"])).latents
    table = model.bottleneck.quantizer.embedding.weight
    ids = torch.cdist(z.double(), table.double()).argmin(-1)
    assert torch.equal(codes.indices[0], ids)
    assert torch.equal(model.bottleneck.embed(codes.indices), table[ids])


# 6: teacher forcing


@pytest.mark.parametrize("resampler", ["grid2d", "linear1d", "attn", "nested"])
@torch.no_grad()
def test_teacher_inputs_are_those_of_a_step_by_step_sampler(
    batch: dict[str, Tensor], resampler: str
) -> None:
    model = build(resampler=resampler).eval()
    quantizer, indices = model.bottleneck.quantizer, model.encode(batch).indices
    inputs = quantizer.teacher_inputs(indices).split(TINY.slots[1:], dim=1)
    for level in range(1, len(TINY.slots)):
        met = quantizer.resampler.down(model.bottleneck.embed(indices[:level]), level)
        torch.testing.assert_close(inputs[level - 1], met, atol=1e-5, rtol=0)


# 8: order of points and items


@pytest.mark.parametrize("mode", ["cross_learned", "cross_fps", "subset", "planes"])
@torch.no_grad()
def test_the_order_of_the_points_does_not_matter(batch: dict[str, Tensor], mode: str) -> None:
    model = build(feature_mode=mode, num_features=48 if mode == "planes" else 32).eval()
    order = torch.randperm(batch["points"].shape[1])
    shuffled = {k: batch[k][:, order] for k in ("points", "normals")}
    a = model.encoder(batch["points"], batch["normals"])
    b = model.encoder(shuffled["points"], shuffled["normals"])
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert same_ids(model.encode(batch), model.encode(shuffled))


@torch.no_grad()
def test_the_order_of_the_items_does_not_matter(model: VAT, batch: dict[str, Tensor]) -> None:
    order = torch.tensor([2, 0, 1])
    codes = model.encode(batch)
    swapped = model.encode({k: v[order] for k, v in batch.items()})
    for ids, wanted in zip(swapped.indices, codes.indices, strict=True):
        assert torch.equal(ids, wanted[order])
    assert torch.equal(swapped.meta["scale"], batch["scale"][order])


def test_a_training_loss_does_not_depend_on_the_neighbours(batch: dict[str, Tensor]) -> None:
    model = build().train()
    together = model(batch, StepContext()).losses["rec"]
    alone = [
        model({k: v[i : i + 1] for k, v in batch.items()}, StepContext()).losses["rec"]
        for i in range(ITEMS)
    ]
    torch.testing.assert_close(together, torch.stack(alone).mean(), atol=1e-5, rtol=1e-5)


# 9: planes


def coordinate_planes(size: int, extent: float) -> Tensor:
    """Planes (1, 3, 2, R, R) whose two channels hold the column's and the row's coordinate."""
    cells = ((torch.arange(size) + 0.5) / size * 2 - 1) * extent
    rows, columns = torch.meshgrid(cells, cells, indexing="ij")
    return torch.stack([columns, rows]).expand(1, 3, 2, size, size)


@pytest.mark.parametrize("extent", [1.0, 1.05])
def test_each_plane_shows_its_two_axes_exactly(extent: float) -> None:
    size = 16
    points = (torch.rand(1, 500, 3) * 2 - 1) * extent * (1 - 1 / size)  # inside the cell centres
    read = sample_planes(coordinate_planes(size, extent), points, extent)
    x, y, z = points.unbind(-1)
    wanted = torch.stack([x, y, x, z, z, y], dim=-1)
    torch.testing.assert_close(read, wanted, atol=1e-5, rtol=0)


def test_points_outside_the_box_read_zeros() -> None:
    planes = torch.ones(2, 3, 4, 8, 8)
    points = torch.tensor([[1.3, 0, 0], [0, -1.3, 0], [0, 0, 1.3], [2.0, 2.0, 2.0]])
    read = sample_planes(planes, points.expand(2, -1, -1), 1.0).view(2, 4, 3, 4)
    # x leaves xy and xz, y leaves xy and zy, z leaves xz and zy.
    kept = torch.tensor([[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]]).bool()
    assert torch.equal(read, kept[None, :, :, None].expand_as(read).float())


# 11: gradient


def test_gradient_reaches_every_part(batch: dict[str, Tensor]) -> None:
    model = build().train()
    model(batch, StepContext()).losses["rec"].backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    heads = model.bottleneck.gaussian.to_moments.weight.grad
    assert bool(heads[: TINY.code_dim].any()), "mu"
    assert bool(heads[TINY.code_dim :].any()), "log variance"
    missed = {n for n, _ in model.named_parameters()} - reached
    # The straight-through estimator skips the codebook and its refinement.
    assert {name.rsplit(".", 1)[0] for name in missed} == {
        "bottleneck.quantizer.embedding",
        *(f"bottleneck.quantizer.phi.layers.{i}" for i in range(4)),
    }


def test_the_quantizer_learns_from_its_own_loss_alone(batch: dict[str, Tensor]) -> None:
    model = build().train()
    model(batch, StepContext()).losses["vq"].backward()
    quantizer = model.bottleneck.quantizer
    assert bool(quantizer.embedding.weight.grad.any())
    assert all(bool(layer.weight.grad.any()) for layer in quantizer.phi.layers)
    assert bool(model.encoder.latent_tokens.grad.any()), "commitment"
    assert model.decoder.plane_tokens.grad is None
    # Nothing passes the argmin: codes that no slot picked get no gradient.
    picked = torch.zeros(TINY.codebook_size, dtype=torch.bool)
    for ids in model(batch, StepContext()).bottleneck.indices:
        picked[ids.flatten()] = True
    moved = quantizer.embedding.weight.grad.any(1)
    assert torch.equal(moved, picked)


# 12: seeds


@torch.no_grad()
def test_equal_seeds_give_equal_codes(model: VAT, batch: dict[str, Tensor]) -> None:
    plain = model.encode(batch)
    draws = [model.encode(batch, rng=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert all(
        torch.equal(a, b) for a, b in zip(plain.indices, model.encode(batch).indices, strict=True)
    )
    assert all(torch.equal(a, b) for a, b in zip(draws[0].indices, draws[1].indices, strict=True))
    assert any(
        not torch.equal(a, b) for a, b in zip(draws[0].indices, draws[2].indices, strict=True)
    )


def test_a_training_step_depends_on_the_seeds_of_its_samples_alone(
    batch: dict[str, Tensor],
) -> None:
    model = build().train()
    first = model(batch, StepContext()).losses["rec"]
    torch.manual_seed(1234)
    assert torch.equal(first, model(batch, StepContext(step=9)).losses["rec"])
    other = {**batch, "seed": batch["seed"] + 1}
    assert not torch.equal(first, model(other, StepContext()).losses["rec"])


def test_some_samples_decode_from_the_mean(batch: dict[str, Tensor]) -> None:
    seeds = {"seed": torch.arange(400), "points": batch["points"]}
    noise = build(mean_fraction=0.2).train()._noise(seeds)
    silent = ~noise.flatten(1).any(1)
    assert 50 < int(silent.sum()) < 110
    assert abs(float(noise[~silent].std()) - 1) < 0.02
    assert build().eval()._noise(seeds) is None


@torch.no_grad()
def test_prefix_dropout_decodes_some_samples_from_a_prefix(batch: dict[str, Tensor]) -> None:
    model = build(prefix_dropout=1.0).train()
    out = model.bottleneck(model._encode(batch), noise=model._noise(batch))
    latents = model._drop_levels(out, batch)
    prefixes = torch.stack(out.stats["prefixes"][:-1])
    for item in range(ITEMS):
        near = (prefixes[:, item] - latents[item]).abs().amax((1, 2))
        assert float(near.min()) < 1e-5
    model.eval()
    assert model._drop_levels(out, batch) is out.latents


# Stages, wrong input and presets


@torch.no_grad()
def test_without_the_quantizer_the_sample_itself_is_decoded(batch: dict[str, Tensor]) -> None:
    model = build().train()
    model.bottleneck.is_quantized = False
    out = model(batch, StepContext())
    assert set(out.losses) == {"rec", "kl"}
    assert out.bottleneck.indices is None
    model.bottleneck.update(out.bottleneck)
    assert not bool(model.bottleneck.quantizer.usage.any())


@pytest.mark.parametrize(
    "broken",
    [
        {"normals": None},
        {"points": torch.zeros(5, 3), "normals": torch.zeros(5, 3)},
        {"points": torch.zeros(1, 5, 2), "normals": torch.zeros(1, 5, 2)},
        {"points": torch.zeros(1, 5, 3), "normals": torch.zeros(1, 4, 3)},
    ],
)
def test_wrong_batches_are_refused(
    model: VAT, batch: dict[str, Tensor], broken: dict[str, Tensor | None]
) -> None:
    kept = {k: v for k, v in {**batch, **broken}.items() if v is not None}
    with pytest.raises(SignalError, match="points"):
        model.encode(kept)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="dim=65"):
        build(dim=65, num_heads=4)
    with pytest.raises(ConfigError, match=r"mean_fraction=1\.5"):
        build(mean_fraction=1.5)
    with pytest.raises(ConfigError, match="slots"):
        build(slots=())
    with pytest.raises(UnknownNameError, match="did you mean 'vat-512b-tiny'"):
        preset("vat-512b-tinny")


def test_the_small_preset_has_at_most_16_million_parameters() -> None:
    assert sum(p.numel() for p in VAT(preset("vat-512b-small")).parameters()) <= 16e6
