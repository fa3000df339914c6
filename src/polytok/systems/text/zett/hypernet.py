"""The hypernetwork: how a tokenizer spells a token -> the token's embeddings (arXiv 2405.07883)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.systems.text.zett.config import HypernetConfig

INIT_STD = 0.02
BLOCK_EPS, LAYER_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of N tokens.

    Args:
        input: (N, d). output: (N, d), None when the input's serve. bias: (N,) of the logits.
    """

    input: Tensor
    output: Tensor | None = None
    bias: Tensor | None = None

    def map(self, fn: Callable[..., Tensor], *others: Embeddings) -> Embeddings:
        """Apply ``fn`` to the same part of these and others; a part that one lacks is left out."""

        def applied(*parts: Tensor | None) -> Tensor | None:
            return None if any(part is None for part in parts) else fn(*parts)

        every = (self, *others)
        return Embeddings(
            fn(*(e.input for e in every)),
            applied(*(e.output for e in every)),
            applied(*(e.bias for e in every)),
        )

    def with_rows(self, rows: Tensor, source: Embeddings) -> Embeddings:
        """Replace row i by row ``rows[i]`` of ``source``, where that is not -1."""
        is_theirs, rows = rows >= 0, rows.clamp(min=0)

        def mixed(ours: Tensor, theirs: Tensor) -> Tensor:
            chosen = is_theirs[:, None] if ours.ndim == 2 else is_theirs
            return torch.where(chosen, theirs[rows].to(ours), ours)

        return self.map(mixed, source)

    @property
    def joined(self) -> Tensor:
        """Input and output side by side (N, 2d), or the input's alone (N, d)."""
        return self.input if self.output is None else torch.cat([self.input, self.output], dim=-1)

    @property
    def head(self) -> Tensor:
        """What the logits are products with (N, d)."""
        return self.input if self.output is None else self.output


class Rescaler(nn.Module):
    """x * gain + shift per dimension, set from statistics and never trained."""

    gain: Tensor
    shift: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("gain", torch.ones(dim))
        self.register_buffer("shift", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain + self.shift

    @torch.no_grad()
    def fit(self, x: Tensor, mean: Tensor | float, std: Tensor | float) -> None:
        """Give ``x`` (N, dim), as it comes in, this mean and deviation per dimension."""
        x = x.double()
        self.gain.copy_(std / x.std(0).clamp(min=1e-12))
        self.shift.copy_(mean - x.mean(0) * self.gain.double())


class Projector(nn.Module):
    """LN(x + gelu(W2 gelu(W1 x))), with the tanh form of GELU, as the published weights need."""

    def __init__(self, dim: int, inner_dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, inner_dim), nn.Linear(inner_dim, dim)
        self.norm = nn.LayerNorm(dim, eps=BLOCK_EPS)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.gelu(self.up(x), approximate="tanh")
        return self.norm(x + F.gelu(self.down(inner), approximate="tanh"))


class Layer(nn.Module):
    """A post-LN transformer layer with exact GELU (RoBERTa's)."""

    def __init__(self, dim: int, inner_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.out = nn.Linear(dim, dim)
        self.norm_attention = nn.LayerNorm(dim, eps=LAYER_EPS)
        self.up, self.down = nn.Linear(dim, inner_dim), nn.Linear(inner_dim, dim)
        self.norm_mlp = nn.LayerNorm(dim, eps=LAYER_EPS)

    def forward(self, x: Tensor, mask: Tensor, num_queries: int) -> Tensor:
        """Map (N, L, h) to (N, num_queries, h): the first places alone, which see all of ``mask``.

        Args:
            mask: (N, L), True = may be attended to.
        """
        first = x[:, :num_queries]
        q, k, v = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for part in (self.to_q(first), self.to_k(x), self.to_v(x))
        )
        # Written out: for rows of a few places the fused kernel takes three times as long.
        logits = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5
        shares = logits.masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
        seen = (shares.to(v.dtype) @ v).transpose(1, 2).flatten(-2)
        x = self.norm_attention(first + self.out(seen))
        return self.norm_mlp(x + self.down(F.gelu(self.up(x))))


class Hypernet(nn.Module):
    """Rows of source ids -> embeddings, each row by itself.

    Raises:
        ConfigError: ``embed_dim`` or ``vocab_size`` is not set.
    """

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        if not config.embed_dim or not config.vocab_size:
            raise ConfigError("a hypernetwork needs embed_dim and vocab_size of its language model")
        self.config = config
        dim, inner = config.dim, config.inner_dim
        self.in_scaler = Rescaler(config.source_dim)
        self.fallback = (
            nn.Embedding(config.num_extra, config.source_dim) if config.num_extra else None
        )
        self.input = nn.Sequential(nn.Linear(config.source_dim, dim), Projector(dim, inner))
        self.positions = nn.Embedding(config.num_positions, dim)
        self.kind = nn.Parameter(torch.zeros(dim))
        self.languages = nn.Embedding(config.num_languages, dim) if config.num_languages else None
        self.norm = nn.LayerNorm(dim, eps=LAYER_EPS)
        self.layers = nn.ModuleList(
            Layer(dim, inner, config.num_heads) for _ in range(config.num_layers)
        )
        self.output = _Head(config)
        self.output_out = None if config.is_tied else _Head(config)
        self.bias = nn.Linear(dim, 1) if config.has_bias else None
        self.apply(_start)

    def forward(
        self, surface: Tensor, source: Tensor, language: Tensor | int | None = None
    ) -> Embeddings:
        """Predict embeddings of N tokens from their spelling.

        Args:
            surface: (N, L) int64, L at most ``num_positions``, filled up with ``pad_id``.
            source: (V_old, source_dim) embeddings of the source tokens.
            language: which language, where the network tells them apart.

        Raises:
            ConfigError: shapes do not fit, or a language is missing or unknown.
        """
        self._check(surface, source, language)
        hidden = self._encode(surface, source, language)
        return Embeddings(
            input=self.output(hidden),
            output=None if self.output_out is None else self.output_out(hidden),
            bias=None if self.bias is None else self.bias(hidden)[..., 0],
        )

    def by_length(
        self, surface: Tensor, source: Tensor, language: Tensor | int | None = None
    ) -> Embeddings:
        """The same, without work on padding: rows are taken in groups of equal length."""
        lengths = (surface != self.config.pad_id).sum(1).clamp(min=1)
        order, sizes = lengths.argsort(stable=True), torch.bincount(lengths).tolist()
        groups = order.split([n for n in sizes if n])
        widths = [n for n, count in enumerate(sizes) if count]
        parts = [
            self(surface[rows, :width], source, language)
            for rows, width in zip(groups, widths, strict=True)
        ]
        back = order.argsort()
        return parts[0].map(lambda *found: torch.cat(found)[back], *parts[1:])

    @torch.no_grad()
    def calibrate(self, ids: Tensor, source: Tensor, language: int | None = None) -> None:
        """Set the scalers: sources to mean 0 and deviation 0.02, predictions to those of the truth.

        Args:
            ids: (n,) source ids, the anchors, n at least 2.
        """
        self.in_scaler.fit(source, 0.0, INIT_STD)
        hidden = self._encode(ids[:, None], source, language)
        wanted = source[ids].double().chunk(1 if self.output_out is None else 2, dim=-1)
        heads = [head for head in (self.output, self.output_out) if head is not None]
        for head, truth in zip(heads, wanted, strict=True):
            head.scaler.fit(head.project(hidden), truth.mean(0), truth.std(0))

    def _encode(self, surface: Tensor, source: Tensor, language: Tensor | int | None) -> Tensor:
        """Hidden state (N, h) of each row's first place."""
        config = self.config
        # Each source id is read once, however many rows it stands in.
        ids, places = surface.unique(return_inverse=True)
        x = self.input(self._look_up(ids, source))[places]
        x = x + self.positions.weight[: surface.shape[1]] + self.kind
        mask = surface != config.pad_id
        if self.languages is not None:
            row = self.languages(torch.as_tensor(language, device=x.device)).to(x.dtype)
            x = torch.cat([x, row.expand(len(x), 1, -1)], dim=1)
            mask = F.pad(mask, (0, 1), value=True)
        # A row of padding alone would attend to nothing; the first place is never masked.
        mask[:, 0] = True
        x = self.norm(x)
        for layer in self.layers[:-1]:
            x = layer(x, mask, x.shape[1])
        return self.layers[-1](x, mask, 1)[:, 0]

    def _look_up(self, ids: Tensor, source: Tensor) -> Tensor:
        size = self.config.vocab_size
        found = self.in_scaler(source[ids.clamp(max=size - 1)])
        if self.fallback is None:
            return found
        extra = self.fallback((ids - size).clamp(0, self.config.num_extra - 1))
        return torch.where((ids >= size)[:, None], extra, found)

    def _check(self, surface: Tensor, source: Tensor, language: Tensor | int | None) -> None:
        config = self.config
        if surface.ndim != 2 or not 1 <= surface.shape[1] <= config.num_positions:
            raise ConfigError(
                f"surface forms must be (N, 1..{config.num_positions}), got {tuple(surface.shape)}"
            )
        if source.shape != (config.vocab_size, config.source_dim):
            raise ConfigError(
                f"source embeddings must be ({config.vocab_size}, {config.source_dim}), got "
                f"{tuple(source.shape)}; is this the model that the hypernetwork was trained for?"
            )
        if (self.languages is None) != (language is None):
            raise ConfigError(
                f"the hypernetwork knows {config.num_languages} languages; language={language}"
            )
        if self.languages is not None and not 0 <= int(language or 0) < config.num_languages:
            raise ConfigError(f"language={language} is not within 0..{config.num_languages - 1}")


class _Head(nn.Module):
    """Hidden state -> one embedding, scaled."""

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        self.block = Projector(config.dim, config.inner_dim)
        self.proj = nn.Linear(config.dim, config.embed_dim)
        self.scaler = Rescaler(config.embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaler(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        """The embedding before it is scaled."""
        return self.proj(self.block(x))


def _start(module: nn.Module) -> None:
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
