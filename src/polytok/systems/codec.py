"""What codecs of every signal share: codes to the bytes of ``.ptk`` files and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok import bitstream
from polytok.core.contracts import Codes, TokenizerSpec
from polytok.core.errors import PolytokError, WeightsError


class Codec:
    """A tokenizer joined with its signal: what ``polytok.load`` returns for a tokenizer.

    A codec of a signal adds ``encode(signals, ...) -> Codes`` and ``decode(codes, ...)``, a list
    of signals, each with the options of that signal.

    Args:
        name: preset or weights tag. weights: fingerprint, 8 hex digits.
    """

    def __init__(self, *, name: str, weights: str) -> None:
        self.name, self.weights = name, weights

    @property
    def spec(self) -> TokenizerSpec:
        """What the tokenizer takes and gives."""
        raise TypeError(f"{type(self).__name__} must define spec")

    @property
    def histograms(self) -> list[NDArray[np.int64]] | None:
        """Counts per level of a file and id for range coding, or None if there are none."""
        raise TypeError(f"{type(self).__name__} must define histograms")

    def pack(
        self,
        codes: Codes,
        *,
        max_bytes: int | None = None,
        coder: str = "auto",
        prior: bitstream.SymbolModel | None = None,
    ) -> list[bytes]:
        """Turn codes into the bytes of one ``.ptk`` file each.

        Args:
            max_bytes: keep the most levels, or tokens of every tile, that fit.
            coder: ``auto`` (the smaller of range coded and raw) or ``raw``.
            prior: codes a file where that makes it smaller still.
        """
        if coder not in ("auto", "raw"):
            raise PolytokError(f"coder={coder!r} is not one of auto, raw")
        histograms = self.histograms if coder == "auto" else None
        files = []
        for item in range(len(codes)):
            data = bitstream.pack(
                codes[item], self.spec, weights=self.weights, histograms=histograms, prior=prior
            )
            if max_bytes is not None:
                data = self.truncate(data, max_bytes, prior=prior)
            files.append(data)
        return files

    def unpack(
        self, data: bytes, *, partial: bool = False, prior: bitstream.SymbolModel | None = None
    ) -> Codes:
        """Turn the bytes of a ``.ptk`` file into codes; ``prior`` coded it, if one did."""
        return bitstream.unpack(data, self.spec, partial=partial, **self._known(prior))

    def truncate(
        self, data: bytes, max_bytes: int, *, prior: bitstream.SymbolModel | None = None
    ) -> bytes:
        """Return the largest valid prefix of a file that has at most ``max_bytes``."""
        return bitstream.truncate(data, self.spec, max_bytes, **self._known(prior))

    def fitting(
        self,
        max_bytes: int,
        *,
        coder: str = "auto",
        prior: bitstream.SymbolModel | None = None,
    ) -> Callable[[Codes], int]:
        """What ``encode`` takes as ``fit``: counts the levels of a code whose file fits.

        Arguments are those of :meth:`pack`. What it returns raises :class:`PolytokError` where
        nothing fits.
        """

        def count(codes: Codes) -> int:
            # Most fit without the prior, which takes long.
            if len(self.pack(codes, coder=coder)[0]) > max_bytes:
                [data] = self.pack(codes, max_bytes=max_bytes, coder=coder, prior=prior)
                codes = self.unpack(data, prior=prior)
            return len(bitstream.bits_per_level(codes, self.spec))

        return count

    def _known(self, prior: bitstream.SymbolModel | None) -> dict[str, Any]:
        return {"weights": self.weights, "histograms": self.histograms, "prior": prior}


def require_weights(codec: Codec, weights: str, name: str) -> None:
    """Refuse a tokenizer that a generator was not trained on.

    Args:
        weights: fingerprint of the tokenizer whose codes the generator ``name`` draws.

    Raises:
        WeightsError: the codec has others.
    """
    if codec.weights != weights:
        raise WeightsError(
            f"{name} draws codes of weights {weights or 'unknown'}, but {codec.name!r} has "
            f"{codec.weights}"
        )
