"""transformers 4.57: models take embeddings in place of pixels, and generate drops positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.vlm.hosts.base import required

# What generate of this release would refuse, or lose after the first step.
WITHHELD = ("mm_encoder_outputs", "position_ids")


class Transformers4:
    """The answers of the last release before 5."""

    def check_prepared(self) -> None:
        raise ConfigError(
            "models of transformers 4 take no features in place of pixels, so prepared inputs "
            "cannot run by themselves; run the model within applied(model), whose report says the "
            "same, or use transformers 5.23 or newer"
        )

    def image_features(self, core: Any, *pixels: Tensor) -> Any:
        output = import_hf("transformers.modeling_outputs").BaseModelOutputWithPooling
        return output(pooler_output=core.get_image_features(*pixels))

    def window_order(self, tower: Any, grids: Tensor) -> Tensor:
        order: Tensor = tower.get_window_index(grids)[0]
        return order

    def grid_positions(self, core: Any, inputs: Mapping[str, Any], mask: Tensor) -> Tensor:
        positions: Tensor = core.get_rope_index(
            required(inputs, "input_ids"),
            image_grid_thw=inputs["image_grid_thw"],
            attention_mask=mask,
        )[0]
        return positions

    def split(
        self, model: Any, reduced: dict[str, Any]
    ) -> tuple[dict[str, Any], HandedOver | None]:
        if reduced.get("mm_encoder_outputs") is None:
            return reduced, None
        rest = {name: value for name, value in reduced.items() if name not in WITHHELD}
        return rest, HandedOver(model, reduced)


class HandedOver:
    """Puts features and kept positions into the calls of one ``generate``, or into one call.

    Rows may be copies of those of the prompt, as beams are.
    """

    def __init__(self, model: Any, reduced: Mapping[str, Any]) -> None:
        ids = reduced["input_ids"]
        features = torch.cat(list(reduced["mm_encoder_outputs"]["image"].pooler_output))
        self.embed = model.get_input_embeddings()
        embeds = self.embed(ids)
        is_image = (ids == model.config.image_token_id)[..., None]
        self.embeds: Tensor = embeds.masked_scatter(is_image, features.to(embeds))
        self.positions: Tensor | None = reduced.get("position_ids")

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call with ``input_ids`` -> those with everything that generate lost."""
        ids, cache = inputs["input_ids"], inputs.get("past_key_values")
        copies = len(ids) // len(self.embeds)
        past = 0 if cache is None else int(cache.get_seq_length())
        found = dict(inputs)
        if self.positions is not None:
            positions = _continued(self.positions, past + ids.shape[1])[..., past:]
            found["position_ids"] = positions.repeat_interleave(copies, -2)
        if past == 0:
            # Without a cache, every call has the prompt and what was said since.
            prompt = self.embeds.repeat_interleave(copies, 0)
            said = self.embed(ids[:, prompt.shape[1] :])
            found |= {"input_ids": None, "inputs_embeds": torch.cat([prompt, said], 1)}
        return found


def _continued(positions: Tensor, length: int) -> Tensor:
    """(..., B, n) -> (..., B, length), counting on from the last."""
    more = torch.arange(1, length - positions.shape[-1] + 1, device=positions.device)
    return torch.cat([positions, positions[..., -1:] + more], -1)
