"""What systems of images share: which batches they take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from contracts.cases import CASES, SMALL_PRESETS, Case
from polytok.core.contracts import StepContext
from polytok.core.errors import PolytokError, SignalError
from polytok.core.seeding import torch_rng
from polytok.systems.images import SLACK, images_of

TOKENIZERS = [case for case in CASES if case.name in SMALL_PRESETS and "image" in case.batch(1)]


def pictures() -> Tensor:
    """Pictures (2, 3, 4, 4) that have both ends of their range [0, 1]."""
    values = torch.rand(2, 3, 4, 4, generator=torch_rng(0))
    values[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    return values


def wrong(image: Tensor) -> dict[str, Tensor]:
    """By what is said of them, pictures in other ranges than [0, 1]."""
    spoilt = image.clone()
    spoilt[-1, 1, 2, 3] = torch.nan
    return {
        r"values from -\S+ to \S+; they must lie within \[0, 1\]": 2 * image - 1,
        r"values from \S+ to 2\d\d": 255 * image,
        "values from nan to nan": spoilt,
        "values from 0.*? to inf": image.where(image < image.max(), torch.inf),
        r"torch.uint8, not floats within \[0, 1\]": (255 * image).to(torch.uint8),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_of_the_range_are_taken_in_any_dtype(dtype: torch.dtype) -> None:
    image = pictures().to(dtype)
    assert images_of({"image": image}, 4, (0, 1)) is image
    assert images_of({"image": 2 * image - 1}, 4, (-1, 1)).min() == -1
    # What half precision adds on the way to another range and back.
    images_of({"image": image.mul(0.26).add(0.45).sub(0.45).div(0.26)}, 4, (0, 1))


@pytest.mark.parametrize(("allowed", "step"), [((0.0, 1.0), 1 / 255), ((-1.0, 1.0), 2 / 255)])
def test_half_a_step_of_eight_bits_is_let_pass(allowed: tuple[float, float], step: float) -> None:
    assert pytest.approx(step / 2) == SLACK * (allowed[1] - allowed[0])
    for end, sign in zip(allowed, (-1, 1), strict=True):
        images_of({"image": torch.full((1, 3, 4, 4), end + sign * 0.49 * step)}, 4, allowed)
        beyond = torch.full((1, 3, 4, 4), end + sign * 0.51 * step)
        with pytest.raises(SignalError, match=f"lie within .{allowed[0]:g}, {allowed[1]:g}"):
            images_of({"image": beyond}, 4, allowed)


def test_other_values_are_refused() -> None:
    for message, image in wrong(pictures()).items():
        with pytest.raises(SignalError, match=message):
            images_of({"image": image}, 4, (0, 1))


def test_a_batch_of_nothing_has_no_values_to_check() -> None:
    assert len(images_of({"image": torch.zeros(0, 3, 4, 4)}, 4, (0, 1))) == 0


@pytest.mark.parametrize("case", TOKENIZERS, ids=lambda case: case.name)
def test_every_tokenizer_of_images_refuses_them(case: Case) -> None:
    model, batch = case.build(), case.batch(2)
    for message, image in wrong(batch["image"]).items():
        changed = {**batch, "image": image}
        with pytest.raises(SignalError, match=message):
            model.encode(changed)
        with pytest.raises(SignalError, match=message):
            model(changed, StepContext(rng=torch_rng(0)))


@pytest.mark.parametrize("case", TOKENIZERS, ids=lambda case: case.name)
@torch.no_grad()
def test_every_tokenizer_of_images_refuses_ids_that_it_does_not_have(case: Case) -> None:
    model = case.build()
    codes, most = model.encode(case.batch(2)), model.spec.levels[0].vocab - 1
    for wrong in (-1, most + 1):
        ids = codes.indices[0].clone()
        ids[1, 2] = wrong
        with pytest.raises(PolytokError, match=rf"{wrong} .*not within 0\.\.{most}"):
            model.decode(replace(codes, indices=(ids,)))
