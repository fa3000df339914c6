"""A plan while it is on a model, in one thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.vlm.cut import CACHES, Cutter, cache_of, copied, is_static
from polytok.reducers.vlm.hosts.release import Rewrite, release_of
from polytok.reducers.vlm.reduction import untouched
from polytok.reducers.vlm.report import Report, with_layers
from polytok.reducers.vlm.threads import enter, leave, run_on, unwrap, wrap

if TYPE_CHECKING:
    from polytok.reducers.vlm.plan import Plan


class Run:
    """A plan on a model, in one thread."""

    def __init__(self, plan: Plan, model: Any) -> None:
        self.plan, self.model = plan, model
        self._report: Report | None = None
        self.cutter: Cutter | None = None
        self._is_generating = False
        self._release = release_of(model)
        self._rewrite: Rewrite | None = None
        with ExitStack() as undo:
            if plan.inside is not None:
                self.cutter = Cutter(plan.inside, model, lambda: run_on(model) is self)
                self.cutter.install()
                undo.callback(self.cutter.remove)
            hook = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
            undo.callback(hook.remove)
            wrap(model)
            undo.callback(unwrap, model)
            enter(self)
            self._undo = undo.pop_all()

    @property
    def is_applied(self) -> bool:
        """Whether the plan is on the model in this thread."""
        return run_on(self.model) is self

    @property
    def report(self) -> Report | None:
        """Of the last prompt; None before the first, or when ``prepare`` made it."""
        if self._report is None or self.cutter is None or not self.cutter.lengths:
            return self._report
        # Layers of (B copies,) -> rows of layers, one for each prompt.
        rows = torch.stack([seen for seen, _ in self.cutter.lengths], 1)
        copies = len(rows) // len(self._report.prompt_after)
        return with_layers(self._report, self.model, rows[::copies].tolist())

    @property
    def exit_layers(self) -> tuple[int | None, ...]:
        """Per row of the last prompt, the layer after which its image left; None: none did."""
        if self.cutter is None or not self.cutter.lengths:
            return ()
        images = torch.stack([image for _, image in self.cutter.lengths], 1) > 0
        seen = images.sum(1).tolist()  # layers that saw the image: the first so many
        return tuple(None if n in (0, images.shape[1]) else n - 1 for n in seen)

    def remove(self) -> None:
        """Leave the model as it was.

        Raises:
            ConfigError: the plan is not applied, or was applied in another thread.
        """
        if not leave(self):
            raise ConfigError(
                f"{self.plan.name} is not applied to this {type(self.model).__name__} in this "
                "thread; apply(model) returns what can be removed, once"
            )
        self._undo.close()

    def generate(self, original: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What ``model.generate(**options)`` does under the plan."""
        self._check_generation(options)
        with torch.no_grad():  # as in generate itself
            prepared = self._reduced(options)
        if self.plan.decode is not None:
            processors = [*(prepared.get("logits_processor") or [])]
            processors.append(self.plan.decode.processor(self.model, _inputs(self.model, options)))
            prepared["logits_processor"] = processors
        prepared, rewrite = self._release.split(self.model, prepared)
        whole, short = options["input_ids"], prepared["input_ids"]
        _shift_lengths(prepared, self.model.generation_config, whole.shape[1] - short.shape[1])
        setting = _setting(self.model, options)
        _check_copies(
            prepared, max(setting("num_beams") or 1, setting("num_return_sequences") or 1)
        )
        self._is_generating, self._rewrite = True, rewrite
        try:
            found = original(**prepared)
        finally:
            self._is_generating, self._rewrite = False, None
        return _with_prompt(found, whole, short.shape[1])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise ConfigError(copied(self.model))

    def _check_generation(self, options: Mapping[str, Any]) -> None:
        if options.get("input_ids") is None:
            raise SignalError("a plan needs input_ids, as the processor returns them")
        if _holds_tokens(cache_of(options)):
            raise ConfigError(
                "a prompt that goes on with a cache cannot be shortened; pass the whole "
                "conversation without a cache"
            )
        setting = _setting(self.model, options)
        inside = self.plan.inside
        if setting("use_cache") is False and inside is not None and not is_static(inside):
            raise ConfigError(
                f"without a cache {self.plan.name} would choose anew at every step; leave "
                "use_cache on, or use a plan before the language model or dyvte with layer="
            )
        if options.get("assistant_model") is not None or setting("prompt_lookup_num_tokens"):
            raise ConfigError("assisted decoding does not know shortened prompts; leave it out")
        if setting("prefill_chunk_size"):
            raise ConfigError(f"{self.plan.name} needs the whole prompt; no prefill_chunk_size")
        if self.plan.inside is not None:
            kind = setting("cache_implementation")
            if kind not in (None, "dynamic", "dynamic_full"):
                raise ConfigError(
                    f"a {kind} cache cannot hold layers of different lengths; "
                    "leave cache_implementation out"
                )
        if self.plan.decode is not None and (setting("num_beams") or 1) > 1:
            raise ConfigError("contrast cannot follow beams as they change places; use num_beams=1")
        visual = self.plan.visual
        if visual is not None and setting("use_cache") is False and visual.has_gaps(self.model):
            raise ConfigError("positions='keep' needs a cache; leave use_cache on")

    def _reduced(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs after the stage ``visual``, unless it was done by ``prepare`` before."""
        is_done = inputs.get("mm_encoder_outputs") is not None
        if self.plan.visual is not None and not is_done:
            prepared, self._report = self.plan.visual.prepare(self.model, inputs)
            return prepared
        ids = inputs["input_ids"]
        if not bool((ids == self.model.config.image_token_id).any()):
            raise SignalError("the prompt has no image; for text alone remove the plan")
        self._report = None if is_done else untouched(self.model, inputs)[1]
        return dict(inputs)

    def _before_forward(self, model: Any, args: tuple[Any, ...], options: Any) -> Any:
        if run_on(model) is not self:
            return None
        inputs = dict(options)
        if args:  # looking names up takes longer than a hook should
            inputs |= signature(model.forward).bind_partial(*args).arguments
        cache = cache_of(inputs)
        rewrite = self._rewrite
        if cache is not None and cache.get_seq_length() > 0:
            inputs = inputs if rewrite is None else rewrite(inputs)
            self._check_step(inputs)
            return None if rewrite is None else ((), inputs)
        if not self._is_generating:
            if inputs.get("input_ids") is None:
                raise SignalError("a plan needs input_ids, as the processor returns them")
            inputs, rewrite = self._release.split(model, self._reduced(inputs))
        if self.cutter is not None:
            ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
            image = None if ids is None else ids == model.config.image_token_id
            self.cutter.announce(image, None if mask is None else mask.bool())
        return (), inputs if rewrite is None else rewrite(inputs)

    def _check_step(self, inputs: Mapping[str, Any]) -> None:
        visual = self.plan.visual
        is_kept = visual is not None and visual.positions_on(self.model) == "keep"
        if is_kept and inputs.get("position_ids") is None:
            raise SignalError(
                "the prompt kept its positions, so a step needs position_ids that go on from them; "
                "use generate, or prepare(model, inputs), which returns them"
            )


def _inputs(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the model itself takes, but how it runs."""
    taken = signature(model.forward).parameters.keys() - {*CACHES, "use_cache", "logits_to_keep"}
    return {k: v for k, v in options.items() if k in taken}


def _holds_tokens(cache: Any) -> bool:
    """Whether a prompt would go on from a cache; an empty one is no more than a wish for a kind."""
    return cache is not None and (
        not hasattr(cache, "get_seq_length") or int(cache.get_seq_length()) > 0
    )


def _setting(model: Any, options: Mapping[str, Any]) -> Callable[[str], Any]:
    """Look a generation setting up where ``generate`` does."""
    config = options.get("generation_config") or model.generation_config

    def look(name: str) -> Any:
        found = options.get(name)
        return getattr(config, name, None) if found is None else found

    return look


def _shift_lengths(options: dict[str, Any], usual: Any, dropped: int) -> None:
    """Lengths that count the prompt mean the whole one, wherever they were set."""
    given = copy.deepcopy(options.get("generation_config"))
    if given is not None:
        options["generation_config"] = given
    for name in ("max_length", "min_length"):
        places = (options.get(name), _length(given, name), _length(usual, name))
        found = next((n for n in places if n is not None), None)
        if found is None:
            continue
        # A configuration and a number beside it are warned of: only where the caller gave both.
        if given is None or options.get(name) is not None:
            options[name] = found - dropped
        else:
            setattr(given, name, found - dropped)


def _length(config: Any, name: str) -> int | None:
    """A length that was set; the default, a number in some releases, counts new tokens."""
    found: int | None = getattr(config, name, None)
    return None if config is None or found == getattr(type(config)(), name) else found


def _check_copies(prepared: Mapping[str, Any], copies: int) -> None:
    output = (prepared.get("mm_encoder_outputs") or {}).get("image")
    features = getattr(output, "pooler_output", None)
    is_line = isinstance(features, Tensor) and len(features) == 1
    if is_line and copies > 1 and len(prepared["input_ids"]) > 1:
        raise ConfigError(
            "beams cannot copy prompts with different numbers of visual tokens in this family; "
            "generate one prompt at a time"
        )


def _with_prompt(found: Any, whole: Tensor, short: int) -> Any:
    """Sequences that begin with the prompt as it was given."""
    sequences = found if isinstance(found, Tensor) else found.sequences
    prompt = whole.repeat_interleave(len(sequences) // len(whole), 0).to(sequences.device)
    full = torch.cat([prompt, sequences[:, short:]], 1)
    if isinstance(found, Tensor):
        return full
    found.sequences = full
    return found
