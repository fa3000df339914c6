"""The model's side of reduced transformers models: a pass goes to every layer as an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polytok.core.errors import PolytokError
from polytok.networks.pretrained.optional import import_hf
from polytok.reducers.hosts.base import Host, heads
from polytok.reducers.passes import new_pass, refuse_mask
from polytok.reducers.reducer import Reducer
from polytok.reducers.reduction import Reduction, find_core
from polytok.reducers.saved import write_reduction
from polytok.reducers.state import TokenState
from polytok.reducers.swap import Swapped, swap

ATTENTION = import_hf("transformers.modeling_utils").ALL_ATTENTION_FUNCTIONS
# Kernels that take an additive mask, which is how sizes reach the logits.
MASKABLE = ("eager", "sdpa")
# Heads that read the mean of the patch tokens.
AVERAGING = ("Dinov2ForImageClassification", "Dinov2WithRegistersForImageClassification")


class HFHost(Host):
    """What the transformers families share: separate projections, attention by configuration."""

    library = "transformers"
    projections: ClassVar[tuple[str, str, str]] = ("q_proj", "k_proj", "v_proj")
    dropout_name: ClassVar[str] = "attention_dropout"

    def attention(self, block: Any) -> Any:
        """The module that has the projections."""
        return block.attention

    def fits(self, core: Any) -> bool:
        try:
            attentions = [self.attention(block) for block in self.blocks(core)]
        except AttributeError:
            return False
        return all(hasattr(a, name) for a in attentions for name in self.projections)

    def check(self, core: Any, root: Any, reducer: Reducer, restore: str) -> None:
        if not self.fits(core):
            raise PolytokError(
                f"{type(core).__name__} keeps its layers elsewhere than in transformers 5 and "
                "4.50 to 4.57, which work"
            )
        kernel = core.config._attn_implementation
        if reducer.tracks_size and kernel not in MASKABLE:
            raise PolytokError(
                f"attention {kernel!r} takes no bias, which tokens that stand for several need; "
                "model.set_attn_implementation('sdpa') works, or a method that only selects"
            )

        head = type(root).__name__
        if head.endswith("ForMaskedImageModeling") and restore != "grid":
            raise PolytokError(f"{head} decodes every patch in its place; restore='grid' works")
        if head in AVERAGING and reducer.tracks_size and restore != "grid":
            raise PolytokError(
                f"{head} averages patch tokens and would count those that stand for several once; "
                "restore='grid' works"
            )

    def install(self, core: nn.Module, root: nn.Module) -> None:
        swap(core, ReducedHF)
        self.let_save(core, root)

    def let_save(self, core: nn.Module, root: nn.Module) -> None:
        """Let what holds the model write the reduction when it is saved."""
        # One that was taken away through an inner model leaves its mixin out here.
        is_known = root is core or isinstance(root, SavesReduction)
        if not is_known and hasattr(root, "save_pretrained"):
            swap(root, SavesReduction)

    def prefix(self, core: Any) -> int:
        distilled = getattr(core.embeddings, "distillation_token", None) is not None
        return 1 + int(distilled) + int(getattr(core.config, "num_register_tokens", 0))

    def has_class_token(self, core: Any) -> bool:
        return getattr(core.embeddings, "cls_token", None) is not None

    def patcher(self, core: Any) -> nn.Module:
        module: nn.Module = core.embeddings.patch_embeddings
        return module

    def grid(self, core: Any, size: tuple[int, int] | None = None) -> tuple[int, int]:
        height, width = size or self.image_size(core)
        patch = _pair(core.embeddings.patch_embeddings.patch_size)
        return height // patch[0], width // patch[1]

    def image_size(self, core: Any) -> tuple[int, int]:
        return _pair(core.embeddings.patch_embeddings.image_size)

    def query_key(self, block: Any, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._projected(block, y, 0), self._projected(block, y, 1)

    def value(self, block: Any, y: Tensor) -> Tensor:
        return self._projected(block, y, 2)

    def _projected(self, block: Any, y: Tensor, number: int) -> Tensor:
        attn = self.attention(block)
        return heads(getattr(attn, self.projections[number])(y), attn.num_attention_heads)

    def scale(self, block: Any) -> float:
        return float(self.attention(block).scaling)

    def attend(self, block: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        attn = self.attention(block)
        bias = None if bias is None else bias.to(q.dtype)
        drop = self.dropout(block)
        kernel = attn.config._attn_implementation
        if kernel == "eager":
            logits = q @ k.transpose(-2, -1) * attn.scaling
            logits = logits if bias is None else logits + bias
            probs = logits.softmax(-1, dtype=torch.float32).to(q.dtype)
            return (nn.functional.dropout(probs, drop) @ v).transpose(1, 2).flatten(2)
        out = ATTENTION[kernel](attn, q, k, v, bias, dropout=drop, scaling=attn.scaling)[0]
        return out.flatten(2)

    def dropout(self, block: Any) -> float:
        attn = self.attention(block)
        return float(getattr(attn, self.dropout_name)) if attn.training else 0.0

    def project(self, block: Any, y: Tensor, out: Tensor) -> Tensor:
        return block.attention.o_proj(out)

    def arguments(
        self, native: dict[str, Any], state: TokenState, bias: Tensor | None
    ) -> dict[str, Any]:
        return {**native, "attention_mask": bias}

    def linears(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.attention, block.mlp


class SavesReduction(Swapped):
    """In front of the class of a model with a head: saving writes the reduction beside it."""

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Write the plain model and ``reduction.json``; ``polytok.reducers.load`` reads both."""
        super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        _write_if_reduced(self, save_directory)

    def _upload_modified_files(self, working_dir: Any, *args: Any, **kwargs: Any) -> Any:
        # With push_to_hub=True, the plain method uploads what it wrote before it returns to ours.
        _write_if_reduced(self, working_dir)
        return super()._upload_modified_files(working_dir, *args, **kwargs)  # type: ignore[misc]


def _write_if_reduced(model: Any, folder: Any) -> None:
    if find_core(model) is not None:
        write_reduction(model, folder)


class ReducedHF(SavesReduction):
    """In front of a transformers model's class: its forward makes a pass for its layers."""

    reduction: Reduction
    config: Any

    def extra_repr(self) -> str:
        return str(self.reduction)

    def forward(self, *args: Any, keep: Any = None, **kwargs: Any) -> Any:
        """As the plain model; ``keep`` overrides the schedule for this call."""
        plain = super().forward  # type: ignore[misc]
        if self.reduction.is_paused:
            return plain(*args, **kwargs)
        # Behind the pixels and the masked positions, a tensor is the mask.
        refuse_mask(kwargs.get("attention_mask"), *(a for a in args[2:] if isinstance(a, Tensor)))
        refuse_maps(self.config, kwargs)
        as_dict = kwargs.pop("return_dict", getattr(self.config, "return_dict", True))
        tokens = new_pass(self, keep)
        out = plain(*args, tokens=tokens, return_dict=True, **kwargs)
        if self.reduction.restore == "grid" and out.get("hidden_states"):
            first, *behind, last = out.hidden_states
            whole = [tokens.restored(y, i) for i, y in enumerate(behind)]
            out["hidden_states"] = (first, *whole, last)
        return out if as_dict else out.to_tuple()


def refuse_maps(config: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a call that wants attention maps, which reduced blocks do not make.

    Raises:
        PolytokError: it does.
    """
    if kwargs.get("output_attentions", getattr(config, "output_attentions", False)):
        raise PolytokError(
            "a reduced model has no attention maps to return; polytok.reducers.trace says what is "
            "kept, and polytok.reducers.paused(model) gives the plain model"
        )


def _pair(size: Any) -> tuple[int, int]:
    return (int(size[0]), int(size[1])) if isinstance(size, Sequence) else (int(size), int(size))
