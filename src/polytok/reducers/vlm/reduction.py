"""Reduction between the vision tower and the language model: which visual tokens go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.maps import Select, TokenMap
from polytok.reducers.vlm.budgets import Budget
from polytok.reducers.vlm.hosts import Host, Tower, host_of
from polytok.reducers.vlm.hosts.base import Positions
from polytok.reducers.vlm.layout import Layout
from polytok.reducers.vlm.rebuild import keep_in_sequence, mask_of, shorten
from polytok.reducers.vlm.report import Report, make_report
from polytok.reducers.vlm.scores import Score
from polytok.reducers.vlm.select import MergeRule, SelectRule, top
from polytok.reducers.vlm.tap import Tap, check_kernel, recording
from polytok.reducers.vlm.tokens import VisualTokens


@dataclass(frozen=True, kw_only=True)
class Reduction:
    """Score the visual tokens, spread a budget over tiles, keep the best, merge or drop the rest.

    Args:
        positions: of what stays: ``contiguous`` counts anew, ``keep`` leaves gaps; None: what the
            family's models are used to.
        protect_others: whether tokens that show no cell (newlines) all stay.
    """

    score: Score
    budget: Budget
    select: SelectRule = top
    merge: MergeRule | None = None
    positions: Positions | None = None
    protect_others: bool = True

    def taps(self, tower: Tower) -> tuple[Tap, ...]:
        """Everything to record, each once."""
        return tuple(dict.fromkeys((*self.score.taps(tower), *self.budget.taps(tower))))

    def check(self, model: Any) -> Host:
        """The model's family, if this reduction can work on it.

        Raises:
            ConfigError: unknown family, a kernel without scores, no class token, or positions
                with gaps where the language model would read them as borders.
        """
        host = host_of(model)
        tower = host.tower(model)
        if self.taps(tower):
            check_kernel(tower.module)
        kernel = model.config.get_text_config()._attn_implementation or ""
        if self.has_gaps(model) and "flash" in kernel:
            raise ConfigError(
                f"positions='keep' leaves gaps that {kernel} reads as borders between prompts; "
                "use positions='contiguous', or sdpa in the language model"
            )
        return host

    def positions_on(self, model: Any) -> Positions:
        """What this reduction does to positions in a model's family."""
        return self.positions or host_of(model).positions

    def has_gaps(self, model: Any) -> bool:
        """Whether positions that tell prompts apart have gaps; 3-D ones have a row for that."""
        return self.positions_on(model) == "keep" != host_of(model).positions

    def count(self, model: Any, inputs: Mapping[str, Any]) -> list[int]:
        """Visual tokens per image after the reduction, from sizes alone."""
        return [self._count(layout) for layout in host_of(model).layouts(model, inputs)]

    def _count(self, layout: Layout) -> int:
        return self.budget.count(layout) + layout.others * self.protect_others

    def prepare(self, model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
        """Inputs with fewer visual tokens for ``model.generate`` or ``model``, and what was done.

        The tower runs here; the result has features instead of pixels, with gradients unless
        torch.no_grad() says otherwise. Where everything is kept, the inputs come back as they are.

        Raises:
            SignalError: no image, or prompts that do not match the images.
            ConfigError: the reduction does not suit the model, or its budget the images.
        """
        host = self.check(model)
        layouts, whole = untouched(model, inputs)
        if self.budget.is_exact and all(self._count(x) == x.tokens for x in layouts):
            return dict(inputs), whole
        tokens, output = self._encode(host, model, inputs, layouts)
        maps = self.choose(tokens)
        found = rebuild(host, model, inputs, output, maps, self.positions_on(model))
        masks = mask_of(inputs).bool(), found["attention_mask"].bool()
        return found, make_report(model, layouts, maps, masks)

    def _encode(
        self, host: Host, model: Any, inputs: Mapping[str, Any], layouts: list[Layout]
    ) -> tuple[VisualTokens, Any]:
        tower = host.tower(model)
        taps = self.taps(tower)
        with recording(tower.module, tower.layers, taps) as recorder:
            output = host.encode(model, inputs)
        with torch.no_grad():
            rows = {t: host.pool(model, inputs, recorder.rows[t], layouts) for t in taps}
        return VisualTokens(
            features=output.pooler_output, layouts=layouts, tower=tower, rows=rows
        ), output

    @torch.no_grad()
    def choose(self, tokens: VisualTokens) -> list[TokenMap]:
        """Where every token goes, per image."""
        maps: list[TokenMap] = []
        for image, scores in enumerate(self.score(tokens)):
            layout, features = tokens.layouts[image], tokens.features[image]
            cells = self.select(
                scores,
                self.budget.candidates(layout),
                self.budget.allocate(tokens, image),
                partial(layout.spread, features),
            )
            kept = layout.kept(cells, keep_others=self.protect_others).to(features.device)
            drop = Select(kept[None], layout.tokens)
            maps.append(drop if self.merge is None else self.merge(features, kept))
        return maps


def untouched(model: Any, inputs: Mapping[str, Any]) -> tuple[list[Layout], Report]:
    """Where the tokens of inputs with pixels come from, and the report of leaving them alone.

    Raises:
        SignalError: no image, or prompts that do not match the images.
    """
    ids = _ids(inputs)
    layouts = host_of(model).layouts(model, inputs)
    everything = [torch.arange(x.tokens) for x in layouts]
    counts = [x.tokens for x in layouts]
    keep_in_sequence(ids, model.config.image_token_id, counts, everything)
    same = [Select(index[None], len(index)) for index in everything]
    mask = mask_of(inputs).bool()
    return layouts, make_report(model, layouts, same, (mask, mask))


def rebuild(
    host: Host,
    model: Any,
    inputs: Mapping[str, Any],
    output: Any,
    maps: list[TokenMap],
    positions: Positions,
) -> dict[str, Any]:
    """The inputs with features ``output`` mapped by ``maps``, instead of pixels."""
    ids, image_id = _ids(inputs), model.config.image_token_id
    features = output.pooler_output
    kept = [x.anchor()[0] for x in maps]
    stay = keep_in_sequence(ids, image_id, [len(x) for x in features], kept)
    given = inputs.get("position_ids") if positions == "keep" else None
    if positions == "keep" and given is None:
        given = host.position_ids(model, inputs, mask_of(inputs))
    rest = {k: v for k, v in inputs.items() if k not in host.pixels}
    found = shorten(rest, stay, pad_id=pad_id(model), positions=given)
    mapped = [x.apply(f[None])[0] for x, f in zip(maps, features, strict=True)]
    output.pooler_output = host.rewrap(mapped)
    return {**found, "mm_encoder_outputs": {"image": output}}


def pad_id(model: Any) -> int:
    """An id to pad with that is no image placeholder."""
    config = model.config.get_text_config()
    found = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    return found if found != model.config.image_token_id else found + 1


def _ids(inputs: Mapping[str, Any]) -> torch.Tensor:
    if inputs.get("pixel_values") is None:
        raise SignalError(
            "the inputs have no image (pixel_values); for text alone call the model without a plan"
        )
    if inputs.get("mm_encoder_outputs") is not None or inputs.get("input_ids") is None:
        raise SignalError(
            "a reduction starts from input_ids and pixel_values, as the processor returns them; "
            "leave out mm_encoder_outputs and inputs_embeds"
        )
    ids: torch.Tensor = inputs["input_ids"]
    return ids
