"""Where a Hugging Face language model keeps its embeddings, and how others are put in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.errors import UnknownNameError, WeightsError
from polytok.systems.text.zett.hypernet import Embeddings


@dataclass(frozen=True)
class Paths:
    """Modules of a model type: input embedding, output projection, where the logits' bias is."""

    input: str
    output: str
    bias: str | None = None


_DECODER = Paths("model.embed_tokens", "lm_head")
_ROBERTA = Paths("roberta.embeddings.word_embeddings", "lm_head.decoder", "lm_head")

PATHS: dict[str, Paths] = {
    "gemma": _DECODER,
    "gpt2": Paths("transformer.wte", "lm_head"),
    "llama": _DECODER,
    "mistral": _DECODER,
    "roberta": _ROBERTA,
    "xglm": _DECODER,
    "xlm-roberta": _ROBERTA,
}
"""By ``config.model_type``; of models with a head (causal or masked)."""

MASKED = ("roberta", "xlm-roberta")
"""Model types that fill masks; the others continue texts."""

TOKEN_IDS = tuple(
    f"{name}_token_id"
    for name in ("bos", "eos", "pad", "sep", "cls", "mask", "unk", "decoder_start")
)
"""Attributes of configurations that hold ids of special tokens."""


class LMEmbeddings:
    """The embeddings of a language model, to read, to exchange, or to lend others.

    Raises:
        UnknownNameError: the model's type has no row in :data:`PATHS`.
        WeightsError: a module of its row is not there.
    """

    def __init__(self, model: Any) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in PATHS:
            raise UnknownNameError("type of language model", kind, PATHS)
        self.model, self.paths = model, PATHS[kind]
        self.is_masked = kind in MASKED
        inputs, outputs = self._module(self.paths.input), self._module(self.paths.output)
        self.is_tied = inputs.weight is outputs.weight or bool(
            getattr(model.config, "tie_word_embeddings", False)
        )

    @property
    def has_bias(self) -> bool:
        """Whether the logits have a bias."""
        return self.paths.bias is not None

    @property
    def parameters(self) -> set[str]:
        """Names of the parameters that have a row per token."""
        paths = self.paths
        names = {f"{paths.input}.weight", f"{paths.output}.weight"}
        return (
            names if paths.bias is None else names | {f"{paths.output}.bias", f"{paths.bias}.bias"}
        )

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self._module(self.paths.input).weight.shape[1])

    def check(self, vocab_size: int) -> None:
        """Refuse a tokenizer of more tokens than the model embeds.

        Raises:
            WeightsError: it has more.
        """
        count = len(self._module(self.paths.input).weight)
        if count < vocab_size:
            raise WeightsError(
                f"the tokenizer has {vocab_size} tokens, but the model embeds only {count}; "
                "do they belong together?"
            )

    def read(self, vocab_size: int) -> Embeddings:
        """Copies of the first rows, one per token of the tokenizer, in fp32."""
        self.check(vocab_size)

        def rows(tensor: Tensor) -> Tensor:
            return tensor.detach()[:vocab_size].float().clone()

        bias = None
        if self.paths.bias is not None:
            bias = rows(self._module(self.paths.bias).bias)
        outputs = None if self.is_tied else rows(self._module(self.paths.output).weight)
        return Embeddings(rows(self._module(self.paths.input).weight), outputs, bias)

    def write(self, embeddings: Embeddings) -> None:
        """Put embeddings (V, d) in, in the model's own dtype; its vocabulary then has V tokens."""
        inputs, outputs = self._module(self.paths.input), self._module(self.paths.output)
        dtype, size = inputs.weight.dtype, len(embeddings.input)
        inputs.weight = nn.Parameter(embeddings.input.detach().to(dtype).clone())
        inputs.num_embeddings, outputs.out_features = size, size
        outputs.weight = (
            inputs.weight
            if self.is_tied
            else nn.Parameter(embeddings.head.detach().to(dtype).clone())
        )
        if self.paths.bias is not None:
            bias = embeddings.bias
            bias = torch.zeros(size) if bias is None else bias.detach().clone()
            owner = self._module(self.paths.bias)
            owner.bias = nn.Parameter(bias.to(dtype))
            outputs.bias = owner.bias
        self.model.config.vocab_size = size

    def lent(self, embeddings: Embeddings) -> dict[str, Tensor]:
        """What ``torch.func.functional_call`` needs to run the model with other embeddings."""
        found = {
            f"{self.paths.input}.weight": embeddings.input,
            f"{self.paths.output}.weight": embeddings.head,
        }
        if self.paths.bias is not None:
            bias = embeddings.bias
            bias = embeddings.input.new_zeros(len(embeddings.input)) if bias is None else bias
            found[f"{self.paths.bias}.bias"] = bias
            found[f"{self.paths.output}.bias"] = bias
        return found

    def renumber(self, ids: Mapping[int, int]) -> None:
        """Change the ids of special tokens in the model's configurations, old to new."""
        for config in (self.model.config, getattr(self.model, "generation_config", None)):
            for name in TOKEN_IDS if config is not None else ():
                value = getattr(config, name, None)
                if isinstance(value, int):
                    setattr(config, name, ids.get(value))
                elif isinstance(value, list):
                    setattr(config, name, [ids[v] for v in value if v in ids])
        inputs = self._module(self.paths.input)
        if getattr(inputs, "padding_idx", None) is not None:
            inputs.padding_idx = ids.get(inputs.padding_idx)

    def _module(self, path: str) -> Any:
        try:
            return self.model.get_submodule(path)
        except AttributeError as error:
            raise WeightsError(
                f"{type(self.model).__name__} has no {path}; load it with its language-model head"
            ) from error
