"""What ordered image tokens promise, of the weights that ship, on pictures they have not seen."""

from __future__ import annotations

from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor

from polytok.core.seeding import torch_rng
from polytok.data.pictures import prepare_pictures, read_pictures
from polytok.metrics import psnr
from polytok.systems import api
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.one_d_piece import token_contribution

pytestmark = pytest.mark.data
TAG = "one-d-piece-tiny.free"


@pytest.fixture(scope="module")
def codec() -> ImageCodec:
    loaded: ImageCodec = api.load_codec(TAG, modality="image")
    return loaded


@pytest.fixture(scope="module")
def images(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Tensor:
    """Emoji of the test split (n, 3, 64, 64)."""
    source = data_dir / "svg" / "twemoji-svg.zip"
    if not source.is_file():
        pytest.skip(f"{source} is missing")
    out = tmp_path_factory.mktemp("pictures")
    prepare_pictures("emoji", source, out, limit=700, variants=2)
    found = read_pictures(out, "test").images()
    assert len(found) >= 32
    return found[:64]


@torch.no_grad()
def test_every_longer_prefix_is_as_good(codec: ImageCodec, images: Tensor) -> None:
    codes = codec.model.encode({"image": images})
    curve = []
    for tokens in (1, 2, 4, 8, 16, 32, 64):
        decoded = codec.model.decode(codes.prefix(tokens=tokens))["image"]
        curve.append(float(psnr(decoded, images).mean()))
    dips = [most - now for most, now in zip(accumulate(curve, max), curve, strict=True)]
    assert max(dips) < 0.2, curve
    assert curve[-1] > curve[0] + 3, curve
    grey = images.mean((2, 3), keepdim=True).expand_as(images)
    assert curve[-1] > float(psnr(grey, images).mean()) + 3, curve


def test_early_tokens_move_the_picture_most(codec: ImageCodec, images: Tensor) -> None:
    """Card one-d-piece, section 7, of the half; the first tenth moves 1.7 times the mean, not 2."""
    moved = token_contribution(codec.model, images[:16], rng=torch_rng(0)).mean((0, 2, 3))
    first, last = moved.chunk(2)
    assert float(first.mean()) > 1.5 * float(last.mean())


@torch.no_grad()
def test_the_last_half_of_the_tokens_carries_something(codec: ImageCodec, images: Tensor) -> None:
    codes = codec.model.encode({"image": images})
    half, whole = (
        psnr(codec.model.decode(codes.prefix(tokens=count))["image"], images)
        for count in (32, codec.num_tokens)
    )
    assert float((whole - half).mean()) > 0.5


def test_counts_of_each_token_shorten_whole_files(codec: ImageCodec, images: Tensor) -> None:
    """By a twentieth at least of files that were only packed, and every file comes back."""
    packed, coded = 0, 0
    for image in images[:16]:
        code = codec.encode(image)
        [raw], [short] = codec.pack(code, coder="raw"), codec.pack(code)
        assert torch.equal(codec.unpack(short).indices[0], code.indices[0])
        packed, coded = packed + len(raw), coded + len(short)
    assert coded < 0.95 * packed, (coded, packed)
