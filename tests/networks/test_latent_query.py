"""The networks of 1-D image tokenizers: who sees whom, and where pixels land."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from polytok.core.errors import ConfigError
from polytok.networks.decoders import CodeHead, MaskTokenDecoder, PatchHead
from polytok.networks.encoders import LatentQueryEncoder

DIM, LATENTS = 16, 6
SIZES = {"dim": DIM, "num_heads": 2, "num_layers": 2, "num_latents": LATENTS}


def decoder(grid: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return MaskTokenDecoder(grid=grid, **SIZES).eval()


def test_the_number_of_tokens_does_not_depend_on_the_grid() -> None:
    for size in (8, 12, 20):
        encoder = LatentQueryEncoder(size=size, patch=4, **SIZES)
        assert encoder(torch.rand(2, 3, size, size)).shape == (2, LATENTS, DIM)
        assert encoder.position.shape == (1 + (size // 4) ** 2, DIM)


def test_every_token_sees_every_patch_and_every_cell_every_token() -> None:
    encoder = LatentQueryEncoder(size=12, patch=4, **SIZES)
    # The values of a normalised token always have the same sum; a sum would have no gradient.
    probe = torch.randn(DIM)
    image = torch.rand(1, 3, 12, 12, requires_grad=True)
    for token in range(LATENTS):
        (gradient,) = torch.autograd.grad(encoder(image)[0, token] @ probe, image)
        assert bool(gradient.unfold(2, 4, 4).unfold(3, 4, 4).abs().sum((0, 1, 4, 5)).all())
    tokens = torch.randn(1, LATENTS, DIM, requires_grad=True)
    for cell in range(9):
        (gradient,) = torch.autograd.grad(decoder()(tokens)[0, cell] @ probe, tokens)
        assert bool(gradient.abs().sum(-1).all())


@torch.no_grad()
def test_lengths_equal_slices_and_what_lies_beyond_does_not_matter() -> None:
    model, tokens = decoder(), torch.randn(4, LATENTS, DIM)
    lengths = torch.tensor([1, 3, LATENTS, 4])
    together = model(tokens, lengths=lengths)
    for item, length in enumerate(lengths.tolist()):
        alone = model(tokens[item : item + 1, :length])
        torch.testing.assert_close(together[item : item + 1], alone, atol=1e-5, rtol=1e-5)
    beyond = torch.arange(LATENTS)[:, None] >= lengths[:, None, None]
    poisoned = torch.where(beyond, 1e3 * torch.randn_like(tokens), tokens)
    assert torch.equal(model(poisoned, lengths=lengths), together)
    assert torch.equal(model(tokens), model(tokens, lengths=None))


@torch.no_grad()
def test_a_token_is_told_its_place_from_the_front() -> None:
    """A token alone at the front is the first token, whatever it was cut from."""
    model, tokens = decoder(), torch.randn(1, LATENTS, DIM)
    before = model(tokens[:, :2])
    model.latent_position[2:] += 1
    assert torch.equal(model(tokens[:, :2]), before)
    model.latent_position[1] += 1
    assert not torch.allclose(model(tokens[:, :2]), before)


@torch.no_grad()
def test_a_patch_is_laid_row_by_row_with_channels_last() -> None:
    head, patch = PatchHead(DIM, 2), 2
    nn.init.zeros_(head.smooth.bias)
    nn.init.zeros_(head.out.bias)
    features = torch.randn(1, 9, DIM)
    values = head.out(features)
    image = head(features)
    assert image.shape == (1, 3, 6, 6)
    for row in range(3):
        for column in range(3):
            part = image[0, :, row * patch :, column * patch :][:, :patch, :patch]
            wanted = values[0, row * 3 + column].view(patch, patch, 3).permute(2, 0, 1)
            torch.testing.assert_close(part, wanted)
    with pytest.raises(ConfigError, match="8 cells are not a square grid"):
        head(features[:, :8])


@torch.no_grad()
def test_a_new_head_paints_grey_and_codes_are_scored_per_cell() -> None:
    grey = PatchHead(DIM, 4)
    nn.init.zeros_(grey.out.weight)
    nn.init.zeros_(grey.out.bias)
    assert torch.equal(grey(torch.randn(2, 9, DIM)), torch.full((2, 3, 12, 12), 0.5))
    head, features = CodeHead(DIM, 5), torch.randn(2, 9, DIM)
    wanted = (features @ head.up.weight.T + head.up.bias).tanh() @ head.out.weight.T
    torch.testing.assert_close(head(features), wanted + head.out.bias)
