"""The VAT tokenizer: points -> in-context encoder -> VVQ -> triplane field (arXiv 2412.02202)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from polytok.bottlenecks import GaussianBottleneck, MultiScaleVQ
from polytok.core.contracts import (
    Batch,
    Bottleneck,
    BottleneckOutput,
    Codes,
    Level,
    Stage,
    StepContext,
    StepOutput,
    Tokenizer,
    TokenizerSpec,
)
from polytok.core.errors import SignalError
from polytok.core.seeding import derive
from polytok.layers import unit_gain
from polytok.losses import overlap_loss, signed_distance_loss, soft_occupancy_loss
from polytok.networks.decoders import PlaneField, TriplaneDecoder
from polytok.networks.encoders import PointEncoder
from polytok.systems.shape.vat.config import VATConfig


class VariationalQuantizer(Bottleneck):
    """VVQ: a Gaussian sample, quantized over scales (card vat 3.3).

    ``is_quantized`` = False gives the sample itself (the first phase of training).
    """

    def __init__(self, gaussian: GaussianBottleneck, quantizer: MultiScaleVQ) -> None:
        super().__init__()
        self.gaussian, self.quantizer = gaussian, quantizer
        self.is_quantized = True

    @property
    def vocab_sizes(self) -> tuple[int, ...]:
        return self.quantizer.vocab_sizes

    def forward(
        self,
        z: Tensor,
        *,
        rng: torch.Generator | None = None,
        start_level: int = 0,
        noise: Tensor | None = None,
    ) -> BottleneckOutput:
        sample = self.gaussian(z, rng=rng, noise=noise)
        if not self.is_quantized:
            return sample
        out = self.quantizer(sample.latents, start_level=start_level)
        out.losses = {**sample.losses, **out.losses}
        out.stats = {**sample.stats, **out.stats, "sample": sample.latents}
        return out

    def embed(self, indices: Iterable[Tensor], num_levels: int | None = None) -> Tensor:
        return self.quantizer.embed(tuple(indices), num_levels)

    def update(self, out: BottleneckOutput) -> None:
        self.quantizer.update(out)


class VAT(Tokenizer):
    """Shape tokenizer of arXiv 2412.02202. Batches: points, normals -> codes -> field.

    Training batches also hold queries (B, Q, 3), their signed distances sdf (B, Q), inside
    negative, and seed (B,) int64, from which every random draw of a sample is made, so that a
    sample's loss does not depend on its neighbours in the batch. ``is_sampled`` = False trains on
    the mean latents.
    """

    def __init__(self, config: VATConfig) -> None:
        super().__init__()
        self.config = config
        self.is_sampled = config.is_variational
        self.spec = TokenizerSpec(
            modality="shape",
            output="field",
            levels=tuple(Level(vocab=config.codebook_size, count=s) for s in config.slots),
            prefix="levels",
        )
        self.encoder = PointEncoder(
            dim=config.dim,
            num_heads=config.num_heads,
            num_layers=config.encoder_layers,
            num_latents=config.num_latents,
            num_features=config.num_features,
            feature_mode=config.feature_mode,
            is_compressed=config.is_compressed,
            is_anchored=config.is_anchored,
        )
        self.bottleneck: VariationalQuantizer = VariationalQuantizer(
            GaussianBottleneck(config.dim, config.code_dim),
            MultiScaleVQ(
                codebook_size=config.codebook_size,
                codebook_dim=config.code_dim,
                slots=config.slots,
                resampler=config.resampler,
                refine_ratio=config.refine_ratio,
                beta=config.beta,
            ),
        )
        self.from_code = unit_gain(nn.Linear(config.code_dim, config.dim))
        self.decoder = TriplaneDecoder(
            dim=config.dim,
            num_heads=config.num_heads,
            num_layers=config.decoder_layers,
            num_latents=config.num_latents,
            plane_size=config.plane_size,
            channels=config.channels,
            num_latent_layers=config.latent_layers,
            mlp_dim=config.mlp_dim,
            mlp_layers=config.mlp_layers,
            extent=config.extent,
            refine_last=config.refine_last,
            is_anchored=config.is_anchored,
        )

    def start_stage(self, stage: Stage, batches: Iterable[Batch]) -> None:
        """Start the codebook by k-means when quantization begins and no code was used yet."""
        quantizer = self.bottleneck.quantizer
        if not self.bottleneck.is_quantized or bool(quantizer.usage.any()):
            return
        with torch.no_grad():
            latents = [
                self.bottleneck.gaussian(self._encode(b), noise=self._noise(b)).latents
                for b in batches
            ]
        quantizer.start(torch.cat(latents), rng=torch.Generator().manual_seed(0))

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        """Quantize the mean latent of points (B, P, 3) with normals, or a sample given ``rng``.

        Raises:
            SignalError: points or normals are missing, or not (B, P, 3) with P >= 1.
        """
        z = self.bottleneck.gaussian(self._encode(batch), rng=rng).latents
        out = self.bottleneck.quantizer(z)
        meta: dict[str, Tensor] = {k: batch[k] for k in ("centre", "scale") if k in batch}
        return Codes(indices=out.indices, meta=meta)

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        """Decode all levels of ``codes``, or the prefix it holds, to {"field": PlaneField}.

        ``iso`` (B,) among their meta is the logit at the surface.
        """
        field = self.field(self.bottleneck.embed(codes.indices))
        field.iso = codes.meta.get("iso")
        return {"field": field}

    def field(self, latents: Tensor) -> PlaneField:
        """Turn latents (B, M, d) into a field of logits."""
        return self.decoder(self.from_code(latents))

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: reconstruction of the queries, KL and quantization losses."""
        for key in ("queries", "sdf", *(("seed",) if self.training else ())):
            if key not in batch:
                raise SignalError(f"a training batch of shapes needs {key}")
        out = self.bottleneck(self._encode(batch), noise=self._noise(batch))
        logits = self.field(self._drop_levels(out, batch))(batch["queries"])
        losses = {"rec": self.reconstruction_loss(logits, batch["sdf"]), **out.losses}
        if not self.config.is_variational:
            del losses["kl"]
        return StepOutput(
            losses=losses,
            metrics=self._metrics(out, logits.detach(), batch),
            output={"logits": logits},
            bottleneck=out,
        )

    def reconstruction_loss(self, logits: Tensor, sdf: Tensor) -> Tensor:
        """The configured loss of logits (B, Q) against signed distances (B, Q)."""
        band, weight = self.config.band, self.config.overlap_weight
        if self.config.loss == "sdf":
            return signed_distance_loss(logits, sdf, band=band)
        loss = soft_occupancy_loss(logits, sdf, band=band)
        return loss + weight * overlap_loss(logits, sdf, band=band) if weight else loss

    def _encode(self, batch: Batch) -> Tensor:
        points, normals = batch.get("points"), batch.get("normals")
        if points is None or normals is None:
            raise SignalError("a shape batch needs points and normals")
        if points.ndim != 3 or points.shape[-1] != 3 or points.shape != normals.shape:
            raise SignalError(
                f"points and normals must be (B, P, 3), got {tuple(points.shape)} and "
                f"{tuple(normals.shape)}"
            )
        return self.encoder(points, normals)

    def _noise(self, batch: Batch) -> Tensor | None:
        """Standard normal noise (B, M, d) from each sample's own seed; zero for the mean."""
        if not (self.is_sampled and self.config.is_variational and self.training):
            return None
        shape = (self.config.num_latents, self.config.code_dim)
        draws = []
        for seed in batch["seed"].tolist():
            rng = torch.Generator().manual_seed(derive(seed, "noise"))
            is_mean = bool(torch.rand((), generator=rng) < self.config.mean_fraction)
            draws.append(torch.randn(shape, generator=rng) * (0.0 if is_mean else 1.0))
        return torch.stack(draws).to(batch["points"].device)

    def _drop_levels(self, out: BottleneckOutput, batch: Batch) -> Tensor:
        """Replace some samples' latents by those of a random prefix, straight-through."""
        share = self.config.prefix_dropout
        if not share or not self.training or out.indices is None:
            return out.latents
        prefixes, sample = out.stats["prefixes"], out.stats["sample"]
        latents = list(out.latents)
        for item, seed in enumerate(batch["seed"].tolist()):
            rng = torch.Generator().manual_seed(derive(seed, "prefix"))
            if bool(torch.rand((), generator=rng) < share):
                level = int(torch.randint(len(prefixes) - 1, (), generator=rng))
                z = sample[item]
                latents[item] = z + (prefixes[level][item] - z).detach()
        return torch.stack(latents)

    def _metrics(self, out: BottleneckOutput, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        truth, guess = batch["sdf"] < 0, logits > 0
        both = (truth & guess).sum().float()
        metrics = {
            "iou": both / (truth | guess).sum().clamp(min=1),
            "accuracy": (truth == guess).float().mean(),
            "sigma": out.stats["sigma"],
        }
        for level, rest in enumerate(out.stats.get("rest_energy", ())):
            metrics[f"rest_energy/{level + 1}"] = rest
        if out.indices is not None:
            used = self.bottleneck.quantizer.usage > 0.1 / self.config.codebook_size
            metrics["codes_used"] = used.any(0).float().mean()
        return metrics
