"""Prior-coded files: exact bytes, no damage unseen, and no reader with other numbers fooled."""

from __future__ import annotations

import struct
import zlib
from binascii import crc_hqx
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytok.bitstream import (
    SymbolReader,
    SymbolWriter,
    describe_writer,
    pack,
    read_header,
    size,
    sizes,
    truncate,
    unpack,
    writer_id,
)
from polytok.bitstream.prior import symbols_checksum
from polytok.core.contracts import Codes, Level, TokenizerSpec
from polytok.core.errors import FormatError, PolytokError, WeightsError

WEIGHTS = "0badcafe"
HEADER = 30
PAIRS = [(64, 1), (100, 4), (4096, 20), (1000, 30)]
MakeSpec = Callable[..., TokenizerSpec]
MakeCodes = Callable[..., Codes]
MakePrior = Callable[..., Any]
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def equal(some: Codes, other: Codes) -> bool:
    """Whether two codes agree in every id and every bit of their meta."""
    return (
        len(some.indices) == len(other.indices)
        and all(map(torch.equal, some.indices, other.indices))
        and all(torch.equal(some.meta[k], other.meta[k]) for k in some.meta)
    )


def with_checksum(data: bytes) -> bytes:
    """Replace the checksum by the right one, which all files have in the same place."""
    crc = zlib.crc32(data[:26] + data[HEADER:])
    return data[:26] + struct.pack("<I", crc) + data[HEADER:]


@pytest.fixture(scope="module")
def spec(make_spec: MakeSpec) -> TokenizerSpec:
    return make_spec(PAIRS)


@pytest.fixture(scope="module")
def prior(spec: TokenizerSpec, make_prior: MakePrior) -> Any:
    return make_prior(spec)


@pytest.fixture(scope="module")
def codes(spec: TokenizerSpec, make_codes: MakeCodes, prior: Any) -> Codes:
    return prior.likely(make_codes(spec))


@pytest.fixture(scope="module")
def coded(spec: TokenizerSpec, codes: Codes, prior: Any) -> bytes:
    return pack(codes, spec, weights=WEIGHTS, prior=prior)


@pytest.fixture(scope="module")
def worded(spec: TokenizerSpec, make_codes: MakeCodes, prior: Any) -> bytes:
    """A file whose prior had a text."""
    prior = replace(prior, text="a chair")
    return pack(prior.likely(make_codes(spec)), spec, weights=WEIGHTS, prior=prior)


def test_layout_byte_by_byte(
    spec: TokenizerSpec, codes: Codes, prior: Any, coded: bytes, worded: bytes
) -> None:
    ids = [i[0].numpy() for i in codes.indices]
    symbols = crc_hqx(np.concatenate(ids).astype("<u2").tobytes(), 0xFFFF)
    raw = pack(codes, spec, weights=WEIGHTS)
    head = raw[:8] + b"\x02" + raw[9:26]
    tail = bytes.fromhex("5eed0001") + struct.pack("<BBH", 0x14, 13, symbols) + prior.encode(ids)
    assert coded == head + struct.pack("<I", zlib.crc32(head + tail)) + tail
    assert len(coded) < len(raw) / 2
    header = read_header(coded)
    assert header.is_prior_coded and not header.is_range_coded and not header.has_text
    assert (header.prior, header.writer, header.symbols) == ("5eed0001", prior.writer, symbols)
    assert header.is_intact and not read_header(coded[:-1]).is_intact
    assert read_header(worded).has_text and worded[8] == 6
    header = read_header(raw)
    assert not header.is_prior_coded and not header.has_text
    assert (header.prior, header.writer, header.symbols) == (None, None, None)


@given(
    pairs=st.lists(st.tuples(st.integers(2, 2000), st.integers(1, 30)), min_size=1, max_size=5),
    seed=st.integers(0, 2**32),
    luck=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    peak=st.sampled_from([0.0, 0.6, 0.9, 1.0]),
    text=st.sampled_from([None, "", "a chair"]),
    keep=st.floats(0.01, 1.0),
    is_ranged=st.booleans(),
)
@quick
def test_round_trip(
    make_spec: MakeSpec,
    make_codes: MakeCodes,
    make_prior: MakePrior,
    pairs: list[tuple[int, int]],
    seed: int,
    luck: float,
    peak: float,
    text: str | None,
    keep: float,
    is_ranged: bool,
) -> None:
    spec = make_spec(pairs)
    histograms = [np.ones(v, int) for v, _ in pairs] if is_ranged else None
    prior = make_prior(spec, peak=peak, text=text)
    whole = prior.likely(make_codes(spec, seed), seed, luck)
    known = {"weights": WEIGHTS, "histograms": histograms, "prior": prior}
    levels = max(1, round(keep * len(pairs)))
    codes = whole.prefix(levels=levels)
    data = pack(codes, spec, **known)
    assert len(data) <= len(pack(codes, spec, weights=WEIGHTS, histograms=histograms))
    assert len(data) <= size(codes, spec) == sizes(spec)[levels - 1]
    assert equal(unpack(data, spec, **known), codes)
    assert pack(codes, spec, **known) == data
    possible = [pack(whole.prefix(levels=k + 1), spec, **known) for k in range(len(pairs))]
    best = max((p for p in possible if len(p) <= len(data)), key=lambda p: p[9])
    assert truncate(possible[-1], spec, len(data), **known) == best


def test_a_file_never_grows(
    spec: TokenizerSpec, make_codes: MakeCodes, codes: Codes, prior: Any
) -> None:
    raw = pack(codes, spec, weights=WEIGHTS)
    for wrong in (replace(prior, peak=0.0), replace(prior, rounding=1), replace(prior, peak=1.0)):
        unlikely = make_codes(spec, 5)
        data = pack(unlikely, spec, weights=WEIGHTS, prior=wrong)
        assert data == pack(unlikely, spec, weights=WEIGHTS)
        assert equal(unpack(data, spec, weights=WEIGHTS, prior=wrong), unlikely)
    assert pack(codes, spec, weights=WEIGHTS, prior=replace(prior, peak=0.0)) == raw


def test_the_eight_bytes_count(
    make_spec: MakeSpec, make_codes: MakeCodes, make_prior: MakePrior
) -> None:
    """A prior that saves eight bytes saves none."""
    for count, saves in ((8, False), (9, False), (10, True)):
        spec = make_spec([(256, count)])
        prior = make_prior(spec, peak=0.9999)
        codes = prior.likely(make_codes(spec), luck=1.0)
        assert len(prior.encode([codes.indices[0][0].numpy()])) <= 1
        data = pack(codes, spec, weights=WEIGHTS, prior=prior)
        assert read_header(data).is_prior_coded == saves
        assert len(data) == min(HEADER + count, HEADER + 9)


def test_every_cut_and_every_flipped_bit_is_refused(
    spec: TokenizerSpec, prior: Any, coded: bytes, worded: bytes
) -> None:
    for data, text in ((coded, None), (worded, "a chair")):
        cuts = [data[:length] for length in range(len(data))]
        bits = [int.from_bytes(data, "big") ^ 1 << bit for bit in range(8 * len(data))]
        flips = [number.to_bytes(len(data), "big") for number in bits]
        for given_prior in (None, replace(prior, text=text)):
            for damaged in cuts + flips:
                with pytest.raises(FormatError) as caught:
                    unpack(damaged, spec, weights=WEIGHTS, prior=given_prior)
                assert "\n" not in str(caught.value)


def test_nothing_is_read_in_part(
    spec: TokenizerSpec, codes: Codes, prior: Any, coded: bytes
) -> None:
    known = {"weights": WEIGHTS, "prior": prior, "partial": True}
    assert equal(unpack(coded, spec, **known), codes)
    for length in range(len(coded)):
        with pytest.raises(FormatError, match=r"no readable part|inside its header|not a \.ptk"):
            unpack(coded[:length], spec, **known)
    for place in (20, 31, 35, 37, 38, len(coded) - 1):
        damaged = bytearray(coded)
        damaged[place] ^= 1
        with pytest.raises(FormatError, match="no readable part"):
            unpack(bytes(damaged), spec, **known)


@pytest.mark.parametrize("appended", [b"\x00", b"\x01", b"\xff\x00\x07", bytes(40), bytes(9999)])
def test_bytes_that_follow_are_refused(
    spec: TokenizerSpec, prior: Any, coded: bytes, appended: bytes
) -> None:
    for data in (coded + appended, with_checksum(coded + appended)):
        with pytest.raises(FormatError):
            unpack(data, spec, weights=WEIGHTS, prior=prior)


@given(payload=st.binary(max_size=90), flags=st.sampled_from([2, 6]), levels=st.integers(1, 4))
@quick
def test_any_payload_with_a_right_checksum_decodes_in_range_or_is_refused(
    spec: TokenizerSpec, prior: Any, coded: bytes, payload: bytes, flags: int, levels: int
) -> None:
    reader = replace(prior, text="" if flags == 6 else None)
    head = coded[:8] + bytes([flags, levels]) + coded[10:34]
    try:
        ids = reader.decode(payload, [level.count for level in spec.levels[:levels]])
        symbols = symbols_checksum(ids, spec.levels[:levels])
    except FormatError:
        ids, symbols = None, 0
    file = with_checksum(head + struct.pack("<HH", prior.writer, symbols) + payload)
    try:
        codes = unpack(file, spec, weights=WEIGHTS, prior=reader)
    except PolytokError as error:
        assert "\n" not in str(error) and len(str(error)) <= 300
        assert ids is None or len(file) > sizes(spec)[levels - 1]
        return
    for found, level in zip(codes.indices, spec.levels, strict=False):
        assert found.shape == (1, level.count)
        assert int(found.min()) >= 0 and int(found.max()) < level.vocab


@given(data=st.data())
@quick
def test_any_bytes_with_a_right_checksum_are_read_or_refused(
    spec: TokenizerSpec, prior: Any, coded: bytes, data: st.DataObject
) -> None:
    """Any eight bytes about the prior, any payload, with any prior or none."""
    tail = data.draw(st.binary(max_size=60))
    file = with_checksum(coded[:8] + bytes([data.draw(st.integers(0, 7))]) + coded[9:30] + tail)
    with pytest.raises(PolytokError) as caught:
        unpack(file, spec, weights=WEIGHTS, prior=data.draw(st.sampled_from([None, prior])))
    assert "\n" not in str(caught.value)


def test_other_priors_are_refused(
    spec: TokenizerSpec, prior: Any, coded: bytes, worded: bytes
) -> None:
    def read(data: bytes, reader: Any) -> None:
        unpack(data, spec, weights=WEIGHTS, prior=reader)

    with pytest.raises(PolytokError, match="under prior 5eed0001; none is given"):
        read(coded, None)
    with pytest.raises(PolytokError, match="under prior 5eed0001 with a text; none is given"):
        read(worded, None)
    with pytest.raises(WeightsError, match="under prior 5eed0001, not 5eed0002"):
        read(coded, replace(prior, fingerprint="5eed0002"))
    with pytest.raises(WeightsError, match="8 hex digits"):
        read(coded, replace(prior, fingerprint="prior"))
    with pytest.raises(PolytokError, match="5eed0001 with a text: give the same"):
        read(worded, prior)
    with pytest.raises(PolytokError, match="5eed0001 without a text: give none"):
        read(coded, replace(prior, text="a chair"))
    read(coded, replace(prior, fingerprint="5EED0001"))
    with pytest.raises(WeightsError, match="made by weights 0badcafe, not by 12345678"):
        unpack(coded, spec, weights="12345678", prior=prior)
    with pytest.raises(WeightsError, match="8 hex digits"):
        pack(
            prior.likely(unpack(coded, spec, weights=WEIGHTS, prior=prior)),
            spec,
            weights=WEIGHTS,
            prior=replace(prior, fingerprint="prior"),
        )


def test_other_numbers_are_told_from_damage(
    spec: TokenizerSpec, prior: Any, coded: bytes, worded: bytes
) -> None:
    """What a reader sees whose floating point differs, or who has another text."""
    here = writer_id("2.9.1", "aarch64", "DEFAULT")
    foreign = replace(prior, rounding=1, writer=here)
    with pytest.raises(FormatError) as caught:
        unpack(coded, spec, weights=WEIGHTS, prior=foreign)
    assert str(caught.value) == (
        "prior 5eed0001 does not give back what was written here (other rounding?): the file was "
        "made with torch 2.13 on x86_64 with AVX512, this is torch 2.9 on aarch64 with DEFAULT"
    )
    with pytest.raises(FormatError, match=r"\(another text, or other rounding\?\): the file"):
        unpack(worded, spec, weights=WEIGHTS, prior=replace(prior, text="a stool"))
    with pytest.raises(FormatError, match="does not give back"):
        truncate(coded, spec, 45, weights=WEIGHTS, prior=foreign)


def test_the_symbols_checksum_counts(spec: TokenizerSpec, prior: Any, coded: bytes) -> None:
    for place in (36, 37):
        damaged = bytearray(coded)
        damaged[place] ^= 0x10
        with pytest.raises(FormatError, match="does not give back what was written here"):
            unpack(with_checksum(bytes(damaged)), spec, weights=WEIGHTS, prior=prior)


def test_a_prior_must_decode_what_it_codes(spec: TokenizerSpec, codes: Codes, prior: Any) -> None:
    class Unsteady(type(prior)):  # type: ignore[misc]
        def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
            return replace(prior, rounding=1).decode(payload, counts)

    class Forgetful(type(prior)):  # type: ignore[misc]
        def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
            return prior.decode(payload, counts)[:-1]

    class Careless(type(prior)):  # type: ignore[misc]
        def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
            *ids, last = prior.decode(payload, counts)
            return [*ids, (last + 1) % 1000]

    for kind in (Unsteady, Forgetful, Careless):
        with pytest.raises(PolytokError, match=r"5eed0001 does not decode what it coded \(torch"):
            pack(codes, spec, weights=WEIGHTS, prior=kind(prior.levels))

    class Late(type(prior)):  # type: ignore[misc]
        def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
            return prior.decode(payload, counts)[: 4 if len(counts) == 4 else 2]

    longer = pack(codes, spec, weights=WEIGHTS, prior=Late(prior.levels))
    with pytest.raises(PolytokError, match="does not decode what it coded"):
        truncate(longer, spec, len(longer) - 1, weights=WEIGHTS, prior=Late(prior.levels))


def test_a_prior_of_another_tokenizer(spec: TokenizerSpec, prior: Any, coded: bytes) -> None:
    found: list[np.ndarray] = []

    class Wrong(type(prior)):  # type: ignore[misc]
        def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
            return found

    good = prior.decode(coded[38:], [level.count for level in spec.levels])
    for wrong in ([], good[:3], [*good[:3], good[3][:-1]], [*good[:3], good[3] - 1001]):
        found[:] = wrong
        with pytest.raises(PolytokError, match="5eed0001 does not fit this tokenizer"):
            unpack(coded, spec, weights=WEIGHTS, prior=Wrong(prior.levels))


def test_truncate(spec: TokenizerSpec, codes: Codes, prior: Any, coded: bytes) -> None:
    known = {"weights": WEIGHTS, "prior": prior}
    assert truncate(coded, spec, len(coded), **known) == coded
    found = set()
    for limit in range(31, len(coded)):
        short = truncate(coded, spec, limit, **known)
        levels = read_header(short).levels
        assert len(short) <= limit
        assert short == pack(codes.prefix(levels=levels), spec, **known)
        assert len(pack(codes.prefix(levels=levels + 1), spec, **known)) > limit
        assert truncate(short, spec, limit, **known) == short
        found.add((levels, read_header(short).is_prior_coded))
    assert found == {(1, False), (2, False), (3, True)}
    with pytest.raises(PolytokError, match="into 30 bytes; possible sizes: 31, 35, "):
        truncate(coded, spec, 30, **known)
    with pytest.raises(PolytokError, match="none is given"):
        truncate(coded, spec, 45, weights=WEIGHTS)


def test_other_files_ignore_the_prior(spec: TokenizerSpec, codes: Codes, prior: Any) -> None:
    raw = pack(codes, spec, weights=WEIGHTS)
    for reader in (prior, replace(prior, fingerprint="5eed0002", text="")):
        assert equal(unpack(raw, spec, weights=WEIGHTS, prior=reader), codes)
    assert read_header(truncate(raw, spec, len(raw) - 1, weights=WEIGHTS, prior=prior)).levels == 3


@pytest.mark.parametrize(
    ("version", "machine", "capability", "number", "words"),
    [
        ("2.13.0+cpu", "x86_64", "AVX512", 0x0D14, "torch 2.13 on x86_64 with AVX512"),
        ("2.8.0", "AMD64", "AVX2", 0x0813, "torch 2.8 on x86_64 with AVX2"),
        ("2.14.0a0+git12", "arm64", "DEFAULT", 0x0E31, "torch 2.14 on arm64 with DEFAULT"),
        ("2.9", "aarch64", "SVE256", 0x0928, "torch 2.9 on aarch64 with SVE256"),
        ("2.9", "s390x", "Z VECTOR", 0x0906, "torch 2.9 on unknown CPU with Z VECTOR"),
        ("2.9", "riscv64", "RVV", 0x0900, "torch 2.9 on unknown CPU with unknown instructions"),
        ("2.999", "x86_64", "AVX2", 0xFF13, "torch of an unknown version on x86_64 with AVX2"),
        ("3.1", "x86_64", "AVX2", 0xFF13, "torch of an unknown version on x86_64 with AVX2"),
    ],
)
def test_writers(version: str, machine: str, capability: str, number: int, words: str) -> None:
    assert writer_id(version, machine, capability) == number
    assert describe_writer(number) == words


def test_every_writer_can_be_described() -> None:
    assert all(len(describe_writer(n)) < 90 for n in range(1 << 16))


def test_symbols_checksum() -> None:
    ids = [np.frombuffer(b"12", "<u2"), np.frombuffer(b"345678", "<u2")]
    levels = [Level(vocab=1 << 16, count=1), Level(vocab=30000, count=3)]
    assert symbols_checksum(ids, levels) == crc_hqx(b"12345678", 0xFFFF)
    assert symbols_checksum(ids[:1], levels[:1]) == crc_hqx(b"12", 0xFFFF)
    wide = [Level(vocab=(1 << 16) + 1, count=2)]
    assert symbols_checksum([np.array([65536, 1])], wide) == crc_hqx(b"\0\0\1\0\1\0\0\0", 0xFFFF)


def test_payload_is_pinned() -> None:
    """Files must stay readable: the bytes of a fixed code never change."""
    table = np.array([[0.7, 0.1, 0.1, 0.1], [0.0, 0.0, 0.5, 0.5], [9.0, 1.0, 0.0, 0.0]])
    writer = SymbolWriter()
    writer.write(np.array([0, 2, 1]), table)
    writer.write(np.array([3, 0, 0]), table.astype(np.float32))
    assert writer.payload().hex() == "58b4382a"


def test_steps_join_to_one_payload() -> None:
    """How many ids a step has does not show; nor do probabilities of zero stop an id."""
    rng = np.random.default_rng(0)
    table = rng.dirichlet(np.full(50, 0.05), size=40)
    table[:10] = 0
    table[np.arange(10), rng.integers(50, size=10)] = 1
    ids = rng.integers(50, size=40)
    writers = [SymbolWriter(), SymbolWriter()]
    assert writers[0].payload() == b""
    writers[0].write(ids, table)
    for start, stop in ((0, 1), (1, 1), (1, 25), (25, 40)):
        writers[1].write(ids[start:stop], table[start:stop])
    payload = writers[0].payload()
    assert payload == writers[1].payload()
    reader = SymbolReader(payload)
    found = [reader.read(table[:7]), reader.read(table[7:7]), reader.read(table[7:])]
    assert np.array_equal(np.concatenate(found), ids)
    reader.close()


def test_closing_too_early_or_another_payload_of_the_same_ids() -> None:
    table, ids = np.full((20, 10), 0.1), 3 * np.arange(20) % 10
    writer = SymbolWriter()
    writer.write(ids, table)
    payload = writer.payload()
    upper = payload[:-1] + bytes([payload[-1] + 1])
    for other in (payload + b"\x00", payload + b"\x01", upper):
        reader = SymbolReader(other)
        assert np.array_equal(reader.read(table), ids)
        with pytest.raises(FormatError, match="not the shortest"):
            reader.close()
    reader = SymbolReader(payload)
    reader.read(table[:10])
    with pytest.raises(FormatError, match="not the shortest"):
        reader.close()


@pytest.mark.parametrize(
    ("ids", "table", "message"),
    [
        ([0, 1], np.ones((3, 4)), r"ids \(2,\) do not fit probabilities \(3, 4\)"),
        ([0, 4], np.ones((2, 4)), "do not fit"),
        ([-1, 0], np.ones((2, 4)), "do not fit"),
        ([0], np.ones((1, 1)), "with V > 1"),
        ([0], np.ones(4), r"\(n, V\)"),
        ([0], np.full((1, 4), np.nan), "must be finite"),
        ([0], np.full((1, 4), np.inf), "must be finite"),
        ([0], np.array([[2.0, -1.0]]), "not negative"),
        ([0], np.zeros((1, 4)), "not all zero"),
    ],
)
def test_refuses_wrong_probabilities(ids: list[int], table: np.ndarray, message: str) -> None:
    with pytest.raises(PolytokError, match=message):
        SymbolWriter().write(np.array(ids), table)


def test_refuses_numbers_of_no_code() -> None:
    with pytest.raises(FormatError, match="belongs to no code"):
        SymbolReader(b"\xff" * 12).read(np.ones((2, 5)))
