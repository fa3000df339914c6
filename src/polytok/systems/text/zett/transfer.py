"""Giving a language model another tokenizer: embeddings by a hypernetwork or a heuristic."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polytok.core.errors import ConfigError, PolytokError, WeightsError
from polytok.core.seeding import torch_rng
from polytok.networks.pretrained.optional import import_hf
from polytok.systems.text.zett.bytelevel import ByteLevel, byte_level, surface_forms
from polytok.systems.text.zett.heuristics import Request, constituents, initialised, shared_ids
from polytok.systems.text.zett.hypernet import Embeddings, Hypernet
from polytok.systems.text.zett.loading import LanguageModel, load_tokenizer
from polytok.systems.text.zett.surgery import TOKEN_IDS, LMEmbeddings

ROWS = 16_384
_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class Initialised:
    """Embeddings of a new vocabulary, and what became of its tokens.

    Args:
        num_shared: tokens that the old vocabulary has too. num_cut: tokens spelt with more pieces
            than the hypernetwork reads. num_unreachable: ids that no text leads to.
    """

    embeddings: Embeddings
    num_shared: int
    num_cut: int
    num_unreachable: int


def initialize_embeddings(
    lm: LanguageModel,
    target: ByteLevel,
    *,
    method: str = "fvt",
    hypernet: Hypernet | None = None,
    language: int | None = None,
    seed: int = 0,
) -> Initialised:
    """Embed every token of ``target``; special tokens get the model's own rows, bit for bit.

    Args:
        target: a tokenizer with the special tokens of ``lm``, see :func:`byte_level`.
        method: ``fvt``, ``lexical``, ``focus``, ``mean``, ``random`` or ``unk``, without a network.
        hypernet: predicts the embeddings instead. language: of it, where it knows several.

    Raises:
        UnknownNameError: no such method.
        WeightsError: the hypernetwork belongs to another model.
    """
    tokens, source = target.vocabulary.tokens, lm.source
    shared = shared_ids(tokens, lm.tokenizer)
    num_cut = 0
    if hypernet is None:
        request = Request(
            tokens=tokens,
            constituents=constituents(tokens, lm.tokenizer),
            shared=shared,
            source=source,
            source_tokenizer=lm.tokenizer,
            rng=torch_rng(seed, "rows"),
        )
        found = initialised(method, request)
    else:
        check_fits(hypernet, lm)
        config = hypernet.config
        surface, num_cut = surface_forms(
            tokens, lm.tokenizer, length=config.max_pieces, pad=config.pad_id
        )
        found = predicted(hypernet, torch.from_numpy(surface), source.joined, language)
    specials = lm.tokenizer.vocabulary.specials
    special = torch.tensor([specials[t.text] if t.kind == "special" else -1 for t in tokens])
    return Initialised(
        embeddings=found.with_rows(special, source),
        num_shared=int((shared >= 0).sum()),
        num_cut=num_cut,
        num_unreachable=sum(t.kind == "dead" for t in tokens),
    )


@torch.no_grad()
def predicted(
    hypernet: Hypernet, surface: Tensor, source: Tensor, language: int | None = None
) -> Embeddings:
    """Predict the embeddings of rows (N, L) in parts of 16,384, on the network's device."""
    device = next(hypernet.parameters()).device
    source = source.to(device)
    parts = [
        hypernet.eval().by_length(rows.to(device), source, language) for rows in surface.split(ROWS)
    ]
    return parts[0].map(lambda *found: torch.cat(found).cpu(), *parts[1:])


def check_fits(hypernet: Hypernet, lm: LanguageModel) -> None:
    """Refuse a hypernetwork of another language model.

    Raises:
        WeightsError: sizes differ.
    """
    config, where = hypernet.config, lm.embeddings
    wanted = {
        "vocab_size": lm.tokenizer.vocabulary.num_original,
        "embed_dim": where.dim,
        "is_tied": where.is_tied,
    }
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise WeightsError(
                f"the hypernetwork was trained for {config.language_model or 'another model'} with "
                f"{name}={getattr(config, name)}; this model has {value}"
            )
    if lm.tokenizer.num_extra > max(config.num_extra, 0):
        raise WeightsError(
            f"the model's tokenizer lacks {lm.tokenizer.num_extra} bytes, for which the "
            f"hypernetwork has {config.num_extra} embeddings"
        )


@dataclass(frozen=True)
class Transfer:
    """A language model with its new tokenizer.

    Args:
        model: the very object that was given, changed. frame: its tokenizer for ``transformers``.
        tokenizer: the same over bytes. report: sizes, counts and the method by name.
        notes: what a user should know, one sentence each.
    """

    model: Any
    frame: Any
    tokenizer: ByteLevel
    report: dict[str, Any]
    notes: tuple[str, ...]


def transfer_tokenizer(
    lm: LanguageModel,
    tokenizer: Any,
    *,
    method: str = "fvt",
    hypernet: Hypernet | None = None,
    language: int | None = None,
    resplit: bool = False,
    keep_normalizer: bool = False,
    whitespace: bool = False,
    seed: int = 0,
) -> Transfer:
    """Give a model another tokenizer, in place; its other weights stay as they are.

    Args:
        tokenizer: the new one, see :func:`load_tokenizer`; its special tokens give way to those of
            the model, which keep their names and, where they fit, their ids.
        method, hypernet, language: see :func:`initialize_embeddings`.
        resplit, keep_normalizer, whitespace: see :func:`byte_level`.

    Raises:
        SignalError: the tokenizer cannot be read or written over bytes.
        PolytokError: see :func:`initialize_embeddings`.
    """
    target = byte_level(
        load_tokenizer(tokenizer),
        specials_of=lm.tokenizer,
        resplit=resplit,
        keep_normalizer=keep_normalizer,
        whitespace=whitespace,
    )
    where = lm.embeddings
    made = initialize_embeddings(
        lm,
        target,
        method=method,
        hypernet=hypernet,
        language=language,
        seed=seed,
    )
    where.write(made.embeddings)
    new = target.vocabulary.specials
    where.renumber({old: new[name] for name, old in lm.tokenizer.vocabulary.specials.items()})
    report = {
        "method": method if hypernet is None else "zett",
        "tokens_before": lm.tokenizer.vocabulary.num_original,
        "tokens_after": len(target),
        "tokens_shared": made.num_shared,
        "tokens_truncated": made.num_cut,
        "tokens_unreachable": made.num_unreachable,
    }
    notes = list(target.notes)
    if made.num_cut and hypernet is not None:
        notes.append(
            f"{made.num_cut} tokens are longer than {hypernet.config.max_pieces} pieces of the old "
            "tokenizer; the hypernetwork read their beginning alone"
        )
    if hypernet is not None and hypernet.config.has_bias and not where.has_bias:
        notes.append("the predicted logit bias is left out: the model has no place for one")
    return Transfer(lm.model, framed(lm, target), target, report, tuple(notes))


def framed(lm: LanguageModel, target: ByteLevel) -> Any:
    """The new tokenizer for ``transformers``, with names and limits of the old one."""
    hf = import_hf("transformers")
    old = lm.frame
    names = {f"{n}_token": getattr(old, f"{n}_token", None) for n in _NAMES}
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=target.tokenizer,
        model_max_length=old.model_max_length,
        padding_side=old.padding_side,
        clean_up_tokenization_spaces=False,
        **{name: value for name, value in names.items() if value is not None},
    )


@torch.no_grad()
def transfer_sibling(sibling: Any, base: Any, transferred: Any, weight: float = 0.5) -> None:
    """Give a fine-tuned sibling of the base the new tokenizer too, in place.

    Its embeddings become those of the transferred base; every other weight moves by ``weight``
    times what training after the transfer changed in the base (arXiv 2405.07883, section 5).

    Raises:
        WeightsError: the models do not have the same parts.
        ConfigError: the weight is not within [0, 1].
    """
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight={weight} is not within [0, 1]")
    new, old = dict(transferred.named_parameters()), dict(base.named_parameters())
    own = dict(sibling.named_parameters())
    where = LMEmbeddings(transferred)
    embedded = where.parameters
    if not own.keys() == old.keys() == new.keys():
        raise WeightsError("sibling, base and transferred base do not have the same parts")
    for name, parameter in own.items():
        if name in embedded:
            continue
        if not parameter.shape == old[name].shape == new[name].shape:
            raise WeightsError(f"{name} has other shapes in sibling and base")
        parameter.add_(weight * (new[name] - old[name]))
    LMEmbeddings(sibling).write(where.read(transferred.config.vocab_size))
    for config in ("config", "generation_config"):
        for name in TOKEN_IDS:
            value = getattr(getattr(transferred, config, None), name, None)
            setattr(getattr(sibling, config), name, value)


def save_transfer(
    transfer: Transfer, folder: str | os.PathLike[str], *, force: bool = False
) -> None:
    """Write a plain Hugging Face folder in one step: a reader sees all of it or none.

    Raises:
        PolytokError: the folder exists and ``force`` is false, or cannot be written.
    """
    with atomic_folder(folder, force=force) as aside:
        transfer.model.save_pretrained(aside)
        transfer.frame.save_pretrained(aside)


@contextmanager
def atomic_folder(target: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Yield a folder beside ``target`` that becomes ``target`` when the block ends well.

    Raises:
        PolytokError: ``target`` exists and ``force`` is false, it is no folder, or its parent
            cannot be written.
    """
    target = Path(target)
    if target.exists() and not (force and target.is_dir()):
        how = "use --force to replace it" if target.is_dir() else "it is no folder"
        raise PolytokError(f"{target} exists already; {how}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    except OSError as error:
        raise PolytokError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        made = aside / "new"
        made.mkdir()
        yield made
        if target.exists():
            target.replace(aside / "old")
        made.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
