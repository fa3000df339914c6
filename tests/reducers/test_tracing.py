"""What is traced is what happened: counts, survivors and groups, through every stage."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import polytok
from polytok.core.errors import PolytokError
from polytok.reducers import paused, trace
from polytok.reducers.families import FAMILIES
from reducers.models import GRID, image, tiny_deit, tiny_hf

DEIT = next(f for f in FAMILIES if f.name == "DeiT")
N = GRID * GRID


@pytest.mark.parametrize("method", ["evit", "tome", "mctf", "diffrate", "random", "uniform"])
def test_groups_and_survivors_agree(method: str) -> None:
    model = tiny_deit()
    polytok.reduce(model, method, keep={1: 0.8, 3: 0.8})
    found = trace(model, image(DEIT))
    assert [s.layer for s in found.stages] == [1, 3] and found.grid == (GRID, GRID)
    for stage, tokens in zip(found.stages, (found.tokens[2], found.tokens[4]), strict=True):
        left = tokens - 1
        assert stage.kept.shape == (2, left) and stage.group.shape == (2, N)
        assert stage.group.max() < left and stage.group.min() >= -1
        back = stage.group.gather(1, stage.kept)
        assert torch.equal(back, torch.arange(left).expand(2, -1))
        assert (stage.survivors.sum(1) == left).all()
    early, late = (s.survivors for s in found.stages)
    assert not (late & ~early).any()


def test_merging_methods_stand_for_every_patch() -> None:
    for method in ("tome", "mctf"):
        model = tiny_deit()
        polytok.reduce(model, method, keep={1: 0.7, 3: 0.7})
        recorded: list = []
        polytok.reducers.reduction_of(model).recorders.append(recorded)
        model(image(DEIT))
        state = recorded[0].state
        assert state.size.sum(1).tolist() == [N + 1] * 2
        counts = torch.stack([torch.bincount(g, minlength=state.patches) for g in state.group()])
        assert torch.equal(counts.float(), state.size[:, 1:])


def test_the_picture_shows_every_stage() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep={1: 0.5, 2: 0.5})
    pixels = torch.ones(2, 3, 64, 64)
    found = trace(model, pixels)
    panels = torch.tensor(np.asarray(found.picture(pixels, 1))).view(64, 3, 64, 3)
    assert found.picture(pixels[0]).size == (192, 64)
    for number, stage in enumerate(found.stages, 1):
        bright = (panels[:, number, :, 0] == 255).float()
        patches = bright.view(GRID, 16, GRID, 16).mean((1, 3)).flatten()
        assert torch.equal(patches.bool(), stage.survivors[1])


def test_nothing_is_recorded_beyond_the_trace() -> None:
    model = tiny_deit()
    polytok.reduce(model, "evit", keep=0.5)
    trace(model, image(DEIT))
    assert polytok.reducers.reduction_of(model).recorders == []
    with paused(model), pytest.raises(PolytokError, match="paused"):
        trace(model, image(DEIT))
    with pytest.raises(TypeError):
        trace(model)
    assert polytok.reducers.reduction_of(model).recorders == []


@pytest.mark.parametrize("size", [(64, 96), (32, 128), (96, 64)], ids=str)
@pytest.mark.parametrize("make", [tiny_deit, tiny_hf], ids=["timm", "transformers"])
def test_pictures_that_are_no_squares(make: Any, size: tuple[int, int]) -> None:
    model = make(**({"dynamic_img_size": True} if make is tiny_deit else {}))
    options = {} if make is tiny_deit else {"interpolate_pos_encoding": True}
    polytok.reduce(model, "evit", keep={1: 0.5})
    pixels = torch.ones(1, 3, *size)
    found = trace(model, pixels, **options)
    assert found.grid == (size[0] // 16, size[1] // 16)
    shown = torch.tensor(np.asarray(found.picture(pixels)))[:, size[1] :, 0] == 255
    patches = shown.view(found.grid[0], 16, found.grid[1], 16).float().mean((1, 3)).flatten()
    assert torch.equal(patches.bool(), found.stages[0].survivors[0])
    hooks = [m._forward_pre_hooks for m in model.modules() if m._forward_pre_hooks]
    assert not hooks
