"""Losses of a critic and of what it judges. Logits of any shape, high for what seems real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_WEIGHT = 1e4
EPS = 1e-4


def hinge_critic_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half of mean(relu(1 - real)) + mean(relu(1 + fake)); 1 for logits of 0. Lim & Ye 2017."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def hinge_generator_loss(fake: Tensor) -> Tensor:
    """-mean(fake): what the critic judges wants to seem real."""
    return -fake.float().mean()


class LeCam(nn.Module):
    """Holds a critic's mean logits near running means of the other side (Tseng et al. 2021, eq. 5).

    relu(mean(real) - anchor_fake)^2 + relu(anchor_real - mean(fake))^2, on means of a batch as
    TiTok has it. Anchors start at 0.

    Args:
        decay: of the anchors, in [0, 1).
    """

    anchors: Tensor

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("anchors", torch.zeros(2))

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The term for logits of one step; :meth:`update` moves the anchors afterwards."""
        real_anchor, fake_anchor = self.anchors
        near_real = F.relu(real.float().mean() - fake_anchor).square()
        return near_real + F.relu(real_anchor - fake.float().mean()).square()

    @torch.no_grad()
    def update(self, real: Tensor, fake: Tensor) -> None:
        """Move the anchors towards mean logits, which are those over all processes."""
        means = torch.stack([real.float().mean(), fake.float().mean()])
        self.anchors.lerp_(means, 1 - self.decay)


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor) -> Tensor:
    """Weight that makes an adversarial gradient as long as that of reconstruction.

    |reconstruction| / (|adversarial| + 1e-4), at most 1e4, without gradient of its own. Source:
    Esser et al. 2021 (arXiv 2012.09841), eq. 7.

    Args:
        reconstruction, adversarial: gradients of the two losses by the same tensor, usually the
            weight of the last layer.
    """
    ratio = reconstruction.float().norm() / (adversarial.float().norm() + EPS)
    return ratio.clamp(max=MOST_WEIGHT).detach()
