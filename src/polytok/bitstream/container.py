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
from polytok.bitstream.ranging import RangeCoder, frequencies
from polytok.core.errors import FormatError, PolytokError, WeightsError

if TYPE_CHECKING:
    from polytok.core.contracts import Codes, Level, TokenizerSpec

MAGIC = b"PTK"
VERSION = 1
_PREFIX = struct.Struct("<3sB4sBB")
_CHECKSUM = struct.Struct("<I")
_RANGE_CODED = 0x01
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
        is_range_coded: the payload is range coded, not packed.
        is_intact: the checksum agrees with the bytes.
        meta: float32 arrays by name that restore the signal.
    """

    version: int
    weights: str
    modality: str
    levels: int
    is_range_coded: bool
    is_intact: bool
    meta: Mapping[str, NDArray[np.float32]]

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
    if flags & 0x0E or code >= len(_META):
        raise FormatError(f"the file has unknown flags 0x{flags:02x}")
    if not levels:
        raise FormatError("the file holds no level")
    modality = list(_META)[code]
    length = _header_size(modality)
    if len(data) < length:
        raise FormatError(f"the file ends after {len(data)} bytes, inside its header of {length}")
    values = np.frombuffer(data, "<f4", offset=_PREFIX.size, count=(length - 14) // 4)
    return Header(
        version=version,
        weights=weights.hex(),
        modality=modality,
        levels=levels,
        is_range_coded=bool(flags & _RANGE_CODED),
        is_intact=data[length - 4 : length] == _checksum(data[: length - 4], data[length:]),
        meta=_read_meta(values, modality),
    )


def pack(
    codes: Codes, spec: TokenizerSpec, *, weights: str, histograms: Histograms | None = None
) -> bytes:
    """Turn one code into the bytes of a file.

    Args:
        codes: a batch of one, of any leading number of levels if the spec allows prefixes; its
            ``meta`` has ``centre`` (1, 3) and ``scale`` (1,) for shapes.
        spec: of the tokenizer, with a fixed count per level.
        weights: fingerprint of the tokenizer's weights, 8 hex digits.
        histograms: counts (V_k,) per level that belong to the weights; with them the payload is
            range coded when that is smaller.

    Raises:
        PolytokError: the codes do not fit the spec.
    """
    ids = _ids_of(codes, spec)
    return _write(ids, _meta_of(codes, spec.modality), spec, weights, histograms)


def unpack(
    data: bytes,
    spec: TokenizerSpec,
    *,
    weights: str,
    histograms: Histograms | None = None,
    partial: bool = False,
) -> Codes:
    """Turn the bytes of a file into codes, a batch of one; the inverse of :func:`pack`.

    Args:
        partial: accept a file that was cut anywhere and return its whole levels. Its checksum
            cannot be checked then: compare ``read_header(data).is_intact`` and ``.levels``.

    Raises:
        FormatError: the file is damaged, cut, too long, or does not fit the spec.
        WeightsError: the file was made by other weights.
        PolytokError: the payload is range coded and no histograms are given.
    """
    import torch

    from polytok.core.contracts import Codes

    header, ids = _read(data, spec, weights, histograms, partial)
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
) -> bytes:
    """Return the valid file with the most leading levels that has at most ``max_bytes``.

    Raises:
        PolytokError: not even one level fits, see also :func:`unpack`; the sizes are listed.
    """
    header, ids = _read(data, spec, weights, histograms, partial=False)
    if len(data) <= max_bytes:
        return bytes(data)
    found = [len(data)]
    for levels in range(len(ids) - 1 if spec.prefix == "levels" else 0, 0, -1):
        shorter = _write(ids[:levels], header.meta, spec, weights, histograms)
        if len(shorter) <= max_bytes:
            return shorter
        found.append(len(shorter))
    raise PolytokError(
        f"nothing of this file fits into {max_bytes} bytes; "
        f"possible sizes: {', '.join(map(str, reversed(found)))}"
    )


def size(codes: Codes, spec: TokenizerSpec) -> int:
    """Return the bytes of the file of ``codes`` when it is not range coded, and so the most."""
    return sizes(spec)[len(_ids_of(codes, spec)) - 1]


def sizes(spec: TokenizerSpec) -> list[int]:
    """Return the bytes of a file with the first 1, 2, ... levels, when it is not range coded."""
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
) -> bytes:
    levels = spec.levels[: len(ids)]
    payload, flags = pack_ids(ids, levels), list(_META).index(spec.modality) << _MODALITY_SHIFT
    if histograms is not None:
        coded = RangeCoder(histograms, levels).encode(ids)
        if len(coded) < len(payload):
            payload, flags = coded, flags | _RANGE_CODED
    values = np.concatenate([np.ravel(meta[f.name]) for f in _META[spec.modality]])
    head = _PREFIX.pack(MAGIC, VERSION, _fingerprint(weights), flags, len(ids))
    head += values.astype("<f4").tobytes()
    return head + _checksum(head, payload) + payload


def _read(
    data: bytes,
    spec: TokenizerSpec,
    weights: str,
    histograms: Histograms | None,
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
    is_cut = not header.is_range_coded and len(data) < whole
    if is_cut and not partial:
        raise FormatError(f"the file is cut: it has {len(data)} bytes of {whole}")
    if not header.is_intact and not partial:
        raise FormatError("the file is damaged or cut: its checksum is wrong")
    if bytes.fromhex(header.weights) != _fingerprint(weights):
        raise WeightsError(f"the file was made by weights {header.weights}, not by {weights}")
    levels = spec.levels[: header.levels]
    payload = bytes(data[_header_size(spec.modality) :])
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


def _checksum(head: bytes, payload: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(payload, zlib.crc32(head)))


def _fingerprint(weights: str) -> bytes:
    if not re.fullmatch(r"[0-9a-fA-F]{8}", weights):
        raise WeightsError(f"a fingerprint of weights is 8 hex digits, not {weights!r}")
    return bytes.fromhex(weights)


def _header_size(modality: str) -> int:
    """Bytes before the payload."""
    return _PREFIX.size + 4 * sum(f.num_values for f in _META[modality]) + _CHECKSUM.size


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
