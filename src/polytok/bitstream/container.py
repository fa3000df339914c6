"""The ``.ptk`` container: header, restore-units data, checksum and payload of one code.

``docs/ptk-format.md`` describes it byte by byte. Everything here works without torch, except for
the tensors that ``pack`` takes and ``unpack`` returns.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polytok.bitstream.packing import Ids, num_bytes, pack_ids, unpack_cut, unpack_ids
from polytok.bitstream.prior import SymbolModel, describe_writer, symbols_checksum
from polytok.bitstream.ranging import RangeCoder, frequencies
from polytok.core.errors import FormatError, PolytokError, WeightsError

if TYPE_CHECKING:
    from polytok.core.contracts import Codes, Level, TokenizerSpec

MAGIC = b"PTK"
VERSION = 1
_PREFIX = struct.Struct("<3sB4sBB")
_PRIOR = struct.Struct("<4sHH")
_CHECKSUM = struct.Struct("<I")
_RANGE_CODED, _PRIOR_CODED, _HAS_TEXT = 0x01, 0x02, 0x04
_CODINGS = (0, _RANGE_CODED, _PRIOR_CODED, _PRIOR_CODED | _HAS_TEXT)
_MODALITY_SHIFT = 4

Histograms = Sequence[NDArray[Any]]


@dataclass(frozen=True)
class _Field:
    """One row of restore-units data: ``shape`` float32 values, each within [low, high]."""

    name: str
    shape: tuple[int, ...]
    low: float
    high: float

    @property
    def num_values(self) -> int:
        return int(np.prod(self.shape))


# What a decoder needs besides the ids, by modality; a modality's place is its code in the flags.
# The bounds leave room for the restored coordinates in float32.
_META: dict[str, tuple[_Field, ...]] = {
    "shape": (_Field("centre", (3,), -1e30, 1e30), _Field("scale", (), 1e-30, 1e30)),
}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a ``.ptk`` file says about itself.

    Args:
        version: of the format.
        weights: fingerprint of the weights that made the code, 8 hex digits.
        modality: of the signal.
        levels: number of levels present.
        is_range_coded: the payload is coded under the histograms of the weights.
        is_intact: the checksum agrees with the bytes.
        meta: float32 arrays by name that restore the signal.
        prior: fingerprint of the prior that the payload is coded under, 8 hex digits, or None.
        has_text: the prior had a text.
        writer: what computed the prior's probabilities, see ``describe_writer``; or None.
        symbols: checksum of the ids of a prior-coded payload, or None.
    """

    version: int
    weights: str
    modality: str
    levels: int
    is_range_coded: bool
    is_intact: bool
    meta: Mapping[str, NDArray[np.float32]]
    prior: str | None = None
    has_text: bool = False
    writer: int | None = None
    symbols: int | None = None

    @property
    def is_prior_coded(self) -> bool:
        """Whether the payload is coded under a prior."""
        return self.prior is not None

    @property
    def centre(self) -> tuple[float, ...]:
        """Centre (3,) of a shape in its own units."""
        return tuple(self.meta["centre"].tolist())

    @property
    def scale(self) -> float:
        """Factor from a shape's own units to normalised ones."""
        return float(self.meta["scale"])


def read_header(data: bytes) -> Header:
    """Read the fixed part of a file; the payload may be missing.

    Raises:
        FormatError: no ``.ptk`` file, of another version, or with values that none can have.
    """
    if len(data) < _PREFIX.size or data[:3] != MAGIC:
        start = f" that begin with {bytes(data[:4]).hex()}" if data else ""
        raise FormatError(f"not a .ptk file: {len(data)} bytes{start}")
    _, version, weights, flags, levels = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"the file has .ptk version {version}; this program reads {VERSION}")
    code = flags >> _MODALITY_SHIFT
    if flags & 0x0F not in _CODINGS or code >= len(_META):
        raise FormatError(f"the file has unknown flags 0x{flags:02x}")
    if not levels:
        raise FormatError("the file holds no level")
    modality = list(_META)[code]
    is_prior_coded = bool(flags & _PRIOR_CODED)
    length = _header_size(modality)
    needed = length + (_PRIOR.size if is_prior_coded else 0)
    if len(data) < needed:
        raise FormatError(f"the file ends after {len(data)} bytes, inside its header of {needed}")
    values = np.frombuffer(data, "<f4", offset=_PREFIX.size, count=(length - 14) // 4)
    prior, writer, symbols = None, None, None
    if is_prior_coded:
        name, writer, symbols = _PRIOR.unpack_from(data, length)
        prior = name.hex()
    return Header(
        version=version,
        weights=weights.hex(),
        modality=modality,
        levels=levels,
        is_range_coded=bool(flags & _RANGE_CODED),
        is_intact=data[length - 4 : length] == _checksum(data[: length - 4], data[length:]),
        meta=_read_meta(values, modality),
        prior=prior,
        has_text=bool(flags & _HAS_TEXT),
        writer=writer,
        symbols=symbols,
    )


def pack(
    codes: Codes,
    spec: TokenizerSpec,
    *,
    weights: str,
    histograms: Histograms | None = None,
    prior: SymbolModel | None = None,
) -> bytes:
    """Turn one code into the bytes of a file, the smallest of those that the arguments allow.

    Args:
        codes: a batch of one, of any leading number of levels if the spec allows prefixes; its
            ``meta`` has ``centre`` (1, 3) and ``scale`` (1,) for shapes.
        spec: of the tokenizer, with a fixed count per level.
        weights: fingerprint of the tokenizer's weights, 8 hex digits.
        histograms: counts (V_k,) per level that belong to the weights; with them the payload is
            range coded when that is smaller.
        prior: with it the payload is prior coded when the file is smaller so.

    Raises:
        PolytokError: the codes do not fit the spec, or the prior does not decode what it coded.
    """
    ids = _ids_of(codes, spec)
    data = _write(ids, _meta_of(codes, spec.modality), spec, weights, histograms, prior)
    return _proven(data, ids, prior)


def unpack(
    data: bytes,
    spec: TokenizerSpec,
    *,
    weights: str,
    histograms: Histograms | None = None,
    prior: SymbolModel | None = None,
    partial: bool = False,
) -> Codes:
    """Turn the bytes of a file into codes, a batch of one; the inverse of :func:`pack`.

    Args:
        prior: what coded the payload, with the same text; files that no prior coded ignore it.
        partial: accept a file that was cut anywhere and return its whole levels. Its checksum
            cannot be checked then: compare ``read_header(data).is_intact`` and ``.levels``.
            Files that a prior coded cannot be read so.

    Raises:
        FormatError: the file is damaged, cut, too long, or does not fit the spec; or the prior's
            probabilities are not here what they were where the file was made.
        WeightsError: the file was made by other weights or another prior.
        PolytokError: histograms, prior or text are missing.
    """
    import torch

    from polytok.core.contracts import Codes

    header, ids = _read(data, spec, weights, histograms, prior, partial)
    return Codes(
        indices=tuple(torch.from_numpy(i)[None] for i in ids),
        meta={k: torch.from_numpy(v.copy())[None] for k, v in header.meta.items()},
    )


def truncate(
    data: bytes,
    spec: TokenizerSpec,
    max_bytes: int,
    *,
    weights: str,
    histograms: Histograms | None = None,
    prior: SymbolModel | None = None,
) -> bytes:
    """Return the valid file with the most leading levels that has at most ``max_bytes``.

    Raises:
        PolytokError: not even one level fits, see also :func:`unpack`; the sizes are listed.
    """
    header, ids = _read(data, spec, weights, histograms, prior, partial=False)
    if len(data) <= max_bytes:
        return bytes(data)
    found = [len(data)]
    for levels in range(len(ids) - 1 if spec.prefix == "levels" else 0, 0, -1):
        shorter = _write(ids[:levels], header.meta, spec, weights, histograms, prior)
        if len(shorter) <= max_bytes:
            return _proven(shorter, ids[:levels], prior)
        found.append(len(shorter))
    raise PolytokError(
        f"nothing of this file fits into {max_bytes} bytes; "
        f"possible sizes: {', '.join(map(str, reversed(found)))}"
    )


def size(codes: Codes, spec: TokenizerSpec) -> int:
    """Return the bytes of the file of ``codes`` when it is only packed, and so the most."""
    return sizes(spec)[len(_ids_of(codes, spec)) - 1]


def sizes(spec: TokenizerSpec) -> list[int]:
    """Return the bytes of a file with the first 1, 2, ... levels, when it is only packed."""
    levels = _levels_of(spec)
    header = _header_size(spec.modality)
    return [header + num_bytes(levels[: k + 1]) for k in range(len(levels))]


def bits_per_level(
    codes: Codes, spec: TokenizerSpec, *, histograms: Histograms | None = None
) -> list[float]:
    """Return the bits that each level of ``codes`` takes: packed, or ideally under histograms."""
    ids = _ids_of(codes, spec)
    levels = spec.levels[: len(ids)]
    if histograms is None:
        return [len(i) * float(np.log2(lv.vocab)) for i, lv in zip(ids, levels, strict=True)]
    return [
        float(-np.log2(f[i] / f.sum()).sum())
        for i, f in zip(ids, frequencies(histograms, levels), strict=True)
    ]


def _write(
    ids: Ids,
    meta: Mapping[str, NDArray[np.float32]],
    spec: TokenizerSpec,
    weights: str,
    histograms: Histograms | None,
    prior: SymbolModel | None,
) -> bytes:
    levels = spec.levels[: len(ids)]
    ways = [(0, pack_ids(ids, levels))]
    if histograms is not None:
        ways.append((_RANGE_CODED, RangeCoder(histograms, levels).encode(ids)))
    if prior is not None:
        checksum = symbols_checksum(ids, levels)
        fields = _PRIOR.pack(_fingerprint(prior.fingerprint), prior.writer, checksum)
        flags = _PRIOR_CODED | (_HAS_TEXT if prior.has_text else 0)
        ways.append((flags, fields + prior.encode(ids)))
    # Of equal ones the first, which needs least to be read.
    flags, payload = min(ways, key=lambda way: len(way[1]))
    flags |= list(_META).index(spec.modality) << _MODALITY_SHIFT
    values = np.concatenate([np.ravel(meta[f.name]) for f in _META[spec.modality]])
    head = _PREFIX.pack(MAGIC, VERSION, _fingerprint(weights), flags, len(ids))
    head += values.astype("<f4").tobytes()
    return head + _checksum(head, payload) + payload


def _proven(data: bytes, ids: Ids, prior: SymbolModel | None) -> bytes:
    """Return a file; one that is prior coded once the prior has decoded its payload to the ids.

    Floating point may differ between two runs on one machine.
    """
    header = read_header(data)
    if prior is None or not header.is_prior_coded:
        return data
    try:
        found = prior.decode(_payload(data, header), len(ids))
    except FormatError:
        found = []
    if len(found) != len(ids) or not all(map(np.array_equal, found, ids)):
        raise PolytokError(
            f"prior {prior.fingerprint} does not decode what it coded "
            f"({describe_writer(prior.writer)}); pack without it"
        )
    return data


def _read(
    data: bytes,
    spec: TokenizerSpec,
    weights: str,
    histograms: Histograms | None,
    prior: SymbolModel | None,
    partial: bool,
) -> tuple[Header, Ids]:
    header = read_header(data)
    if header.modality != spec.modality:
        raise FormatError(f"the file holds a code of {header.modality}, not of {spec.modality}")
    most = len(_levels_of(spec))
    if header.levels > most or (header.levels < most and spec.prefix != "levels"):
        raise FormatError(f"the file holds {header.levels} levels; this tokenizer has {most}")
    whole = sizes(spec)[header.levels - 1]
    if len(data) > whole:
        raise FormatError(f"the file has {len(data)} bytes; {header.levels} levels take {whole}")
    is_packed = not header.is_range_coded and not header.is_prior_coded
    if is_packed and len(data) < whole and not partial:
        raise FormatError(f"the file is cut: it has {len(data)} bytes of {whole}")
    if header.is_prior_coded and not header.is_intact and partial:
        raise FormatError("the file is damaged or cut, and what a prior coded has no readable part")
    if not header.is_intact and not partial:
        raise FormatError("the file is damaged or cut: its checksum is wrong")
    if bytes.fromhex(header.weights) != _fingerprint(weights):
        raise WeightsError(f"the file was made by weights {header.weights}, not by {weights}")
    levels = spec.levels[: header.levels]
    payload = _payload(data, header)
    if header.is_prior_coded:
        ids = _decode_with(prior, payload, header, levels)
    else:
        ids = _decode(payload, header, levels, histograms)
    if not ids:
        raise FormatError(f"the file is cut after {len(data)} bytes, before its first level ends")
    return header, ids


def _decode(
    payload: bytes, header: Header, levels: tuple[Level, ...], histograms: Histograms | None
) -> Ids:
    """Decode a payload; one that is cut or damaged as far as its bytes determine levels."""
    if not header.is_range_coded:
        is_whole = header.is_intact and len(payload) == num_bytes(levels)
        return unpack_ids(payload, levels) if is_whole else unpack_cut(payload, levels)
    if histograms is None:
        raise PolytokError("the file is range coded and these weights have no histograms")
    coder = RangeCoder(histograms, levels)
    return coder.decode(payload) if header.is_intact else coder.decode_cut(payload)


def _decode_with(
    prior: SymbolModel | None, payload: bytes, header: Header, levels: tuple[Level, ...]
) -> Ids:
    """Decode a payload that a prior coded, if this is that prior and its numbers are the same."""
    if prior is None:
        text = " with a text" if header.has_text else ""
        raise PolytokError(f"the file is coded under prior {header.prior}{text}; none is given")
    if _fingerprint(prior.fingerprint).hex() != header.prior:
        raise WeightsError(f"the file is coded under prior {header.prior}, not {prior.fingerprint}")
    if prior.has_text != header.has_text:
        rule = "with a text: give the same" if header.has_text else "without a text: give none"
        raise PolytokError(f"the file is coded under prior {header.prior} {rule}")
    try:
        ids = prior.decode(payload, len(levels))
    except FormatError as error:
        raise FormatError(_differs(prior, header)) from error
    if len(ids) != len(levels) or not all(map(_fits, ids, levels)):
        raise PolytokError(f"prior {header.prior} does not fit this tokenizer")
    if symbols_checksum(ids, levels) != header.symbols:
        raise FormatError(_differs(prior, header))
    return ids


def _differs(prior: SymbolModel, header: Header) -> str:
    """Say why the prior that coded an undamaged payload does not decode it."""
    cause = "another text, or other rounding" if header.has_text else "other rounding"
    return (
        f"prior {header.prior} does not give back what was written here ({cause}?): the file was "
        f"made with {describe_writer(header.writer or 0)}, this is {describe_writer(prior.writer)}"
    )


def _fits(ids: NDArray[np.int64], level: Level) -> bool:
    return ids.shape == (level.count,) and bool(np.all((ids >= 0) & (ids < level.vocab)))


def _checksum(head: bytes, payload: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head)))


def _fingerprint(weights: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{8}", weights):
        raise WeightsError(f"a fingerprint of weights is 8 hex digits, not {weights!r}")
    return bytes.fromhex(weights)


def _header_size(modality: str) -> int:
    """Bytes up to the checksum's end, where the payload follows, or what is said of the prior."""
    return _PREFIX.size + 4 * sum(f.num_values for f in _META[modality]) + _CHECKSUM.size


def _payload(data: bytes, header: Header) -> bytes:
    start = _header_size(header.modality) + (_PRIOR.size if header.is_prior_coded else 0)
    return bytes(data[start:])


@lru_cache(maxsize=64)
def _levels_of(spec: TokenizerSpec) -> tuple[Level, ...]:
    """Return the levels of a spec whose codes have a fixed size.

    Raises:
        PolytokError: they have none, or nothing is known of how to restore the modality.
    """
    if spec.modality not in _META:
        raise PolytokError(f".ptk files hold codes of {', '.join(_META)}, not of {spec.modality}")
    levels = spec.levels
    if not 1 <= len(levels) <= 255:
        raise PolytokError(f".ptk files hold 1..255 levels; this tokenizer has {len(levels)}")
    for level in levels:
        if level.vocab < 2 or not level.count:
            raise PolytokError(
                f".ptk files need a vocabulary above 1 and a fixed count, got {level}"
            )
    return levels


def _ids_of(codes: Codes, spec: TokenizerSpec) -> Ids:
    """Check ids against the spec and return them as arrays (n_k,)."""
    levels = _levels_of(spec)
    if len(codes) != 1 or not codes.indices or codes.lengths is not None:
        raise PolytokError("pack takes discrete codes of fixed length in a batch of one")
    given = len(codes.indices)
    if given > len(levels) or (given < len(levels) and spec.prefix != "levels"):
        raise PolytokError(f"the codes have {given} levels; the tokenizer has {len(levels)}")
    ids = [i[0].cpu().numpy() for i in codes.indices]
    for k, (i, level) in enumerate(zip(ids, levels, strict=False), 1):
        if len(i) != level.count:
            raise PolytokError(f"level {k} has {len(i)} ids instead of {level.count}")
        if i.min() < 0 or i.max() >= level.vocab:
            bad = int(i.min()) if i.min() < 0 else int(i.max())
            raise PolytokError(f"level {k} has id {bad}, which is not within 0..{level.vocab - 1}")
    return ids


def _meta_of(codes: Codes, modality: str) -> Mapping[str, NDArray[np.float32]]:
    parts = []
    for row in _META[modality]:
        if row.name not in codes.meta:
            raise PolytokError(f"the codes have no meta {row.name!r}")
        value = codes.meta[row.name]
        if tuple(value.shape) != (1, *row.shape):
            raise PolytokError(
                f"meta {row.name!r} has shape {tuple(value.shape)}, not {(1, *row.shape)}"
            )
        parts.append(np.ravel(value.detach().cpu().float().numpy()))
    return _read_meta(np.concatenate(parts), modality)


def _read_meta(values: NDArray[np.float32], modality: str) -> dict[str, NDArray[np.float32]]:
    """Split values into the rows of a modality and check their bounds, which NaN fails."""
    out, start = {}, 0
    for row in _META[modality]:
        part = values[start : start + row.num_values].astype(np.float32).reshape(row.shape)
        if not bool(np.all((part >= row.low) & (part <= row.high))):
            raise FormatError(f"{row.name}={part.tolist()} is not within {row.low:g}..{row.high:g}")
        out[row.name] = part
        start += row.num_values
    return out
