"""Muon: matrices move by momentum whose singular values are made equal (arXiv 2502.16982)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
# A quintic that brings singular values from (0, 1] near 1 in five rounds (Jordan et al., 2024).
QUINTIC, ROUNDS = (3.4445, -4.7750, 2.0315), 5


def orthogonalised(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The matrix (..., A, B) with singular values near 1, in [0.7, 1.2].

    Args:
        dtype: computed in. torch's own ``torch.optim.Muon`` always uses bf16, which a CPU may only
            imitate.
    """
    a, b, c = QUINTIC
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if is_tall else matrix).float()
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW in which groups with ``"orthogonal": True`` move by orthogonalised momentum instead.

    Their steps have the size of AdamW's: a root mean square of 0.2 lr x ``scale`` per entry, so
    both kinds share one rate. Their momentum is kept as ``exp_avg``.

    Args:
        scale: of the steps of orthogonal groups.
        dtype: in which momentum is made orthogonal.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        scale: float,
        dtype: torch.dtype = torch.float32,
        **adamw: Any,
    ) -> None:
        super().__init__(groups, **adamw)
        self.scale, self.dtype = scale, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Do one step of every group."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._move(group)
        return loss

    def _move(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            average = state.setdefault("exp_avg", torch.zeros_like(parameter))
            average.lerp_(parameter.grad, 1 - MOMENTUM)
            ahead = parameter.grad.lerp(average, MOMENTUM)
            # Queries, keys and values that share a matrix are three maps, each with its own rank.
            rows, columns = parameter.shape
            parts = ahead.unflatten(0, (-1, columns)) if rows == 3 * columns else ahead[None]
            size = 0.2 * max(parts.shape[-2:]) ** 0.5 * self.scale * group["lr"]
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            steps = orthogonalised(parts, self.dtype)
            parameter.sub_(size * steps.reshape(parameter.shape))
