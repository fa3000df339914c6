"""What VAT promises, on shapes of val and with the shipped weights."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from polytok.core import registry
from polytok.signals import mesh as meshes
from polytok.systems import api
from polytok.systems.shape.codec import ShapeCodec

TAGS = ("vat-512b-small.shapes1", "vat-512b-small.shapes2")
EVERY = 16
NUM_QUERIES = 20_000

pytestmark = [pytest.mark.slow, pytest.mark.data]


@pytest.fixture(scope="module", params=TAGS)
def codec(request: pytest.FixtureRequest) -> ShapeCodec:
    if request.param not in registry.WEIGHTS:
        pytest.skip(f"the registry has no weights {request.param}")
    return api.load(request.param)


@pytest.fixture(scope="module")
def shapes(data_dir: Path) -> list[tuple[str, trimesh.Trimesh]]:
    """Every 16th shape of val with its name."""
    path = data_dir / "shapes" / "val.zip"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    with ZipFile(path) as archive:
        lines = archive.read("metadata.jsonl").decode().splitlines()
        names = [json.loads(line)["file"] for line in lines if line.strip()][::EVERY]
        return [(name, _mesh(archive.read(name), PurePosixPath(name).suffix[1:])) for name in names]


def _mesh(data: bytes, kind: str) -> trimesh.Trimesh:
    return trimesh.load_mesh(BytesIO(data), file_type=kind)


def test_all_shapes_fit_and_prefixes_get_better(
    codec: ShapeCodec, shapes: list[tuple[str, trimesh.Trimesh]]
) -> None:
    """Every shape encodes, into 512 bytes; mean V-IoU rises with every scale."""
    assert len(shapes) >= 10
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.05, 1.05, (NUM_QUERIES, 3)).astype(np.float32)
    scores = []
    for name, mesh in shapes:
        codes = codec.encode(mesh)
        [data] = codec.pack(codes)
        assert len(data) <= 512, name
        task = _task(mesh, points)
        scores.append([_iou(codec, data, levels, *task) for levels in _levels(codec)])
    means = np.mean(scores, axis=0)
    assert (np.diff(means) > 0).all(), means.round(4).tolist()


def test_deeper_weights_are_better(shapes: list[tuple[str, trimesh.Trimesh]]) -> None:
    """Mean V-IoU of whole codes and of those of 256 bytes, shape by shape, same points."""
    rng = np.random.default_rng(1)
    points = rng.uniform(-1.05, 1.05, (NUM_QUERIES, 3)).astype(np.float32)
    codecs = [api.load_codec(tag) for tag in TAGS]
    scores = []
    for _, mesh in shapes:
        task = _task(mesh, points)
        files = [codec.pack(codec.encode(mesh))[0] for codec in codecs]
        pairs = list(zip(codecs, files, strict=True))
        scores.append([[_iou(c, data, n, *task) for c, data in pairs] for n in (7, 9)])
    old, new = np.mean(scores, axis=0).T
    assert (new > old + 0.01).all(), (old, new)


def test_a_generator_follows_pictures(shapes: list[tuple[str, trimesh.Trimesh]]) -> None:
    """Mean V-IoU is higher from a shape's own picture than from another's, and than from none."""
    generator = api.load_generator("vat-512b-small-gen")
    rng = np.random.default_rng(2)
    points = rng.uniform(-1, 1, (NUM_QUERIES, 3))
    sampling = meshes.ViewSampling(count=1)
    pictures = [_picture(meshes.views(mesh, sampling, rng)[0]) for _, mesh in shapes]
    queries = torch.from_numpy(points.astype(np.float32))[None]
    scores = []
    for k, (_, mesh) in enumerate(shapes):
        truth = meshes.solidify(mesh).nearest(points).sdf < 0
        row = []
        for image in (pictures[k], pictures[k - 1], None):
            codes = generator.generate(image=image, seed=k)
            with torch.inference_mode():
                guess = generator.codec.field(codes)(queries)[0].numpy() > 0
            row.append((guess & truth).sum() / max((guess | truth).sum(), 1))
        scores.append(row)
    own, other, free = np.mean(scores, axis=0)
    assert own > other + 0.05, (own, other)
    assert own > free + 0.1, (own, free)


def _picture(view: np.ndarray) -> Image.Image:
    light, alpha = view
    return Image.fromarray(np.stack([light, light, light, alpha], axis=-1))


def _levels(codec: ShapeCodec) -> range:
    return range(1, len(codec.spec.levels) + 1)


def _task(mesh: trimesh.Trimesh, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the cube in the units of a mesh, and whether they are inside."""
    solid = meshes.solidify(mesh)
    return solid.frame.undo(points), solid.nearest(points.astype(np.float64)).sdf < 0


def _iou(
    codec: ShapeCodec, data: bytes, levels: int, points: np.ndarray, truth: np.ndarray
) -> float:
    codes = codec.unpack(data).prefix(levels=levels)
    queries = torch.from_numpy(codec.frame(codes).apply(points).astype(np.float32))
    with torch.inference_mode():
        guess = codec.field(codes)(queries[None])[0].numpy() > 0
    return float((guess & truth).sum() / max((guess | truth).sum(), 1))
