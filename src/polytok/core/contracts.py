"""The contracts between parts: what a tokenizer, a bottleneck and their codes look like.

The only file of ``core`` that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polytok.core.errors import PolytokError

Batch = dict[str, Any]
"""A plain dict of tensors with reserved keys, see docs/concepts.md."""

Modality = Literal["shape", "image", "video", "audio", "vector", "text"]
Output = Literal["shape", "image", "video", "audio", "vector", "text", "field", "features"]


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level x book of a discrete code: ``vocab`` ids, ``count`` of them (None: any number)."""

    vocab: int
    count: int | None = None


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a tokenizer takes and gives, without building it.

    Args:
        levels: vocabulary and count per level; empty for continuous codes.
        latent_dim: channels of continuous codes, None for discrete ones.
        prefix: ``levels`` or ``tokens`` when prefixes of a code decode, else None.
        value_range: the range of the input modality's values, applied inside encode and decode.
    """

    modality: Modality
    output: Output | None
    levels: tuple[Level, ...] = ()
    latent_dim: int | None = None
    prefix: Literal["levels", "tokens"] | None = None
    stride: tuple[int, ...] = ()
    frame_rule: str | None = None
    value_range: tuple[float, float] = (-1.0, 1.0)
    sample_rate: int | None = None
    is_causal: bool = False

    @property
    def is_discrete(self) -> bool:
        return bool(self.levels)


@dataclass(frozen=True, kw_only=True)
class Codes:
    """A batch of codes: integer ``indices`` per level, or continuous ``latents``.

    Args:
        indices: one int64 tensor (B, n_k) per level x book.
        latents: (B, N, d), unit variance.
        grid: the layout of one level's tokens, such as (h, w).
        lengths: (B,) valid tokens per item; None when all are valid.
        meta: tensors (B, ...) that restore the signal, such as ``centre`` and ``scale``.
    """

    indices: tuple[Tensor, ...] = ()
    latents: Tensor | None = None
    grid: tuple[int, ...] | None = None
    lengths: Tensor | None = None
    meta: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if bool(self.indices) == (self.latents is not None):
            raise PolytokError("Codes hold either indices or latents, exactly one of the two")
        for level in self.indices:
            if level.dtype != torch.int64 or level.ndim != 2:
                raise PolytokError(
                    f"indices must be int64 (B, n), got {level.dtype} {tuple(level.shape)}"
                )

    def __len__(self) -> int:
        return int((self.indices[0] if self.latents is None else self.latents).shape[0])

    def __getitem__(self, item: int | slice) -> Codes:
        """Select items; an int keeps a batch of one."""
        if isinstance(item, int):
            if not -len(self) <= item < len(self):
                raise IndexError(f"item {item} of {len(self)} codes")
            item = slice(item % len(self), item % len(self) + 1)
        return self._map(lambda t: t[item])

    def to(self, *args: Any, **kwargs: Any) -> Codes:
        """Move every tensor; dtypes of indices never change."""
        return self._map(
            lambda t: (
                t.to(*args, **kwargs) if t.is_floating_point() else t.to(_device(args, kwargs, t))
            )
        )

    def prefix(self, *, levels: int | None = None, tokens: int | None = None) -> Codes:
        """Keep the first ``levels`` levels, or the first ``tokens`` tokens of every item.

        Raises:
            PolytokError: not exactly one of the two is given, or it is outside 1..what is there.
        """
        if (levels is None) == (tokens is None):
            raise PolytokError("prefix takes exactly one of levels= and tokens=")
        if levels is not None:
            if not 1 <= levels <= len(self.indices):
                raise PolytokError(f"levels={levels} is not within 1..{len(self.indices)}")
            return replace(self, indices=self.indices[:levels])
        count = self.indices[0].shape[1] if self.latents is None else self.latents.shape[1]
        if tokens is None or not 1 <= tokens <= count:
            raise PolytokError(f"tokens={tokens} is not within 1..{count}")
        return replace(
            self,
            indices=tuple(i[:, :tokens] for i in self.indices),
            latents=None if self.latents is None else self.latents[:, :tokens],
            lengths=None if self.lengths is None else self.lengths.clamp(max=tokens),
            grid=None,
        )

    @staticmethod
    def cat(parts: Sequence[Codes]) -> Codes:
        """Join batches of equal levels into one."""
        first = parts[0]
        lengths = [p.lengths for p in parts if p.lengths is not None]
        latents = [p.latents for p in parts if p.latents is not None]
        return replace(
            first,
            indices=tuple(
                torch.cat([p.indices[k] for p in parts]) for k in range(len(first.indices))
            ),
            latents=torch.cat(latents) if latents else None,
            lengths=torch.cat(lengths) if lengths else None,
            meta={k: torch.cat([p.meta[k] for p in parts]) for k in first.meta},
        )

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Codes:
        return replace(
            self,
            indices=tuple(fn(i) for i in self.indices),
            latents=None if self.latents is None else fn(self.latents),
            lengths=None if self.lengths is None else fn(self.lengths),
            meta={k: fn(v) for k, v in self.meta.items()},
        )


def _device(args: tuple[Any, ...], kwargs: Mapping[str, Any], like: Tensor) -> torch.device:
    device = kwargs.get("device")
    for arg in args:
        if isinstance(arg, Tensor):
            device = arg.device
        elif isinstance(arg, (int, str, torch.device)) and not isinstance(arg, bool):
            device = arg
    return like.device if device is None else torch.device(device)


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a training step knows about the run.

    Args:
        step: optimiser step, from 0.
        progress: fraction of the stage that is done, in [0, 1).
        rng: generator of every random draw of this step; None draws nothing random.
    """

    step: int = 0
    progress: float = 0.0
    rng: torch.Generator | None = None


@dataclass(kw_only=True)
class StepOutput:
    """What a training step returns: unweighted ``losses`` by name, ``metrics``, the output.

    ``bottleneck`` is handed to :meth:`Bottleneck.update` once per optimiser step.
    """

    losses: dict[str, Tensor]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    output: Batch = field(default_factory=dict)
    bottleneck: BottleneckOutput | None = None


@dataclass(kw_only=True)
class BottleneckOutput:
    """Result of a bottleneck.

    Args:
        latents: (B, N, d) what the decoder gets.
        indices: int64 tensors (B, n_k) per level, None when continuous.
        losses: unweighted terms by name (``vq/commit``, ``kl``).
        stats: detached scalars or vectors to log and to ``update`` with.
        is_exact: whether ``embed(indices)`` equals ``latents`` bit for bit.
    """

    latents: Tensor
    indices: tuple[Tensor, ...] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    stats: dict[str, Any] = field(default_factory=dict)
    is_exact: bool = True


class Bottleneck(nn.Module):
    """Makes latents few or discrete. ``forward`` is pure; only ``update`` changes state."""

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        """Vocabulary per level; () for continuous bottlenecks."""
        return ()

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        raise TypeError(f"{type(self).__name__} must define forward")

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        """Turn ids (B, n_k), or probabilities (B, n_k, V), of a prefix of levels into latents."""
        raise PolytokError(f"{type(self).__name__} is continuous and has no indices to embed")

    def start(self, latents: Tensor, *, rng: torch.Generator) -> None:
        """Place the codes from latents (n, N, D) before training; without codes, do nothing."""

    def update(self, out: BottleneckOutput) -> None:
        """Change running state (usage, EMA, restarts) after an optimiser step."""


class Tokenizer(nn.Module):
    """batch -> Codes -> batch: an encoder network, a bottleneck and a decoder network."""

    spec: TokenizerSpec
    bottleneck: Bottleneck

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        """Encode a batch; ``rng=None`` gives the deterministic code, a generator samples."""
        raise TypeError(f"{type(self).__name__} must define encode")

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        """Decode codes, or any prefix the spec allows, to ``spec.output``."""
        raise PolytokError(f"{type(self).__name__} has no decoder (spec.output is None)")

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One training step: named losses, metrics, output."""
        raise TypeError(f"{type(self).__name__} must define forward")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A phase of training.

    Args:
        name: shown in logs.
        train: globs over parameter names that receive gradient.
        lr: learning-rate factor per glob, first match wins.
        weights: factor per loss name; a loss without a row is an error.
        options: attributes of the system set while the stage runs, such as ``quantize=True``.
    """

    name: str
    weights: Mapping[str, float]
    train: tuple[str, ...] = ("*",)
    lr: Mapping[str, float] = field(default_factory=lambda: {"*": 1.0})
    options: Mapping[str, Any] = field(default_factory=dict)
