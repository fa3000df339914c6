"""Language models and tokenizers as users have them: folders, files, hub ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn

from polytok.core import hub
from polytok.core.config import from_dict
from polytok.core.errors import SignalError, UnknownNameError, WeightsError, one_line
from polytok.networks.pretrained.optional import import_hf
from polytok.systems.text._shared import BYTE_ALPHABET
from polytok.systems.text._tokenizer_file import TokenizerFile, read_tokenizer
from polytok.systems.text.zett.bytelevel import ByteLevel, byte_level
from polytok.systems.text.zett.config import HypernetConfig
from polytok.systems.text.zett.hypernet import Embeddings, Hypernet
from polytok.systems.text.zett.surgery import MASKED, PATHS, LMEmbeddings


@dataclass(frozen=True)
class LanguageModel:
    """A language model with its tokenizer.

    Args:
        model: of ``transformers``, with its head. frame: its tokenizer there, for names of special
            tokens. tokenizer: the same over bytes.
        start: the special token that texts begin with; None if there is none.
    """

    model: Any
    frame: Any
    tokenizer: ByteLevel
    start: str | None

    @property
    def embeddings(self) -> LMEmbeddings:
        """Where its embeddings are."""
        return LMEmbeddings(self.model)

    @property
    def source(self) -> Embeddings:
        """The embeddings of its tokens, without rows of padding."""
        return self.embeddings.read(self.tokenizer.vocabulary.num_original)

    @property
    def pad_id(self) -> int:
        """What fills rows of source ids: the padding token, else the end, else no token at all."""
        for name in ("pad_token_id", "eos_token_id"):
            value = getattr(self.frame, name, None)
            if isinstance(value, int):
                return value
        return len(self.tokenizer)


def load_language_model(name: str, revision: str | None = None) -> LanguageModel:
    """Load a language model of a known type, in the dtype it was saved in.

    Args:
        name: a folder, or a repository of the hub, with weights as safetensors.

    Raises:
        PolytokError: ``transformers`` is not installed.
        WeightsError: it cannot be had, or lacks a part. UnknownNameError: its type is not known.
        SignalError: its tokenizer cannot be written over bytes.
    """
    hf = import_hf("transformers")
    kind = _fetched(hf.AutoConfig, name, revision).model_type
    if kind not in PATHS:
        raise UnknownNameError("type of language model", kind, PATHS)
    loader = hf.AutoModelForMaskedLM if kind in MASKED else hf.AutoModelForCausalLM
    model = _fetched(loader, name, revision, dtype="auto", use_safetensors=True)
    return of_parts(model, _fetched(hf.AutoTokenizer, name, revision))


def of_parts(model: Any, frame: Any) -> LanguageModel:
    """Put a model and its tokenizer of ``transformers`` together.

    Raises:
        SignalError: the tokenizer is not a fast one, or cannot be written over bytes.
        UnknownNameError, WeightsError: the model's embeddings are not where they should be.
    """
    tokenizer = byte_level(backend(frame))
    start = frame.bos_token or frame.eos_token or frame.cls_token
    framed = tokenizer.tokenizer.encode("").ids
    if framed:
        start = tokenizer.tokenizer.id_to_token(framed[0])
    start = start if start in tokenizer.vocabulary.specials else None
    made = LanguageModel(model, frame, tokenizer, start)
    made.embeddings.check(tokenizer.vocabulary.num_original)
    return made


def load_tokenizer(source: Any) -> Tokenizer:
    """A tokenizer as an object of the ``tokenizers`` library.

    Args:
        source: a tokenizer.json, a folder with one, byte-level merges.txt or tiktoken ranks, a
            folder or hub id that ``transformers`` reads, or a tokenizer of either library.

    Raises:
        SignalError: it cannot be read.
    """
    if isinstance(source, Tokenizer):
        return source
    if not isinstance(source, (str, Path)):
        return backend(source)
    path = Path(source)
    path = path / "tokenizer.json" if (path / "tokenizer.json").is_file() else path
    if path.is_file():
        try:
            if path.suffix == ".json":
                return Tokenizer.from_str(path.read_text(encoding="utf-8"))
            return _of_merges(read_tokenizer(path))
        except Exception as error:
            raise SignalError(f"cannot read tokenizer {path}: {one_line(error)}") from error
    hf = import_hf("transformers")
    try:
        return backend(_fetched(hf.AutoTokenizer, str(source), None))
    except WeightsError as error:
        raise SignalError(f"cannot read tokenizer {source}: {one_line(error)}") from error


def _of_merges(found: TokenizerFile) -> Tokenizer:
    """A byte-level BPE of a file that lists merges and nothing else."""
    parts = dict.fromkeys((*BYTE_ALPHABET, *(a + b for a, b in found.merges)))
    if found.model != "BPE" or not set().union(*parts) <= set(BYTE_ALPHABET):
        raise SignalError("its tokens are not written in bytes; save it as tokenizer.json first")
    vocab = found.vocab or {part: index for index, part in enumerate(parts)}
    made = Tokenizer(models.BPE(vocab, list(found.merges), ignore_merges=bool(found.vocab)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return made


def backend(frame: Any) -> Tokenizer:
    """The tokenizer inside a fast one of ``transformers``.

    Raises:
        SignalError: it is not a fast one.
    """
    found = getattr(frame, "backend_tokenizer", None)
    if not isinstance(found, Tokenizer):
        raise SignalError(
            f"{type(frame).__name__} is no fast tokenizer, so it has no tokenizer.json"
        )
    return found


def _fetched(loader: Any, name: str, revision: str | None, **options: Any) -> Any:
    try:
        return loader.from_pretrained(name, revision=revision, **options)
    except Exception as error:
        raise WeightsError(f"cannot load {name!r}: {one_line(error)}") from error


def load_hypernet(folder: str | Path) -> Hypernet:
    """Load a trained hypernetwork: a run's folder, or one that a converter wrote.

    Raises:
        WeightsError: it is none, or damaged.
    """
    return load_model(Path(folder), hub.read_info(folder))


def load_model(folder: Path, info: hub.Info, *, name: str = "", device: str = "cpu") -> Hypernet:
    """Load the hypernetwork of a model folder; what ``polytok.load`` calls."""
    if info.system != "zett":
        raise WeightsError(f"{folder} holds {info.system}; a hypernetwork of zett is needed here")
    network = Hypernet(from_dict(HypernetConfig, info.config))
    # In a run's weights the network is a part of what is trained.
    hub.load_weights(nn.ModuleDict({"hypernet": network}), folder)
    return network.to(device).eval()


def quieten() -> None:
    """Let ``transformers`` and the hub print no bars and no advice, for commands that report."""
    from huggingface_hub.utils import logging as hub_logging

    logging = import_hf("transformers").utils.logging
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
