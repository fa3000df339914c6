"""What TiTok's parts do, as its card says (sections 3 and 7)."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from contracts.cases import image_batch
from polytok.core.contracts import Codes, StepContext
from polytok.core.errors import ConfigError, PolytokError, SignalError, UnknownNameError
from polytok.core.seeding import torch_rng
from polytok.layers import Frozen
from polytok.systems.image.titok import STAGES, TiTok, TiTokConfig, legacy_layout, preset
from polytok.systems.image.titok.model import build_pixel_tokenizer
from polytok.training.stages import apply_stage, weigh

TINY = preset("titok-tiny")
PIXELS = ("vqgan-tiny", "maskgit-vqgan-tiny")
STAGE = {stage.name: stage for stage in STAGES}


def built(**changes: object) -> TiTok:
    torch.manual_seed(0)
    return TiTok(replace(TINY, **changes)).eval()


def taught(pixels: str = "vqgan-tiny") -> TiTok:
    """A model that predicts a teacher's codes and decodes as the teacher does."""
    model, teacher = built(pixels=pixels), build_pixel_tokenizer(pixels)
    model.pixels.start(teacher)
    model.teacher = Frozen(teacher)
    return model


def enter(model: TiTok, name: str) -> TiTok:
    apply_stage(model, STAGE[name], dict(model.named_parameters()))
    return model.train()


def context() -> StepContext:
    return StepContext(rng=torch_rng(0))


@torch.no_grad()
def test_ids_decode_to_what_their_latents_decode_to() -> None:
    model, batch = built(), image_batch(3)
    out = model.bottleneck(model.features(batch["image"]))
    codes = model.encode(batch)
    assert torch.equal(codes.indices[0], out.indices[0])
    wanted = model.picture(out.latents)
    assert torch.equal(model.decode(codes)["image"], wanted.clamp(0, 1))
    assert not torch.equal(wanted, wanted.clamp(0, 1))


def test_every_pixel_depends_on_every_token() -> None:
    model = built()
    latents = model.bottleneck.embed((torch.arange(8)[None],)).detach().requires_grad_()
    patches = model.picture(latents).unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((0, 1, 4, 5))
    for patch in patches.flatten()[[0, 27, 63]]:
        (gradient,) = torch.autograd.grad(patch, latents, retain_graph=True)
        assert bool(gradient.abs().sum(-1).all())


def test_the_legacy_layout_is_a_reshape_where_a_transposition_was_meant() -> None:
    tokens = torch.randn(2, 4, 6)
    mixed = legacy_layout(tokens)
    for token in range(4):
        for channel in range(6):
            place = channel * 4 + token
            assert torch.equal(mixed[:, token, channel], tokens[:, place // 6, place % 6])
    single = torch.randn(2, 1, 6)
    assert torch.equal(legacy_layout(single), single)


@torch.no_grad()
@pytest.mark.parametrize("num_latents", [1, 8])
def test_layouts_differ_unless_there_is_one_token(num_latents: int) -> None:
    plain, legacy = (built(layout=n, num_latents=num_latents) for n in ("plain", "legacy"))
    legacy.load_state_dict(plain.state_dict())
    features = [model.features(image_batch(2)["image"]) for model in (plain, legacy)]
    assert torch.equal(*features) == (num_latents == 1)


@torch.no_grad()
@pytest.mark.parametrize("pixels", PIXELS)
def test_certain_codes_decode_as_their_own_tokenizer_decodes_them(pixels: str) -> None:
    model, batch = taught(pixels), image_batch(2)
    teacher = model.teacher.module
    codes = teacher.encode(batch)
    vocab = len(teacher.codebook)
    logits = 1e4 * F.one_hot(codes.indices[0], vocab).float()
    wanted = teacher.decode(codes)["image"]
    torch.testing.assert_close(model.pixels(logits).clamp(0, 1), wanted, atol=1e-5, rtol=1e-5)
    # Undecided logits decode the mean of the two codes, not the picture of either.
    logits = torch.full((1, 64, vocab), -1e4)
    logits[..., :2] = 0
    mean = teacher.codebook[:2].mean(0)[None, :, None, None].expand(1, -1, 8, 8)
    torch.testing.assert_close(
        model.pixels(logits), teacher.decode_latents(mean), atol=1e-5, rtol=1e-5
    )


def test_the_first_stage_asks_for_the_codes_of_the_teacher() -> None:
    model, batch = enter(taught(), "proxy"), image_batch(3)
    before = {k: v.clone() for k, v in model.teacher.module.state_dict().items()}
    out = model(batch, context())
    assert set(out.losses) == {"ce", "vq/commit", "vq/codebook"}
    wanted = model.teacher.module.encode(batch).indices[0]
    chance = out.output["logits"].softmax(-1).gather(-1, wanted[..., None]).log()
    torch.testing.assert_close(out.losses["ce"], -chance.mean())
    weigh(out.losses, STAGE["proxy"].weights).backward()
    trained = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {n for n, _ in model.named_parameters() if not n.startswith("pixels.")}
    assert not [key for key in model.state_dict() if key.startswith("teacher")]
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.module.state_dict().items())
    with pytest.raises(ConfigError, match="there is none"):
        enter(built(pixels="vqgan-tiny"), "proxy")(batch, context())


def test_the_second_stage_leaves_encoder_and_codebook_alone() -> None:
    model, batch = enter(taught(), "pixels"), image_batch(3)
    out = model(batch, context())
    assert set(out.losses) == {"mse"} and out.bottleneck is None
    weigh(out.losses, STAGE["pixels"].weights).backward()
    frozen = ("encoder.", "to_code.", "bottleneck.")
    for name, parameter in model.named_parameters():
        if name.startswith(frozen):
            assert parameter.grad is None, name
        else:
            assert bool(parameter.grad.any()), name
    error = out.output["image"] - batch["image"]
    torch.testing.assert_close(out.losses["mse"], error.square().mean())


def test_direct_training_reaches_everything_and_takes_more_losses_by_name() -> None:
    model, batch = enter(built(), "direct"), image_batch(3)

    class Absolute(torch.nn.Module):
        def forward(self, decoded: Tensor, image: Tensor) -> Tensor:
            return (decoded - image).abs().mean()

    model.criteria["perceptual"] = Frozen(Absolute())
    out = model(batch, context())
    assert set(out.losses) == {"mse", "perceptual", "vq/commit", "vq/codebook"}
    difference = (out.output["image"] - batch["image"]).abs().mean()
    assert torch.equal(out.losses["perceptual"], difference)
    weigh(out.losses, STAGE["direct"].weights).backward()
    assert all(bool(p.grad.any()) for p in model.parameters())


def test_gaussian_tokens_are_means_samples_on_request_and_noisy_in_training() -> None:
    model, batch = built(bottleneck="gaussian", code_dim=16), image_batch(3)
    assert (model.spec.levels, model.spec.latent_dim) == ((), 16)
    with torch.no_grad():
        mean, log_variance = model.bottleneck.moments(model.features(batch["image"]))
        codes = model.encode(batch)
        assert torch.equal(codes.latents, mean)
        draw = model.encode(batch, rng=torch_rng(3)).latents
        noise = torch.randn(mean.shape, generator=torch_rng(3))
        torch.testing.assert_close(draw, mean + (log_variance / 2).exp() * noise)
        assert torch.equal(model.decode(codes)["image"], model.picture(mean).clamp(0, 1))
        whole = enter(model, "direct")(batch, context())
        assert set(whole.losses) == {"mse", "kl"}
        again = model(batch, StepContext(rng=torch_rng(9)))
        assert torch.equal(again.losses["mse"], whole.losses["mse"])  # by the seeds of samples
        other = model({**batch, "seed": batch["seed"] + 1}, context())
        assert not torch.equal(other.losses["mse"], whole.losses["mse"])


def test_the_codebook_starts_among_the_first_features_and_only_once() -> None:
    model, batches = built(), [image_batch(4), image_batch(6)]
    model.start_stage(STAGE["direct"], batches)
    with torch.no_grad():
        features = torch.cat([model.features(b["image"]) for b in batches])
        near = F.normalize(features.flatten(0, 1), dim=-1) @ model.bottleneck.codes.T
    # 80 features for 256 codes: each has a code of its own.
    assert float(near.max(1).values.min()) > 0.999
    model.bottleneck.update(model(batches[0], StepContext()).bottleneck)
    before = model.bottleneck.embedding.weight.clone()
    model.start_stage(STAGE["direct"], batches)
    assert torch.equal(model.bottleneck.embedding.weight, before)


@torch.no_grad()
def test_what_does_not_fit_is_refused() -> None:
    model = built()
    with pytest.raises(SignalError, match=r"images are \(3, 16, 16\), not \(3, 32, 32\)"):
        model.encode(image_batch(1, size=16))
    with pytest.raises(SignalError, match="needs image"):
        model.encode({})
    with pytest.raises(PolytokError, match="5 tokens: this model decodes whole codes of 8 only"):
        model.decode(Codes(indices=(torch.zeros(1, 5, dtype=torch.int64),)))
    with pytest.raises(PolytokError, match=r"9 tokens are not within 1..8"):
        model.decode(Codes(indices=(torch.zeros(1, 9, dtype=torch.int64),)))
    with pytest.raises(SignalError, match="needs seed"):
        built(bottleneck="gaussian").train()({"image": image_batch(1)["image"]}, context())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"patch": 5}, "size=32 is not a multiple of patch=5"),
        ({"num_latents": 0}, "num_latents=0 must be at least 1"),
        ({"pixels": "vqgan-64"}, "pixels='vqgan-64' has size 64 and stride 8, not size=32"),
        ({"pixels": "titok-l32"}, "pixels='titok-l32' is a preset of titok, not of maskgit-vqgan"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        built(**changes)


def test_unknown_presets_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'titok-l32'"):
        preset("titok-l3")


@pytest.mark.parametrize(
    ("name", "width", "layers", "num_bytes"),
    [("titok-l32", 1024, 24, 48), ("titok-b64", 768, 12, 96), ("titok-s128", 512, 8, 192)],
)
def test_published_sizes(name: str, width: int, layers: int, num_bytes: int) -> None:
    config: TiTokConfig = preset(name)
    assert (config.encoder.dim, config.encoder.num_layers) == (width, layers)
    assert config.encoder == config.decoder and config.encoder.dim == 64 * config.encoder.num_heads
    assert config.num_latents * math.log2(config.codebook_size) / 8 == num_bytes
