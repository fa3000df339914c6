"""The triplane decoder: planes that do not mix, samples that are right, fields that slice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polytok.networks.decoders import PlaneField, TriplaneDecoder
from polytok.networks.decoders.triplane import PlaneUpsampler, ResidualConv, sample_planes


def build(**changes: object) -> TriplaneDecoder:
    options: dict[str, object] = {"dim": 16, "num_heads": 2, "num_layers": 1, "num_latents": 5}
    options |= {"plane_size": 3, "channels": (8, 4), "num_latent_layers": 1, "mlp_dim": 8}
    return TriplaneDecoder(**{**options, **changes}).eval()  # type: ignore[arg-type]


def bilinear(picture: Tensor, column: float, row: float) -> Tensor:
    """Read (C, R, R) at a place in [-1, 1] by hand; cell centres inside, zeros beyond."""
    size = picture.shape[-1]
    x, y = ((column + 1) * size - 1) / 2, ((row + 1) * size - 1) / 2
    total = torch.zeros(picture.shape[0])
    for i in (int(x // 1), int(x // 1) + 1):
        for j in (int(y // 1), int(y // 1) + 1):
            if 0 <= i < size and 0 <= j < size:
                total += (1 - abs(x - i)) * (1 - abs(y - j)) * picture[:, j, i]
    return total


@pytest.mark.parametrize("extent", [1.0, 1.05])
def test_samples_are_bilinear_on_xy_xz_and_zy(extent: float) -> None:
    planes, points = torch.randn(2, 3, 4, 6, 6), (torch.rand(2, 20, 3) * 2.4 - 1.2)
    read = sample_planes(planes, points, extent)
    assert read.shape == (2, 20, 12)
    for item in range(2):
        for place, found in zip(points[item] / extent, read[item], strict=True):
            x, y, z = place.tolist()
            wanted = [
                bilinear(planes[item, 0], x, y),
                bilinear(planes[item, 1], x, z),
                bilinear(planes[item, 2], z, y),
            ]
            torch.testing.assert_close(found, torch.cat(wanted), atol=1e-5, rtol=1e-5)


def test_samples_are_fp32() -> None:
    read = sample_planes(torch.randn(1, 3, 4, 6, 6).bfloat16(), torch.rand(1, 5, 3), 1.0)
    assert read.dtype == torch.float32


@torch.no_grad()
def test_the_upsampler_doubles_and_mixes_no_planes() -> None:
    upsampler = PlaneUpsampler(16, 3, (8, 8, 4)).eval()
    tokens = torch.randn(2, 27, 16)
    planes = upsampler(tokens)
    assert planes.shape == (2, 3, 4, 12, 12)
    changed = tokens.clone()
    changed[:, 9:18] += 1  # the tokens of the second plane
    after = upsampler(changed)
    assert torch.equal(after[:, 0], planes[:, 0]) and torch.equal(after[:, 2], planes[:, 2])
    assert not torch.allclose(after[:, 1], planes[:, 1])


@torch.no_grad()
def test_a_token_shapes_its_own_corner() -> None:
    upsampler = PlaneUpsampler(16, 4, (8, 8), refine_last=False).eval()
    tokens = torch.randn(1, 48, 16)
    changed = tokens.clone()
    changed[:, 4 + 2] += 1  # row 1, column 2 of the first plane
    moved = (upsampler(changed) != upsampler(tokens)).any(2)[0, 0]
    rows, columns = moved.nonzero().unbind(1)
    assert rows.unique().tolist() == [2, 3] and columns.unique().tolist() == [4, 5]


@torch.no_grad()
def test_the_last_refinement_can_be_left_out() -> None:
    count = [
        sum(
            isinstance(m, ResidualConv)
            for m in PlaneUpsampler(8, 2, (8, 8, 4, 4), refine_last=on).modules()
        )
        for on in (True, False)
    ]
    assert count == [3, 2]


@pytest.mark.parametrize("channels", [(8,), (8, 6), (8, 4, 3)])
@torch.no_grad()
def test_the_field_of_any_number_of_doublings(channels: tuple[int, ...]) -> None:
    field = build(channels=channels)(torch.randn(2, 5, 16))
    assert field.planes.shape == (2, 3, channels[-1], *[3 * 2 ** (len(channels) - 1)] * 2)
    assert field(torch.rand(2, 7, 3)).shape == (2, 7)


@torch.no_grad()
def test_a_field_slices_and_reads_points_one_by_one() -> None:
    field = build()(torch.randn(3, 5, 16))
    points = torch.rand(3, 11, 3) * 2 - 1
    logits = field(points)
    assert len(field) == 3
    for item in range(3):
        torch.testing.assert_close(field[item](points[item : item + 1])[0], logits[item])
    parts = [field(points[:, i : i + 1]) for i in range(11)]
    torch.testing.assert_close(torch.cat(parts, dim=1), logits, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_items_do_not_mix() -> None:
    decoder, latents = build(), torch.randn(3, 5, 16)
    planes = decoder.planes(latents)
    torch.testing.assert_close(decoder.planes(latents[1:2]), planes[1:2], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_every_latent_slot_has_its_place() -> None:
    decoder, latents = build(), torch.randn(1, 5, 16)
    assert not torch.allclose(decoder.planes(latents.flip(1)), decoder.planes(latents), atol=1e-5)


def test_gradient_reaches_latents_points_and_every_parameter() -> None:
    decoder = build().train()
    latents = torch.randn(2, 5, 16, requires_grad=True)
    points = (torch.rand(2, 40, 3) - 0.5).requires_grad_()
    decoder(latents)(points).square().sum().backward()
    assert bool(latents.grad.any()) and bool(points.grad.any())
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.any()), name


def test_a_field_reads_through_its_head() -> None:
    planes = torch.randn(1, 3, 2, 4, 4)
    head = nn.Linear(6, 1)
    points = torch.rand(1, 9, 3)
    wanted = head(sample_planes(planes, points, 1.0))[..., 0]
    assert torch.equal(PlaneField(planes, head, 1.0)(points), wanted)
