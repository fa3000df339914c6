"""Losses by what a frozen network sees in images (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polytok.core.errors import ConfigError
from polytok.layers import Frozen
from polytok.networks.pretrained import map_distance


class PerceptualLoss(nn.Module):
    """Mean distance of decoded images from their sources by the maps of a teacher.

    Args:
        teacher: a network with ``maps``, see :class:`polytok.networks.pretrained.FeatureMaps`. It
            is frozen, and left out of what is saved.

    Raises:
        ConfigError: it has no maps.
    """

    def __init__(self, teacher: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(teacher, "maps", None)):
            raise ConfigError(f"{type(teacher).__name__} gives no maps of an image")
        self.teacher = Frozen(teacher)

    def forward(self, decoded: Tensor, image: Tensor) -> Tensor:
        """The distance (), see :func:`polytok.networks.pretrained.map_distance`."""
        net: Any = self.teacher.module
        with torch.no_grad():
            wanted = net.maps(image)
        return map_distance(net.maps(decoded), wanted).mean()


class LogitLoss(nn.Module):
    """Mean squared difference of a frozen classifier's scores (card titok 3.5).

    Args:
        teacher: image (B, 3, S, S) in [0, 1] -> scores (B, n). It is frozen, and left out of what
            is saved.
        size: pixels S a side that images are resized to, bilinear with antialiasing.
    """

    def __init__(self, teacher: nn.Module, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"size={size} is not positive")
        self.teacher, self.size = Frozen(teacher), size

    def forward(self, decoded: Tensor, image: Tensor) -> Tensor:
        """The difference ()."""
        with torch.no_grad():
            wanted = self._scores(image)
        return F.mse_loss(self._scores(decoded), wanted)

    def _scores(self, image: Tensor) -> Tensor:
        size = (self.size, self.size)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        scores: Tensor = self.teacher(image)
        return scores.float()
