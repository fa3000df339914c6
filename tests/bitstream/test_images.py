"""Images in the container: exact bytes, every prefix of tokens, and no damage that goes unseen."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytok.bitstream import (
    bits_per_level,
    pack,
    read_header,
    size,
    sizes,
    tile_grid,
    truncate,
    unpack,
)
from polytok.core.contracts import Codes, Level, TokenizerSpec
from polytok.core.errors import FormatError, PolytokError, WeightsError

WEIGHTS = "0badcafe"
PLAIN_HEAD = 17  # bytes before the payload when every number of the header takes one byte
MakeSpec = Callable[..., TokenizerSpec]
MakeCodes = Callable[..., Codes]
quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def equal(some: Codes, other: Codes) -> bool:
    return (
        len(some.indices) == len(other.indices) == 1
        and torch.equal(some.indices[0], other.indices[0])
        and some.meta.keys() == other.meta.keys() == {"size", "tiles"}
        and all(torch.equal(some.meta[k], other.meta[k]) for k in some.meta)
    )


def first(codes: Codes, tokens: int) -> Codes:
    """The first tokens of every tile."""
    (width, height), tiles = codes.meta["size"][0].tolist(), int(codes.meta["tiles"])
    return codes.prefix(tokens=tokens * math.prod(tile_grid(width, height, tiles)))


def varints(*values: int) -> bytes:
    """Little-endian groups of seven bits, written as the format's page says."""
    out = b""
    for value in values:
        groups = [value & 0x7F]
        while value := value >> 7:
            groups.append(value & 0x7F)
        out += bytes([g | 0x80 for g in groups[:-1]] + groups[-1:])
    return out


def file_of(flags: int, numbers: bytes, payload: bytes, weights: str = WEIGHTS) -> bytes:
    """A file with a right checksum."""
    head = b"PTK\x01" + bytes.fromhex(weights) + bytes([flags]) + numbers
    return head + struct.pack("<I", zlib.crc32(payload, zlib.crc32(head))) + payload


@pytest.fixture(scope="module")
def spec(image_spec: MakeSpec) -> TokenizerSpec:
    return image_spec(1000, 12)


@pytest.fixture(scope="module")
def histograms(spec: TokenizerSpec) -> list[np.ndarray]:
    """One histogram for all positions, of ids drawn with ``skew=6``."""
    rng = np.random.default_rng(3)
    pooled = np.bincount((1000 * rng.random(5000) ** 6).astype(int), minlength=1000)
    return [pooled] * 12


@pytest.fixture(scope="module")
def raw(spec: TokenizerSpec, image_codes: MakeCodes) -> bytes:
    return pack(image_codes(spec, tiles=2), spec, weights=WEIGHTS)


@pytest.fixture(scope="module")
def coded(spec: TokenizerSpec, image_codes: MakeCodes, histograms: list[np.ndarray]) -> bytes:
    codes = image_codes(spec, tiles=2, skew=6.0)
    data = pack(codes, spec, weights=WEIGHTS, histograms=histograms)
    assert read_header(data).is_range_coded
    return data


def test_layout_byte_by_byte(image_spec: MakeSpec) -> None:
    """A whole file, written out by hand: two tiles side by side, of three tokens each."""
    spec = image_spec(16, 3)
    codes = Codes(
        indices=(torch.tensor([[10, 1, 2, 15, 0, 7]]),),
        meta={"size": torch.tensor([[300, 150]]), "tiles": torch.tensor([2])},
    )
    assert tile_grid(300, 150, 2) == (1, 2)
    numbers = bytes([3, 0xAC, 0x02, 0x96, 0x01, 2])
    expected = file_of(0x10, numbers, bytes.fromhex("a12f07"))
    assert pack(codes, spec, weights=WEIGHTS) == expected
    assert equal(unpack(expected, spec, weights=WEIGHTS), codes)
    shorter = file_of(0x10, bytes([2]) + numbers[1:], bytes.fromhex("a12f"))
    assert pack(first(codes, 2), spec, weights=WEIGHTS) == shorter
    assert truncate(expected, spec, len(shorter), weights=WEIGHTS) == shorter


@pytest.mark.parametrize("side", [1, 127, 128, 16383, 16384, 65535])
def test_sizes_of_all_kinds_come_back(
    image_spec: MakeSpec, image_codes: MakeCodes, side: int
) -> None:
    spec = image_spec(1024, 32)
    for shape in ((side, 64), (64, side), (side, side)):
        codes = image_codes(spec, shape)
        data = pack(codes, spec, weights=WEIGHTS)
        assert len(data) == 9 + len(varints(32, *shape, 1)) + 4 + 40 == size(codes, spec)
        header = read_header(data)
        assert (header.modality, header.size, header.levels) == ("image", shape, 32)
        assert header.grid == (1, 1)
        assert equal(unpack(data, spec, weights=WEIGHTS), codes)


def test_the_header_of_a_small_picture_takes_17_bytes(
    image_spec: MakeSpec, image_codes: MakeCodes
) -> None:
    spec = image_spec(1024, 32)
    codes = image_codes(spec, (64, 64))
    meta = read_header(pack(codes, spec, weights=WEIGHTS)).meta
    expected = [PLAIN_HEAD + -(-10 * k // 8) for k in range(1, 33)]
    assert sizes(spec, meta) == expected
    for k in (1, 2, 11, 32):
        data = pack(first(codes, k), spec, weights=WEIGHTS)
        assert len(data) == expected[k - 1] == size(first(codes, k), spec)
        assert read_header(data).levels == k


@given(width=st.integers(1, 65535), height=st.integers(1, 65535), tiles=st.integers(1, 16))
def test_grids_keep_tiles_nearest_to_square(width: int, height: int, tiles: int) -> None:
    rows, columns = tile_grid(width, height, tiles)
    assert max(rows, columns) == tiles and min(rows, columns) >= 1
    longest, shortest = max(width, height), min(width, height)
    exact = Fraction(tiles * shortest, longest)
    assert min(rows, columns) == max(1, math.floor(exact + Fraction(1, 2)))
    assert tile_grid(height, width, tiles) == (columns, rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 1), "width=0 is not within 1..65535"),
        ((5, 65536, 1), "height=65536"),
        ((5, 5, 0), "tiles=0 is not within 1..16"),
        ((5, 5, 17), "tiles=17"),
    ],
)
def test_grids_have_bounds(arguments: tuple[int, int, int], message: str) -> None:
    with pytest.raises(PolytokError, match=message):
        tile_grid(*arguments)


@given(
    vocab=st.integers(2, 5000),
    count=st.integers(1, 40),
    shape=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    tiles=st.integers(1, 4),
    seed=st.integers(0, 2**32),
    skew=st.sampled_from([1.0, 8.0]),
    is_ranged=st.booleans(),
    data=st.data(),
)
@quick
def test_round_trip_and_truncation(
    image_spec: MakeSpec,
    image_codes: MakeCodes,
    vocab: int,
    count: int,
    shape: tuple[int, int],
    tiles: int,
    seed: int,
    skew: float,
    is_ranged: bool,
    data: st.DataObject,
) -> None:
    spec = image_spec(vocab, count)
    whole = image_codes(spec, shape, tiles, seed, skew)
    known: dict[str, Any] = {"weights": WEIGHTS}
    if is_ranged:
        rng = np.random.default_rng(seed)
        pooled = np.bincount((vocab * rng.random(300) ** skew).astype(int), minlength=vocab)
        known["histograms"] = [pooled] * count
    possible = [pack(first(whole, k), spec, **known) for k in range(1, count + 1)]
    for k, file in enumerate(possible, 1):
        assert equal(unpack(file, spec, **known), first(whole, k))
        assert len(file) <= size(first(whole, k), spec)
    lengths = [len(file) for file in possible]
    assert lengths == sorted(lengths)
    limit = data.draw(st.integers(lengths[0], lengths[-1]))
    # The most tokens that fit, whichever they are.
    best = max(k for k in range(count) if lengths[k] <= limit)
    assert truncate(possible[-1], spec, limit, **known) == possible[best]
    with pytest.raises(PolytokError, match=f"{lengths[0] - 1} bytes; .*size.?: {lengths[0]}"):
        truncate(possible[-1], spec, lengths[0] - 1, **known)


def test_budgets_below_one_token_name_the_smallest_size(
    image_spec: MakeSpec, image_codes: MakeCodes
) -> None:
    spec = image_spec(4096, 256)
    data = pack(image_codes(spec, (64, 64)), spec, weights=WEIGHTS)
    assert len(data) == 402  # 256 takes two bytes of the header
    with pytest.raises(PolytokError, match=r"into 18 bytes; the smallest possible size: 19$"):
        truncate(data, spec, 18, weights=WEIGHTS)
    assert len(truncate(data, spec, 19, weights=WEIGHTS)) == 19


def test_codes_without_prefixes_stay_whole(image_spec: MakeSpec, image_codes: MakeCodes) -> None:
    spec = image_spec(1024, 32, prefix=None)
    codes = image_codes(spec, (64, 64))
    data = pack(codes, spec, weights=WEIGHTS)
    with pytest.raises(PolytokError, match=r"possible sizes: 57$"):
        truncate(data, spec, 56, weights=WEIGHTS)
    with pytest.raises(PolytokError, match="31 tokens; the tokenizer has 32"):
        pack(first(codes, 31), spec, weights=WEIGHTS)
    shorter = truncate(data, replace(spec, prefix="tokens"), 56, weights=WEIGHTS)
    with pytest.raises(FormatError, match="31 tokens; this tokenizer has 32"):
        unpack(shorter, spec, weights=WEIGHTS)


def test_every_cut_is_refused(
    spec: TokenizerSpec, histograms: list[np.ndarray], raw: bytes, coded: bytes
) -> None:
    for data in (raw, coded):
        for length in range(len(data)):
            with pytest.raises(FormatError) as caught:
                unpack(data[:length], spec, weights=WEIGHTS, histograms=histograms)
            assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_refused(
    spec: TokenizerSpec, histograms: list[np.ndarray], raw: bytes, coded: bytes
) -> None:
    for data in (raw, coded):
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FormatError) as caught:
                unpack(bytes(damaged), spec, weights=WEIGHTS, histograms=histograms)
            assert "\n" not in str(caught.value)


@given(payload=st.binary(max_size=120), numbers=st.binary(max_size=8), data=st.data())
@quick
def test_any_payload_with_a_right_checksum_decodes_in_range_or_is_refused(
    spec: TokenizerSpec,
    histograms: list[np.ndarray],
    payload: bytes,
    numbers: bytes,
    data: st.DataObject,
) -> None:
    flags = 0x10 | data.draw(st.sampled_from([0, 1, 2, 6]))
    if data.draw(st.booleans()):  # a plausible header, and about the right length
        count, tiles = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 3))
        numbers = varints(count, 640, 480, tiles)
        meta = {"size": np.array([640, 480]), "tiles": np.array(tiles)}
        payload = payload.ljust(120)[: sizes(spec, meta)[count - 1] - 13 - len(numbers)]
    try:
        codes = unpack(
            file_of(flags, numbers, payload), spec, weights=WEIGHTS, histograms=histograms
        )
    except PolytokError as error:
        assert "\n" not in str(error)
        return
    (width, height), tiles = codes.meta["size"][0].tolist(), int(codes.meta["tiles"])
    assert 1 <= width <= 65535 and 1 <= height <= 65535 and 1 <= tiles <= 16
    [ids] = codes.indices
    assert ids.shape[1] % math.prod(tile_grid(width, height, tiles)) == 0
    assert int(ids.min()) >= 0 and int(ids.max()) < 1000


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (varints(0, 640, 480, 2), "holds no token"),
        (varints(13, 640, 480, 2), "13 tokens; this tokenizer has 12"),
        (varints(12, 0, 480, 2), "width=0 is not within 1..65535"),
        (varints(12, 640, 65536, 2), "height=65536 is not within"),
        (varints(12, 640, 480, 0), "tiles=0 is not within 1..16"),
        (varints(12, 640, 480, 17), "tiles=17"),
        (varints(12, 640, 480, 3), "the file is cut"),
        (varints(11, 640, 480, 2), "bytes; 11 tokens take"),
        (b"\x8c\x00" + varints(640, 480, 2), "more bytes than it needs"),
        (b"\x0c\x80\x80\x80\x01" + varints(480, 2), "a number of more than 3 bytes"),
        (b"\xff\xff\xff\xff\xff\xff\xff", "a number of more than 3 bytes"),
    ],
)
def test_wrong_headers_are_refused(
    spec: TokenizerSpec, raw: bytes, numbers: bytes, message: str
) -> None:
    payload = raw[9 + len(varints(12, 640, 480, 2)) + 4 :]
    with pytest.raises(FormatError, match=message):
        unpack(file_of(0x10, numbers, payload), spec, weights=WEIGHTS)


def test_images_are_no_shapes(
    spec: TokenizerSpec, make_spec: MakeSpec, make_codes: MakeCodes, raw: bytes
) -> None:
    shapes = make_spec([(1000, 12)])
    with pytest.raises(FormatError, match="a code of image, not of shape"):
        unpack(raw, shapes, weights=WEIGHTS)
    data = pack(make_codes(shapes), shapes, weights=WEIGHTS)
    with pytest.raises(FormatError, match="a code of shape, not of image"):
        unpack(data, spec, weights=WEIGHTS)
    with pytest.raises(WeightsError, match="made by weights 0badcafe, not by 12345678"):
        unpack(raw, spec, weights="12345678")


def test_a_cut_file_gives_its_whole_tokens(
    spec: TokenizerSpec, image_codes: MakeCodes, histograms: list[np.ndarray], raw: bytes
) -> None:
    coded = pack(image_codes(spec, tiles=2, skew=6.0), spec, weights=WEIGHTS, histograms=histograms)
    for data, skew in ((raw, 1.0), (coded, 6.0)):
        codes, found = image_codes(spec, tiles=2, skew=skew), []
        for length in range(len(data) - 1, 9 + len(varints(12, 640, 480, 2)) + 4, -1):
            try:
                part = unpack(
                    data[:length], spec, weights=WEIGHTS, histograms=histograms, partial=True
                )
            except FormatError as error:
                assert "before its first token ends" in str(error)
                found.append(0)
                continue
            tokens = part.indices[0].shape[1] // 4
            assert equal(part, first(codes, tokens))
            found.append(tokens)
        assert found == sorted(found, reverse=True)
        assert set(found) >= set(range(11))


def test_range_coding_by_position(image_spec: MakeSpec, image_codes: MakeCodes) -> None:
    """Each position may have a histogram of its own; one that knows its id costs almost nothing."""
    spec = image_spec(64, 8)
    codes = image_codes(spec, (64, 64))
    [ids] = codes.indices
    own = [np.bincount([i], minlength=64) * 10_000 for i in ids[0].tolist()]
    data = pack(codes, spec, weights=WEIGHTS, histograms=own)
    ideal = bits_per_level(codes, spec, histograms=own)
    assert len(ideal) == 8 and max(ideal) < 0.01
    assert len(data) <= PLAIN_HEAD + 1
    assert equal(unpack(data, spec, weights=WEIGHTS, histograms=own), codes)
    assert bits_per_level(codes, spec) == [6.0] * 8


def test_prior_coded_images(
    image_spec: MakeSpec, image_codes: MakeCodes, make_prior: Callable[..., Any]
) -> None:
    """A prior sees an image as it sees any code: level by level, here token by token."""
    spec = image_spec(256, 20)
    codes = image_codes(spec, (64, 64))
    prior = make_prior(spec, favourite=7)
    prior = replace(prior, levels=(Level(vocab=256, count=1),) * 20)
    likely = replace(codes, indices=(torch.full((1, 20), 7),))
    data = pack(likely, spec, weights=WEIGHTS, prior=prior)
    assert data[8] == 0x12 and len(data) < PLAIN_HEAD + 20
    assert equal(unpack(data, spec, weights=WEIGHTS, prior=prior), likely)
    assert pack(codes, spec, weights=WEIGHTS, prior=prior)[8] == 0x10


def test_codes_that_do_not_fit_are_refused(image_spec: MakeSpec, image_codes: MakeCodes) -> None:
    spec = image_spec(16, 3)
    good = image_codes(spec, (300, 150), 2)

    def meta(**values: torch.Tensor) -> Codes:
        return replace(good, meta={**good.meta, **values})

    for codes, message in (
        (replace(good, indices=(torch.zeros(1, 5, dtype=torch.int64),)), "all of 2 tiles"),
        (replace(good, indices=(torch.full((1, 6), 16),)), "token 1 has id 16"),
        (replace(good, indices=good.indices * 2), "2 levels; the tokenizer has 1"),
        (replace(good, meta={"size": good.meta["size"]}), "no meta 'tiles'"),
        (meta(size=torch.zeros(1, 2, dtype=torch.int64)), "width=0"),
        (meta(size=torch.tensor([[300.5, 150.0]])), "whole numbers, not float32"),
        (meta(size=torch.tensor([[300]])), r"shape \(1,\), not \(2,\)"),
        (meta(tiles=torch.tensor([-1])), "tiles=-1"),
    ):
        with pytest.raises(PolytokError, match=message):
            pack(codes, spec, weights=WEIGHTS)
    two_books = replace(spec, levels=spec.levels * 2)
    with pytest.raises(PolytokError, match="images of 1 level; this tokenizer has 2"):
        pack(good, two_books, weights=WEIGHTS)
