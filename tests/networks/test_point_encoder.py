"""The point encoder: what its tokens depend on, and on what not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.networks.encoders import PointEncoder
from polytok.networks.encoders.point import PlanePooling, farthest_points

MODES = ["cross_learned", "cross_fps", "subset", "planes", "anchored"]
modes = pytest.mark.parametrize("mode", MODES)


def build(mode: str = "cross_learned", **changes: object) -> PointEncoder:
    options: dict[str, object] = {"dim": 16, "num_heads": 2, "num_layers": 1, "num_latents": 4}
    options |= {"num_features": 12, "feature_mode": mode}
    if mode == "anchored":
        options |= {"feature_mode": "planes", "is_anchored": True}
    return PointEncoder(**{**options, **changes}).eval()  # type: ignore[arg-type]


@pytest.fixture
def cloud() -> tuple[Tensor, Tensor]:
    points = torch.rand(3, 60, 3) * 1.9 - 0.95
    return points, torch.nn.functional.normalize(torch.randn(3, 60, 3), dim=-1)


@modes
@pytest.mark.parametrize("is_compressed", [True, False])
@torch.no_grad()
def test_any_number_of_points_gives_the_latents(mode: str, is_compressed: bool) -> None:
    count = 12 if mode == "planes" and not is_compressed else 4
    encoder = build(mode, is_compressed=is_compressed, num_latents=count)
    assert encoder.num_features == (12 if is_compressed or mode == "anchored" else count)
    for points in (12, 33):
        x = torch.rand(2, points, 3)
        assert encoder(x, x).shape == (2, count, 16)


@modes
@torch.no_grad()
def test_order_of_points_and_items_is_of_no_account(
    mode: str, cloud: tuple[Tensor, Tensor]
) -> None:
    encoder, (points, normals), order = build(mode), cloud, torch.randperm(60)
    latents = encoder(points, normals)
    shuffled = encoder(points[:, order], normals[:, order])
    torch.testing.assert_close(shuffled, latents, atol=2e-5, rtol=1e-4)
    alone = encoder(points[1:2], normals[1:2])
    torch.testing.assert_close(alone, latents[1:2], atol=2e-5, rtol=1e-4)


@modes
@torch.no_grad()
def test_points_and_normals_both_matter(mode: str, cloud: tuple[Tensor, Tensor]) -> None:
    encoder, (points, normals) = build(mode), cloud
    latents = encoder(points, normals)
    assert not torch.allclose(encoder(points * 0.9, normals), latents, atol=1e-4)
    assert not torch.allclose(encoder(points, -normals), latents, atol=1e-4)


@modes
def test_gradient_reaches_every_parameter_and_the_points(
    mode: str, cloud: tuple[Tensor, Tensor]
) -> None:
    encoder, (points, normals) = build(mode).train(), cloud
    points.requires_grad_()
    encoder(points, normals).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        if name not in ("norm.weight", "norm.bias"):
            assert parameter.grad is not None and bool(parameter.grad.any()), name
    assert bool(points.grad.any())


@torch.no_grad()
def test_without_compression_blocks_see_as_many_tokens_as_come_out(
    cloud: tuple[Tensor, Tensor],
) -> None:
    seen: list[int] = []
    for is_compressed in (True, False):
        encoder = build("anchored", is_compressed=is_compressed)
        encoder.blocks[0].register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
        encoder(*cloud)
    assert seen == [4 + 12, 4]


def test_anchors_need_planes() -> None:
    with pytest.raises(ConfigError, match="anchored latents need feature_mode planes, not cross"):
        build("anchored", feature_mode="cross_fps")


def test_planes_need_three_squares() -> None:
    with pytest.raises(ConfigError, match="num_features=13"):
        build("planes", num_features=13)


def test_farthest_points_cover_and_do_not_repeat() -> None:
    points = torch.rand(4, 200, 3)
    chosen = farthest_points(points, 30)
    for item, ids in zip(points, chosen, strict=True):
        assert len(ids.unique()) == 30
        centroid = (item - item.mean(0)).norm(dim=-1)
        assert int(ids[0]) == int(centroid.argmax())
        # Greedy: each choice was the farthest from those before it.
        for k in range(1, 30):
            reach = torch.cdist(item, item[ids[:k]]).amin(1)
            assert float(reach[ids[k]]) == pytest.approx(float(reach.max()), abs=1e-5)


def test_farthest_points_do_not_depend_on_the_order() -> None:
    points, order = torch.rand(2, 100, 3), torch.randperm(100)
    first = points.gather(1, farthest_points(points, 20)[..., None].expand(-1, -1, 3))
    shuffled = points[:, order]
    second = shuffled.gather(1, farthest_points(shuffled, 20)[..., None].expand(-1, -1, 3))
    assert torch.equal(first, second)


@torch.no_grad()
def test_a_cell_pools_the_points_it_holds_and_no_others() -> None:
    pooling = PlanePooling(3, 8, size=2, extent=1.0)
    points = torch.tensor([[[0.5, -0.5, -0.5], [-0.5, -0.5, -0.5], [-0.6, 0.4, -0.4]]])
    tokens = pooling(points, points)
    moved = points.clone()
    moved[:, 0] -= 0.1  # stays in its cells
    changed = (pooling(moved, moved) != tokens).any(-1)[0].view(3, 2, 2)
    # Planes xy, xz, zy, then row (the second axis) and column (the first) of the moved point.
    assert changed.nonzero().tolist() == [[0, 0, 1], [1, 0, 1], [2, 0, 0]]
    crowded = torch.cat([points, points[:, 1:2].expand(-1, 5, -1)], dim=1)
    assert not torch.allclose(pooling(crowded, crowded), tokens)


@torch.no_grad()
def test_points_beyond_the_box_fall_into_its_border_cells() -> None:
    pooling = PlanePooling(3, 8, size=4, extent=1.0)
    points = torch.tensor([[[5.0, -5.0, 0.0]]])
    assert bool(pooling(points, points).isfinite().all())
