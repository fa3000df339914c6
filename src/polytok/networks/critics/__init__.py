"""Critics: networks that tell images from reconstructions, patch by patch."""

from polytok.networks.critics.patch import (
    BlurPatchCritic,
    BlurPatchCriticConfig,
    PatchCritic,
    PatchCriticConfig,
)

__all__ = ["BlurPatchCritic", "BlurPatchCriticConfig", "PatchCritic", "PatchCriticConfig"]
