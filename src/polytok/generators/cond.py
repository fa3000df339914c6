"""What a net is conditioned on, and the parts that make it from a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from polytok.core.contracts import Batch
from polytok.core.errors import ConfigError, SignalError, UnknownNameError
from polytok.core.seeding import derive
from polytok.networks.pretrained import Tower, TowerOutput

NULL = "null"
Features = dict[str, TowerOutput]


@dataclass(frozen=True, kw_only=True)
class Cond:
    """Conditions of R rows.

    Args:
        vector: (R, W), modulates every block or stands before the slots, as the net has it.
        tokens: (R, m, W), a prefix that all slots see, or None. mask: (R, m), True = valid.
    """

    vector: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        return 0 if self.tokens is None else self.tokens.shape[1]

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Stack branches into the rows of one batch."""
        tokens = [p.tokens for p in parts if p.tokens is not None]
        masks = [p.mask for p in parts if p.mask is not None]
        return Cond(
            vector=torch.cat([p.vector for p in parts]),
            tokens=torch.cat(tokens) if tokens else None,
            mask=torch.cat(masks) if masks else None,
        )


class Conditioner(nn.Module):
    """Contract: ``encode`` runs the towers once; ``assemble`` joins what each row keeps.

    A branch is named by the modalities it keeps, joined by "+" (``text+image``), or ``null``.
    """

    modalities: tuple[str, ...] = ()

    def encode(self, prompt: Batch) -> Features:
        """Encode every modality that the prompt has."""
        raise TypeError(f"{type(self).__name__} must define encode")

    def assemble(self, features: Features, keep: Mapping[str, Tensor], count: int) -> Cond:
        """Conditions of ``count`` rows; ``keep`` (count,) tells per modality who has it."""
        raise TypeError(f"{type(self).__name__} must define assemble")

    def branch(self, features: Features, name: str, count: int) -> Cond:
        """Conditions of the branch ``name`` for ``count`` items.

        Raises:
            UnknownNameError: a modality is unknown. SignalError: the prompt lacks it.
        """
        wanted = [] if name == NULL else name.split("+")
        for modality in wanted:
            if modality not in self.modalities:
                raise UnknownNameError("condition", modality, self.modalities)
            if modality not in features:
                raise SignalError(f"the prompt has no {modality}, which branch {name!r} needs")
        device = next(self.parameters()).device
        keep = {
            m: torch.full((count,), m in wanted, dtype=torch.bool, device=device) for m in features
        }
        return self.assemble(features, keep, count)

    def dropped(self, features: Features, seeds: Sequence[int], rate: float) -> Cond:
        """Conditions of a training batch; each item loses each modality with probability rate."""
        device = next(self.parameters()).device
        keep = {}
        for modality in features:
            draws = [
                torch.rand((), generator=torch.Generator().manual_seed(derive(seed, modality)))
                for seed in seeds
            ]
            keep[modality] = (torch.stack(draws) >= rate).to(device)
        return self.assemble(features, keep, len(seeds))


class ClassConditioner(Conditioner):
    """One vector per class; the last row stands for no class (VAR). Prompts: label (B,) int64."""

    modalities = ("label",)

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embedding = nn.Embedding(num_classes + 1, dim)
        nn.init.trunc_normal_(self.embedding.weight, std=(3 * dim) ** -0.5)

    def encode(self, prompt: Batch) -> Features:
        if "label" not in prompt:
            return {}
        label: Tensor = prompt["label"]
        if label.ndim != 1 or int(label.min()) < 0 or int(label.max()) >= self.num_classes:
            raise SignalError(
                f"label must be (B,) within 0..{self.num_classes - 1}, got {label.tolist()}"
            )
        vector = self.embedding(label)
        mask = torch.ones(len(label), 1, dtype=torch.bool, device=label.device)
        return {"label": TowerOutput(tokens=vector[:, None], mask=mask, pooled=vector)}

    def assemble(self, features: Features, keep: Mapping[str, Tensor], count: int) -> Cond:
        null = self.embedding.weight[-1].expand(count, -1)
        if "label" not in features:
            return Cond(vector=null)
        return Cond(vector=torch.where(keep["label"][:, None], features["label"].pooled, null))


class SlotConditioner(Conditioner):
    """Prefix tokens and a pooled vector of any number of towers (card vat, section 14).

    Every modality has its own linear maps to the width, a modality embedding and a null token; a
    row that lacks the modality sees the null token alone.

    Args:
        towers: by modality; frozen ones sit in ``Frozen`` themselves. dim: width of the net.
    """

    def __init__(self, towers: Mapping[str, Tower], dim: int) -> None:
        super().__init__()
        self.modalities = tuple(towers)
        self.towers = nn.ModuleDict(towers)
        self.to_tokens = nn.ModuleDict({m: nn.Linear(t.dim, dim) for m, t in towers.items()})
        self.to_vector = nn.ModuleDict({m: nn.Linear(t.dim, dim) for m, t in towers.items()})
        self.null = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(dim) * dim**-0.5) for m in towers}
        )
        self.null_vector = nn.ParameterDict({m: nn.Parameter(torch.zeros(dim)) for m in towers})
        self.kind = nn.ParameterDict(
            {m: nn.Parameter(torch.randn(dim) * dim**-0.5) for m in towers}
        )
        self.base = nn.Parameter(torch.randn(dim) * dim**-0.5)

    def tower(self, modality: str) -> Tower | None:
        """The tower of a modality; None where there is none."""
        if modality not in self.towers:
            return None
        found = self.towers[modality]
        assert isinstance(found, Tower)
        return found

    def encode(self, prompt: Batch) -> Features:
        """Encode what the prompt has; has_text, has_image (B,) tell which items have it."""
        out = {name: tower(prompt) for name, tower in self.towers.items() if name in prompt}
        for name, output in out.items():
            has = prompt.get(f"has_{name}")
            if has is not None:
                out[name] = replace(output, mask=output.mask & has[:, None])
        return out

    def assemble(self, features: Features, keep: Mapping[str, Tensor], count: int) -> Cond:
        for name, output in features.items():
            if len(output.pooled) != count:
                raise ConfigError(f"{len(output.pooled)} prompts of {name} for {count} items")
        vector = self.base.expand(count, -1)
        tokens, masks = [], []
        for name in self.modalities:
            null = self.null[name].expand(count, 1, -1)
            lost = torch.ones(count, dtype=torch.bool, device=null.device)
            pooled = self.null_vector[name].expand(count, -1)
            if name in features:
                output = features[name]
                lost = ~(keep[name] & output.mask.any(dim=1))
                mapped = self.to_tokens[name](output.tokens) + self.kind[name]
                null = torch.cat([null, mapped], dim=1)
                given = self.to_vector[name](output.pooled)
                pooled = torch.where(lost[:, None], pooled, given)
                masks.append(torch.cat([lost[:, None], output.mask & ~lost[:, None]], dim=1))
            else:
                masks.append(lost[:, None])
            tokens.append(null)
            vector = vector + pooled
        if not tokens:
            return Cond(vector=vector)
        return Cond(vector=vector, tokens=torch.cat(tokens, dim=1), mask=torch.cat(masks, dim=1))
