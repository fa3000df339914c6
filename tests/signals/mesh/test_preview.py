from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL.Image import Image

from polytok.core.errors import PolytokError
from polytok.signals.mesh.preview import render


def covered(with_mesh: Image) -> NDArray[np.bool_]:
    """Pixels of a picture on the plain backdrop that show clay: bluer than the paper."""
    pixels = np.asarray(with_mesh, dtype=int)
    return pixels[:, :, 2] - pixels[:, :, 0] > 8


def test_a_ball_fills_the_picture_and_is_round() -> None:
    mask = covered(render(trimesh.creation.icosphere(subdivisions=4), size=128, floor=False))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    assert abs(height - width) <= 2
    assert 128 / 1.14 - 3 <= width <= 128 / 1.14 + 3
    assert mask.sum() == pytest.approx(np.pi / 4 * width * height, rel=0.03)
    assert abs(rows.mean() - 63.5) < 1.5 and abs(columns.mean() - 63.5) < 1.5


def test_light_comes_from_above() -> None:
    picture = render(trimesh.creation.icosphere(subdivisions=4), size=96, floor=False)
    grey = np.asarray(picture.convert("L"), dtype=float)
    assert grey[20:30, 44:52].mean() > grey[66:76, 44:52].mean() + 20


def test_units_and_place_do_not_matter() -> None:
    mesh = trimesh.creation.box([1, 2, 3])
    moved = mesh.copy()
    moved.apply_scale(1e4)
    moved.apply_translation([7e3, -1e3, 5])
    one, other = (np.asarray(render(m, size=64), dtype=int) for m in (mesh, moved))
    assert np.abs(one - other).mean() < 0.5


def test_frame_keeps_the_camera() -> None:
    whole = trimesh.creation.box([2, 2, 2])
    part = trimesh.creation.box([1, 1, 1])
    alone = covered(render(part, size=64, floor=False)).sum()
    framed = covered(render(part, size=64, floor=False, frame=whole)).sum()
    assert framed == pytest.approx(alone / 4, rel=0.15)


def test_azimuth_turns_the_camera_from_z_to_x() -> None:
    wide = trimesh.creation.box([2, 1, 0.1])
    front = covered(render(wide, size=64, azimuth=0, elevation=0, floor=False, frame=wide))
    side = covered(render(wide, size=64, azimuth=90, elevation=0, floor=False, frame=wide))
    assert front.sum() > 3 * side.sum()


def test_floor_is_darker_below_the_mesh() -> None:
    mesh = trimesh.creation.box([1, 1, 1])
    bare, floor = (
        np.asarray(render(mesh, size=96, floor=f).convert("L"), dtype=int) for f in (False, True)
    )
    assert floor.sum() < bare.sum()
    assert np.abs(floor[0] - bare[0]).max() <= 2


def test_hard_edges_stay_and_round_ones_are_smoothed() -> None:
    tube = trimesh.creation.cylinder(radius=1, height=2, sections=24)

    def tones(smooth: bool) -> int:
        picture = render(tube, size=128, smooth=smooth, floor=False, azimuth=90, elevation=0)
        across = np.asarray(picture.convert("L"), dtype=int)[24:104, 64]
        return int(np.abs(np.diff(across)).max())

    assert tones(True) < tones(False)
    box = trimesh.creation.box()
    same = [np.asarray(render(box, size=64, smooth=s), dtype=int) for s in (True, False)]
    assert np.array_equal(*same)


def test_errors_are_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    box = trimesh.creation.box()
    with pytest.raises(PolytokError, match="size=8"):
        render(box, size=8)
    with pytest.raises(PolytokError, match="elevation=90"):
        render(box, elevation=90)
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("embreex"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PolytokError, match="embreex"):
        render(box)
