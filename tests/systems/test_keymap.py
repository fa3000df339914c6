"""Rows between our tensors and a checkpoint's: each way undoes the other; all faults are named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polytok.core.errors import WeightsError
from polytok.systems.keymap import (
    FIRST,
    POINTWISE,
    SAME,
    KeyMap,
    Row,
    check,
    fresh,
    join,
    row,
    rows,
    split,
    to_ours,
    to_theirs,
    under,
)

LAYER = [
    Row(("q.weight", "kv.weight"), ("attn.in_proj_weight",), split(1, 2)),
    Row(("qkv.weight",), ("query.weight", "key.weight", "value.weight"), join(1, 1, 1)),
    row("out.weight", "out.weight", POINTWISE),
    *rows({"norm": "ln"}),
]
MAP = KeyMap(
    (
        *(r for i in range(12) for r in under(f"layers.{i}.", f"blocks.{i}.", LAYER)),
        row("scale", "gain", FIRST),
        Row(("usage",), (), fresh(lambda: torch.zeros(3))),
    ),
    unread=("*.mask",),
)


def official() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng)

    found = {"gain": draw(1, 5)}
    for i in range(12):
        found |= {
            f"blocks.{i}.attn.in_proj_weight": draw(12, 4),
            f"blocks.{i}.query.weight": draw(4, 3),
            f"blocks.{i}.key.weight": draw(4, 3),
            f"blocks.{i}.value.weight": draw(4, 3),
            f"blocks.{i}.out.weight": draw(6, 4, 1, 1),
            f"blocks.{i}.ln.weight": draw(4),
            f"blocks.{i}.ln.bias": draw(4),
        }
    return found


def test_theirs_to_ours_puts_every_value_where_it_belongs() -> None:
    theirs = official()
    ours = to_ours(MAP, theirs)
    whole = theirs["blocks.7.attn.in_proj_weight"]
    assert torch.equal(ours["layers.7.q.weight"], whole[:4])
    assert torch.equal(ours["layers.7.kv.weight"], whole[4:])
    assert torch.equal(
        ours["layers.7.qkv.weight"],
        torch.cat([theirs[f"blocks.7.{n}.weight"] for n in ("query", "key", "value")]),
    )
    assert torch.equal(ours["layers.7.out.weight"], theirs["blocks.7.out.weight"][:, :, 0, 0])
    assert torch.equal(ours["layers.7.norm.bias"], theirs["blocks.7.ln.bias"])
    assert torch.equal(ours["scale"], theirs["gain"][0])
    assert torch.equal(ours["usage"], torch.zeros(3))
    assert len(ours) == 12 * 6 + 2


def test_there_and_back_is_the_identity_both_ways() -> None:
    theirs = official()
    back = to_theirs(MAP, to_ours(MAP, theirs))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[k], theirs[k]) for k in theirs)
    ours = to_ours(MAP, theirs)
    again = to_ours(MAP, to_theirs(MAP, ours))
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[k], ours[k]) for k in ours)


@pytest.mark.parametrize("op", [SAME, FIRST, split(1, 2)])
def test_an_inverse_twice_is_the_operation(op: object) -> None:
    assert op.inverse().inverse() == op  # type: ignore[attr-defined]


def test_parts_share_no_memory() -> None:
    ours = to_ours(MAP, official())
    memory = [t.untyped_storage().data_ptr() for t in ours.values()]
    assert len(set(memory)) == len(memory)


def test_check_passes_what_fits_and_what_is_not_read() -> None:
    theirs = official()
    with torch.device("meta"):
        ours = {k: torch.empty_like(t, device="meta") for k, t in to_ours(MAP, theirs).items()}
    check(MAP, ours, {**theirs, "blocks.0.mask": torch.zeros(1)}, "file")


def test_check_names_every_fault_at_once() -> None:
    theirs = official()
    ours = to_ours(MAP, theirs)
    for i in (0, 1, 2, 5, 11):
        del theirs[f"blocks.{i}.query.weight"]
    del theirs["gain"]
    theirs["blocks.3.ln.bias"] = torch.zeros(7)
    theirs["blocks.4.ln.bias"] = torch.zeros(7)
    theirs["head.weight"] = theirs["blocks.12.ln.bias"] = torch.zeros(1)
    with pytest.raises(WeightsError) as caught:
        check(MAP, ours, theirs, "file")
    assert str(caught.value) == (
        "file: tensors 6 missing (blocks.{0-2,5,11}.query.weight, gain), "
        "2 unknown (blocks.12.ln.bias, head.weight), "
        "2 of another shape (blocks.{3-4}.ln.bias (7,) instead of (4,))"
    )
