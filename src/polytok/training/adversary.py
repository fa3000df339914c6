"""A critic that learns beside a model to tell what it makes from what is real."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, WeightsError
from polytok.losses import LeCam, adaptive_weight, hinge_critic_loss, hinge_generator_loss
from polytok.training.checkpoint import pack_moments, part, unpack_moments

if TYPE_CHECKING:
    from accelerate import Accelerator

ADVERSARIAL = "adversarial"
STATE, MOMENTS = "critic/", "critic-optimizer/"


class Adversary:
    """A critic, its optimiser, and the loss named ``adversarial`` that it gives the model.

    It judges and learns in the stages that weigh its loss: in every step the model is told how
    real the critic finds what it made, then the critic learns from the same batch. Its weights are
    part of checkpoints, not of what a run ships.

    Args:
        critic: signals (B, ...) -> logits of any shape, high for real ones. It has no statistics of
            batches, so that several processes train as one.
        key: of the real ones in a batch, and of the made ones in ``StepOutput.output``.
        regularisation: weight of LeCam's term in the critic's loss.
        last_weight: of the model's last layer. Given, the loss is scaled so that its gradient
            there is as long as that of ``reference``, see :func:`polytok.losses.adaptive_weight`.
        reference: name of the loss that is compared with.
    """

    def __init__(
        self,
        critic: nn.Module,
        *,
        key: str = "image",
        regularisation: float = 0.0,
        last_weight: Callable[[], Tensor] | None = None,
        reference: str = "mse",
    ) -> None:
        self.critic, self.key, self.regularisation = critic, key, regularisation
        self.last_weight, self.reference = last_weight, reference
        self.lecam = LeCam()
        self.optimizer: torch.optim.Optimizer | None = None

    def start(self, device: torch.device, betas: tuple[float, float], eps: float) -> None:
        """Move to a device and take the settings of the run's optimiser."""
        self.critic.to(device).train()
        self.lecam.to(device)
        self.optimizer = torch.optim.AdamW(
            self.critic.parameters(), betas=betas, eps=eps, weight_decay=0.0
        )

    def judge(self, made: Mapping[str, Tensor], losses: Mapping[str, Tensor]) -> Tensor:
        """The loss () of what a model made; the critic gets no gradient.

        Raises:
            ConfigError: the model made nothing of ``key``, or has no ``reference`` loss.
        """
        if self.key not in made:
            raise ConfigError(f"a critic judges {self.key!r}, and the step made {sorted(made)}")
        self.critic.requires_grad_(False)
        loss = hinge_generator_loss(self.critic(made[self.key]))
        self.critic.requires_grad_(True)
        if self.last_weight is None or not torch.is_grad_enabled():
            return loss
        if self.reference not in losses:
            raise ConfigError(f"no loss {self.reference!r} to weigh a critic by: {sorted(losses)}")
        last = self.last_weight()
        (wanted,) = torch.autograd.grad(losses[self.reference], last, retain_graph=True)
        (found,) = torch.autograd.grad(loss, last, retain_graph=True)
        return loss * adaptive_weight(wanted, found)

    def learn(
        self,
        real: Tensor,
        made: Tensor,
        *,
        rate: float,
        clip: float,
        accelerator: Accelerator,
        autocast: AbstractContextManager[Any],
    ) -> dict[str, Tensor]:
        """One step of the critic; returns its loss and mean logits of both sides."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        with autocast:
            of_real, of_made = self.critic(real), self.critic(made.detach())
        loss = hinge_critic_loss(of_real, of_made)
        if self.regularisation:
            loss = loss + self.regularisation * self.lecam(of_real, of_made)
        loss.backward()
        self._share(accelerator)
        nn.utils.clip_grad_norm_(self.critic.parameters(), clip)
        self.optimizer.step()
        means = torch.stack([of_real.detach().float().mean(), of_made.detach().float().mean()])
        if accelerator.num_processes > 1:
            means = accelerator.reduce(means, "mean")
        self.lecam.update(means[0], means[1])
        return {"critic": loss.detach(), "critic_real": means[0], "critic_made": means[1]}

    def pack(self) -> dict[str, Tensor]:
        """The tensors that a run continues from."""
        assert self.optimizer is not None
        tensors = {f"{STATE}{k}": v for k, v in self._parts.state_dict().items()}
        return tensors | pack_moments(MOMENTS, self.critic, self.optimizer)

    def unpack(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the tensors of :meth:`pack` back.

        Raises:
            WeightsError: they are of another critic, or there are none.
        """
        assert self.optimizer is not None
        try:
            self._parts.load_state_dict(part(tensors, STATE))
        except RuntimeError as error:
            raise WeightsError(f"the checkpoint belongs to another critic: {error}") from error
        unpack_moments(MOMENTS, tensors, self.critic, self.optimizer)

    @property
    def _parts(self) -> nn.Module:
        """What has a state of its own."""
        return nn.ModuleDict({"net": self.critic, "lecam": self.lecam})

    def _share(self, accelerator: Accelerator) -> None:
        """Take the mean gradient of all processes."""
        if accelerator.num_processes > 1:
            for parameter in self.critic.parameters():
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, "mean")
