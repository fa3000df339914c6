"""A small text tower, and the byte-level tokenizer whose ids it reads."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polytok.core.errors import ConfigError, PolytokError, SignalError, one_line
from polytok.layers import Block, compute_dtype
from polytok.networks.pretrained.slots import Tower, TowerOutput, listed, masked_mean, taken_text

PAD, END = 0, 1
FIRST_BYTE = 2
FIRST_MERGE = FIRST_BYTE + 256
MIN_COUNT = 2


def _letters() -> tuple[str, ...]:
    """The letter by which byte-level BPE writes each byte: itself if it prints, else one above."""
    printed = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printed else next(others)) for byte in range(256))


LETTERS = _letters()


class TextTokenizer:
    """Byte-level BPE on lower-cased text: any script fits, and case and spacing do not matter.

    Ids: 0 pads, 1 ends a text, 2..257 are bytes, then one per merge. No text can spell the first
    two.

    Args:
        merges: pairs of ids; the k-th makes id 258 + k of two that come before it.

    Raises:
        ConfigError: a merge names an id that is not there.
    """

    def __init__(self, merges: Sequence[tuple[int, int]] = ()) -> None:
        self.merges = tuple(merges)
        pieces = [b"", b"", *(bytes([byte]) for byte in range(256))]
        for pair in self.merges:
            if len(pair) != 2 or not all(FIRST_BYTE <= i < len(pieces) for i in pair):
                raise ConfigError(f"merge {pair} is not a pair of ids in 2..{len(pieces) - 1}")
            pieces.append(pieces[pair[0]] + pieces[pair[1]])
        self._pieces = tuple(pieces)
        self._core = _core(self._pieces, self.merges)

    @property
    def vocab_size(self) -> int:
        """Every id is below it."""
        return len(self._pieces)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> TextTokenizer:
        """Learn merges from texts, in any order; pairs that occur once are left apart.

        Args:
            vocab_size: ids at most, 258 or more.
        """
        if vocab_size < FIRST_MERGE:
            raise ConfigError(f"vocab_size={vocab_size} is less than {FIRST_MERGE}")
        core = _core()
        trainer = _library().trainers.BpeTrainer(
            vocab_size=vocab_size - FIRST_BYTE,
            min_frequency=MIN_COUNT,
            show_progress=False,
            initial_alphabet=list(LETTERS),
        )
        core.train_from_iterator((_encodable(text) for text in texts), trainer)
        ids = {letter: FIRST_BYTE + byte for byte, letter in enumerate(LETTERS)}
        merges: list[tuple[int, int]] = []
        # Two pairs can spell the same piece, so there may be more merges than room for ids.
        for left, right in json.loads(core.to_str())["model"]["merges"][: vocab_size - FIRST_MERGE]:
            ids.setdefault(left + right, FIRST_MERGE + len(merges))
            merges.append((ids[left], ids[right]))
        return cls(merges)

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Tensor, Tensor]:
        """Ids (B, max_tokens) int64 and their mask (B, max_tokens) bool, True = valid.

        Every text ends with the end token, also an empty one and one that is cut.

        Raises:
            SignalError: something is not a text, or a text holds half a surrogate pair.
        """
        if max_tokens < 1:
            raise ConfigError(f"max_tokens={max_tokens} is not positive")
        rows = [[*ids[: max_tokens - 1], END] for ids in map(self._ids, _texts(texts))]
        ids = torch.tensor([row + [PAD] * (max_tokens - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(max_tokens) < lengths[:, None]

    def is_cut(self, texts: Sequence[str], max_tokens: int) -> list[bool]:
        """Whether :meth:`encode` leaves out the end of a text, for each."""
        return [len(self._ids(text)) >= max_tokens for text in _texts(texts)]

    def decode(self, ids: Tensor) -> list[str]:
        """The normalised texts of ids (B, n), without pads and ends."""
        rows = (b"".join(self._pieces[i] for i in row) for row in ids.tolist())
        return [row.decode("utf-8", "replace").removeprefix(" ") for row in rows]

    def to_json(self) -> str:
        """All there is to the tokenizer, as JSON."""
        return json.dumps({"merges": self.merges})

    @classmethod
    def from_json(cls, text: str) -> TextTokenizer:
        """Make the tokenizer that :meth:`to_json` wrote.

        Raises:
            ConfigError: the text is not what it writes.
        """
        try:
            return cls([(int(left), int(right)) for left, right in json.loads(text)["merges"]])
        except ConfigError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not the JSON of a text tokenizer ({one_line(error)})") from error

    def _ids(self, text: str) -> list[int]:
        # One by one: encoding in parallel, the library complains when a data worker is forked.
        return self._core.encode(_encodable(text)).ids


@dataclass(frozen=True, kw_only=True)
class SmallTextConfig:
    """Sizes of a small text tower.

    Args:
        vocab_size: ids, at least 258. max_tokens: per text, the end token included.
    """

    vocab_size: int = 1024
    max_tokens: int = 16
    dim: int = 128
    num_layers: int = 2
    num_heads: int = 2

    def __post_init__(self) -> None:
        if self.vocab_size < FIRST_MERGE:
            raise ConfigError(f"vocab_size={self.vocab_size} is less than {FIRST_MERGE}")
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens={self.max_tokens} is not positive")
        if self.dim % self.num_heads:
            raise ConfigError(f"dim={self.dim} is not a multiple of num_heads={self.num_heads}")


class SmallTextTower(Tower):
    """``text`` (B, n) int64 and ``text_mask`` (B, n) bool -> one token per id.

    Args:
        tokenizer: kept in a buffer, hence saved and loaded with the weights; without one, and
            until ``tower.tokenizer`` is set, every byte is an id.

    Raises:
        ConfigError: the tokenizer has more ids than ``config.vocab_size``.
    """

    merges: Tensor

    def __init__(
        self, config: SmallTextConfig | None = None, tokenizer: TextTokenizer | None = None
    ) -> None:
        super().__init__()
        self.config = config = config or SmallTextConfig()
        self.dim = config.dim
        # A row of zeros is no merge, since pads and ends cannot be merged.
        rows = torch.zeros(config.vocab_size - FIRST_MERGE, 2, dtype=torch.int32)
        self.register_buffer("merges", rows)
        if tokenizer is not None:
            self.tokenizer = tokenizer
        self.embed = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Parameter(torch.randn(config.max_tokens, config.dim) * 0.3)
        self.blocks = nn.ModuleList(
            Block(config.dim, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer that belongs to the weights, also right after they were loaded."""
        return _tokenizer(tuple((left, right) for left, right in self.merges.tolist()))

    @tokenizer.setter
    def tokenizer(self, value: TextTokenizer) -> None:
        if value.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the tokenizer has {value.vocab_size} ids, more than "
                f"vocab_size={self.config.vocab_size}"
            )
        self.merges.zero_()
        for row, pair in zip(self.merges, value.merges, strict=False):
            row.copy_(torch.tensor(pair))

    def prepare(self, signals: Sequence[Any]) -> dict[str, Tensor]:
        """Encode texts: ``text`` (B, max_tokens) and ``text_mask``; see also :meth:`is_cut`."""
        ids, mask = self.tokenizer.encode(signals, self.config.max_tokens)
        return {"text": ids, "text_mask": mask}

    def is_cut(self, signals: Sequence[str]) -> list[bool]:
        """Whether a text is too long for ``max_tokens``, for each."""
        return self.tokenizer.is_cut(signals, self.config.max_tokens)

    def forward(self, inputs: dict[str, Tensor]) -> TowerOutput:
        """Turn ``text`` (B, n), n at most ``max_tokens``, into tokens (B, n, dim)."""
        ids, mask = taken_text(inputs, self.config.max_tokens)
        x = self.embed(ids) + self.positions[: ids.shape[1]]
        x = x.to(compute_dtype(x))
        # A softmax over nothing is not a number; texts that are all masked see their padding.
        visible = (mask | ~mask.any(1, keepdim=True))[:, None, None]
        for block in self.blocks:
            x = block(x, mask=visible)
        tokens = self.norm(x)
        return TowerOutput(tokens=tokens, mask=mask, pooled=masked_mean(tokens, mask))


@functools.lru_cache(maxsize=8)
def _tokenizer(rows: tuple[tuple[int, int], ...]) -> TextTokenizer:
    return TextTokenizer([row for row in rows if row != (0, 0)])


def _library() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError as error:
        raise PolytokError(
            f"text needs the library tokenizers: pip install tokenizers ({one_line(error)})"
        ) from error


def _core(pieces: Sequence[bytes] = (), merges: Sequence[tuple[int, int]] = ()) -> Any:
    """The library's BPE with our normalisation; ids are indices of ``pieces``."""
    library = _library()
    spelled = ["".join(LETTERS[byte] for byte in piece) for piece in pieces]
    vocab: dict[str, int] = {}
    for i, letters in enumerate(spelled[FIRST_BYTE:], FIRST_BYTE):
        vocab.setdefault(letters, i)
    pairs = [(spelled[left], spelled[right]) for left, right in merges]
    core = library.Tokenizer(library.models.BPE(vocab=vocab, merges=pairs))
    normalizers = library.normalizers
    core.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            normalizers.Replace(library.Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    # A word has the same ids at the start of a text as inside it.
    core.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return core


def _texts(texts: Sequence[str]) -> list[str]:
    return listed(texts, str, "texts")


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        wrong = f"{text[error.start]!r} at place {error.start}"
        raise SignalError(f"a text is not valid Unicode: {wrong}") from error
    return text
