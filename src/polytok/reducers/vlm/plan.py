"""A plan: what to do to a model in up to three places, and putting it on a model and off again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from polytok.core.errors import ConfigError
from polytok.reducers.versions import warn_untested
from polytok.reducers.vlm.contrast import Contrast
from polytok.reducers.vlm.cut import CutRule, Several
from polytok.reducers.vlm.hosts import host_of
from polytok.reducers.vlm.hosts.base import core_of
from polytok.reducers.vlm.hosts.release import release_of
from polytok.reducers.vlm.reduction import Reduction
from polytok.reducers.vlm.report import Report
from polytok.reducers.vlm.run import Run
from polytok.reducers.vlm.tap import check_kernel
from polytok.reducers.vlm.threads import run_on

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
        release_of(model)
        warn_untested("transformers")
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
            ConfigError: the plan has no stage there, or the model takes no such inputs.
        """
        if self.visual is None:
            raise ConfigError(
                f"{self.name} leaves the inputs as they are; run the model within applied(model)"
            )
        host_of(model)
        release_of(model).check_prepared()
        warn_untested("transformers")
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
