"""Eight tiny tokenizers, one per way in which the contract can be met."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.contracts import (
    Batch,
    Bottleneck,
    BottleneckOutput,
    Codes,
    Level,
    StepContext,
    StepOutput,
    Tokenizer,
    TokenizerSpec,
)

DIM, TOKENS = 6, 5


class Books(Bottleneck):
    """Residual quantization with ``num_books`` codebooks; ``update`` counts the use of ids."""

    usage: Tensor

    def __init__(self, num_books: int, vocab: int, dim: int) -> None:
        super().__init__()
        self.codes = nn.Parameter(torch.randn(num_books, vocab, dim))
        self.register_buffer("usage", torch.zeros(num_books, vocab))

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return (self.codes.shape[1],) * self.codes.shape[0]

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        rest, ids = z.detach(), []
        for book in self.codes.detach()[start_level:]:
            ids.append(torch.cdist(rest, book.expand(len(z), -1, -1)).argmin(-1))
            rest = rest - F.embedding(ids[-1], book)
        total = sum(
            (F.embedding(i, b) for i, b in zip(ids, self.codes[start_level:], strict=True)),
            z.new_zeros(()),
        )
        loss = F.mse_loss(total, z.detach()) + 0.25 * F.mse_loss(total.detach(), z)
        return BottleneckOutput(
            latents=z + (total - z).detach() if self.training else total,
            indices=tuple(ids),
            losses={"vq": loss},
            is_exact=not self.training,
        )

    def embed(self, indices: Sequence[Tensor], num_levels: int | None = None) -> Tensor:
        count = len(indices) if num_levels is None else num_levels
        pairs = zip(indices[:count], self.codes[:count], strict=True)
        lookups = (i @ b if i.is_floating_point() else F.embedding(i, b) for i, b in pairs)
        return sum(lookups, self.codes.new_zeros(()))

    @torch.no_grad()
    def update(self, out: BottleneckOutput) -> None:
        for use, ids in zip(self.usage, out.indices or (), strict=True):
            use += torch.bincount(ids.flatten(), minlength=len(use))


class Mean(Bottleneck):
    """Gaussian latents of fixed width: the mean, or a sample when a generator is given."""

    def forward(
        self, z: Tensor, *, rng: torch.Generator | None = None, start_level: int = 0
    ) -> BottleneckOutput:
        noise = 0.0 if rng is None else 0.1 * torch.randn(z.shape, generator=rng)
        return BottleneckOutput(latents=z + noise, losses={"kl": 0.5 * z.square().mean()})


class Stub(Tokenizer):
    """Rows (B, N, 6) -> linear -> bottleneck -> linear -> rows."""

    def __init__(self, spec: TokenizerSpec, bottleneck: Bottleneck) -> None:
        super().__init__()
        self.spec, self.bottleneck = spec, bottleneck
        self.encoder, self.decoder = nn.Linear(DIM, DIM), nn.Linear(DIM, DIM)

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        out = self.bottleneck(self.encoder(batch["rows"]), rng=rng)
        return Codes(indices=out.indices) if out.indices else Codes(latents=out.latents)

    def latents(self, codes: Codes) -> Tensor:
        return self.bottleneck.embed(codes.indices) if codes.indices else codes.latents

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        return {"rows": self.decoder(self.latents(codes))}

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        out = self.bottleneck(self.encoder(batch["rows"]), rng=ctx.rng)
        rows = self.decoder(out.latents)
        losses = {"rec": F.mse_loss(rows, batch["rows"]), **out.losses}
        return StepOutput(losses=losses, output={"rows": rows}, bottleneck=out)


class IndicesStub(Stub):
    """One level of one book."""

    def __init__(self) -> None:
        levels = (Level(vocab=16, count=TOKENS),)
        super().__init__(
            TokenizerSpec(modality="vector", output="vector", levels=levels), Books(1, 16, DIM)
        )


class LatentsStub(Stub):
    """Continuous latents."""

    def __init__(self) -> None:
        spec = TokenizerSpec(modality="vector", output="vector", latent_dim=DIM)
        super().__init__(spec, Mean())


class BooksStub(Stub):
    """Three residual books; any prefix of them decodes."""

    def __init__(self) -> None:
        levels = (Level(vocab=8, count=TOKENS),) * 3
        super().__init__(
            TokenizerSpec(modality="vector", output="vector", levels=levels, prefix="levels"),
            Books(3, 8, DIM),
        )


class RaggedStub(Stub):
    """Rows with a mask: any number of tokens per item, any prefix of tokens decodes."""

    def __init__(self) -> None:
        levels = (Level(vocab=16, count=None),)
        super().__init__(
            TokenizerSpec(modality="text", output="text", levels=levels, prefix="tokens"),
            Books(1, 16, DIM),
        )

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        codes = super().encode(batch, rng=rng)
        (ids,) = codes.indices
        ids = ids.masked_fill(~batch["mask"], 0)
        return Codes(indices=(ids,), lengths=batch["mask"].sum(1))

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        rows = super().decode(codes)["rows"]
        mask = torch.arange(rows.shape[1]) < codes.lengths[:, None]
        return {"text": rows * mask[..., None], "mask": mask}


class FieldStub(Stub):
    """A shape's normals and points -> one token -> a ball whose radius depends on it."""

    def __init__(self) -> None:
        levels = (Level(vocab=16, count=1),)
        super().__init__(
            TokenizerSpec(modality="shape", output="field", levels=levels), Books(1, 16, DIM)
        )

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        rows = torch.cat([batch["points"], batch["normals"]], dim=-1).mean(1, keepdim=True)
        codes = super().encode({"rows": rows}, rng=rng)
        return Codes(indices=codes.indices, meta={k: batch[k] for k in ("centre", "scale")})

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        radius = self.decoder(self.latents(codes)).sigmoid().mean(-1)
        return {"field": lambda points: radius - points.norm(dim=-1)}

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        rows = torch.cat([batch["points"], batch["normals"]], dim=-1).mean(1, keepdim=True)
        out = self.bottleneck(self.encoder(rows))
        radius = self.decoder(out.latents).sigmoid().mean(-1)
        logits = radius - batch["queries"].norm(dim=-1)
        losses = {"rec": F.mse_loss(logits, -batch["sdf"]), **out.losses}
        return StepOutput(losses=losses, output={"logits": logits}, bottleneck=out)


class FeaturesStub(Stub):
    """Decodes to features, not to its input."""

    def __init__(self) -> None:
        levels = (Level(vocab=16, count=TOKENS),)
        super().__init__(
            TokenizerSpec(modality="image", output="features", levels=levels), Books(1, 16, DIM)
        )

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        return super().encode({"rows": self._rows(batch)}, rng=rng)

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        return {"features": super().decode(codes)["rows"]}

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        return super().forward({"rows": self._rows(batch)}, ctx)

    @staticmethod
    def _rows(batch: Batch) -> Tensor:
        return batch["image"].flatten(1)[:, : DIM * TOKENS].unflatten(1, (TOKENS, DIM))


class NoDecoderStub(Stub):
    """Makes codes that nothing decodes."""

    def __init__(self) -> None:
        levels = (Level(vocab=16, count=TOKENS),)
        super().__init__(
            TokenizerSpec(modality="vector", output=None, levels=levels), Books(1, 16, DIM)
        )
        del self.decoder

    decode = Tokenizer.decode

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        out = self.bottleneck(self.encoder(batch["rows"]))
        return StepOutput(losses=dict(out.losses), bottleneck=out)


class SampledStub(Stub):
    """Encodes to a random draw when given a generator, to the mean's code without one."""

    def __init__(self) -> None:
        levels = (Level(vocab=64, count=TOKENS),)
        super().__init__(
            TokenizerSpec(modality="vector", output="vector", levels=levels), Books(1, 64, DIM)
        )

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        rows = batch["rows"]
        noise = 0.0 if rng is None else torch.randn(rows.shape, generator=rng)
        return super().encode({"rows": rows + noise})


STUBS = (
    IndicesStub,
    LatentsStub,
    BooksStub,
    RaggedStub,
    FieldStub,
    FeaturesStub,
    NoDecoderStub,
    SampledStub,
)
