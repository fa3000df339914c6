"""Fourier features against the formula."""

from __future__ import annotations

import torch

from polytok.layers import (
    PLANE_AXES,
    FourierEmbedding,
    grid_places,
    nested_places,
    sine_embedding,
)


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


def test_nested_places_are_a_whole_then_quarters_then_sixteenths() -> None:
    places, widths = nested_places(30)
    assert widths.tolist() == [1.0] + [0.5] * 4 + [0.25] * 16 + [0.125] * 9
    for side, level in ((1, places[:1]), (2, places[1:5]), (4, places[5:21])):
        assert sorted(level.tolist()) == sorted(grid_places(side).tolist())
    assert torch.equal(nested_places(7)[0], places[:7]), "what comes first depends on no count"


def test_the_embedding_of_a_square_is_the_mean_over_its_points() -> None:
    centre, width, side = torch.tensor([[0.25, 0.75]]), torch.tensor([0.5]), 256
    points = centre + width * (grid_places(side) - 0.5)
    wanted = sine_embedding(points, 24).mean(0, keepdim=True)
    torch.testing.assert_close(sine_embedding(centre, 24, width), wanted, atol=1e-4, rtol=0)


def test_embeddings_tell_places_apart_and_fill_up_odd_widths() -> None:
    features = sine_embedding(grid_places(8), 26)
    assert features.shape == (64, 26) and not features[:, 24:].any()
    assert torch.cdist(features, features).fill_diagonal_(9).min() > 0.1
