"""A plan: what to do to a model in up to three places, and putting it on a model and off again."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib import metadata
from inspect import signature
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from polytok.core.errors import ConfigError, SignalError
from polytok.reducers.vlm.contrast import Contrast
from polytok.reducers.vlm.cut import CutRule, Cutter, Several
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.hosts.base import cache_name, core_of
from polytok.reducers.vlm.reduction import Reduction, untouched
from polytok.reducers.vlm.report import Report, with_layers
from polytok.reducers.vlm.runs import enter, leave, run_on
from polytok.reducers.vlm.tap import check_kernel

TESTED = ("5.23", "5.24")
STAGES = ("visual", "inside", "decode")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages of a method; ``first | second`` joins plans, also two inside the language model.

    Args:
        name: for messages and ``print(model)``.
        visual: between the tower and the language model.
        inside: between layers of the language model.
        decode: on the logits of every new token.

    Raises:
        ConfigError: no stage.
    """

    name: str
    visual: Reduction | None = None
    inside: CutRule | None = None
    decode: Contrast | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ConfigError(f"plan {self.name!r} has no stage; give one of {', '.join(STAGES)}")

    @property
    def stages(self) -> dict[str, Any]:
        """Those that are there, by name."""
        return {name: getattr(self, name) for name in STAGES if getattr(self, name) is not None}

    def __or__(self, other: Plan) -> Plan:
        stages = {**self.stages, **other.stages}
        if self.inside is not None and other.inside is not None:
            stages["inside"] = Several((self.inside, other.inside))
        if both := (self.stages.keys() & other.stages.keys()) - {"inside"}:
            raise ConfigError(
                f"{self.name} and {other.name} both have the stage {min(both)!r}; "
                "join plans that work in different places"
            )
        return Plan(name=f"{self.name} | {other.name}", **stages)

    def check(self, model: Any) -> None:
        """Refuse a model that a stage does not suit, before anything is changed.

        Raises:
            ConfigError: it does not, and what would.
        """
        host_of(model)
        _check_release(model)
        if self.visual is not None:
            self.visual.check(model)
        if self.inside is not None:
            _check_decoder(model)
            self.inside.check(model)
            if self.inside.taps():
                check_kernel(core_of(model).language_model)
        if self.decode is not None:
            self.decode.negative.check(model)

    def prepare(self, model: Any, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Report]:
        """Inputs with fewer visual tokens, and what was done; see :meth:`Reduction.prepare`.

        Raises:
            ConfigError: the plan has no stage there.
        """
        if self.visual is None:
            raise ConfigError(
                f"{self.name} leaves the inputs as they are; run the model within applied(model)"
            )
        host_of(model)
        _check_release(model)
        return self.visual.prepare(model, inputs)

    @contextmanager
    def applied(self, model: Any) -> Iterator[Run]:
        """In this thread, ``model`` and ``model.generate`` follow the plan while this lasts.

        ``generate`` takes and returns whole prompts. Afterwards the model is what it was, also
        after an exception.

        Raises:
            ConfigError: the model does not suit the plan, or has one already.
        """
        run = self.apply(model)
        try:
            yield run
        finally:
            if run.is_applied:
                run.remove()

    def apply(self, model: Any) -> Run:
        """The same until :meth:`Run.remove`."""
        if (other := run_on(model)) is not None:
            raise ConfigError(
                f"{other.plan.name} is already applied to this {type(model).__name__}; remove it "
                "first, or apply both as one plan: first | second"
            )
        self.check(model)
        return Run(self, model)


class Run:
    """A plan on a model, in one thread."""

    def __init__(self, plan: Plan, model: Any) -> None:
        self.plan, self.model = plan, model
        self._report: Report | None = None
        self.is_applied = True
        self._is_generating = False
        self.cutter = None
        if plan.inside is not None:
            self.cutter = Cutter(plan.inside, model, lambda: run_on(model) is self)
            self.cutter.install()
        self._handle = model.register_forward_pre_hook(self._before_forward, with_kwargs=True)
        _wrap(model)
        enter(self)

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
        """Per row of the last prompt, the layer after which its image had left; None: it stayed."""
        if self.cutter is None or not self.cutter.lengths:
            return ()
        images = torch.stack([image for _, image in self.cutter.lengths], 1) > 0
        seen = images.sum(1).tolist()  # layers that saw the image: the first so many
        return tuple(None if n == images.shape[1] else n - 1 for n in seen)

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
        self.is_applied = False
        self._handle.remove()
        if self.cutter is not None:
            self.cutter.remove()
        _unwrap(self.model)

    def generate(self, original: Callable[..., Any], options: dict[str, Any]) -> Any:
        """What ``model.generate(**options)`` does under the plan."""
        self._check_generation(options)
        prepared = self._reduced(options)
        if self.plan.decode is not None:
            processors = [*(prepared.get("logits_processor") or [])]
            processors.append(self.plan.decode.processor(self.model, _inputs(self.model, options)))
            prepared["logits_processor"] = processors
        whole, short = options["input_ids"], prepared["input_ids"]
        _shift_lengths(prepared, whole.shape[1] - short.shape[1])
        _check_copies(prepared)
        self._is_generating = True
        try:
            found = original(**prepared)
        finally:
            self._is_generating = False
        return _with_prompt(found, whole, short.shape[1])

    def _check_generation(self, options: Mapping[str, Any]) -> None:
        if options.get("input_ids") is None:
            raise SignalError("a plan needs input_ids, as the processor returns them")
        if options.get(cache_name(self.model)) is not None:
            raise ConfigError(
                "a prompt that goes on with a cache cannot be shortened; pass the whole "
                "conversation without a cache"
            )
        setting = _setting(self.model, options)
        if options.get("assistant_model") is not None or setting("prompt_lookup_num_tokens"):
            raise ConfigError("assisted decoding does not know shortened prompts; leave it out")
        if self.plan.inside is not None:
            kind = setting("cache_implementation")
            if kind not in (None, "dynamic", "dynamic_full"):
                raise ConfigError(
                    f"a {kind} cache cannot hold layers of different lengths; "
                    "leave cache_implementation out"
                )
            if setting("prefill_chunk_size"):
                raise ConfigError(f"{self.plan.name} needs the whole prompt; no prefill_chunk_size")
        if self.plan.decode is not None and (setting("num_beams") or 1) > 1:
            raise ConfigError("contrast cannot follow beams as they change places; use num_beams=1")
        visual = self.plan.visual
        if visual is not None and setting("use_cache") is False:
            host = host_of(self.model)
            if (visual.positions or host.positions) == "keep" != host.positions:
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
        bound = signature(model.forward).bind_partial(*args, **options)
        inputs = {**bound.arguments, **bound.arguments.get("kwargs", {})}
        inputs.pop("kwargs", None)
        cache = inputs.get(cache_name(model))
        if cache is not None and cache.get_seq_length() > 0:
            return None
        if not self._is_generating:
            if inputs.get("input_ids") is None:
                raise SignalError("a plan needs input_ids, as the processor returns them")
            inputs = self._reduced(inputs)
        if self.cutter is not None:
            ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
            image = None if ids is None else ids == model.config.image_token_id
            self.cutter.announce(image, None if mask is None else mask.bool())
        return (), inputs


def _inputs(model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the model itself takes."""
    return {k: v for k, v in options.items() if k in signature(model.forward).parameters}


def _setting(model: Any, options: Mapping[str, Any]) -> Callable[[str], Any]:
    """Look a generation setting up where ``generate`` does."""
    config = options.get("generation_config") or model.generation_config

    def look(name: str) -> Any:
        found = options.get(name)
        return getattr(config, name, None) if found is None else found

    return look


def _shift_lengths(options: dict[str, Any], dropped: int) -> None:
    """Lengths that count the prompt mean the whole one."""
    for name in ("max_length", "min_length"):
        if options.get(name) is not None:
            options[name] -= dropped
    config = options.get("generation_config")
    if config is not None and config.max_length is not None:
        config = type(config).from_dict(config.to_dict())
        config.max_length -= dropped
        options["generation_config"] = config


def _check_copies(options: Mapping[str, Any]) -> None:
    output = (options.get("mm_encoder_outputs") or {}).get("image")
    features = getattr(output, "pooler_output", None)
    is_line = isinstance(features, Tensor) and len(features) == 1
    copies = max(options.get("num_beams") or 1, options.get("num_return_sequences") or 1)
    if is_line and copies > 1 and len(options["input_ids"]) > 1:
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


def _check_decoder(model: Any) -> None:
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    has_window = "sliding_attention" in kinds or (
        not kinds and getattr(config, "sliding_window", None) is not None
    )
    if has_window or kinds - {"full_attention", "sliding_attention"}:
        raise ConfigError(
            f"layers of {config.model_type} with {', '.join(sorted(kinds)) or 'sliding windows'} "
            "cannot be cut; use a model with full attention, or a plan before the language model"
        )
    kernel = config._attn_implementation or "eager"
    if "flash" in kernel or "flex" in kernel:
        raise ConfigError(
            f"{kernel} takes no mask per layer; set_attn_implementation('sdpa') of the language "
            "model first"
        )


_CHECKED: set[str] = set()


def _check_release(model: Any) -> None:
    if "mm_encoder_outputs" not in signature(model.forward).parameters:
        raise ConfigError(
            f"{type(model).__name__}.forward takes no mm_encoder_outputs; "
            f"use transformers {TESTED[0]} or newer"
        )
    release = ".".join(metadata.version("transformers").split(".")[:2])
    if release not in TESTED and release not in _CHECKED:
        _CHECKED.add(release)
        warnings.warn(
            f"transformers {release} was not tested with reductions; {', '.join(TESTED)} were",
            stacklevel=4,
        )


@dataclass
class _Wrapped:
    """What a model had of its own where ours hides the methods of its class."""

    own: dict[str, Any]
    users: int = 0


_LOCK = threading.Lock()
_WRAPPED: WeakKeyDictionary[Any, _Wrapped] = WeakKeyDictionary()


def _wrap(model: Any) -> None:
    with _LOCK:
        if model not in _WRAPPED:
            ours = {"generate": _generating(model, model.generate), "extra_repr": _naming(model)}
            _WRAPPED[model] = _Wrapped({name: vars(model).get(name) for name in ours})
            for name, method in ours.items():
                setattr(model, name, method)
        _WRAPPED[model].users += 1


def _unwrap(model: Any) -> None:
    with _LOCK:
        wrapped = _WRAPPED[model]
        wrapped.users -= 1
        if wrapped.users:
            return
        del _WRAPPED[model]
        for name, own in wrapped.own.items():
            delattr(model, name)
            if own is not None:
                setattr(model, name, own)


def _naming(model: Any) -> Callable[[], str]:
    def extra_repr() -> str:
        run = run_on(model)
        return "" if run is None else f"plan: {run.plan.name}"

    return extra_repr


def _generating(model: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    names = list(signature(original).parameters)

    @wraps(original)
    def generate(*args: Any, **options: Any) -> Any:
        run = run_on(model)
        if run is None:
            warnings.warn(
                "a plan is applied to this model in another thread; this call runs without one. "
                "Apply it in this thread, or pass what prepare(model, inputs) returns",
                stacklevel=2,
            )
            return original(*args, **options)
        options.update(zip(names, args, strict=False))
        if (ids := options.pop("inputs", None)) is not None:
            options["input_ids"] = ids
        return run.generate(original, options)

    return generate
