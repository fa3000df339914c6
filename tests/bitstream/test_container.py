"""The .ptk container: exact bytes, and no damage that goes unseen."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polytok import bitstream
from polytok.bitstream import (
    bits_per_level,
    nearest_iso,
    nearest_stretch,
    pack,
    read_header,
    size,
    sizes,
    truncate,
    unpack,
)
from polytok.core.contracts import Codes, TokenizerSpec
from polytok.core.errors import FormatError, PolytokError, WeightsError

WEIGHTS = "0badcafe"
HEADER = 30
MakeSpec = Callable[..., TokenizerSpec]
MakeCodes = Callable[..., Codes]
Histograms = list[np.ndarray]


def equal(some: Codes, other: Codes) -> bool:
    """Whether two codes agree in every id and every bit of their meta."""
    return (
        len(some.indices) == len(other.indices)
        and all(map(torch.equal, some.indices, other.indices))
        and some.meta.keys() == other.meta.keys()
        and all(torch.equal(some.meta[k], other.meta[k]) for k in some.meta)
    )


def with_checksum(data: bytes) -> bytes:
    """Replace the checksum by the right one."""
    crc = zlib.crc32(data[:26] + data[30:])
    return data[:26] + struct.pack("<I", crc) + data[30:]


@pytest.fixture(scope="module")
def raw(preset: TokenizerSpec, make_codes: MakeCodes) -> bytes:
    return pack(make_codes(preset), preset, weights=WEIGHTS)


@pytest.fixture(scope="module")
def coded(preset: TokenizerSpec, make_codes: MakeCodes, preset_histograms: Histograms) -> bytes:
    codes = make_codes(preset, skew=6.0)
    data = pack(codes, preset, weights=WEIGHTS, histograms=preset_histograms)
    assert read_header(data).is_range_coded
    return data


def test_exact_bytes(preset: TokenizerSpec, make_codes: MakeCodes, raw: bytes) -> None:
    assert sizes(preset) == [32, 38, 51, 75, 113, 167, 240, 336, 486]
    assert len(raw) == size(make_codes(preset), preset) == 486 <= 512
    assert any(230 <= n <= 256 for n in sizes(preset))
    for k, expected in enumerate(sizes(preset), 1):
        prefix = make_codes(preset).prefix(levels=k)
        assert len(pack(prefix, preset, weights=WEIGHTS)) == expected == size(prefix, preset)


def test_layout_byte_by_byte(make_spec: MakeSpec) -> None:
    """The whole file of a tiny code, written out by hand."""
    spec = make_spec([(16, 1), (16, 3)])
    codes = Codes(
        indices=(torch.tensor([[10]]), torch.tensor([[1, 2, 15]])),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    head = b"PTK\x01" + bytes.fromhex("0badcafe") + b"\x00" + b"\x02"
    head += bytes.fromhex("0000803f000000c00000003f0000803e")
    payload = b"\xa1\x2f"
    expected = head + struct.pack("<I", zlib.crc32(head + payload)) + payload
    assert pack(codes, spec, weights="0BADcafe") == expected
    assert len(expected) == 32
    assert equal(unpack(expected, spec, weights=WEIGHTS), codes)


def test_layout_of_the_surface_s_value(make_spec: MakeSpec) -> None:
    """The top bit of the number of levels, and a signed byte behind the scale."""
    spec = make_spec([(16, 1), (16, 3)])
    plain = Codes(
        indices=(torch.tensor([[10]]), torch.tensor([[1, 2, 15]])),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    without = pack(plain, spec, weights=WEIGHTS)
    for step in range(-128, 128):
        codes = replace(plain, meta={**plain.meta, "iso": torch.tensor([step / 32])})
        data = pack(codes, spec, weights=WEIGHTS)
        head = without[:9] + b"\x82" + without[10:26] + struct.pack("<b", step)
        crc = struct.pack("<I", zlib.crc32(head + without[30:]))
        assert data == head + crc + without[30:]
        assert equal(unpack(data, spec, weights=WEIGHTS), codes)
        assert read_header(data).iso == step / 32
    assert read_header(without).iso == 0
    assert sizes(spec, read_header(data).meta) == [n + 1 for n in sizes(spec)]
    shorter = truncate(data, spec, len(data) - 1, weights=WEIGHTS)
    assert equal(unpack(shorter, spec, weights=WEIGHTS), codes.prefix(levels=1))
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            unpack(data[:cut], spec, weights=WEIGHTS)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, WeightsError)):
            unpack(bytes(damaged), spec, weights=WEIGHTS)


def test_layout_of_the_stretch(make_spec: MakeSpec) -> None:
    """The second bit of the number of levels, and a byte an axis behind the surface's value."""
    spec = make_spec([(16, 1), (16, 3)])
    plain = Codes(
        indices=(torch.tensor([[10]]), torch.tensor([[1, 2, 15]])),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    without = pack(plain, spec, weights=WEIGHTS)
    assert read_header(without).stretch == (1, 1, 1)
    for steps in ([0, 16, 32], *([n, 0, 255 - n] for n in range(256))):
        factors = torch.tensor([[2 ** (n / 16) for n in steps]])
        for iso, flags, value in ((None, 0x40, b""), (0.5, 0xC0, b"\x10")):
            meta = {**plain.meta, "stretch": factors}
            if iso is not None:
                meta["iso"] = torch.tensor([iso])
            codes = replace(plain, meta=meta)
            data = pack(codes, spec, weights=WEIGHTS)
            head = without[:9] + bytes([flags | 2]) + without[10:26] + value + bytes(steps)
            crc = struct.pack("<I", zlib.crc32(head + without[30:]))
            assert data == head + crc + without[30:]
            assert equal(unpack(data, spec, weights=WEIGHTS), codes)
            assert read_header(data).stretch == tuple(factors[0].tolist())
    assert sizes(spec, read_header(data).meta) == [n + 4 for n in sizes(spec)]
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            unpack(data[:cut], spec, weights=WEIGHTS)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises((FormatError, WeightsError)):
            unpack(bytes(damaged), spec, weights=WEIGHTS)


@pytest.mark.parametrize("value", [0.99, 1.03, 0.0, -2.0, 70000.0, float("nan"), float("inf")])
def test_a_stretch_that_a_file_cannot_hold_is_refused(make_spec: MakeSpec, value: float) -> None:
    spec = make_spec([(16, 1)])
    factors = torch.tensor([[1.0, value, 2.0]])
    meta = {"centre": torch.zeros(1, 3), "scale": torch.ones(1), "stretch": factors}
    with pytest.raises(FormatError, match=r"stretch=.* is not three powers of 2\^\(1/16\)"):
        pack(Codes(indices=(torch.tensor([[1]]),), meta=meta), spec, weights=WEIGHTS)


@given(st.lists(st.floats(1e-6, 1e9), min_size=3, max_size=3))
def test_nearest_stretch(factors: list[float]) -> None:
    found = nearest_stretch(factors).astype(np.float64)
    wanted = np.clip(factors, 1, 2 ** (255 / 16))
    assert np.abs(np.log2(found / wanted)).max() <= 1 / 32 + 1e-6


@pytest.mark.parametrize("value", [0.01, 4.0, -4.03125, float("nan"), float("inf")])
def test_values_that_a_file_cannot_hold_are_refused(make_spec: MakeSpec, value: float) -> None:
    spec = make_spec([(16, 1)])
    meta = {"centre": torch.zeros(1, 3), "scale": torch.ones(1), "iso": torch.tensor([value])}
    with pytest.raises(FormatError, match=r"iso=.* is not a multiple of 1/32 within -4..3.96875"):
        pack(Codes(indices=(torch.tensor([[1]]),), meta=meta), spec, weights=WEIGHTS)


@given(st.floats(allow_nan=False))
def test_nearest_value_of_the_surface(value: float) -> None:
    found = nearest_iso(value)
    assert found * 32 == round(found * 32) and -4 <= found < 4
    assert abs(found - min(max(value, -4.0), 3.96875)) <= 1 / 64


def test_header_fields(
    raw: bytes, coded: bytes, preset: TokenizerSpec, make_codes: MakeCodes
) -> None:
    codes, header = make_codes(preset), read_header(raw)
    assert (header.version, header.weights, header.modality, header.levels) == (
        1,
        WEIGHTS,
        "shape",
        9,
    )
    assert header.is_intact and not header.is_range_coded
    assert header.centre == tuple(codes.meta["centre"][0].tolist())
    assert header.scale == float(codes.meta["scale"])
    assert read_header(coded).is_range_coded and coded[8] == 1
    assert not read_header(raw[:-1]).is_intact
    assert read_header(raw[:HEADER]).levels == 9


def test_reading_a_header_imports_no_torch() -> None:
    program = (
        "import sys; from polytok.bitstream import read_header; from polytok.core.errors import *\n"
        "try: read_header(b'PTK')\n"
        "except FormatError: print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


spec_strategy = st.lists(
    st.tuples(st.integers(2, 5000), st.integers(1, 30)), min_size=1, max_size=6
)


@given(
    pairs=spec_strategy,
    seed=st.integers(0, 2**32),
    skew=st.sampled_from([1.0, 8.0]),
    keep=st.floats(0.01, 1.0),
    is_ranged=st.booleans(),
)
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_round_trip(
    make_spec: MakeSpec,
    make_codes: MakeCodes,
    pairs: list[tuple[int, int]],
    seed: int,
    skew: float,
    keep: float,
    is_ranged: bool,
) -> None:
    spec = make_spec(pairs)
    histograms = None
    if is_ranged:
        rng = np.random.default_rng(seed)
        histograms = [
            np.bincount((v * rng.random(300) ** skew).astype(int), minlength=v) for v, _ in pairs
        ]
    levels = max(1, round(keep * len(pairs)))
    whole = make_codes(spec, seed, skew)
    codes = whole.prefix(levels=levels)
    data = pack(codes, spec, weights=WEIGHTS, histograms=histograms)
    assert len(data) <= size(codes, spec) == sizes(spec)[levels - 1]
    assert equal(unpack(data, spec, weights=WEIGHTS, histograms=histograms), codes)
    assert pack(codes, spec, weights=WEIGHTS, histograms=histograms) == data
    full = pack(whole, spec, weights=WEIGHTS, histograms=histograms)
    possible = [
        pack(whole.prefix(levels=k + 1), spec, weights=WEIGHTS, histograms=histograms)
        for k in range(len(pairs))
    ]
    limit = len(possible[levels - 1])
    best = max((p for p in possible if len(p) <= limit), key=lambda p: read_header(p).levels)
    assert truncate(full, spec, limit, weights=WEIGHTS, histograms=histograms) == best


def test_range_coding_only_when_smaller(
    preset: TokenizerSpec,
    make_codes: MakeCodes,
    preset_histograms: Histograms,
    raw: bytes,
    coded: bytes,
) -> None:
    uniform = pack(make_codes(preset), preset, weights=WEIGHTS, histograms=preset_histograms)
    assert uniform == raw  # ids that the histograms do not expect: not one byte lost
    assert len(coded) < 0.8 * len(raw)
    codes = make_codes(preset, skew=6.0)
    ideal = HEADER + sum(bits_per_level(codes, preset, histograms=preset_histograms)) / 8
    assert len(coded) <= ideal + 1.1
    assert bits_per_level(codes, preset) == [12.0 * i.shape[1] for i in codes.indices]


def test_every_cut_is_refused(
    preset: TokenizerSpec, preset_histograms: Histograms, raw: bytes, coded: bytes
) -> None:
    for data in (raw, coded):
        for length in range(len(data)):
            with pytest.raises(FormatError) as caught:
                unpack(data[:length], preset, weights=WEIGHTS, histograms=preset_histograms)
            assert "\n" not in str(caught.value)


def test_every_flipped_bit_is_refused(
    preset: TokenizerSpec, preset_histograms: Histograms, raw: bytes, coded: bytes
) -> None:
    for data in (raw, coded):
        for bit in range(8 * len(data)):
            damaged = bytearray(data)
            damaged[bit // 8] ^= 1 << bit % 8
            with pytest.raises(FormatError) as caught:
                unpack(bytes(damaged), preset, weights=WEIGHTS, histograms=preset_histograms)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("appended", [b"\x00", b"\x01", b"PTK\x01", bytes(1000)])
def test_bytes_that_follow_are_refused(
    preset: TokenizerSpec,
    preset_histograms: Histograms,
    raw: bytes,
    coded: bytes,
    appended: bytes,
) -> None:
    for data in (raw, coded):
        for damaged in (data + appended, with_checksum(data + appended)):
            for partial in (False, data is raw):
                with pytest.raises(FormatError):
                    unpack(
                        damaged,
                        preset,
                        weights=WEIGHTS,
                        histograms=preset_histograms,
                        partial=partial,
                    )


@given(payload=st.binary(max_size=500), head=st.binary(min_size=22, max_size=22), data=st.data())
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_payload_with_a_right_checksum_decodes_in_range_or_is_refused(
    make_spec: MakeSpec,
    preset_histograms: Histograms,
    payload: bytes,
    head: bytes,
    data: st.DataObject,
) -> None:
    spec = make_spec([(4096, 3), (100, 7), (4096, 20)])
    histograms = [preset_histograms[0], np.arange(100), preset_histograms[2]]
    if data.draw(st.booleans()):  # the right length and a plausible header
        flags, levels = data.draw(st.integers(0, 1)), data.draw(st.integers(1, 3))
        payload = payload.ljust(60)[: sizes(spec)[levels - 1] - HEADER]
        head = bytes.fromhex(WEIGHTS) + bytes([flags, levels]) + struct.pack("<4f", 1, 2, 3, 4)
    file = with_checksum(b"PTK\x01" + head + bytes(4) + payload)
    try:
        codes = unpack(file, spec, weights=WEIGHTS, histograms=histograms)
    except PolytokError as error:
        assert "\n" not in str(error)
        return
    for ids, level in zip(codes.indices, spec.levels, strict=False):
        assert ids.shape == (1, level.count)
        assert int(ids.min()) >= 0 and int(ids.max()) < level.vocab
    assert all(bool(torch.isfinite(v).all()) for v in codes.meta.values())


def damaged_headers(raw: bytes) -> Iterator[tuple[bytes, str]]:
    """Files with a right checksum and one wrong value in the header, and what is said of it."""
    yield b"", "not a .ptk file: 0 bytes$"
    yield b"glTF" + raw[4:], "not a .ptk file: 486 bytes that begin with 676c5446"
    yield raw[:3] + b"\x00" + raw[4:], "version 0; this program reads 1"
    yield raw[:3] + b"\x02" + raw[4:], "version 2; this program reads 1"
    for flags in (0x03, 0x04, 0x05, 0x07, 0x08, 0x0A, 0x0E, 0x20, 0xF0, 0xFF):
        yield raw[:8] + bytes([flags]) + raw[9:], f"unknown flags 0x{flags:02x}"
    yield raw[:9] + b"\x00" + raw[10:], "holds no level"
    yield raw[:9] + b"\x0a" + raw[10:], "10 levels; this tokenizer has 9"
    yield raw[:9] + b"\x3f" + raw[10:], "63 levels; this tokenizer has 9"
    yield raw[:9] + b"\x80" + raw[10:], "holds no level"
    yield raw[:9] + b"\x08" + raw[10:], "486 bytes; 8 levels take 336"
    for value in (float("nan"), float("inf"), -float("inf"), 2e30):
        yield raw[:14] + struct.pack("<f", value) + raw[18:], "centre=.* is not within"
    for value in (float("nan"), float("inf"), 0.0, -1.0, 1e-40):
        yield raw[:22] + struct.pack("<f", value) + raw[26:], "scale=.* is not within"


def test_wrong_headers_are_refused(preset: TokenizerSpec, raw: bytes) -> None:
    for file, message in damaged_headers(raw):
        with pytest.raises(FormatError, match=message):
            unpack(with_checksum(file) if file else file, preset, weights=WEIGHTS)


def test_other_weights_are_refused(
    preset: TokenizerSpec, preset_histograms: Histograms, raw: bytes, coded: bytes
) -> None:
    for data in (raw, coded):
        for partial in (False, True):
            with pytest.raises(WeightsError, match="made by weights 0badcafe, not by 12345678"):
                unpack(
                    data, preset, weights="12345678", histograms=preset_histograms, partial=partial
                )
        with pytest.raises(WeightsError):
            truncate(data, preset, 100, weights="12345678", histograms=preset_histograms)
    for name in ("vat", "0badcafe0", "", "0badcaf\n"):
        with pytest.raises(WeightsError, match="8 hex digits"):
            unpack(raw, preset, weights=name)
    with pytest.raises(PolytokError, match="no histograms"):
        unpack(coded, preset, weights=WEIGHTS)


def test_partial_read_of_packed_ids(
    preset: TokenizerSpec, make_codes: MakeCodes, raw: bytes
) -> None:
    codes, ends = make_codes(preset), sizes(preset)
    for length in range(len(raw) + 1):
        whole = sum(end <= length for end in ends)
        # Ids of 12 bits leave half a byte over after an odd number of them.
        whole = max(
            whole,
            sum(
                8 * (length - HEADER) >= 12 * n
                for n in np.cumsum([lv.count for lv in preset.levels])
            ),
        )
        if whole == 0:
            with pytest.raises(FormatError):
                unpack(raw[:length], preset, weights=WEIGHTS, partial=True)
        else:
            for data in (raw[:length], with_checksum(raw[:length]))[: 1 + (length % 7 == 0)]:
                got = unpack(data, preset, weights=WEIGHTS, partial=True)
                assert equal(got, codes.prefix(levels=whole))


def test_partial_read_of_range_coded_ids(
    preset: TokenizerSpec, make_codes: MakeCodes, preset_histograms: Histograms, coded: bytes
) -> None:
    codes, counts = make_codes(preset, skew=6.0), []
    for length in range(HEADER, len(coded) + 1):
        try:
            got = unpack(
                coded[:length],
                preset,
                weights=WEIGHTS,
                histograms=preset_histograms,
                partial=True,
            )
        except FormatError as error:
            assert "before its first level ends" in str(error)
            counts.append(0)
            continue
        assert equal(got, codes.prefix(levels=len(got.indices)))
        counts.append(len(got.indices))
    assert counts == sorted(counts)
    assert counts[0] == 0 and counts[-1] == 9 and set(counts) >= {1, 2, 3, 4, 5, 6, 7, 8, 9}


def test_partial_read_of_damage_keeps_ids_in_range(
    preset: TokenizerSpec, preset_histograms: Histograms, raw: bytes, coded: bytes
) -> None:
    rng = np.random.default_rng(0)
    for data in (raw, coded):
        for _ in range(200):
            damaged = bytearray(data)
            damaged[int(rng.integers(HEADER, len(data)))] ^= int(rng.integers(1, 256))
            try:
                codes = unpack(
                    bytes(damaged),
                    preset,
                    weights=WEIGHTS,
                    histograms=preset_histograms,
                    partial=True,
                )
            except FormatError:
                continue
            assert all(int(i.min()) >= 0 and int(i.max()) < 4096 for i in codes.indices)


def test_truncate(
    preset: TokenizerSpec, make_codes: MakeCodes, preset_histograms: Histograms, raw: bytes
) -> None:
    codes = make_codes(preset)
    for limit in (32, 37, 38, 255, 256, 485, 486, 10_000):
        short = truncate(raw, preset, limit, weights=WEIGHTS)
        levels = sum(n <= limit for n in sizes(preset))
        assert short == pack(codes.prefix(levels=levels), preset, weights=WEIGHTS)
        assert truncate(short, preset, limit, weights=WEIGHTS) == short
    with pytest.raises(
        PolytokError, match="into 31 bytes; possible sizes: 32, 38, 51, 75, 113, 167, 240, 336, 486"
    ):
        truncate(raw, preset, 31, weights=WEIGHTS)
    with pytest.raises(FormatError):
        truncate(raw[:-1], preset, 100, weights=WEIGHTS)


def test_truncated_range_coded_file(
    preset: TokenizerSpec, make_codes: MakeCodes, preset_histograms: Histograms, coded: bytes
) -> None:
    short = truncate(coded, preset, 200, weights=WEIGHTS, histograms=preset_histograms)
    assert len(short) <= 200
    levels = read_header(short).levels
    codes = make_codes(preset, skew=6.0)
    longer = codes.prefix(levels=levels + 1)
    assert len(pack(longer, preset, weights=WEIGHTS, histograms=preset_histograms)) > 200
    got = unpack(short, preset, weights=WEIGHTS, histograms=preset_histograms)
    assert equal(got, codes.prefix(levels=levels))


def test_codes_without_prefixes_stay_whole(make_spec: MakeSpec, make_codes: MakeCodes) -> None:
    spec = make_spec([(16, 2), (16, 4)], prefix=None)
    data = pack(make_codes(spec), spec, weights=WEIGHTS)
    with pytest.raises(PolytokError, match=r"possible sizes: 33$"):
        truncate(data, spec, 32, weights=WEIGHTS)
    with pytest.raises(PolytokError, match="1 levels; the tokenizer has 2"):
        pack(make_codes(spec).prefix(levels=1), spec, weights=WEIGHTS)
    shorter = truncate(data, replace(spec, prefix="levels"), 32, weights=WEIGHTS)
    with pytest.raises(FormatError, match="1 levels; this tokenizer has 2"):
        unpack(shorter, spec, weights=WEIGHTS)


def test_specs_of_no_fixed_size_are_refused(make_spec: MakeSpec, make_codes: MakeCodes) -> None:
    codes = make_codes(make_spec([(16, 2)]))
    for spec, message in (
        (make_spec([(16, None)]), "a fixed count"),
        (make_spec([(1, 2)]), "a vocabulary above 1"),
        (make_spec([], latent_dim=4), "has 0"),
        (make_spec([(2, 1)] * 256), "has 256"),
        (make_spec([(16, 2)], modality="audio"), "not of audio"),
    ):
        with pytest.raises(PolytokError, match=message):
            pack(codes, spec, weights=WEIGHTS)
        with pytest.raises(PolytokError, match=message):
            sizes(spec)


def test_codes_that_do_not_fit_the_spec_are_refused(
    make_spec: MakeSpec, make_codes: MakeCodes
) -> None:
    spec = make_spec([(16, 2)])
    good = make_codes(spec)

    def ids(*values: int) -> Codes:
        return replace(good, indices=(torch.tensor([values]),))

    def meta(**values: torch.Tensor) -> Codes:
        return replace(good, meta={**good.meta, **values})

    for codes, message in (
        (ids(0, 16), "id 16, which is not within 0..15"),
        (ids(-1, 3), "id -1"),
        (ids(1, 2, 3), "3 ids instead of 2"),
        (Codes.cat([good, good]), "batch of one"),
        (Codes(latents=torch.zeros(1, 2, 3)), "discrete"),
        (replace(good, lengths=torch.tensor([2])), "fixed length"),
        (replace(good, indices=good.indices * 2), "2 levels; the tokenizer has 1"),
        (replace(good, meta={"scale": torch.ones(1)}), "no meta 'centre'"),
        (meta(centre=torch.zeros(1, 2)), r"shape \(2,\), not \(3,\)"),
        (meta(scale=torch.zeros(1)), r"scale=0.0 is not within 1e-30..1e\+30"),
        (meta(scale=torch.tensor([float("nan")])), "scale=nan"),
        (meta(scale=torch.tensor([1e300], dtype=torch.float64)), "scale=inf"),
        (meta(centre=torch.full((1, 3), float("inf"))), "centre"),
    ):
        with pytest.raises(PolytokError, match=message):
            pack(codes, spec, weights=WEIGHTS)


@pytest.mark.parametrize("unit", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_units_come_back_exactly(make_spec: MakeSpec, make_codes: MakeCodes, unit: float) -> None:
    spec = make_spec([(16, 2)])
    meta = {"centre": torch.tensor([[unit, -unit, 0.0]]), "scale": torch.tensor([unit])}
    codes = replace(make_codes(spec), meta=meta)
    assert equal(unpack(pack(codes, spec, weights=WEIGHTS), spec, weights=WEIGHTS), codes)


def test_public_names_exist() -> None:
    assert bitstream.__all__ == sorted(bitstream.__all__)
    assert all(hasattr(bitstream, name) for name in bitstream.__all__)
