"""What the convolutional tokenizers of images share: a grid of ids around two networks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks import VectorQuantizer
from polytok.core.contracts import (
    Batch,
    Codes,
    Level,
    Stage,
    StepContext,
    StepOutput,
    Tokenizer,
    TokenizerSpec,
)
from polytok.metrics import psnr
from polytok.systems.images import check_ids, images_of, scalars, start_codebook, unquantized


class GridTokenizer(Tokenizer):
    """Images of one size to a grid of ids, and back.

    Args:
        config: has ``size``, ``stride`` and ``grid``.
        encoder: image (B, 3, H, W) to latents (B, d, h, w). decoder: back, unclamped.

    Attributes:
        is_quantized: whether steps quantize; else the codebook rests, and has no losses.
        criteria: frozen modules that map (decoded, image) to a scalar; their names are those of
            the losses.
    """

    bottleneck: VectorQuantizer

    def __init__(
        self, config: Any, encoder: nn.Module, quantizer: VectorQuantizer, decoder: nn.Module
    ) -> None:
        super().__init__()
        self.config = config
        self.is_quantized = True
        self.criteria = nn.ModuleDict()
        self.encoder, self.bottleneck, self.decoder = encoder, quantizer, decoder
        rows, columns = config.grid
        self.spec = TokenizerSpec(
            modality="image",
            output="image",
            levels=(Level(vocab=quantizer.vocab_sizes[0], count=rows * columns),),
            stride=(config.stride, config.stride),
            value_range=(0.0, 1.0),
        )

    @property
    def codebook(self) -> Tensor:
        """The codes (V, d) as the decoder gets them."""
        return self.bottleneck.codes

    def start_stage(self, stage: Stage, batches: Iterable[Batch]) -> None:
        """Start the codebook by k-means when quantization begins."""
        if self.is_quantized:
            start_codebook(self.bottleneck, (self._latents(self._images(b)) for b in batches))

    def encode(self, batch: Batch, *, rng: torch.Generator | None = None) -> Codes:
        """Ids (B, h w) of ``image`` (B, 3, H, W) in [0, 1].

        Raises:
            SignalError: the images have another size, or values outside [0, 1].
        """
        out = self.bottleneck(self._latents(self._images(batch)))
        return Codes(indices=out.indices, grid=self.config.grid)

    def decode(
        self, codes: Codes, *, cond: Batch | None = None, rng: torch.Generator | None = None
    ) -> Batch:
        """The image (B, 3, H, W) in [0, 1].

        Raises:
            PolytokError: ids are outside the vocabulary.
        """
        check_ids(codes, self.spec)
        return {"image": self._picture(self.bottleneck.embed(codes.indices)).clamp(0, 1)}

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Image (B, 3, H, W), unclamped, of latents (B, d, h, w): codes, or mixtures of codes."""
        return self.decoder(latents)

    def forward(self, batch: Batch, ctx: StepContext) -> StepOutput:
        """Losses ``mse`` (mean square over values), of ``criteria``, and those of the codebook."""
        image = self._images(batch)
        latents = self._latents(image)
        is_quantized = self.is_quantized
        out = self.bottleneck(latents) if is_quantized else unquantized(self.bottleneck, latents)
        decoded = self._picture(out.latents).float()
        losses = {"mse": F.mse_loss(decoded, image.float()), **out.losses}
        losses |= {name: criterion(decoded, image) for name, criterion in self.criteria.items()}
        return StepOutput(
            losses=losses,
            metrics={"psnr": psnr(decoded.detach(), image).mean(), **scalars(out.stats)},
            output={"image": decoded},
            bottleneck=out if is_quantized else None,
        )

    def _images(self, batch: Batch) -> Tensor:
        return images_of(batch, self.config.size, self.spec.value_range)

    def _latents(self, image: Tensor) -> Tensor:
        """(B, h w, d)."""
        return self.encoder(image).flatten(2).transpose(1, 2)

    def _picture(self, tokens: Tensor) -> Tensor:
        return self.decode_latents(tokens.transpose(1, 2).unflatten(-1, self.config.grid))
