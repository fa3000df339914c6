"""Networks that judge by maps: shapes, the distance, towers in the slot."""

from __future__ import annotations

import pytest
import torch

from polytok.core.errors import ConfigError, PolytokError
from polytok.networks.pretrained import (
    SmallImageConfig,
    SmallImageTower,
    SmallMaps,
    SmallMapsConfig,
    TowerMaps,
    map_distance,
)


def test_every_stage_halves_the_image() -> None:
    net = SmallMaps(SmallMapsConfig(num_classes=5, widths=(4, 6, 8))).eval()
    image = torch.rand(2, 3, 16, 24)
    assert [tuple(m.shape) for m in net.maps(image)] == [(2, 4, 8, 12), (2, 6, 4, 6), (2, 8, 2, 3)]
    assert net(image).shape == (2, 5)
    torch.testing.assert_close(net.pooled(image), net.maps(image)[-1].mean((2, 3)))


@pytest.mark.parametrize("change", [{"num_classes": 1}, {"widths": ()}, {"widths": (4, 0)}])
def test_sizes_are_checked(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        SmallMapsConfig(**{"num_classes": 2, **change})  # type: ignore[arg-type]


def test_the_distance_depends_on_directions_alone() -> None:
    one = [torch.randn(3, 4, 5, 5), torch.randn(3, 8, 2, 2)]
    assert map_distance(one, [7 * x for x in one]).tolist() == pytest.approx([0, 0, 0], abs=1e-9)
    assert map_distance(one, [-x for x in one]).tolist() == pytest.approx([4, 4, 4])
    first = torch.tensor([1.0, 0, 0])[None, :, None, None]
    second = torch.tensor([0, 1.0, 0])[None, :, None, None]
    # One layer at right angles, the other the same: (2 + 0) / 2.
    assert map_distance([first, first], [second, first]).tolist() == pytest.approx([1])
    with pytest.raises(PolytokError, match="2 and 1 layers"):
        map_distance(one, one[:1])


def test_the_gradient_is_finite_where_nothing_is_seen() -> None:
    image = torch.zeros(1, 4, 2, 2, requires_grad=True)
    map_distance([image], [torch.ones(1, 4, 2, 2)]).sum().backward()
    assert image.grad is not None and bool(image.grad.isfinite().all())


def test_a_tower_fills_the_slot_at_any_size() -> None:
    tower = SmallImageTower(SmallImageConfig(size=16, patch=8, dim=8, num_layers=1, num_heads=1))
    net = TowerMaps(tower.eval(), 16)
    image = torch.rand(2, 3, 16, 16)
    (own,) = net.maps(image)
    assert own.shape == (2, 8, 4, 1)
    torch.testing.assert_close(own[..., 0].mT, tower({"image": image}).tokens)
    larger = image.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert net.maps(larger)[0].shape == own.shape
