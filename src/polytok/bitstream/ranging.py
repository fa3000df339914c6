"""Range-coded payloads, with constriction's queue: ids under one static histogram per level.

A queue decodes in the order of encoding, so whole levels can be read from the front of a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import constriction
import numpy as np
from numpy.typing import NDArray

from polytok.bitstream.packing import Ids, common_levels
from polytok.core.errors import FormatError, PolytokError

if TYPE_CHECKING:
    from polytok.core.contracts import Level

_queue = constriction.stream.queue
_WORD = np.dtype(">u4")


def frequencies(
    histograms: Sequence[NDArray[Any]], levels: tuple[Level, ...]
) -> list[NDArray[np.float64]]:
    """Return strictly positive frequencies ``2 count + 1`` per level (each id seen half once more).

    They are whole numbers below 2^53, so any machine derives the same coder from them.

    Raises:
        PolytokError: a histogram is missing, or is no array (V_k,) of counts.
    """
    if len(histograms) < len(levels):
        raise PolytokError(f"{len(histograms)} histograms were given for {len(levels)} levels")
    out = []
    for k, level in enumerate(levels):
        counts = np.asarray(histograms[k])
        if counts.shape != (level.vocab,) or counts.dtype.kind not in "iu":
            raise PolytokError(
                f"the histogram of level {k + 1} must be integers ({level.vocab},), "
                f"got {counts.dtype} {counts.shape}"
            )
        if int(counts.min()) < 0 or float(counts.sum(dtype=np.float64)) > 2.0**51:
            raise PolytokError(f"the histogram of level {k + 1} must hold counts in 0..2^51")
        out.append(2.0 * counts.astype(np.float64) + 1.0)
    return out


def shortest_payload(encoder: Any) -> bytes:
    """Return the fewest bytes that decode to all that was encoded when zeros follow them.

    Costs no decoding. Of the strings of so many bytes it is the smallest.
    """
    # What the encoder has narrowed down is an interval of numbers: with ``position`` words done and
    # two more to come, exactly the numbers in [low, low + width) decode to what was encoded. Of
    # ``low`` the coder tells the last two words; sealed, it gives ``ceil(low / 2^32)``.
    position, (lower, width) = encoder.pos()
    sealed = encoder.get_compressed()[: position + 1].astype(_WORD).tobytes()
    low = (int.from_bytes(sealed, "big") << 32) - (-lower & 0xFFFFFFFF)
    # 2^32 <= width < 2^64. So to leave out four bytes always works; and if eight do, there is but
    # one such number, which ends in zeros when still more can be left out.
    for dropped in (8, 7, 6, 5, 4):
        number = -(-low >> 8 * dropped)
        if number << 8 * dropped < low + width:
            break
    return number.to_bytes(4 * (position + 2) - dropped, "big").rstrip(b"\x00")


class RangeCoder:
    """Codes ids of the given levels under the given histograms; see :func:`frequencies`.

    Args:
        histograms: integer counts (V_k,) per level; levels beyond ``levels`` are ignored.
    """

    def __init__(self, histograms: Sequence[NDArray[Any]], levels: tuple[Level, ...]) -> None:
        self.levels = levels
        # Levels may share a histogram, and to build a model takes longer than to use it.
        made: dict[int, Any] = {}
        for histogram, counts in zip(histograms, frequencies(histograms, levels), strict=False):
            if id(histogram) not in made:
                made[id(histogram)] = constriction.stream.model.Categorical(counts, perfect=False)
        self.models = [made[id(h)] for h, _ in zip(histograms, levels, strict=False)]

    def encode(self, ids: Sequence[NDArray[np.int64]]) -> bytes:
        """Return the fewest bytes that decode to ``ids`` when zeros follow them."""
        encoder = _queue.RangeEncoder()
        for level_ids, model in zip(ids, self.models, strict=True):
            encoder.encode(level_ids.astype(np.int32), model)
        return shortest_payload(encoder)

    def decode(self, payload: bytes) -> Ids:
        """Invert :meth:`encode`.

        Raises:
            FormatError: the payload belongs to no code, or is longer than it needs to be.
        """
        ids = self._read(payload, b"\x00")
        if len(ids) < len(self.levels):
            raise FormatError("the range-coded payload belongs to no code")
        if payload and _equal(self._read(payload[:-1], b"\x00"), ids):
            raise FormatError("bytes follow the range-coded payload")
        return ids

    def decode_cut(self, payload: bytes) -> Ids:
        """Return the leading levels that the first bytes of a payload determine."""
        return common_levels(self._read(payload, b"\x00"), self._read(payload, b"\xff"))

    def _read(self, payload: bytes, fill: bytes) -> Ids:
        """Read levels until the coder meets a number of no code; ``fill`` follows for ever."""
        # The coder spends at most 24 bits on an id and looks two words ahead.
        length = 4 * (sum(level.count or 0 for level in self.levels) + 2)
        words = np.frombuffer(payload.ljust(length, fill)[:length], dtype=_WORD)
        decoder = _queue.RangeDecoder(words.astype(np.uint32))
        ids: Ids = []
        for level, model in zip(self.levels, self.models, strict=True):
            try:
                ids.append(decoder.decode(model, level.count).astype(np.int64))
            except AssertionError:  # how constriction tells of such a number
                break
        return ids


def _equal(some: Sequence[NDArray[np.int64]], other: Sequence[NDArray[np.int64]]) -> bool:
    return len(some) == len(other) and all(map(np.array_equal, some, other))
