"""Range-coded payloads: round trips, near-ideal size, prefixes, and odd histograms."""

from __future__ import annotations

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytok.bitstream.ranging import RangeCoder, frequencies, shortest_payload
from polytok.core.contracts import Level
from polytok.core.errors import FormatError, PolytokError

pairs = st.lists(st.tuples(st.integers(2, 300), st.integers(1, 60)), min_size=1, max_size=5)


def setup(
    pairs: list[tuple[int, int]], seed: int, skew: float
) -> tuple[tuple[Level, ...], list[np.ndarray], list[np.ndarray]]:
    """Levels, histograms of skewed draws, and ids drawn alike."""
    rng = np.random.default_rng(seed)
    levels = tuple(Level(vocab=v, count=n) for v, n in pairs)
    histograms = [
        np.bincount((v * rng.random(200) ** skew).astype(int), minlength=v) for v, _ in pairs
    ]
    ids = [(v * rng.random(n) ** skew).astype(np.int64) for v, n in pairs]
    return levels, histograms, ids


def equal(some: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(some) == len(other) and all(map(np.array_equal, some, other))


@given(pairs=pairs, seed=st.integers(0, 2**32), skew=st.sampled_from([1.0, 3.0, 30.0]))
@settings(max_examples=50, deadline=None)
def test_round_trip_within_a_byte_or_two_of_the_ideal(
    pairs: list[tuple[int, int]], seed: int, skew: float
) -> None:
    levels, histograms, ids = setup(pairs, seed, skew)
    coder = RangeCoder(histograms, levels)
    payload = coder.encode(ids)
    assert equal(coder.decode(payload), ids)
    ideal = sum(
        -np.log2(f[i] / f.sum()).sum()
        for f, i in zip(frequencies(histograms, levels), ids, strict=True)
    )
    assert len(payload) <= ideal / 8 + 1.1
    assert not payload.endswith(b"\x00")


@given(pairs=pairs, seed=st.integers(0, 2**32), data=st.data())
@settings(max_examples=60, deadline=None)
def test_cut_gives_a_prefix_of_the_levels(
    pairs: list[tuple[int, int]], seed: int, data: st.DataObject
) -> None:
    levels, histograms, ids = setup(pairs, seed, 3.0)
    coder = RangeCoder(histograms, levels)
    payload = coder.encode(ids)
    kept = coder.decode_cut(payload[: data.draw(st.integers(0, len(payload)))])
    assert equal(kept, ids[: len(kept)])


def test_more_bytes_never_give_fewer_levels() -> None:
    levels, histograms, ids = setup([(64, n) for n in (1, 4, 9, 16, 25, 36)], 3, 4.0)
    coder = RangeCoder(histograms, levels)
    payload = coder.encode(ids)
    counts = [len(coder.decode_cut(payload[:n])) for n in range(len(payload) + 1)]
    assert counts == sorted(counts)
    assert counts[0] == 0 and counts[-1] >= 5


def test_levels_are_coded_in_order() -> None:
    """Two codes that share their first levels share the first bytes of their payloads."""
    levels, histograms, ids = setup([(256, 20), (256, 20), (256, 60)], 1, 2.0)
    coder = RangeCoder(histograms, levels)
    other = [*ids[:2], (ids[2] + 1) % 256]
    one, two = coder.encode(ids), coder.encode(other)
    shared = next(n for n in range(len(one)) if one[n] != two[n])
    ideal = sum(
        -np.log2(f[i] / f.sum()).sum() / 8
        for f, i in zip(frequencies(histograms, levels)[:2], ids[:2], strict=True)
    )
    assert one != two
    assert shared >= ideal - 2


@pytest.mark.parametrize("appended", [b"\x00", b"\x01", b"\xff", b"\x00\x00\x07"])
def test_refuses_bytes_that_follow(appended: bytes) -> None:
    levels, histograms, ids = setup([(64, 30)], 5, 3.0)
    coder = RangeCoder(histograms, levels)
    with pytest.raises(FormatError, match="follow"):
        coder.decode(coder.encode(ids) + appended)


@given(payload=st.binary(max_size=60))
@settings(max_examples=40, deadline=None)
def test_any_payload_decodes_in_range_or_is_refused(payload: bytes) -> None:
    levels, histograms, _ = setup([(17, 3), (64, 20)], 2, 3.0)
    coder = RangeCoder(histograms, levels)
    for decode in (coder.decode, coder.decode_cut):
        try:
            ids = decode(payload)
        except FormatError:
            continue
        for level, lv in zip(ids, levels, strict=False):
            assert len(level) == lv.count
            assert level.min() >= 0 and level.max() < lv.vocab


@pytest.mark.parametrize(
    "counts",
    [np.zeros(8, int), np.eye(8, dtype=int)[3], np.eye(8, dtype=np.uint8)[0] * 255, np.arange(8)],
)
def test_ids_never_seen_are_coded_too(counts: np.ndarray) -> None:
    levels = (Level(vocab=8, count=24),)
    ids = [np.arange(24) % 8]
    coder = RangeCoder([counts], levels)
    assert equal(coder.decode(coder.encode(ids)), ids)


def test_frequencies_follow_the_documented_rule() -> None:
    assert frequencies([np.array([0, 1, 5])], (Level(vocab=3, count=1),))[0].tolist() == [1, 3, 11]


def test_payload_is_pinned() -> None:
    """Files must stay readable: the bytes of a fixed code never change."""
    levels = (Level(vocab=8, count=4), Level(vocab=5, count=12))
    coder = RangeCoder([np.arange(8), np.array([100, 10, 0, 1, 5])], levels)
    ids = [np.array([7, 0, 3, 5]), np.array([0, 0, 1, 0, 4, 0, 0, 3, 0, 0, 2, 0])]
    assert coder.encode(ids).hex() == "c42eff16a2"


@pytest.mark.parametrize(
    ("histograms", "message"),
    [
        ([], "0 histograms"),
        ([np.ones(7, int)], r"integers \(8,\), got int64 \(7,\)"),
        ([np.ones(8)], "got float64"),
        ([np.array([-1, 1, 1, 1, 1, 1, 1, 1])], "counts in"),
        ([np.full(8, 2**50)], "counts in"),
    ],
)
def test_refuses_wrong_histograms(histograms: list[np.ndarray], message: str) -> None:
    with pytest.raises(PolytokError, match=message):
        RangeCoder(histograms, (Level(vocab=8, count=4),))


queue = constriction.stream.queue
family = constriction.stream.model.Categorical(perfect=False)


def decodes(payload: bytes, table: np.ndarray, ids: np.ndarray) -> bool:
    """Whether a payload that zeros follow decodes to the ids."""
    words = np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)
    try:
        return np.array_equal(queue.RangeDecoder(words).decode(family, table), ids)
    except AssertionError:
        return False


def check_shortest(table: np.ndarray, ids: np.ndarray) -> bytes:
    """Check that no smaller and no shorter payload decodes to the ids."""
    encoder = queue.RangeEncoder()
    encoder.encode(ids.astype(np.int32), family, table)
    payload = shortest_payload(encoder)
    assert decodes(payload, table, ids)
    assert decodes(payload + bytes(40), table, ids)
    if payload:
        # Payloads of the ids are the numbers of an interval, so the neighbours speak for all.
        below = int.from_bytes(payload[:-1], "big")
        for number, length in (
            (int.from_bytes(payload, "big") - 1, len(payload)),
            (below, len(payload) - 1),
            (below + 1, len(payload) - 1),
        ):
            if number < 256**length:
                assert not decodes(number.to_bytes(length, "big"), table, ids)
    return payload


def test_shortest_payload_of_random_models() -> None:
    rng = np.random.default_rng(0)
    for k in range(600):
        vocab, count = int(rng.choice([2, 3, 16, 257, 4096])), int(rng.integers(1, 50))
        table = rng.dirichlet(np.full(vocab, rng.choice([1e-3, 0.01, 0.1, 1, 100])), size=count)
        if k % 5 == 0:  # nothing but one id is likely
            table = np.eye(vocab)[rng.integers(vocab, size=count)]
        kinds = (
            rng.integers(vocab, size=count),
            table.argmax(axis=1),
            np.where(rng.random(count) < 0.5, 0, vocab - 1),
            (table.cumsum(axis=1) < rng.random((count, 1))).sum(axis=1).clip(max=vocab - 1),
        )
        check_shortest(table, kinds[k % 4])


def test_shortest_payload_while_words_are_held_back() -> None:
    """A coder whose interval straddles the border between two words cannot write the first yet."""
    rng, straddled = np.random.default_rng(1), 0
    for _ in range(60):
        border = int(rng.integers(1, 2**32)) << 32 * 20
        table = rng.dirichlet(np.ones(7), size=30)
        for number in (border, border - 1):
            words = np.frombuffer(number.to_bytes(84, "big"), ">u4").astype(np.uint32)
            try:
                ids = queue.RangeDecoder(words).decode(family, table)
            except AssertionError:
                continue
            for length in range(1, 31):
                encoder = queue.RangeEncoder()
                encoder.encode(ids[:length], family, table[:length])
                lower, width = encoder.pos()[1]
                straddled += lower + width > 2**64
                if length % 5 == 0:
                    check_shortest(table[:length], ids[:length])
    assert straddled > 1000


def test_shortest_payload_of_nothing() -> None:
    assert shortest_payload(queue.RangeEncoder()) == b""
