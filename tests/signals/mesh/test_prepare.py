from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import trimesh
from safetensors.numpy import save

from polytok.core.errors import SignalError
from polytok.signals import mesh as meshes
from polytok.signals.mesh.prepare import COMPACT, Profile
from polytok.signals.mesh.sampling import BOUND

SMALL = Profile(num_uniform=256, num_sharp=64, num_volume=128, num_near=192, num_near_sharp=64)


def lamp() -> trimesh.Trimesh:
    """A closed foot, a thin pole and an open shade."""
    foot = trimesh.creation.cylinder(0.4, 0.1, sections=24)
    pole = trimesh.creation.cylinder(0.01, 1.5, sections=8)
    pole.apply_translation([0, 0, 0.75])
    shade = trimesh.creation.cone(0.5, 0.5, sections=24)
    shade.update_faces(shade.face_normals[:, 2] > -0.9)
    shade.apply_translation([0, 0, 1.2])
    return trimesh.util.concatenate([foot, pole, shade])


def test_shapes_types_and_places() -> None:
    got = meshes.prepare(lamp())
    assert got.points.shape == got.normals.shape == (5120, 3) and got.num_uniform == 4096
    assert got.queries.shape == got.grad.shape == (8192, 3) and got.num_volume == 2048
    for array in (got.points, got.normals, got.queries, got.sdf, got.grad):
        assert array.dtype == np.float32 and np.isfinite(array).all()
    assert np.abs(got.points).max() <= 1 and np.abs(got.queries).max() <= BOUND
    for unit in (got.normals, got.grad):
        np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert got.route == "flood" and got.eps > 0


def test_surface_is_what_prepare_gives() -> None:
    mesh = lamp()
    alone, whole = meshes.surface(mesh, seed=3), meshes.prepare(mesh, seed=3)
    np.testing.assert_array_equal(alone.points, whole.points)
    np.testing.assert_array_equal(alone.normals, whole.normals)
    np.testing.assert_array_equal(alone.frame.centre, whole.frame.centre)
    assert not np.array_equal(alone.points, meshes.surface(mesh, seed=4).points)


def test_near_queries_are_near() -> None:
    got = meshes.prepare(trimesh.creation.box())
    near = np.abs(got.sdf[got.num_volume :])
    assert np.quantile(near, 0.99) < 0.13 and near.mean() < 0.03
    inside = (got.sdf[: got.num_volume] < 0).mean()
    assert inside == pytest.approx((1.96 / 2.1) ** 3, abs=0.03)


def test_distances_of_stretched_shapes() -> None:
    """Stored directions give distances under a linear map, exactly while the face stays nearest."""
    mesh = trimesh.creation.box()
    got, stretch = meshes.prepare(mesh), np.diag([1.2, 0.8, 1.0])
    mapped = got.sdf / np.linalg.norm(got.grad @ np.linalg.inv(stretch), axis=1)
    half = 0.98 * np.diag(stretch)
    away = np.abs(got.queries @ stretch.T) - half
    exact = np.linalg.norm(np.maximum(away, 0), axis=1) + np.minimum(away.max(1), 0)
    flat = (np.abs(got.grad).max(1) > 0.999) & (np.abs(got.sdf) < 0.05)
    assert flat.sum() > 3000
    assert (np.abs(mapped - exact)[flat] < 1e-5).mean() > 0.99


def test_compact_form() -> None:
    got = meshes.prepare(lamp())
    packed = meshes.to_compact(got)
    back = meshes.from_compact(packed)
    assert len(save(packed)) <= 150_000
    # Queries were rounded before their distances were taken: nothing is lost there.
    np.testing.assert_array_equal(back["queries"], got.queries)
    np.testing.assert_allclose(back["points"], got.points, atol=2 * BOUND / 65535)
    np.testing.assert_allclose(back["sdf"], got.sdf, atol=1e-6, rtol=1e-3)
    for name in ("normals", "grad"):
        assert (back[name] * getattr(got, name)).sum(1).min() > 0.999
        np.testing.assert_allclose(np.linalg.norm(back[name], axis=1), 1, atol=1e-5)
    # Rounding to float16 moves no query across the surface.
    np.testing.assert_array_equal(np.signbit(back["sdf"]), np.signbit(got.sdf))


def test_damaged_compact_form_is_refused() -> None:
    packed = meshes.to_compact(meshes.prepare(trimesh.creation.box(), profile=SMALL))
    with pytest.raises(SignalError, match="'grad'"):
        meshes.from_compact({k: v for k, v in packed.items() if k != "grad"})
    with pytest.raises(SignalError, match="uint16"):
        meshes.from_compact({**packed, "points": packed["points"].astype(np.float32)})


def test_same_bytes_for_a_seed() -> None:
    first, second = (save(meshes.to_compact(meshes.prepare(lamp(), seed=1))) for _ in range(2))
    assert first == second
    assert first != save(meshes.to_compact(meshes.prepare(lamp(), seed=2)))


def test_profiles_set_the_counts() -> None:
    got = meshes.prepare(trimesh.creation.box(), profile=SMALL)
    assert len(got.points) == 320 and len(got.queries) == 384
    assert COMPACT.num_near + COMPACT.num_near_sharp == 6144


def test_units_do_not_matter() -> None:
    """Powers of two change no digit, so that nothing at all may change."""
    first = meshes.prepare(lamp(), profile=SMALL)
    for unit in (2.0**-20, 2.0**20):
        mesh = lamp()
        mesh.apply_scale(unit)
        second = meshes.prepare(mesh, profile=SMALL)
        for name, array in meshes.to_compact(first).items():
            np.testing.assert_array_equal(array, meshes.to_compact(second)[name])
        assert second.frame.scale == first.frame.scale / unit


def test_encoding_needs_little_time() -> None:
    mesh = trimesh.creation.icosphere(subdivisions=4)
    start = time.process_time()
    meshes.surface(mesh)
    assert time.process_time() - start < 1.5


@pytest.mark.data
def test_real_shapes_are_prepared_well(data_dir: Path, tmp_path: Path) -> None:
    import zipfile

    archive = data_dir / "shapes" / "val.zip"
    if not archive.is_file():
        pytest.skip(f"{archive} is missing")
    with zipfile.ZipFile(archive) as file:
        names = sorted(n for n in file.namelist() if n.endswith(".glb"))[::24]
        file.extractall(tmp_path, names)
    outward = []
    for name in names:
        solid = meshes.solidify(meshes.read(tmp_path / name))
        got = meshes.surface(solid)
        ahead = solid.nearest(got.points + 0.004 * got.normals.astype(np.float64)).sdf > 0
        outward.append(ahead[: got.num_uniform].mean())
        assert solid.report()["distance_max"] < 0.01 + solid.eps
    assert min(outward) > 0.85 and np.mean(outward) > 0.97
