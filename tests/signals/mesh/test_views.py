from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image

from polytok.core.errors import ConfigError
from polytok.signals.image import framed
from polytok.signals.mesh import ViewSampling, views

FRONT = ViewSampling(count=1, azimuth=0.0, elevation=(0.0, 0.0), field_of_view=(1.0, 1.0))


def drawn(mesh: trimesh.Trimesh, sampling: ViewSampling, seed: int = 0) -> NDArray[np.uint8]:
    return views(mesh, sampling, np.random.default_rng(seed))


def test_a_front_view_is_the_silhouette() -> None:
    opacity = drawn(trimesh.creation.box((2, 1, 1)), FRONT)[0, 1] / 255
    wide, high = 0.85 * 64, 0.85 * 32
    assert opacity.sum() == pytest.approx(wide * high, rel=0.03)
    assert np.array_equal(opacity, opacity[::-1]) and np.array_equal(opacity, opacity[:, ::-1])


def test_the_camera_stays_within_its_range() -> None:
    plate = trimesh.creation.box((1, 1, 0.001))
    whole = drawn(plate, FRONT)[0, 1].sum()
    side = replace(FRONT, count=20, azimuth=90.0)
    shares = np.array([v[1].sum() for v in drawn(plate, side)]) / whole
    assert shares.min() < 0.4 and shares.max() > 0.8
    narrow = replace(FRONT, count=20, azimuth=20.0)
    assert min(v[1].sum() for v in drawn(plate, narrow)) / whole > np.cos(np.radians(20)) - 0.05


def test_light_and_side_change_from_view_to_view_and_repeat_with_the_seed() -> None:
    mesh = trimesh.creation.cone(1, 2)
    one, two = drawn(mesh, ViewSampling()), drawn(mesh, ViewSampling())
    assert np.array_equal(one, two)
    assert not np.array_equal(one, drawn(mesh, ViewSampling(), seed=1))
    assert len({v.tobytes() for v in one}) == 8


def test_views_lie_in_the_frame_as_pictures_of_users_will() -> None:
    mesh = trimesh.creation.box((2, 1, 0.5))
    for light, opacity in drawn(mesh, replace(ViewSampling(), count=4, size=96)):
        # Much larger surroundings: framing has to find the object again.
        picture = np.zeros((200, 160, 4), np.uint8)
        picture[30:126, 50:146] = np.stack([light, light, light, opacity], axis=-1)
        found = framed(Image.fromarray(picture), 96)
        alpha = opacity / 255
        wanted = light / 255 * alpha + 1 - alpha
        assert np.abs(found[0] - wanted).mean() < 0.02


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"size": 4},
        {"azimuth": 181.0},
        {"elevation": (40.0, 10.0)},
        {"field_of_view": (0.0, 10.0)},
        {"fill": 0.0},
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(ViewSampling(), **wrong)  # type: ignore[arg-type]
