"""Leaving visual tokens inside the language model: hooks that shorten what later layers see.

Legend: B prompts, L tokens of a prompt (padding included), m tokens that are left, D width.
Positions are kept, so no rotary phase changes. Layers keep caches of different lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.vlm.budgets import check_keep
from polytok.reducers.vlm.hosts.base import core_of
from polytok.reducers.vlm.tap import Recorder, Tap, recording

CACHES = ("cache", "past_key_values")


@dataclass(frozen=True, kw_only=True)
class Prefill:
    """The tokens of a prompt between two layers.

    Args:
        image, valid: (B, L) the placeholders of images, and what is no padding.
        alive: (B, L) what is left; None while nothing was cut.
        order: (B, m) where in the prompt the tokens of ``hidden`` stand. Rows with fewer tokens
            left begin with dead ones, which nobody sees.
        rows: per tap of the rule, what its layer recorded: (B, heads, m).
    """

    image: Tensor
    valid: Tensor
    alive: Tensor | None = None
    order: Tensor | None = None
    rows: Mapping[Tap, Tensor] = field(default_factory=dict)

    def take(self, mask: Tensor) -> Tensor:
        """A mask (B, L) over the prompt -> (B, m), of the tokens that are left."""
        return mask if self.order is None else mask.gather(1, self.order)

    @property
    def seen(self) -> Tensor:
        """(B, m) bool, which of the tokens of ``hidden`` are left."""
        return self.take(self.left)

    @property
    def left(self) -> Tensor:
        """(B, L) bool, which tokens of the prompt are left."""
        return self.valid if self.alive is None else self.alive


class CutRule(Protocol):
    """Decides after every layer but the last which tokens go on."""

    def taps(self) -> tuple[Tap, ...]:
        """Rows of the language model's attention that must be recorded for it."""

    def check(self, model: Any) -> None:
        """Refuse a model that the rule does not suit."""

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        """(B, L) bool, the tokens that go on; None: all that are left."""


@dataclass(frozen=True)
class StaticExit:
    """All visual tokens leave after layer ``layer`` (from 0)."""

    layer: int

    def taps(self) -> tuple[Tap, ...]:
        return ()

    def check(self, model: Any) -> None:
        check_layer(self.layer, model)

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        return prompt.valid & ~prompt.image if layer == self.layer else None


@dataclass(frozen=True)
class AttentionKeep:
    """After one layer, the visual tokens stay that the last token attends to most (FastV).

    Args:
        layer: from 0; its attention scores, mean over heads.
        keep: tokens per prompt (int; a prompt with fewer keeps all), or a fraction in (0, 1].

    Raises:
        ConfigError: ``keep`` is out of range.
    """

    layer: int
    keep: int | float

    def __post_init__(self) -> None:
        check_keep(self.keep, "prompt")

    def taps(self) -> tuple[Tap, ...]:
        return (Tap(self.layer, "last"),)

    def check(self, model: Any) -> None:
        check_layer(self.layer, model)

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        if layer != self.layer:
            return None
        scores = prompt.rows[self.taps()[0]].mean(1)
        image = prompt.image & prompt.left
        if prompt.order is not None:
            full = scores.new_zeros(image.shape)
            scores = full.scatter(1, prompt.order, scores)
        rank = scores.masked_fill(~image, -torch.inf).argsort(dim=1, descending=True, stable=True)
        count = image.sum(1, keepdim=True)
        if isinstance(self.keep, float):
            count = (self.keep * count).round().long().clamp(min=1)
        else:
            count = count.clamp(max=self.keep)
        stay = rank.argsort(dim=1) < count
        return prompt.left & (stay | ~prompt.image)


@dataclass(frozen=True)
class Several:
    """Rules one after the other; a token goes on that all of them let go on."""

    rules: tuple[CutRule, ...]

    def taps(self) -> tuple[Tap, ...]:
        return tuple(dict.fromkeys(tap for rule in self.rules for tap in rule.taps()))

    def check(self, model: Any) -> None:
        for rule in self.rules:
            rule.check(model)

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        found = [rule.after(layer, hidden, prompt) for rule in self.rules]
        masks = [mask for mask in found if mask is not None]
        return torch.stack(masks).all(0) if masks else None


def is_static(rule: CutRule) -> bool:
    """Whether a rule decides the same when a step without a cache runs the prompt again."""
    if isinstance(rule, Several):
        return all(map(is_static, rule.rules))
    return isinstance(rule, StaticExit)


def check_layer(layer: int, model: Any) -> None:
    """Refuse a layer that the language model does not have.

    Raises:
        ConfigError: it has not.
    """
    depth = model.config.get_text_config().num_hidden_layers
    if not 0 <= layer < depth:
        raise ConfigError(f"layer={layer} is not one of the layers 0..{depth - 1}")


@dataclass
class _Record:
    """What later steps must know of a prompt: per cut layer, its ``order`` and ``seen``."""

    length: int
    cuts: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)


class Cutter:
    """The hooks of one rule on one model; :meth:`install` puts them on, :meth:`remove` takes them.

    ``is_active`` is asked in every call, so other threads run the model as it is.
    """

    def __init__(self, rule: CutRule, model: Any, is_active: Any) -> None:
        self.rule, self.is_active = rule, is_active
        self.language_model = core_of(model).language_model
        self.layers: nn.ModuleList = self.language_model.layers
        self.undo = ExitStack()
        self.recorder: Recorder | None = None
        self.image: Tensor | None = None
        self.valid: Tensor | None = None
        self.prompt: Prefill | None = None
        self.records: WeakKeyDictionary[Any, _Record] = WeakKeyDictionary()
        self.record = _Record(0)
        # Per layer of the last prompt, (B,): tokens that it sees, and those of images among them.
        self.lengths: list[tuple[Tensor, Tensor]] = []

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError(copied(self.language_model))

    def install(self) -> None:
        if taps := self.rule.taps():
            record = recording(self.language_model, self.layers, taps)
            self.recorder = self.undo.enter_context(record)
        for i, layer in enumerate(self.layers):
            before, after = _Before(self, i), _After(self, i)
            for handle in (
                layer.register_forward_pre_hook(before, with_kwargs=True),
                layer.register_forward_hook(after, with_kwargs=True),
            ):
                self.undo.callback(handle.remove)

    def remove(self) -> None:
        self.undo.close()

    def announce(self, image: Tensor | None, valid: Tensor | None) -> None:
        """Where the placeholders of the next prompt stand, (B, L), and what is no padding."""
        self.image, self.valid = image, valid

    def before(self, i: int, hidden: Tensor, options: dict[str, Any]) -> dict[str, Any] | None:
        cache = cache_of(options)
        if i == 0:
            self._begin(hidden, cache)
        if self.prompt is None:
            return self._decode_options(i, hidden, cache, options)
        seen = self.prompt.seen
        if self.recorder is not None:
            index = torch.arange(seen.shape[1], device=seen.device)
            self.recorder.last = (seen * index).amax(1)
        self.lengths.append((seen.sum(1), (seen & self.prompt.take(self.prompt.image)).sum(1)))
        if self.prompt.order is None:
            return None
        self.record.cuts[i] = (self.prompt.order, seen)
        return _prefill_options(self.prompt, options)

    def _begin(self, hidden: Tensor, cache: Any) -> None:
        self.prompt = None
        if self.recorder is not None:
            self.recorder.rows.clear()
            self.recorder.last = None
        if cache is not None and cache.get_seq_length() > 0:
            self.record = self.records.get(cache) or _Record(0)
            return
        if self.image is None or self.image.shape != hidden.shape[:2]:
            raise SignalError(
                "a plan that cuts inside the language model needs the whole prompt at once, as "
                "input_ids; leave out inputs_embeds and prefill_chunk_size"
            )
        if cache is not None:
            check_cache(cache)
        valid = torch.ones_like(self.image) if self.valid is None else self.valid
        self.prompt = Prefill(image=self.image, valid=valid)
        self.record = _Record(hidden.shape[1])
        self.lengths = []
        if cache is not None:
            self.records[cache] = self.record

    def after(self, i: int, hidden: Tensor) -> Tensor | None:
        prompt = self.prompt
        if prompt is None:
            return None
        if i == len(self.layers) - 1:
            self.prompt = None
            return None if prompt.order is None else spread(hidden, prompt)
        if self.recorder is not None:
            rows = {tap: row[-1] for tap, row in self.recorder.rows.items()}
            prompt = replace(prompt, rows=rows)
        alive = self.rule.after(i, hidden, prompt)
        if alive is None or torch.equal(alive, prompt.left):
            return None
        self.prompt, hidden = cut(hidden, prompt, alive)
        return hidden

    def _decode_options(
        self, i: int, hidden: Tensor, cache: Any, options: dict[str, Any]
    ) -> dict[str, Any] | None:
        if i not in self.record.cuts:
            return None
        order, seen = self.record.cuts[i]
        keys = cache.get_seq_length(i) + hidden.shape[1]
        mask = _decode_mask(options.get("attention_mask"), order, seen, self.record.length, keys)
        return {**options, "attention_mask": mask}


def cut(hidden: Tensor, prompt: Prefill, alive: Tensor) -> tuple[Prefill, Tensor]:
    """Leave out of ``hidden`` (B, m, D) what is not ``alive`` (B, L): (B, k, D).

    Rows with fewer tokens are filled from the left.
    """
    longest = int(alive.sum(1).max())
    # Stable: dead tokens first, then living ones, each in the order of the prompt.
    order = alive.long().argsort(dim=1, stable=True)[:, -longest:]
    full = hidden if prompt.order is None else spread(hidden, prompt)
    found = full.gather(1, order[..., None].expand(-1, -1, hidden.shape[-1]))
    return Prefill(image=prompt.image, valid=prompt.valid, alive=alive, order=order), found


def spread(hidden: Tensor, prompt: Prefill) -> Tensor:
    """(B, m, D) -> (B, L, D): tokens where they stood in the prompt, zeros where others left."""
    assert prompt.order is not None
    full = hidden.new_zeros(*prompt.valid.shape, hidden.shape[-1])
    index = prompt.order[..., None].expand_as(hidden)
    return full.scatter(1, index, hidden * prompt.seen[..., None])


def _prefill_options(prompt: Prefill, options: dict[str, Any]) -> dict[str, Any]:
    order = prompt.order
    assert order is not None

    def taken(value: Tensor) -> Tensor:
        """Of (..., B or 1, L, d); some releases have a table for each of three axes."""
        *axes, _, length, width = value.shape
        index = order[..., None].expand(*axes, -1, -1, width)
        return value.expand(*axes, len(order), length, width).gather(-2, index)

    found = {**options, "attention_mask": _prefill_mask(options.get("attention_mask"), prompt)}
    if options.get("position_embeddings") is not None:
        found["position_embeddings"] = tuple(map(taken, options["position_embeddings"]))
    if options.get("position_ids") is not None:
        found["position_ids"] = taken(options["position_ids"][..., None])[..., 0]
    return found


def _prefill_mask(mask: Tensor | None, prompt: Prefill) -> Tensor | None:
    order, seen = prompt.order, prompt.seen
    assert order is not None
    count = order.shape[1]
    if mask is None:
        if bool(seen.all()):
            return None
        mask = torch.ones(count, count, dtype=torch.bool, device=seen.device).tril()[None, None]
    else:
        mask = mask.expand(len(order), *mask.shape[1:])
        rows = order[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1])
        columns = order[:, None, None].expand(-1, mask.shape[1], count, -1)
        mask = mask.gather(2, rows).gather(3, columns)
    mask = _hide(mask, seen)
    # A row that sees nothing would become NaN; dead tokens see themselves.
    itself = torch.eye(count, dtype=torch.bool, device=seen.device) & ~seen[:, None, :, None]
    return mask | itself if mask.dtype == torch.bool else mask.masked_fill(itself, 0.0)


def _decode_mask(
    mask: Tensor | None, order: Tensor, seen: Tensor, length: int, keys: int
) -> Tensor | None:
    if mask is None:
        if bool(seen.all()):
            return None
        newer = seen.new_ones(len(seen), keys - seen.shape[1])
        return torch.cat([seen, newer], 1)[:, None, None]
    mask = mask.expand(len(order), *mask.shape[1:])
    columns = order[:, None, None].expand(-1, *mask.shape[1:3], -1)
    prompt = _hide(mask[..., :length].gather(3, columns), seen)
    return torch.cat([prompt, mask[..., length:]], -1)


def _hide(mask: Tensor, seen: Tensor) -> Tensor:
    """Nobody sees dead tokens."""
    hidden = ~seen[:, None, None]
    fill = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(hidden, fill)


def cache_of(options: Mapping[str, Any]) -> Any:
    """The cache among the options of a model or layer, by the name of any release."""
    return next((options[name] for name in CACHES if options.get(name) is not None), None)


def copied(model: Any) -> str:
    """Why a copy of a model with a plan is refused."""
    return (
        f"a copy of a {type(model).__name__} that has a plan would drive the original; copy or "
        "pickle it before the plan is applied, or after it is removed"
    )


def check_cache(cache: Any) -> None:
    """Refuse caches whose layers cannot have lengths of their own.

    Raises:
        ConfigError: it is no dynamic cache.
    """
    kinds = {type(layer).__name__ for layer in getattr(cache, "layers", ())} - {"DynamicLayer"}
    if kinds or not hasattr(cache, "layers"):
        raise ConfigError(
            f"a {type(cache).__name__} with {', '.join(sorted(kinds)) or 'one length'} cannot hold "
            "layers of different lengths; use a DynamicCache without sliding windows"
        )


@dataclass(frozen=True, eq=False)
class _Before:
    cutter: Cutter
    layer: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if not self.cutter.is_active():
            return None
        hidden = args[0] if args else options["hidden_states"]
        found = self.cutter.before(self.layer, hidden, options)
        return None if found is None else (args, found)


@dataclass(frozen=True, eq=False)
class _After:
    cutter: Cutter
    layer: int

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> Any:
        if not self.cutter.is_active():
            return None
        is_tuple = isinstance(output, tuple)  # as layers of older releases return
        hidden = self.cutter.after(self.layer, output[0] if is_tuple else output)
        if hidden is None:
            return None
        return (hidden, *output[1:]) if is_tuple else hidden
