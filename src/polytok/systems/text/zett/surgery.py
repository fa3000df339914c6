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

_TOKEN_IDS = ("bos", "eos", "pad", "sep", "cls", "mask", "unk", "decoder_start")


class LMEmbeddings:
    """The embeddings of a language model, to read, to exchange, or to lend others.

    Raises:
        UnknownNameError: the model's type has no row in :data:`PATHS`.
        WeightsError: a module of its row is not there, or the embedding has fewer rows than the
            tokenizer has tokens.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in PATHS:
            raise UnknownNameError("type of language model", kind, PATHS)
        self.model, self.paths, self.vocab_size = model, PATHS[kind], vocab_size
        self.is_masked = kind in MASKED
        inputs, outputs = self._module(self.paths.input), self._module(self.paths.output)
        self.is_tied = inputs.weight is outputs.weight or bool(
            getattr(model.config, "tie_word_embeddings", False)
        )
        if len(inputs.weight) < vocab_size:
            raise WeightsError(
                f"the tokenizer has {vocab_size} tokens, but the model embeds only "
                f"{len(inputs.weight)}; do they belong together?"
            )

    @property
    def has_bias(self) -> bool:
        """Whether the logits have a bias."""
        return self.paths.bias is not None

    @property
    def dim(self) -> int:
        """Width of the embeddings."""
        return int(self._module(self.paths.input).weight.shape[1])

    def read(self) -> Embeddings:
        """Copies of the embeddings of the tokenizer's tokens, rows of padding left out, in fp32."""

        def rows(tensor: Tensor) -> Tensor:
            return tensor.detach()[: self.vocab_size].float().clone()

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
        self.vocab_size = size

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
            for name in _TOKEN_IDS if config is not None else ():
                value = getattr(config, f"{name}_token_id", None)
                if isinstance(value, int):
                    setattr(config, f"{name}_token_id", ids.get(value))
                elif isinstance(value, list):
                    setattr(config, f"{name}_token_id", [ids[v] for v in value if v in ids])
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
