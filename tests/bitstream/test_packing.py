"""Raw payloads: exact sizes, order, and no payload with two meanings."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytok.bitstream.packing import num_bits, num_bytes, pack_ids, unpack_cut, unpack_ids
from polytok.core.contracts import Level
from polytok.core.errors import FormatError

pairs = st.lists(st.tuples(st.integers(2, 70_000), st.integers(1, 40)), min_size=1, max_size=6)


def levels_of(pairs: list[tuple[int, int]]) -> tuple[Level, ...]:
    return tuple(Level(vocab=v, count=n) for v, n in pairs)


def draw(levels: tuple[Level, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, lv.vocab, lv.count) for lv in levels]


def equal(some: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(some) == len(other) and all(map(np.array_equal, some, other))


def packed_bits(ids: list[np.ndarray], levels: tuple[Level, ...]) -> bytes:
    """An independent bit packer, for vocabularies that are powers of two."""
    text = "".join(
        format(int(i), f"0{lv.vocab.bit_length() - 1}b")
        for level, lv in zip(ids, levels, strict=True)
        for i in level
    )
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(4096, n) for n in (1, 4, 9, 16, 25, 36, 49, 64, 100)], 456),
        ([(4096, n) for n in (1, 4, 9, 16, 25, 36, 49)], 210),
        ([(64, n) for n in (1, 4, 9, 16, 25, 36, 64, 100, 169, 256)], 510),
        ([(16384, n) for n in (1, 4, 9, 16, 25, 36, 64, 100, 169, 256, 576, 1024)], 3990),
        ([(10, 1)], 1),
        ([(3, 5)], 1),  # 243 codes in one byte, where 2 bits an id would take two
        ([(3, 10)], 2),
        ([(6, 31)], 11),  # 80.14 bits
        ([(6, 30)], 10),  # 77.55 bits
        ([(257, 1), (255, 1)], 2),  # 65535 codes: the levels share a byte
        ([(257, 1), (256, 1)], 3),
    ],
)
def test_bytes_are_the_formula(pairs: list[tuple[int, int]], expected: int) -> None:
    levels = levels_of(pairs)
    assert num_bytes(levels) == expected
    assert len(pack_ids(draw(levels, 0), levels)) == expected
    assert num_bits(levels) == math.ceil(sum(n * math.log2(v) for v, n in pairs) - 1e-9)


@given(pairs=pairs, seed=st.integers(0, 2**32))
@settings(max_examples=50, deadline=None)
def test_round_trip(pairs: list[tuple[int, int]], seed: int) -> None:
    levels = levels_of(pairs)
    ids = draw(levels, seed)
    payload = pack_ids(ids, levels)
    assert len(payload) == num_bytes(levels)
    assert equal(unpack_ids(payload, levels), ids)


@given(
    pairs=st.lists(
        st.tuples(st.integers(1, 16).map(lambda b: 1 << b), st.integers(1, 30)),
        min_size=1,
        max_size=5,
    ),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=40, deadline=None)
def test_powers_of_two_are_plain_bit_packing(pairs: list[tuple[int, int]], seed: int) -> None:
    levels = levels_of(pairs)
    ids = draw(levels, seed)
    assert pack_ids(ids, levels) == packed_bits(ids, levels)


@pytest.mark.parametrize("pairs", [[(3, 3)], [(5, 1), (2, 1), (3, 1)], [(7, 2)], [(2, 3)]])
def test_payloads_and_codes_are_one_to_one(pairs: list[tuple[int, int]]) -> None:
    """Of all payloads exactly as many decode as there are codes, and each packs to itself."""
    levels = levels_of(pairs)
    valid = []
    for value in range(256 ** num_bytes(levels)):
        payload = value.to_bytes(num_bytes(levels), "big")
        try:
            ids = unpack_ids(payload, levels)
        except FormatError:
            continue
        assert pack_ids(ids, levels) == payload
        valid.append(tuple(int(i) for level in ids for i in level))
    assert len(valid) == math.prod(v**n for v, n in pairs)
    assert valid == sorted(set(valid))  # ordered like the payloads, as cut reading requires


@given(pairs=pairs, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=50, deadline=None)
def test_cut_gives_a_prefix_of_the_levels(
    pairs: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    levels = levels_of(pairs)
    ids = draw(levels, seed)
    payload = pack_ids(ids, levels)
    length = data.draw(st.integers(0, len(payload)))
    kept = unpack_cut(payload[:length], levels)
    assert equal(kept, ids[: len(kept)])
    if length == len(payload):
        assert len(kept) == len(levels)
    if all(v & (v - 1) == 0 for v, _ in pairs):
        bits = np.cumsum([n * (v.bit_length() - 1) for v, n in pairs])
        assert len(kept) == int((bits <= 8 * length).sum())


def test_cut_radix_payload_needs_few_bytes_more_than_the_prefix() -> None:
    levels = levels_of([(1000, 4), (1000, 16), (1000, 64)])
    late = 0
    for seed in range(200):
        payload = pack_ids(draw(levels, seed), levels)
        for k in (1, 2):
            size = num_bytes(levels[:k])
            late += len(unpack_cut(payload[: size + 1], levels)) < k
            assert len(unpack_cut(payload[: size + 3], levels)) >= k
    assert late <= 12  # of 400; one byte leaves an ambiguity of about 1 in 256


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 1000, 5000])
def test_many_ids(count: int) -> None:
    levels = levels_of([(1000, count)])
    ids = draw(levels, count)
    assert equal(unpack_ids(pack_ids(ids, levels), levels), ids)


def test_refuses_numbers_and_padding_of_no_code() -> None:
    levels = levels_of([(10, 1)])  # 4 bits and 4 of padding
    assert unpack_ids(b"\x90", levels)[0].tolist() == [9]
    with pytest.raises(FormatError, match="not in the vocabulary"):
        unpack_ids(b"\xa0", levels)
    with pytest.raises(FormatError, match="last 4 bits"):
        unpack_ids(b"\x91", levels)
