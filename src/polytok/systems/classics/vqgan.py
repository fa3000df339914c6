"""VQGAN: a small convolutional VQ tokenizer of images (arXiv 1711.00937, 2012.09841).

Strided convolutions down, residual blocks without norms, strided convolutions up, as in VQ-VAE-2
(arXiv 1906.00446), so that it trains on a CPU in minutes. It gives the codes that a 1-D tokenizer
can learn from first, and the decoder that makes pixels of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.bottlenecks import VectorQuantizer
from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.networks.critics import PatchCritic, PatchCriticConfig
from polytok.systems.classics._shared import GridTokenizer
from polytok.systems.image.codec import ImageCodec
from polytok.systems.images import ImageTraining, ready
from polytok.training import ADVERSARIAL, Adversary, Recipe


@dataclass(frozen=True, kw_only=True)
class VQGANConfig:
    """Sizes of the network.

    Args:
        size: pixels a side. channels: after each halving of the sides, from fine to coarse.
        num_blocks: residual blocks of either half, on the coarsest grid.
        code_dim, codebook_size: of the codebook. restart_every: steps between restarts of its dead
            codes; 0 = never.
    """

    size: int = 64
    channels: tuple[int, ...] = (32, 64, 128)
    num_blocks: int = 2
    code_dim: int = 16
    codebook_size: int = 512
    restart_every: int = 100

    def __post_init__(self) -> None:
        if not self.channels or min(self.channels) < 1:
            raise ConfigError(f"channels={self.channels} must be positive counts")
        if self.size < 1 or self.size % self.stride:
            raise ConfigError(f"size={self.size} is not a multiple of the stride {self.stride}")

    @property
    def stride(self) -> int:
        """Pixels a side of a token."""
        return 1 << len(self.channels)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.size // self.stride, self.size // self.stride


PRESETS = {
    "vqgan-tiny": VQGANConfig(size=32, channels=(32, 64), code_dim=8, codebook_size=256),
    "vqgan-64": VQGANConfig(),
}

# "warm" does not quantize yet: a fresh encoder would leave all but a few codes unused for good.
# "adversarial" adds a critic whose gradient in the last layer is 0.8 times that of reconstruction.
_QUANTIZED = {"mse": 1.0, "perceptual": 0.1, "vq/commit": 0.25, "vq/codebook": 1.0}
STAGES = (
    Stage(name="warm", weights={"mse": 1.0, "perceptual": 0.1}, options={"is_quantized": False}),
    Stage(
        name="reconstruct",
        weights=_QUANTIZED,
        options={"is_quantized": True},
    ),
    Stage(
        name="adversarial",
        weights={**_QUANTIZED, ADVERSARIAL: 0.8},
        options={"is_quantized": True},
    ),
)


def preset(name: str) -> VQGANConfig:
    """The configuration of a preset.

    Raises:
        UnknownNameError: there is none of this name.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return PRESETS[name]


class ResidualBlock(nn.Module):
    """ReLU, 3x3 and ReLU, 1x1 convolution beside the input (B, C, h, w)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(F.relu(self.wide(F.relu(x))))


def build_encoder(config: VQGANConfig) -> nn.Sequential:
    """Image (B, 3, H, W) -> latents (B, d, h, w)."""
    layers: list[nn.Module] = []
    for before, width in zip((3, *config.channels), config.channels, strict=False):
        layers += [nn.Conv2d(before, width, 4, 2, 1), nn.ReLU()]
    layers += [ResidualBlock(config.channels[-1]) for _ in range(config.num_blocks)]
    return nn.Sequential(*layers, nn.Conv2d(config.channels[-1], config.code_dim, 1))


def build_decoder(config: VQGANConfig) -> nn.Sequential:
    """Latents (B, d, h, w) -> image (B, 3, H, W), unclamped; it starts out as grey."""
    widths = config.channels[::-1]
    layers: list[nn.Module] = [nn.Conv2d(config.code_dim, widths[0], 3, padding=1)]
    layers += [ResidualBlock(widths[0]) for _ in range(config.num_blocks)]
    for before, width in zip(widths, (*widths[1:], 3), strict=True):
        layers += [nn.ReLU(), nn.ConvTranspose2d(before, width, 4, 2, 1)]
    last = layers[-1]
    assert isinstance(last, nn.ConvTranspose2d) and last.bias is not None
    nn.init.constant_(last.bias, 0.5)
    return nn.Sequential(*layers)


class VQGAN(GridTokenizer):
    """Images of one size to a grid of ids, and back."""

    def __init__(self, config: VQGANConfig) -> None:
        encoder = build_encoder(config)
        quantizer = VectorQuantizer(
            config.codebook_size,
            config.code_dim,
            metric="cosine",
            restart_every=config.restart_every,
        )
        super().__init__(config, encoder, quantizer, build_decoder(config))

    @property
    def last_weight(self) -> Tensor:
        """Where the gradients of a critic and of reconstruction are compared."""
        *_, weight, _ = self.decoder.parameters()
        return weight


def prepare_training(recipe: Recipe) -> ImageTraining:
    """Build the model and read the pictures of a recipe, see :func:`polytok.systems.images.ready`.

    Raises:
        ConfigError: a sampling key is unknown, or the pictures have another size.
    """
    config = override(preset(recipe.preset), **recipe.config)
    torch.manual_seed(recipe.train.seed)
    model = VQGAN(config)

    def adversary(width: int) -> Adversary:
        critic = PatchCritic(PatchCriticConfig(width=width) if width else None)
        return Adversary(critic, last_weight=lambda: model.last_weight)

    return ready(model, recipe, size=config.size, stages=STAGES, critic=adversary)


def load_model(folder: Path, info: hub.Info, *, name: str, device: str = "cpu") -> ImageCodec:
    """Build the model of a folder, fill it with its weights and join it with the image signal."""
    model = VQGAN(from_dict(VQGANConfig, info.config))
    hub.load_weights(model, folder)
    codec = hub.fingerprint(folder)
    return ImageCodec(model.to(device), size=model.config.size, name=name, weights=codec)
