"""What reductions must equal: the whole prompt without a cache, with tokens hidden by masks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import polytok
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.hosts.base import cache_name
from reducers.models import IS_NEWER
from reducers.vlm.models import IMAGE


def row_of(family: str) -> str:
    """The row of attention that a family's tower has."""
    return "received" if family == "qwen2_5_vl" else "cls"


@torch.no_grad()
def generated(model: Any, inputs: dict[str, Any], steps: int = 4, **options: Any) -> Any:
    """Greedy generation with the logits (B, V) of every step."""
    return model.generate(
        **inputs,
        max_new_tokens=steps,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )


def generated_from(model: Any, reduced: dict[str, Any], **options: Any) -> Any:
    """The same from reduced inputs, which models of transformers 4 take within a plan alone."""
    if IS_NEWER:
        return generated(model, reduced, **options)
    with polytok.vlm("random", keep=1).applied(model):
        return generated(model, reduced, **options)


def going_on(model: Any, out: Any) -> dict[str, Any]:
    """The cache of an output, as the next call takes it."""
    return {cache_name(model): out[cache_name(model)]}


@torch.no_grad()
def masked_logits(
    model: Any,
    inputs: dict[str, Any],
    sequences: Tensor,
    hidden: Tensor,
    from_layer: int | Tensor = 0,
) -> Tensor:
    """Logits (B, T, V) of the T new tokens of ``sequences``, in one pass without a cache.

    Args:
        hidden: (B, L) prompt tokens that nobody sees, in the layers from ``from_layer`` on, which
            is an int or one for each row (B,).
    """
    ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
    new = sequences.shape[1] - ids.shape[1]
    host = host_of(model)
    features = torch.cat(list(host.encode(model, inputs).pooler_output))
    embeds = model.get_input_embeddings()(sequences[:, :-1])
    image = torch.nn.functional.pad(ids == IMAGE, (0, new - 1))
    embeds = embeds.masked_scatter(image[..., None], features.to(embeds))
    positions = host.position_ids(model, inputs, inputs["attention_mask"])
    later = positions[..., -1:] + 1 + torch.arange(new - 1)
    positions = torch.cat([positions, later], -1)

    valid = torch.nn.functional.pad(mask, (0, new - 1), value=True)
    gone = torch.nn.functional.pad(hidden, (0, new - 1), value=False)
    length = valid.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril() & valid[:, None]
    starts = torch.as_tensor(from_layer).expand(len(ids))

    def mask_of(layer: int) -> Tensor:
        seen = causal & ~(gone & (layer >= starts)[:, None])[:, None]
        # Rows of padding see themselves, so that none is empty.
        seen = seen | torch.eye(length, dtype=torch.bool)
        return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]

    handles = [
        layer.register_forward_pre_hook(
            lambda _, args, options, i=i: (args, {**options, "attention_mask": mask_of(i)}),
            with_kwargs=True,
        )
        for i, layer in enumerate(model.model.language_model.layers)
    ]
    try:
        found = model.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            use_cache=False,
            attention_mask=valid.long(),
        )
    finally:
        for handle in handles:
            handle.remove()
    return model.lm_head(found.last_hidden_state)[:, ids.shape[1] - 1 :]


def errors(found: Any, expected: Tensor) -> float:
    """Largest difference of the logits of generation from (B, T, V)."""
    return float((torch.stack(found.logits, 1) - expected).abs().max())
