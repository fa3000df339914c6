"""Raw payloads: all ids of a code as one integer, in the fewest bytes that hold any such code.

The ids are the digits of one number in mixed radix, the first id the most significant, written
big endian from the first bit on. For vocabularies that are powers of two this is plain bit
packing; for any other it is radix packing. Either way ``ceil(sum n_k log2 V_k / 8)`` bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import FormatError

if TYPE_CHECKING:
    from polytok.core.contracts import Level

Ids = list[NDArray[np.int64]]


@lru_cache(maxsize=64)
def _capacity(levels: tuple[Level, ...]) -> int:
    """How many codes these levels can tell apart."""
    counts: dict[int, int] = {}
    for level in levels:
        counts[level.vocab] = counts.get(level.vocab, 0) + (level.count or 0)
    capacity = 1
    for vocab, count in counts.items():
        capacity *= vocab**count
    return capacity


def num_bits(levels: tuple[Level, ...]) -> int:
    """Return ``ceil(sum n_k log2 V_k)``, exactly."""
    return (_capacity(levels) - 1).bit_length()


def num_bytes(levels: tuple[Level, ...]) -> int:
    """Return ``ceil(sum n_k log2 V_k / 8)``, exactly."""
    return -(-num_bits(levels) // 8)


def pack_ids(ids: Sequence[NDArray[np.int64]], levels: tuple[Level, ...]) -> bytes:
    """Pack ids (n_k,) of every level, each in [0, V_k), into ``num_bytes(levels)`` bytes."""
    number = 0
    for level_ids, level in zip(ids, levels, strict=True):
        number = number * level.vocab ** len(level_ids) + _join(level_ids.tolist(), level.vocab)
    length = num_bytes(levels)
    return (number << (8 * length - num_bits(levels))).to_bytes(length, "big")


def unpack_ids(payload: bytes, levels: tuple[Level, ...], *, is_upper: bool = False) -> Ids:
    """Invert :func:`pack_ids`.

    Args:
        payload: exactly ``num_bytes(levels)`` bytes.
        is_upper: the payload is an upper bound of the true one; the largest code not above it
            is returned.

    Raises:
        FormatError: the payload is none that ``pack_ids`` makes.
    """
    spare_bits = 8 * len(payload) - num_bits(levels)
    number, padding = divmod(int.from_bytes(payload, "big"), 1 << spare_bits)
    if is_upper:
        number = min(number, _capacity(levels) - 1)
    elif number >= _capacity(levels):
        raise FormatError("the payload holds ids that are not in the vocabulary")
    elif padding:
        raise FormatError(f"the last {spare_bits} bits of the payload must be zero")
    ids: Ids = []
    for level in reversed(levels):
        count = level.count or 0
        number, digits = divmod(number, level.vocab**count)
        ids.append(np.array(_split(digits, level.vocab, count), dtype=np.int64))
    return ids[::-1]


def unpack_cut(payload: bytes, levels: tuple[Level, ...]) -> Ids:
    """Return the leading levels that the first bytes of a payload determine."""
    missing = num_bytes(levels) - len(payload)
    lower = unpack_ids(payload + b"\x00" * missing, levels)
    upper = unpack_ids(payload + b"\xff" * missing, levels, is_upper=True)
    return common_levels(lower, upper)


def common_levels(lower: Ids, upper: Ids) -> Ids:
    """Return the leading levels in which the two ends of a range of codes agree.

    Codes are ordered like their payloads, so every payload between the ends has these levels.
    """
    kept: Ids = []
    for low, high in zip(lower, upper, strict=False):
        if not np.array_equal(low, high):
            break
        kept.append(low)
    return kept


def _join(digits: list[int], base: int) -> int:
    """Join digits pairwise, most significant first: big products only near the end."""
    while len(digits) > 1:
        if len(digits) % 2:
            digits = [0, *digits]
        digits = [a * base + b for a, b in zip(digits[::2], digits[1::2], strict=True)]
        base *= base
    return digits[0]


def _split(number: int, base: int, count: int) -> list[int]:
    """Invert :func:`_join` for ``count`` digits."""
    powers = [base]
    while 1 << len(powers) < count:
        powers.append(powers[-1] ** 2)
    digits = [number]
    for power in reversed(powers):
        digits = [part for digit in digits for part in divmod(digit, power)]
    return digits[-count:]
