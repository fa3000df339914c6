"""The search for better codes of pictures: never worse, the model untouched, prefixes too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from polytok import load
from polytok.core.contracts import Codes
from polytok.core.errors import PolytokError
from polytok.systems.image import one_d_piece
from polytok.systems.image.codec import ImageCodec
from polytok.systems.image.search import STEPS, Searchable, refine
from polytok.systems.image.titok import TiTok


@pytest.fixture(scope="module")
def model() -> TiTok:
    torch.manual_seed(0)
    return TiTok(one_d_piece.preset("one-d-piece-micro")).eval().requires_grad_(False)


def pictures(count: int, side: int, seed: int = 0) -> Tensor:
    """Smooth pictures: noise of 4 x 4 enlarged."""
    small = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(small, size=(side, side), mode="bilinear")


def errors(model: TiTok, image: Tensor, ids: Tensor) -> Tensor:
    shown = model.picture(model.bottleneck.embed([ids])).clamp(0, 1)
    return (shown - image).square().mean((1, 2, 3))


@pytest.mark.parametrize("tokens", [4, 16])
def test_no_picture_gets_worse_and_all_that_moved_get_better(model: TiTok, tokens: int) -> None:
    image = pictures(6, 32)
    ids = model.encode({"image": image}).indices[0][:, :tokens]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = refine(model, image, ids, effort=4)
    assert found.shape == ids.shape and not found.requires_grad
    moved = (found != ids).any(1)
    assert moved.any()
    worse = errors(model, image, found) - errors(model, image, ids)
    assert bool((worse[moved] < 0).all()) and bool((worse[~moved] == 0).all())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_start_that_is_best_stays(model: TiTok) -> None:
    ids = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(1))
    image = model.decode(Codes(indices=(ids,)))["image"]
    assert torch.equal(refine(model, image, ids, effort=2), ids)


def test_more_effort_is_no_worse_under_inference_mode_too(model: TiTok) -> None:
    image = pictures(4, 32, seed=2)
    ids = model.encode({"image": image}).indices[0]
    assert torch.equal(refine(model, image, ids, effort=0), ids)
    with torch.inference_mode():
        inside = refine(model, image, ids, effort=3)
    assert torch.equal(inside, refine(model, image, ids, effort=3))
    assert list(STEPS) == sorted(set(STEPS)) and STEPS[0] == 0


def test_the_shipped_weights_gain_by_it() -> None:
    codec = load("one-d-piece-tiny.free")
    assert isinstance(codec, ImageCodec) and isinstance(codec.model, Searchable)
    image = pictures(3, 64, seed=3)

    def error(**options: int) -> Tensor:
        codes = codec.encode(list(image), **options)
        shown = codec.decode(codes)
        values = torch.stack([torch.from_numpy(np.array(p)) for p in shown])
        return (values.permute(0, 3, 1, 2) / 255 - image).square().mean((1, 2, 3))

    # Half a decibel at the least.
    assert error(effort=4).mean() < 0.9 * error().mean()
    assert error(effort=4, tokens=16).mean() < 0.9 * error(tokens=16).mean()
    for wrong in (-1, 10):
        with pytest.raises(PolytokError, match=f"effort={wrong} is not within 0..9"):
            codec.encode(image[0], effort=wrong)


def test_what_may_stay_is_searched_for_alone_and_stays_whole() -> None:
    codec = load("one-d-piece-tiny.free")
    image = pictures(1, 64)[0]
    asked = list[int]()

    def fit(codes: Codes) -> int:
        asked.append(codes.indices[0].shape[1])
        return min(asked[-1], 8 if len(asked) == 1 else 7)  # what is found first takes too much

    codes = codec.encode(image, effort=1, fit=fit)
    assert asked == [64, 8, 7]
    assert torch.equal(codes.indices[0], codec.encode(image, effort=1, tokens=7).indices[0])
    asked.clear()
    # Without a search nothing is counted: the first tokens of a code are the code of as many.
    assert codec.encode(image, fit=fit).indices[0].shape == (1, 64) and not asked
