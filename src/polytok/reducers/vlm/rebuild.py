"""The inputs of a model with some of its visual tokens left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import SignalError
from polytok.reducers.vlm.hosts.base import text_positions

FILL = {"attention_mask": 0, "labels": -100}


def mask_of(inputs: Mapping[str, Any]) -> Tensor:
    """(B, n) int64, 1 = valid; without a mask everything is.

    Raises:
        SignalError: the mask has another shape than the ids.
    """
    mask: Tensor | None = inputs.get("attention_mask")
    ids: Tensor = inputs["input_ids"]
    if mask is not None and mask.shape != ids.shape:
        raise SignalError(
            f"attention_mask has shape {tuple(mask.shape)}; give one number per token, "
            f"{tuple(ids.shape)}"
        )
    return torch.ones_like(ids) if mask is None else mask


def keep_in_sequence(
    ids: Tensor, image_id: int, counts: Sequence[int], kept: Sequence[Tensor]
) -> Tensor:
    """Which ids (B, n) stay, bool: all text, and of image i the placeholders of its ``kept[i]``.

    Raises:
        SignalError: there are more or fewer placeholders than tokens, or an image crosses rows.
    """
    where = (ids == image_id).flatten().nonzero().flatten()
    if len(where) != sum(counts):
        raise SignalError(
            f"{len(where)} image placeholders in the prompt for {sum(counts)} image tokens; "
            "pass input_ids and pixels from one call of the processor"
        )
    stay = torch.ones(ids.numel(), dtype=torch.bool, device=ids.device)
    stay[where] = False
    for some, index in zip(where.split(list(counts)), kept, strict=True):
        if len(some) and some[0] // ids.shape[1] != some[-1] // ids.shape[1]:
            raise SignalError(
                "the placeholders of an image are spread over two prompts; give each prompt as "
                "many placeholders as its images have tokens"
            )
        stay[some[index.to(some.device)]] = True
    return stay.view_as(ids)


def shorten(
    inputs: Mapping[str, Any],
    stay: Tensor,
    *,
    pad_id: int,
    positions: Tensor | None = None,
) -> dict[str, Any]:
    """Cut every tensor shaped like ``input_ids`` (B, n) to what ``stay`` (B, n) says; pad again.

    Padding goes to the side where it was: left, or right when a row ended in padding. The mask is
    always given, since models read gaps between positions as borders when there is none.

    Args:
        positions: (B, n) or (3, B, n) of the whole prompt, to be kept; None: the model counts anew.
    """
    ids = inputs["input_ids"]
    mask = mask_of(inputs)
    stay = stay & mask.bool()
    longest = int(stay.sum(-1).max())
    # A stable sort keeps the order of what stays and moves the rest to the side of the padding.
    is_right = not bool(mask[:, -1].all())
    order = stay.long().argsort(dim=-1, stable=True, descending=is_right)
    order = order[:, :longest] if is_right else order[:, -longest:]
    valid = stay.gather(-1, order)

    def cut(value: Tensor, fill: int) -> Tensor:
        index = order.expand(*value.shape[:-2], -1, -1)
        return value.gather(-1, index).masked_fill(~valid, fill)

    found = {**inputs, "attention_mask": mask}
    for name, value in found.items():
        if isinstance(value, Tensor) and value.shape == ids.shape:
            found[name] = cut(value, FILL.get(name, pad_id if name == "input_ids" else 0))
    found.pop("position_ids", None)
    if positions is not None:
        kept = cut(positions, 0)
        # A first row of plain positions tells models with 3-D ones where texts are.
        text = text_positions(found["attention_mask"])
        found["position_ids"] = torch.cat([text[None], kept]) if kept.ndim == 3 else kept
    return found
