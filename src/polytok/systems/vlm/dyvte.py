"""DyVTE: all visual tokens leave the language model at a layer that small gates choose.

"Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical
Findings" (arXiv 2411.19628; the official code, DoubtedSteam/DyVTE, has no licence: this is
written from the description of the method, and no weights exist). A gate after each layer reads
the mean of the text after the image and the last token, and says whether the text has taken in
what it needs. The base model stays frozen; only gates train. Rows of a batch leave one by one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polytok.core.errors import ConfigError, SignalError, WeightsError
from polytok.reducers.vlm import Plan, Prefill, StaticExit, Tap

REFERENCE_KEYS = "model.visual_gates_router."


class Gate(nn.Module):
    """(B, 2 d) -> logits (B, 2): stay, leave."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(2 * dim, inner, bias=False)
        self.w2 = nn.Linear(inner, 2, bias=False)
        for layer in (self.w1, self.w2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.w2(F.gelu(self.w1(features)))


class DyVTEGates(nn.Module):
    """A gate per layer of a language model of width ``dim``; 16.8M weights each at 4096 x 2048."""

    def __init__(self, num_layers: int, dim: int, inner: int = 2048) -> None:
        super().__init__()
        self.dim = dim
        self.gates = nn.ModuleList([Gate(dim, inner) for _ in range(num_layers)])

    @classmethod
    def like(cls, model: Any, inner: int = 2048) -> DyVTEGates:
        """Fresh gates that fit a model."""
        config = model.config.get_text_config()
        return cls(config.num_hidden_layers, config.hidden_size, inner).to(
            device=model.device, dtype=model.dtype
        )

    def load_reference(self, state: Mapping[str, Tensor]) -> None:
        """Take the gates out of a state dict with the official code's keys.

        Raises:
            WeightsError: it has other gates.
        """
        own = {
            f"gates.{key.removeprefix(REFERENCE_KEYS)}": value
            for key, value in state.items()
            if key.startswith(REFERENCE_KEYS)
        }
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            raise WeightsError(f"these gates do not fit: {error}") from error

    def forward(self, layer: int, features: Tensor) -> Tensor:
        """Features (B, 2 d) -> logits (B, 2) of one layer's gate."""
        return self.gates[layer](features)


def gate_features(hidden: Tensor, image: Tensor, valid: Tensor) -> Tensor:
    """(B, n, d) -> (B, 2 d): mean of the text after the last image but the last token, and that.

    NaN in the first half for a row without such text, which no gate lets leave.
    """
    index = torch.arange(image.shape[1], device=image.device)
    last = (valid * index).amax(1, keepdim=True)
    after = valid & (index > (image * index).amax(1, keepdim=True)) & (index < last)
    mean = (hidden * after[..., None]).sum(1) / after.sum(1, keepdim=True)
    end = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))[:, 0]
    return torch.cat([mean, end], -1)


@dataclass(frozen=True)
class GatedExit:
    """Rows leave after the first layer, from ``min_layer`` on, whose gate says so."""

    gates: DyVTEGates
    min_layer: int = 0

    def taps(self) -> tuple[Tap, ...]:
        return ()

    def check(self, model: Any) -> None:
        config = model.config.get_text_config()
        depth, width = len(self.gates.gates), self.gates.dim
        if (depth, width) != (config.num_hidden_layers, config.hidden_size):
            raise ConfigError(
                f"gates for {depth} layers of width {width}, but the model has "
                f"{config.num_hidden_layers} of {config.hidden_size}; use DyVTEGates.like(model)"
            )

    @torch.no_grad()
    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        if layer < self.min_layer:
            return None
        features = gate_features(hidden, prompt.take(prompt.image), prompt.seen)
        stay, leave = self.gates(layer, features).unbind(-1)
        return prompt.left & ~(prompt.image & (leave > stay)[:, None])


@dataclass(frozen=True, kw_only=True)
class DyVTEConfig:
    """Where visual tokens leave: by trained gates, or all after one layer. Give one of both.

    Args:
        gates: a :class:`DyVTEGates`, see :func:`train_gates`.
        layer: from 0; the ablation without gates.
        min_layer: gates before it are not asked.
    """

    gates: Any = None
    layer: int | None = None
    min_layer: int = 0

    def plan(self) -> Plan:
        """The plan; the model is checked when it is applied.

        Raises:
            ConfigError: not exactly one of gates and layer, or no gates in ``gates``.
        """
        if (self.gates is None) == (self.layer is None):
            raise ConfigError("give either gates=DyVTEGates or layer=int, where tokens leave")
        if self.layer is not None:
            return Plan(name="dyvte", inside=StaticExit(self.layer))
        if not isinstance(self.gates, DyVTEGates):
            raise ConfigError(f"gates={type(self.gates).__name__} is no DyVTEGates")
        return Plan(name="dyvte", inside=GatedExit(self.gates, self.min_layer))


CONFIG = DyVTEConfig
PRESETS: dict[str, DyVTEConfig] = {}


@dataclass(eq=False)
class _TwinExit:
    """The second half of a batch leaves after ``layer``; what the gate sees is kept."""

    layer: int
    prompt: Tensor
    features: Tensor | None = None

    def taps(self) -> tuple[Tap, ...]:
        return ()

    def check(self, model: Any) -> None:
        StaticExit(self.layer).check(model)

    def after(self, layer: int, hidden: Tensor, prompt: Prefill) -> Tensor | None:
        if layer != self.layer:
            return None
        half = len(hidden) // 2
        self.features = gate_features(hidden[:half], prompt.image[:half], self.prompt)
        twin = torch.arange(len(hidden), device=hidden.device) >= half
        return prompt.valid & ~(prompt.image & twin[:, None])


@torch.no_grad()
def exit_labels(
    model: Any,
    batch: Mapping[str, Any],
    layer: int,
    *,
    agree: float = 0.99,
    loss_ratio: float = 1.03,
) -> tuple[Tensor, Tensor]:
    """Whether leaving after ``layer`` does no harm, and what its gate sees.

    Args:
        batch: inputs with pixels and ``labels`` (B, n), -100 outside the answer.
        agree: least share of answer tokens whose argmax stays.
        loss_ratio: most that the loss of the answer may grow by.

    Returns:
        1 where both hold; and the features of the prompt without its answer.
    """
    labels = batch["labels"]
    mask = batch.get("attention_mask")
    valid = torch.ones_like(labels) if mask is None else mask
    rule = _TwinExit(layer, valid.bool() & (labels < 0))
    double = {k: torch.cat([v, v]) for k, v in batch.items() if k != "labels"}
    with Plan(name="dyvte twins", inside=rule).applied(model):
        logits = model(**double).logits.float()
    answers = labels[:, 1:]
    full, without = (part[:, :-1] for part in logits.chunk(2))
    is_answer = answers >= 0
    count = is_answer.sum(1)
    same = ((full.argmax(-1) == without.argmax(-1)) & is_answer).sum(1) / count
    losses = [
        F.cross_entropy(x.transpose(1, 2), answers, reduction="none").sum(1) / count
        for x in (full, without)
    ]
    assert rule.features is not None
    return ((same > agree) & (losses[1] < loss_ratio * losses[0])).long(), rule.features


def train_gates(
    model: Any,
    gates: DyVTEGates,
    batches: Iterable[Mapping[str, Any]],
    *,
    rng: torch.Generator,
    lr: float = 6e-5,
    agree: float = 0.99,
    loss_ratio: float = 1.03,
) -> list[float]:
    """Train gates on a frozen model, one layer drawn per batch; returns the losses.

    Each batch runs twice in one pass: whole, and without visual tokens after the drawn layer.

    Args:
        batches: see :func:`exit_labels`; one step each.
        lr: of AdamW, constant. The published run warms up over 3% and falls along a cosine.

    Raises:
        SignalError: a prompt has no text that a gate could read.
    """
    optimizer = torch.optim.AdamW(gates.parameters(), lr=lr, weight_decay=0.0)
    was_training = model.training
    model.eval()
    losses = []
    # The last layer has nothing after it to leave out.
    depth = len(gates.gates) - 1
    for batch in batches:
        layer = int(torch.randint(depth, (), generator=rng))
        target, features = exit_labels(model, batch, layer, agree=agree, loss_ratio=loss_ratio)
        if not bool(features.isfinite().all()):
            raise SignalError("a prompt has no text between its image and its last token")
        loss = F.cross_entropy(gates(layer, features.detach()).float(), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.train(was_training)
    return losses


def oracle_exit(
    model: Any, batch: Mapping[str, Any], *, agree: float = 0.99, loss_ratio: float = 1.03
) -> Tensor:
    """The earliest layer after which leaving does no harm, per row; the last if there is none."""
    depth: int = model.config.get_text_config().num_hidden_layers
    found = torch.full((len(batch["labels"]),), depth - 1)
    for layer in reversed(range(depth - 1)):
        label, _ = exit_labels(model, batch, layer, agree=agree, loss_ratio=loss_ratio)
        found = torch.where(label.cpu() == 1, layer, found)
    return found
