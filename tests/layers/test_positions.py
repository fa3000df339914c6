"""Fourier features against the formula."""

from __future__ import annotations

import torch

from polytok.layers import PLANE_AXES, FourierEmbedding


def test_eight_octaves_of_three_coordinates_are_51_features() -> None:
    embedding = FourierEmbedding()
    assert embedding.dim == 51
    assert embedding(torch.randn(2, 7, 3)).shape == (2, 7, 51)


def test_features_are_sines_and_cosines_of_octaves_without_pi() -> None:
    x = torch.rand(11, 3) * 2 - 1
    features = FourierEmbedding(4)(x)
    wanted = [x]
    for wave in (torch.sin, torch.cos):
        columns = [wave(x[:, c] * 2.0**n) for c in range(3) for n in range(4)]
        wanted.append(torch.stack(columns, dim=-1))
    torch.testing.assert_close(features, torch.cat(wanted, dim=-1))


def test_it_computes_in_fp32_and_saves_nothing() -> None:
    embedding = FourierEmbedding(3, num_coords=2)
    assert embedding(torch.randn(4, 2).bfloat16()).dtype == torch.float32
    assert embedding.dim == 14 and not embedding.state_dict()


def test_planes_show_xy_xz_and_zy() -> None:
    assert PLANE_AXES == ((0, 1), (0, 2), (2, 1))
