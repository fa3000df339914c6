"""TiTok: image -> latent-query encoder -> few tokens -> mask-token decoder (arXiv 2406.07550)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks import GaussianBottleneck, VectorQuantizer
from polytok.core import registry
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
from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.core.seeding import torch_rng
from polytok.layers import Frozen, PrefixDropout, unit_gain
from polytok.metrics import psnr
from polytok.networks.decoders import CodeHead, MaskTokenDecoder, PatchHead
from polytok.networks.encoders import LatentQueryEncoder
from polytok.systems.classics.maskgit_vqgan import MaskGITVQGAN
from polytok.systems.classics.vqgan import VQGAN
from polytok.systems.image.titok.config import TiTokConfig, TowerConfig
from polytok.systems.images import check_ids, images_of, scalars, start_codebook, unquantized

# Of token counts: units of one, and the tokens of all places that count beside those of a place.
COUNT_UNITS, SHARED_TOKENS = 16, 256

# Tokenizers whose codes a decoder can predict; each has ``codebook`` (V, d) and a ``decoder`` of
# latents (B, d, h, w).
PixelTokenizer = MaskGITVQGAN | VQGAN
PIXEL_TOKENIZERS: dict[str, type[MaskGITVQGAN] | type[VQGAN]] = {
    "maskgit-vqgan": MaskGITVQGAN,
    "vqgan": VQGAN,
}


def legacy_layout(tokens: Tensor) -> Tensor:
    """Read (B, K, D) as (B, D, K) and transpose: token n, channel c is flat value c K + n.

    So a token of the result mixes channels of all tokens. A reshape where a transposition was
    meant; the weights that were trained with it need it (card titok 3.2).
    """
    count, num_tokens, dim = tokens.shape
    return tokens.reshape(count, dim, num_tokens).transpose(1, 2)


def build_pixel_tokenizer(name: str) -> PixelTokenizer:
    """Build the tokenizer of a preset with random weights.

    Raises:
        UnknownNameError: there is no such preset. ConfigError: it is none of pixels.
    """
    system = registry.system_of(name)
    if system.name not in PIXEL_TOKENIZERS:
        raise ConfigError(
            f"pixels={name!r} is a preset of {system.name}, not of {' or '.join(PIXEL_TOKENIZERS)}"
        )
    return PIXEL_TOKENIZERS[system.name](system.load().preset(name))


class SoftCodes(nn.Module):
    """Logits over another tokenizer's codes -> the mean code -> its decoder -> pixels.

    Args:
        tokenizer: gives its codes and its decoder, which learn on here.
    """

    def __init__(self, tokenizer: PixelTokenizer) -> None:
        super().__init__()
        self.codes = nn.Parameter(tokenizer.codebook.detach().clone())
        self.decoder = tokenizer.decoder

    def forward(self, logits: Tensor) -> Tensor:
        """Map logits (B, h w, V) of a square grid to images (B, 3, H, W), unclamped."""
        side = math.isqrt(logits.shape[1])
        latents = logits.float().softmax(-1).to(logits.dtype) @ self.codes.to(logits.dtype)
        return self.decoder(latents.transpose(1, 2).unflatten(-1, (side, side)))

    @torch.no_grad()
    def start(self, tokenizer: PixelTokenizer) -> None:
        """Take over the weights of a tokenizer of the same sizes."""
        self.codes.copy_(tokenizer.codebook)
        self.decoder.load_state_dict(tokenizer.decoder.state_dict())


class TiTok(Tokenizer):
    """Images of one size to K tokens, and back.

    Training batches hold image (B, 3, H, W) in [0, 1] and seed (B,) int64.

    Attributes:
        objective: what a step asks of the decoder: ``pixels``, or ``codes``, those of ``teacher``.
        is_quantized: whether steps quantize; else the codebook rests, and has no losses.
        is_encoder_frozen: whether encoder and codebook rest; a step then has no losses of theirs.
        teacher: gives the codes of ``objective`` = ``codes``.
        criteria: frozen modules that map (decoded, image) to a scalar; their names are those of
            the losses.
        token_counts: (K, V) int32, see :meth:`counted`; where the configuration has them.
    """

    token_counts: Tensor

    def __init__(self, config: TiTokConfig) -> None:
        super().__init__()
        self.config = config
        self.objective: Literal["pixels", "codes"] = "pixels"
        self.is_quantized, self.is_encoder_frozen = True, False
        self.teacher: Frozen | None = None
        self.criteria = nn.ModuleDict()
        self.spec = spec_of(config)
        self.encoder = LatentQueryEncoder(
            size=config.size,
            patch=config.patch,
            num_latents=config.num_latents,
            **_sizes(config.encoder),
        )
        self.to_code, self.bottleneck = build_bottleneck(config)
        self.from_code = unit_gain(nn.Linear(config.code_dim, config.decoder.dim))
        self.decoder = MaskTokenDecoder(
            grid=config.grid, num_latents=config.num_latents, **_sizes(config.decoder)
        )
        self.head: nn.Module = PatchHead(config.decoder.dim, config.patch)
        self.pixels: SoftCodes | None = None
        if config.pixels:
            tokenizer = build_pixel_tokenizer(config.pixels)
            sizes = tokenizer.config.size, tokenizer.config.stride
            if sizes != (config.size, config.patch):
                raise ConfigError(
                    f"pixels={config.pixels!r} has size {sizes[0]} and stride {sizes[1]}, not "
                    f"size={config.size} and patch={config.patch}"
                )
            self.head = CodeHead(config.decoder.dim, len(tokenizer.codebook))
            self.pixels = SoftCodes(tokenizer)
        if config.has_token_counts:
            counts = torch.zeros(config.num_latents, config.codebook_size, dtype=torch.int32)
            self.register_buffer("token_counts", counts)
        self.tail_drop: PrefixDropout | None = None
        if config.tail_drop is not None:
            self.tail_drop = PrefixDropout(
                config.num_latents,
                min_keep=config.tail_drop.min_keep,
                distribution=config.tail_drop.distribution,
            )

    def start_stage(self, stage: Stage, batches: Iterable[Batch]) -> None:
        """Start the codebook by k-means when quantization begins, unless it rests."""
        is_learning = self.is_quantized and not self.is_encoder_frozen
        if isinstance(self.bottleneck, VectorQuantizer) and is_learning:
            start_codebook(self.bottleneck, (self.features(self._images(b)) for b in batches))

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        """Codes of ``image`` (B, 3, H, W); Gaussian tokens are means, or samples given ``rng``.

        Raises:
            SignalError: the images have another size than the model's, or values outside [0, 1].
        """
        out = self.bottleneck(self.features(self._images(batch)), rng=rng)
        return Codes(latents=out.latents) if out.indices is None else Codes(indices=out.indices)

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        """Decode codes, or a prefix of them, to {"image": (B, 3, H, W) in [0, 1]}.

        ``codes.lengths`` says how many tokens of each item count.

        Raises:
            PolytokError: there are more tokens than the model has, or fewer and it has learnt
                whole codes only, or ids are outside its vocabulary.
        """
        check_ids(codes, self.spec)
        latents = codes.latents
        if latents is None:
            latents = self.bottleneck.embed(codes.indices)
        self._check_lengths(latents.shape[1], codes.lengths)
        return {"image": self.picture(latents, lengths=codes.lengths).clamp(0, 1)}

    def picture(self, latents: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W), unclamped, of embedded tokens (B, N, d)."""
        out = self.head(self._grid(latents, lengths))
        return out if self.pixels is None else self.pixels(out)

    @torch.no_grad()
    def counted(self, batches: Iterable[Batch]) -> TiTok:
        """The same model, which also knows how often each of its tokens has each code.

        ``token_counts`` (K, V) int32, in sixteenths. A code that a place never had in the batches
        counts by its share of all places: a little, but not nothing.

        Raises:
            ConfigError: its tokens are continuous.
        """
        model = TiTok(replace(self.config, has_token_counts=True))
        counts = torch.zeros(model.token_counts.shape, dtype=torch.float64)
        for batch in batches:
            (ids,) = self.encode(batch).indices
            ids = ids.T.cpu()
            counts.scatter_add_(1, ids, torch.ones(ids.shape, dtype=counts.dtype))
        shared = counts.sum(0)
        counts += shared * (SHARED_TOKENS / shared.sum().clamp(min=1))
        state = {**self.state_dict(), "token_counts": (COUNT_UNITS * counts).round().int()}
        model.load_state_dict(state)
        return model.train(self.training)

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """One step: ``ce`` on codes, or ``mse`` and ``criteria`` on pixels, and the bottleneck's.

        Raises:
            SignalError: the batch does not fit. ConfigError: there is no teacher to ask for codes.
        """
        image = self._images(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_encoder_frozen):
            out = self._bottleneck(image, batch)
        latents, lengths = out.latents, None
        if self.tail_drop is not None:
            latents, lengths = self.tail_drop(latents, self._rng(batch, ctx))
        if self.objective == "codes":
            losses, metrics, output = self._ask_for_codes(image, latents, lengths)
        else:
            losses, metrics, output = self._ask_for_pixels(image, latents, lengths)
        return StepOutput(
            losses=losses if self.is_encoder_frozen else {**losses, **out.losses},
            metrics={**metrics, **scalars(out.stats)},
            output=output,
            bottleneck=out if self.is_quantized and not self.is_encoder_frozen else None,
        )

    def _images(self, batch: Batch) -> Tensor:
        return images_of(batch, self.config.size, self.spec.value_range)

    def _ask_for_pixels(
        self, image: Tensor, latents: Tensor, lengths: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch]:
        decoded = self.picture(latents, lengths=lengths).float()
        losses = {"mse": F.mse_loss(decoded, image.float())}
        losses |= {name: criterion(decoded, image) for name, criterion in self.criteria.items()}
        metrics = {"psnr": psnr(decoded.detach(), image).mean()}
        if self.training and self.tail_drop is not None and lengths is None:
            # One mean over all lengths would hide what happens at the short ones.
            metrics[f"psnr_to_{1 << (latents.shape[1] - 1).bit_length()}"] = metrics["psnr"]
        return losses, metrics, {"image": decoded}

    def _ask_for_codes(
        self, image: Tensor, latents: Tensor, lengths: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch]:
        if self.teacher is None:
            raise ConfigError("codes are asked of a teacher, and there is none")
        logits = self.head(self._grid(latents, lengths)).float()
        teacher: Any = self.teacher.module
        with torch.no_grad():
            (wanted,) = teacher.encode({"image": image}).indices
        losses = {"ce": F.cross_entropy(logits.flatten(0, 1), wanted.flatten())}
        accuracy = (logits.argmax(-1) == wanted).float().mean()
        return losses, {"code_accuracy": accuracy}, {"logits": logits}

    def features(self, image: Tensor) -> Tensor:
        """What the bottleneck gets of images (B, 3, H, W): (B, K, d), or (B, K, D) if Gaussian."""
        tokens = self.encoder(image)
        return self.to_code(legacy_layout(tokens) if self.config.layout == "legacy" else tokens)

    def _grid(self, latents: Tensor, lengths: Tensor | None) -> Tensor:
        return self.decoder(self.from_code(latents), lengths=lengths)

    def _bottleneck(self, image: Tensor, batch: Batch) -> BottleneckOutput:
        """The bottleneck's output; in training, Gaussian tokens are samples."""
        features = self.features(image)
        if isinstance(self.bottleneck, VectorQuantizer) and not self.is_quantized:
            return unquantized(self.bottleneck, features)
        if isinstance(self.bottleneck, GaussianBottleneck):
            return self.bottleneck(features, noise=self._noise(batch, image.device))
        return self.bottleneck(features)

    def _noise(self, batch: Batch, device: torch.device) -> Tensor | None:
        """Standard normal noise (B, K, d) from each sample's own seed; None in eval."""
        if not self.training:
            return None
        shape = self.config.num_latents, self.config.code_dim
        rngs = [torch_rng(seed, "noise") for seed in seeds_of(batch)]
        return torch.stack([torch.randn(shape, generator=rng) for rng in rngs]).to(device)

    def _rng(
        self, batch: Batch, ctx: StepContext
    ) -> torch.Generator | Sequence[torch.Generator] | None:
        """What draws lengths: the step's seed for the batch, or each sample's own."""
        if self.config.tail_drop is not None and self.config.tail_drop.per_sample:
            return [torch_rng(seed, "length") for seed in seeds_of(batch)]
        # A generator of the CPU, so that all devices and processes cut alike.
        return ctx.rng and torch_rng(ctx.rng.initial_seed(), "length")

    def _check_lengths(self, present: int, lengths: Tensor | None) -> None:
        whole = self.config.num_latents
        if not 1 <= present <= whole:
            raise PolytokError(f"{present} tokens are not within 1..{whole}")
        if (present < whole or lengths is not None) and self.spec.prefix is None:
            raise PolytokError(f"{present} tokens: this model decodes whole codes of {whole} only")
        if lengths is not None and not 1 <= int(lengths.min()) <= int(lengths.max()) <= present:
            raise PolytokError(f"lengths {lengths.tolist()} are not within 1..{present}")


def spec_of(config: TiTokConfig) -> TokenizerSpec:
    """What a model of a configuration takes and gives."""
    is_vq = config.bottleneck == "vq"
    level = Level(vocab=config.codebook_size, count=config.num_latents)
    return TokenizerSpec(
        modality="image",
        output="image",
        levels=(level,) if is_vq else (),
        latent_dim=None if is_vq else config.code_dim,
        prefix=None if config.tail_drop is None else "tokens",
        stride=(config.patch, config.patch),
        value_range=(0.0, 1.0),
    )


def build_bottleneck(config: TiTokConfig) -> tuple[nn.Module, Bottleneck]:
    """What leads from encoder outputs (B, K, D) to the bottleneck, and the bottleneck."""
    if config.bottleneck == "gaussian":
        return nn.Identity(), GaussianBottleneck(config.encoder.dim, config.code_dim)
    quantizer = VectorQuantizer(
        config.codebook_size,
        config.code_dim,
        metric=config.metric,
        restart_every=config.restart_every,
    )
    return unit_gain(nn.Linear(config.encoder.dim, config.code_dim)), quantizer


def seeds_of(batch: Batch) -> list[int]:
    """The seed of every sample.

    Raises:
        SignalError: the batch has none.
    """
    if "seed" not in batch:
        raise SignalError("a training batch of images needs seed (B,)")
    return batch["seed"].tolist()


def _sizes(tower: TowerConfig) -> dict[str, int]:
    return {"dim": tower.dim, "num_heads": tower.num_heads, "num_layers": tower.num_layers}
