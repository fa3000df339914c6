"""transformers' ViT, DeiT and DINOv2 as versions 4.50 to 4.57 lay them out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.hosts.hf_model import HFHost, SavesReduction, refuse_maps
from polytok.reducers.passes import Pass, refuse_mask
from polytok.reducers.reduction import Reduction
from polytok.reducers.state import TokenState
from polytok.reducers.swap import Swapped, swap

OUTPUT = import_hf("transformers.modeling_outputs").BaseModelOutput


class HF4Host(HFHost):
    """Layers that take no arguments: the encoder runs their loop, and sizes need their parts."""

    projections = ("query", "key", "value")
    dropout_name = "dropout_prob"

    def attention(self, block: Any) -> Any:
        return block.attention.attention

    def install(self, core: Any, root: nn.Module) -> None:
        core.encoder.__dict__.update(reduction=core.reduction, prefix=self.prefix(core))
        swap(core.encoder, ReducedEncoder)
        swap(core, ReducedHF4)
        self.let_save(core, root)

    def blocks(self, core: Any) -> Sequence[nn.Module]:
        return list(core.encoder.layer)

    def project(self, block: Any, y: Tensor, out: Tensor) -> Tensor:
        return block.attention.output(out, y)

    def resume(
        self,
        block: Any,
        plain: Callable[..., Tensor],
        x: Tensor,
        native: dict[str, Any],
        state: TokenState,
    ) -> Tensor:
        bias = state.bias()
        if bias is None:
            return plain(x)
        y = self.norm(block, x)
        out = self.attend(block, *self.qkv(block, y, None), bias)
        return self.mlp(block, self.add_attention(block, x, self.project(block, y, out)))


class HF4ViT(HF4Host):
    """Layers whose MLP is split over ``intermediate`` and ``output``."""

    def norm(self, block: Any, x: Tensor) -> Tensor:
        return block.layernorm_before(x)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return out + x

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.output(block.intermediate(block.layernorm_after(x)), x)

    def linears(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.attention, nn.ModuleList([block.intermediate, block.output])


class HF4Dinov2(HF4Host):
    """Layers with layer scale and drop path."""

    def norm(self, block: Any, x: Tensor) -> Tensor:
        return block.norm1(x)

    def add_attention(self, block: Any, x: Tensor, out: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale1(out)) + x

    def mlp(self, block: Any, x: Tensor) -> Tensor:
        return block.drop_path(block.layer_scale2(block.mlp(block.norm2(x)))) + x


class ReducedEncoder(Swapped):
    """In front of the encoder's class: its loop hands a pass to every layer."""

    reduction: Reduction
    prefix: int
    layer: Any

    def forward(self, x: Tensor, head_mask: Any = None, **options: Any) -> Any:
        """As the plain encoder, (B, n, C) -> its output."""
        if self.reduction.is_paused:
            return super().forward(x, head_mask, **options)  # type: ignore[misc]
        make: Callable[..., Pass] = self.reduction.make_pass or Pass
        tokens = make(self.reduction, self.prefix, len(self.layer), None)
        seen = [x]
        for layer in self.layer:
            seen.append(layer(seen[-1], tokens=tokens))
        states = tuple(seen) if options.get("output_hidden_states") else None
        return OUTPUT(last_hidden_state=seen[-1], hidden_states=states)


class ReducedHF4(SavesReduction):
    """In front of a model's class: refuses what only newer layers can do."""

    reduction: Reduction
    config: Any

    def extra_repr(self) -> str:
        return str(self.reduction)

    def forward(self, *args: Any, keep: Any = None, **kwargs: Any) -> Any:
        """As the plain model."""
        if not self.reduction.is_paused:
            refuse_mask(kwargs.get("head_mask"), *args[2:3])
            refuse_maps(self.config, kwargs)
            wants = kwargs.get("output_hidden_states", self.config.output_hidden_states)
            if keep is not None or (wants and self.reduction.restore == "grid"):
                raise PolytokError(
                    "this version of transformers cannot override keep= for one call, nor restore "
                    "hidden states to the grid; transformers 5 works"
                )
        return super().forward(*args, **kwargs)  # type: ignore[misc]
