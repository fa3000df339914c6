"""Tiny tokenizers of every kind and language models of every type, with random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from polytok.networks.pretrained.optional import import_hf
from polytok.systems.text.zett import LanguageModel, of_parts

END = "<|endoftext|>"
TEXTS = [
    "Hello world, héllo wörld! 日本語のテキスト, don't play; playing was played.",
    "def f(x):\n        return x + 1\n\n\nclass Token:\n    text = 'naïve'\t# über 123 4567",
    "The quick brown fox jumps over the lazy dog. हिन्दी नमस्ते, and the fox was quick.",
] * 8


@cache
def bpe(size: int = 420) -> Tokenizer:
    """Byte-level, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


@cache
def fallback_bpe() -> Tokenizer:
    """Characters with byte fallback and a mark for spaces, as Llama's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(data))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


@cache
def unigram() -> Tokenizer:
    """SentencePiece's Unigram with a mark for spaces and NFKC, as XLM-R's."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trainer = trainers.UnigramTrainer(
        vocab_size=180, special_tokens=names, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


@cache
def wordpiece() -> Tokenizer:
    """Words and ## pieces of lower-cased text, as BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=260, special_tokens=names, show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "bpe": bpe,
    "fallback_bpe": fallback_bpe,
    "unigram": unigram,
    "wordpiece": wordpiece,
}

_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_LLAMA = {**_SMALL, "intermediate_size": 32, "num_key_value_heads": 2, "head_dim": 8}
# Per model type: classes of configuration and model, sizes, and which tokenizer it reads.
_TYPES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
        "bpe",
    ),
    "llama": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_LLAMA, "tie_word_embeddings": False},
        "fallback_bpe",
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", _LLAMA, "fallback_bpe"),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _LLAMA, "fallback_bpe"),
    "xglm": (
        "XGLMConfig",
        "XGLMForCausalLM",
        {"d_model": 16, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2},
        "unigram",
    ),
    "roberta": (
        "RobertaConfig",
        "RobertaForMaskedLM",
        {**_SMALL, "intermediate_size": 32, "max_position_embeddings": 70},
        "unigram",
    ),
    "xlm-roberta": (
        "XLMRobertaConfig",
        "XLMRobertaForMaskedLM",
        {**_SMALL, "intermediate_size": 32, "max_position_embeddings": 70},
        "unigram",
    ),
}
TYPES = tuple(_TYPES)
_NAMES = {
    "bpe": {"bos_token": END, "eos_token": END},
    "fallback_bpe": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "unigram": {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
}


def language_model(kind: str = "gpt2", *, padding: int = 0, seed: int = 0) -> LanguageModel:
    """A model of a type with its tokenizer; ``padding`` of its embedding's rows have no token."""
    hf = import_hf("transformers")
    config_name, model_name, sizes, tokenizer_name = _TYPES[kind]
    frame = hf.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[tokenizer_name](), **_NAMES[tokenizer_name]
    )
    ids = {f"{n}_token_id": getattr(frame, f"{n}_token_id") for n in ("bos", "eos", "pad")}
    config = getattr(hf, config_name)(vocab_size=len(frame) + padding, **sizes, **ids)
    torch.manual_seed(seed)
    model = getattr(hf, model_name)(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lm_head.bias"):
                parameter.normal_()
    return of_parts(model, frame)
