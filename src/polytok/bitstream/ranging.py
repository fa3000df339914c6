"""Range-coded payloads: ids under one static histogram per level, with constriction's queue.

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


class RangeCoder:
    """Codes ids of the given levels under the given histograms; see :func:`frequencies`.

    Args:
        histograms: integer counts (V_k,) per level; levels beyond ``levels`` are ignored.
    """

    def __init__(self, histograms: Sequence[NDArray[Any]], levels: tuple[Level, ...]) -> None:
        self.levels = levels
        self.models = [
            constriction.stream.model.Categorical(f, perfect=False)
            for f in frequencies(histograms, levels)
        ]

    def encode(self, ids: Sequence[NDArray[np.int64]]) -> bytes:
        """Return the fewest bytes that decode to ``ids`` when zeros follow them."""
        encoder = _queue.RangeEncoder()
        for level_ids, model in zip(ids, self.models, strict=True):
            encoder.encode(level_ids.astype(np.int32), model)
        whole = bytes(encoder.get_compressed().astype(_WORD).tobytes())
        # Any number inside the coder's last interval will do. Of the numbers with ``length`` bytes
        # only the two neighbours of the one we have can lie inside if no shorter one does; at the
        # first length at most one does, and it may end in zeros.
        for length in range(max(0, len(whole) - 16), len(whole)):
            below = int.from_bytes(whole[:length], "big")
            for number in range(below, min(below + 2, 256**length)):
                shorter = number.to_bytes(length, "big")
                if _equal(self._read(shorter, b"\x00"), ids):
                    return shorter.rstrip(b"\x00")
        return whole

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
