"""The shape codec: meshes to bytes and back, on random weights of the tiny preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from torch import Tensor

from polytok import bitstream
from polytok.core.contracts import Codes
from polytok.core.errors import PolytokError, SignalError, WeightsError
from polytok.signals import mesh as meshes
from polytok.systems.shape.codec import MAX_EFFORT, PROBE_RESOLUTION, ShapeCodec
from polytok.systems.shape.vat import VAT, preset
from polytok.systems.shape.vat.search import SearchResult, refine

TAG = "0badc0de"


def random_codec(name: str = "vat-512b-tiny") -> ShapeCodec:
    """Random weights whose field is positive about half of the cube, so every code has a mesh."""
    model = VAT(preset(name)).eval()
    batch = {
        "points": torch.nn.functional.normalize(torch.randn(1, 512, 3), dim=-1),
        "normals": torch.randn(1, 512, 3),
    }
    with torch.no_grad():
        field = model.decode(model.encode(batch))["field"]
        model.decoder.head[-1].bias -= field(torch.rand(1, 4096, 3) * 2 - 1).median()
    return ShapeCodec(model, name=name, weights=TAG)


@pytest.fixture
def codec() -> ShapeCodec:
    return random_codec()


def box(extents: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> trimesh.Trimesh:
    return trimesh.creation.box(extents)


class Ball:
    """The field of a ball about the origin: logits (B, Q), inside positive."""

    def __init__(self, radius: float) -> None:
        self.radius = radius

    def __call__(self, points: Tensor) -> Tensor:
        return self.radius - points.norm(dim=-1)


def as_ball(codec: ShapeCodec, radius: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every code of the codec decode to a ball."""
    monkeypatch.setattr(codec, "field", lambda codes: Ball(radius))


def same(a: Codes, b: Codes) -> bool:
    return len(a.indices) == len(b.indices) and all(
        torch.equal(x, y) for x, y in zip(a.indices, b.indices, strict=True)
    )


def test_a_mesh_becomes_bytes_and_a_mesh_again(codec: ShapeCodec) -> None:
    codes = codec.encode(box())
    [data] = codec.pack(codes)
    back = codec.unpack(data)
    assert same(codes, back)
    assert all(torch.equal(codes.meta[k], back.meta[k]) for k in ("centre", "scale"))
    [mesh] = codec.decode(back, resolution=32)
    assert len(mesh.faces) > 0 and np.isfinite(mesh.vertices).all()
    low, high = mesh.bounds
    # The cube of the decoder has a side of 2.1, the longest side of the shape is 1.96 of it.
    assert (high - low).max() <= 3 * 2.1 / 1.96 + 1e-4


def sizes_of(codec: ShapeCodec) -> list[int]:
    """Bytes of the files that encode makes, by number of levels."""
    return [size + 4 for size in bitstream.sizes(codec.spec)]


def test_the_box_is_stretched_towards_a_cube_and_shrunk_again(codec: ShapeCodec) -> None:
    board = trimesh.creation.box([8.0, 2.0, 0.5])
    board.apply_translation([3.0, -1.0, 0.0])
    plain, even = codec.encode(board, stretch=False), codec.encode(board)
    assert "stretch" not in plain.meta and not same(plain, even)
    # To the power of 3/4, and a whole number of 1/16 octaves: 4 and 16 become 2^1.5 and 2^3.
    np.testing.assert_allclose(even.meta["stretch"][0], [1, 2**1.5, 8], rtol=1e-6)
    assert torch.equal(even.meta["centre"], plain.meta["centre"])
    assert torch.equal(even.meta["scale"], plain.meta["scale"])
    frame = codec.frame(even)
    inside = frame.apply(board.vertices)
    np.testing.assert_allclose(np.abs(inside).max(0), [0.98, 0.245 * 2**1.5, 0.49], rtol=1e-6)
    assert len(codec.pack(even)[0]) == len(codec.pack(plain)[0]) + 3
    # What the encoder is given is the stretched board.
    solid = meshes.solidify(board, stretch=even.meta["stretch"][0].numpy())
    batch = codec.batch(solid)
    np.testing.assert_allclose(batch["points"][0].abs().amax(0), np.abs(inside).max(0), atol=1e-3)
    assert same(codec.model.encode(batch), even)
    # One cube of the field, in the units of both.
    corner = np.full(3, 1.05)
    long, short = (codec.frame(c).undo(corner) - codec.frame(c).centre for c in (plain, even))
    np.testing.assert_allclose(long / short, [1, 2**1.5, 8], rtol=1e-6)


def test_a_code_in_a_file_is_decoded_in_its_own_proportions(codec: ShapeCodec) -> None:
    codes = codec.encode(trimesh.creation.box([8.0, 2.0, 0.5]))
    back = codec.unpack(codec.pack(codes)[0])
    assert torch.equal(back.meta["stretch"], codes.meta["stretch"])
    [mesh], [again] = codec.decode(codes, resolution=32), codec.decode(back, resolution=32)
    np.testing.assert_array_equal(mesh.vertices, again.vertices)
    flat = {k: v for k, v in codes.meta.items() if k != "stretch"}
    [cube] = codec.decode(replace(codes, meta=flat), resolution=32)
    np.testing.assert_allclose(cube.vertices, mesh.vertices * [1, 2**1.5, 8], atol=1e-6)


def test_half_of_the_surface_lies_inside_the_field(codec: ShapeCodec) -> None:
    """In units of 1/32, for a whole code and for one of fewer scales."""
    stretch = bitstream.nearest_stretch(meshes.evening(box()))
    surface = meshes.surface(meshes.solidify(box(), stretch=stretch), seed=3)
    points = torch.from_numpy(surface.points[: surface.num_uniform])[None]
    # A field whose zero is far from the surface.
    codec.model.decoder.head[-1].bias.data += 1.25
    for levels in (None, 2):
        codes = codec.encode(box(), levels=levels, seed=3)
        assert float(codes.meta["iso"]) > 0.5
        assert abs(float(codec.field(codes)(points).median())) <= 1 / 64 + 1e-6
        # Codes from files without the value have their surface at zero.
        plain = replace(codes, meta={k: v for k, v in codes.meta.items() if k != "iso"})
        old = codec.unpack(codec.pack(plain)[0])
        assert "iso" not in old.meta
        moved = codec.field(old)(points) - codes.meta["iso"]
        assert torch.equal(moved, codec.field(codes)(points))
        assert float(codes.meta["iso"]) == bitstream.read_header(codec.pack(codes)[0]).iso


def test_paths_and_lists_give_the_codes_of_their_meshes(codec: ShapeCodec, tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(subdivisions=2, radius=4.0)
    path = tmp_path / "ball.ply"
    ball.export(path)
    one = codec.encode(str(path))
    many = codec.encode([box(), path])
    assert len(one) == 1 and len(many) == 2
    assert same(many[1], one) and same(many[0], codec.encode(box()))
    files = codec.pack(many)
    assert files == [*codec.pack(many[0]), *codec.pack(one)]


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_original_units_come_back(
    codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch, unit: float
) -> None:
    as_ball(codec, 0.5, monkeypatch)
    mesh = box()
    mesh.apply_translation([5.0, -7.0, 11.0])
    mesh.apply_scale(unit)
    codes = codec.unpack(codec.pack(codec.encode(mesh))[0])
    [back] = codec.decode(codes, resolution=64)
    radius = 0.5 * 3 / 1.96 * unit  # the longest side of the box is 3 and becomes 1.96
    centre = np.array([5.0, -7.0, 11.0]) * unit
    # The ball is one of the stretched frame.
    stretch = codes.meta["stretch"][0].numpy()
    apart = np.linalg.norm((back.vertices - centre) * stretch, axis=1)
    np.testing.assert_allclose(apart, radius, rtol=3e-3)
    np.testing.assert_allclose(back.bounds.mean(axis=0), centre, atol=3e-3 * radius)
    assert back.is_watertight and back.volume > 0


def test_every_prefix_decodes_and_packs(codec: ShapeCodec) -> None:
    codes = codec.encode(box())
    sizes = sizes_of(codec)
    for levels in range(1, len(codes.indices) + 1):
        prefix = codes.prefix(levels=levels)
        with torch.inference_mode():
            expected = codec.field(prefix)(torch.zeros(1, 1, 3))
            got = codec.field(codec.unpack(codec.pack(prefix)[0]))(torch.zeros(1, 1, 3))
        assert torch.equal(expected, got)
        assert len(codec.pack(prefix, coder="raw")[0]) == sizes[levels - 1]
    with pytest.raises(PolytokError, match=r"levels=0"):
        codec.decode(codes, levels=0)


def test_decode_takes_a_prefix(codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(codes: Codes) -> Ball:
        seen.append(len(codes.indices))
        return Ball(0.4)

    codes = codec.encode(box())
    monkeypatch.setattr(codec, "field", spy)
    codec.decode(codes, levels=2, resolution=16)
    codec.decode(codes, resolution=16)
    assert seen == [2, len(codes.indices)]


def test_max_bytes_keeps_the_most_scales_that_fit(codec: ShapeCodec) -> None:
    codes = codec.encode(box())
    [whole] = codec.pack(codes, coder="raw")
    sizes = sizes_of(codec)
    for limit in range(sizes[0], len(whole) + 1):
        [data] = codec.pack(codes, max_bytes=limit)
        back = codec.unpack(data)
        assert len(data) <= limit
        assert len(back.indices) >= sum(size <= limit for size in sizes)
        assert same(back, codes.prefix(levels=len(back.indices)))
    with pytest.raises(PolytokError, match="possible sizes"):
        codec.pack(codes, max_bytes=20)


def test_a_small_file_never_exceeds_512_bytes() -> None:
    spec = VAT(preset("vat-512b-small")).spec
    sizes = bitstream.sizes(spec)
    assert sizes[-1] <= 512
    assert any(230 <= size <= 256 for size in sizes)
    worst = Codes(
        indices=tuple(torch.full((1, level.count), level.vocab - 1) for level in spec.levels),
        meta={"centre": torch.full((1, 3), -1e30), "scale": torch.full((1,), 1e30)},
    )
    # Histograms that call every id of this code impossible: range coding must not be chosen.
    against = [np.r_[np.ones(lv.vocab - 1, np.int64), 0] for lv in spec.levels]
    for histograms in (None, against):
        data = bitstream.pack(worst, spec, weights=TAG, histograms=histograms)
        assert len(data) <= 512
        assert same(bitstream.unpack(data, spec, weights=TAG, histograms=histograms), worst)


def test_files_of_other_weights_are_refused(codec: ShapeCodec) -> None:
    [data] = codec.pack(codec.encode(box()))
    other = ShapeCodec(codec.model, name=codec.name, weights="12345678")
    with pytest.raises(WeightsError, match=f"{TAG}.*12345678"):
        other.unpack(data)


def test_cut_files_are_refused_unless_partial(codec: ShapeCodec) -> None:
    codes = codec.encode(box())
    [data] = codec.pack(codes, coder="raw")
    cut = data[:-1]
    with pytest.raises(PolytokError, match="cut"):
        codec.unpack(cut)
    back = codec.unpack(cut, partial=True)
    assert same(back, codes.prefix(levels=len(codes.indices) - 1))


def test_the_same_seed_gives_the_same_bytes(codec: ShapeCodec) -> None:
    mesh = trimesh.creation.torus(1.0, 0.3)
    for effort in (0, 1):
        first, again = (codec.pack(codec.encode(mesh, effort=effort, seed=3)) for _ in range(2))
        assert first == again
    # Seeds choose the samples, and nothing else does.
    surfaces = [codec._batch(meshes.surface(mesh, seed=s), s)["points"] for s in (3, 4)]
    assert not torch.equal(*surfaces)


def test_samples_have_the_shares_of_training(codec: ShapeCodec) -> None:
    surface = meshes.surface(box(), seed=0)
    batch = codec._batch(surface, 0)
    config = codec.model.config
    assert batch["points"].shape == (1, config.num_points, 3)
    num_sharp = round(config.num_points * config.sharp_fraction)
    edges = {tuple(p) for p in surface.points[surface.num_uniform :]}
    drawn = [tuple(p) for p in batch["points"][0].numpy()]
    assert sum(p in edges for p in drawn) >= num_sharp
    assert {tuple(p) for p in surface.points} >= set(drawn)
    assert len(set(drawn)) == len(drawn)  # without replacement


def test_a_code_of_some_scales(codec: ShapeCodec) -> None:
    whole = codec.encode(box())
    for levels in (1, 3):
        short = codec.encode(box(), levels=levels)
        assert same(short, whole.prefix(levels=levels))
        searched = codec.encode(box(), levels=levels, effort=1)
        assert [i.shape for i in searched.indices] == [i.shape for i in short.indices]
        [data] = codec.pack(searched)
        assert same(codec.unpack(data), searched)
    for levels in (0, 5):
        with pytest.raises(PolytokError, match=rf"levels={levels} is not within 1..4"):
            codec.encode(box(), levels=levels)


def test_of_what_a_search_finds_only_what_fits_is_kept(
    codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A better code may need more bytes: here each id that differs from the first does."""
    first = codec.encode(box())
    found: list[SearchResult] = []

    def noted(*args: Any, **options: Any) -> SearchResult:
        found.append(refine(*args, **options))
        return found[-1]

    monkeypatch.setattr("polytok.systems.shape.codec.refine", noted)

    def changes(codes: Codes) -> int:
        pairs = zip(codes.indices, first.indices, strict=False)
        return sum(int((a != b).sum()) for a, b in pairs)

    def fit(codes: Codes) -> int:
        # Three scales have room for two changes, two for any number; four do not fit.
        count = min(len(codes.indices), 3)
        return 2 if count == 3 and changes(codes.prefix(levels=3)) > 2 else count

    assert len(codec.encode(box(), fit=fit).indices) == 3
    best = []
    for effort in (1, 3, 6):
        found.clear()
        codes = codec.encode(box(), effort=effort, fit=fit)
        assert fit(codes) == len(codes.indices)
        best.append(min(f.objective for f in found))
        [chosen] = [f for f in found if same(replace(codes, indices=f.indices), codes)]
        assert chosen.objective == best[-1] <= chosen.start
        # Fewer scales are searched where better codes were refused, and only there.
        assert [len(f.indices) for f in found] == [3, 2][: 1 + bool(found[0].num_refused)]
    assert found[0].num_refused and best == sorted(best, reverse=True)


@pytest.mark.parametrize("effort", [-1, MAX_EFFORT + 1])
def test_effort_has_bounds(codec: ShapeCodec, effort: int) -> None:
    with pytest.raises(PolytokError, match=rf"effort={effort} is not within 0..9"):
        codec.encode(box(), effort=effort)


def test_nothing_to_encode_is_an_error(codec: ShapeCodec) -> None:
    with pytest.raises(PolytokError, match="list is empty"):
        codec.encode([])
    flat = trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False)
    with pytest.raises(SignalError):
        codec.encode(flat)


def test_unknown_coder_is_an_error(codec: ShapeCodec) -> None:
    with pytest.raises(PolytokError, match="coder='gzip'"):
        codec.pack(codec.encode(box()), coder="gzip")


def test_a_code_that_decodes_to_nothing_is_searched_then_refused(
    codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    efforts: list[int] = []

    def search(codes: Codes, batch: Any, solid: Any, effort: int, **options: Any) -> Codes:
        efforts.append(effort)
        return codes

    monkeypatch.setattr(codec, "_search", search)
    as_ball(codec, -1.0, monkeypatch)
    with pytest.raises(SignalError, match="empty mesh"):
        codec.encode(box())
    assert efforts == sorted(set(efforts)) and efforts[-1] == MAX_EFFORT
    codes = replace(Codes(indices=(torch.zeros(1, 1, dtype=torch.int64),)), meta=_meta())
    with pytest.raises(SignalError):
        codec.decode(codes, resolution=16)


def test_range_coding_is_chosen_when_smaller(codec: ShapeCodec) -> None:
    codes = codec.encode(box())
    usage = codec.model.bottleneck.quantizer.usage
    usage.fill_(1e-6)
    for level, ids in enumerate(codes.indices):
        usage[level, ids[0]] = 1.0
    [packed], [coded] = codec.pack(codes, coder="raw"), codec.pack(codes)
    assert len(coded) < len(packed)
    assert same(codec.unpack(coded), codes) and same(codec.unpack(packed), codes)


def test_faces_caps_the_mesh(codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    as_ball(codec, 0.7, monkeypatch)
    codes = codec.encode(box())
    [mesh] = codec.decode(codes, resolution=32, faces=200)
    assert 100 <= len(mesh.faces) <= 200


def _meta() -> dict[str, Tensor]:
    return {"centre": torch.zeros(1, 3), "scale": torch.ones(1)}


def test_a_search_that_ends_empty_keeps_the_code_it_began_with(
    codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_ball(codec, 0.5, monkeypatch)
    first = codec.encode(box())
    searched = Codes(
        indices=tuple(
            (ids + 1) % lv.vocab for ids, lv in zip(first.indices, codec.spec.levels, strict=True)
        ),
        meta=first.meta,
    )
    monkeypatch.setattr(codec, "_search", lambda *_, **__: searched)
    monkeypatch.setattr(codec, "is_empty", lambda codes: same(codes, searched))
    kept = codec.encode(box(), effort=3)
    assert all(torch.equal(a, b) for a, b in zip(kept.indices, first.indices, strict=True))


class Board:
    """The field of a board between the points of a coarse grid, ``half`` thick on either side."""

    def __init__(self, half: float, iso: float) -> None:
        self.half, self.iso = half, iso

    def __call__(self, points: Tensor) -> Tensor:
        return self.half - (points[..., 2] - 1 / 47 + 0.0213).abs() - self.iso


def test_a_thin_board_is_not_nothing(codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    """It slips through the probe, but not through the grid that meshes are made on."""
    codes = codec.encode(box())
    for half, is_empty in ((0.3, False), (0.012, False), (-0.1, True)):
        monkeypatch.setattr(codec, "field", lambda codes, half=half: Board(half, 0.0))
        assert codec.is_empty(codes) is is_empty, half
    axis = torch.linspace(-1, 1, PROBE_RESOLUTION)
    points = torch.stack([torch.zeros_like(axis), torch.zeros_like(axis), axis], -1)[None]
    assert not (Board(0.012, 0.0)(points) > 0).any()


def test_a_surface_that_leaves_nothing_is_put_at_zero(
    codec: ShapeCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "fit_iso", lambda field, surface: 0.25)
    monkeypatch.setattr(codec, "is_empty", lambda codes: float(codes.meta["iso"]) > 0)
    assert float(codec.encode(box()).meta["iso"]) == 0
    monkeypatch.setattr(codec, "is_empty", lambda codes: False)
    assert float(codec.encode(box()).meta["iso"]) == 0.25
