"""The ``.ptk`` container: header, restore-units data, checksum and payload of one code.

``docs/ptk-format.md`` describes it byte by byte. Everything here works without torch, except for
the tensors that ``pack`` takes and ``unpack`` returns.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polytok.bitstream.heads import HEADS, Head, Meta, tile_grid
from polytok.bitstream.packing import Ids, num_bytes, pack_ids, unpack_cut, unpack_ids
from polytok.bitstream.prior import SymbolModel, describe_writer, symbols_checksum
from polytok.bitstream.ranging import RangeCoder, frequencies
from polytok.core.errors import FormatError, PolytokError, WeightsError

if TYPE_CHECKING:
    from torch import Tensor

    from polytok.core.contracts import Codes, Level, TokenizerSpec

MAGIC = b"PTK"
VERSION = 1
_PREFIX = struct.Struct("<3sB4sB")
_PRIOR = struct.Struct("<4sHH")
_CHECKSUM = struct.Struct("<I")
_RANGE_CODED, _PRIOR_CODED, _HAS_TEXT = 0x01, 0x02, 0x04
_CODINGS = (0, _RANGE_CODED, _PRIOR_CODED, _PRIOR_CODED | _HAS_TEXT)
_MODALITY_SHIFT = 4
_LISTED = 12

Histograms = Sequence[NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a ``.ptk`` file says about itself.

    Args:
        version: of the format.
        weights: fingerprint of the weights that made the code, 8 hex digits.
        modality: of the signal.
        levels: number of levels present; those of an image are the tokens of a tile.
        is_range_coded: the payload is coded under the histograms of the weights.
        is_intact: the checksum agrees with the bytes.
        meta: arrays by name that restore the signal: ``centre``, ``scale`` and, where the file has
            them, ``iso`` and ``stretch`` of a shape, ``size`` and ``tiles`` of an image.
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
    meta: Meta
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

    @property
    def iso(self) -> float:
        """Value of a shape's field at its surface."""
        return float(self.meta.get("iso", 0.0))

    @property
    def stretch(self) -> tuple[float, ...]:
        """Factors (3,) along the axes of a shape, beside ``scale``."""
        return tuple(self.meta.get("stretch", np.ones(3)).tolist())

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of an image in pixels."""
        width, height = self.meta["size"].tolist()
        return width, height

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the tiles of an image."""
        return tile_grid(*self.size, int(self.meta["tiles"]))


def read_header(data: bytes) -> Header:
    """Read the fixed part of a file; the payload may be missing.

    Raises:
        FormatError: no ``.ptk`` file, of another version, or with values that none can have.
    """
    return _parse(data)[0]


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
            ``meta`` has ``centre`` (1, 3), ``scale`` (1,) and perhaps ``iso`` (1,) and
            ``stretch`` (1, 3) for shapes, ``size`` (1, 2) and ``tiles`` (1,) for images, whose
            indices are the first token of every tile, then the second of every tile, and so on.
        spec: of the tokenizer, with a fixed count per level.
        weights: fingerprint of the tokenizer's weights, 8 hex digits.
        histograms: counts (V_k,) per level that belong to the weights; with them the payload is
            range coded when that is smaller.
        prior: with it the payload is prior coded when the file is smaller so.

    Raises:
        PolytokError: the codes do not fit the spec, or the prior does not decode what it coded.
    """
    ids, meta = _parts_of(codes, spec)
    data = _write(ids, meta, spec, weights, histograms, prior)
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
        indices=tuple(torch.from_numpy(i)[None] for i in HEADS[spec.modality].join(ids)),
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

    def first(count: int) -> bytes:
        return _write(ids[:count], header.meta, spec, weights, histograms, prior)

    # A code with more levels never takes fewer bytes: what determines it determines its first
    # levels. So those that fit come before those that do not.
    fits, best, exceeds = 0, b"", len(ids) if _allows_prefixes(spec) else 1
    while exceeds - fits > 1:
        count = (fits + exceeds) // 2
        shorter = first(count)
        if len(shorter) <= max_bytes:
            fits, best = count, shorter
        else:
            exceeds = count
    if fits:
        return _proven(best, ids[:fits], prior)
    counts = range(1, len(ids) + 1) if _allows_prefixes(spec) else [len(ids)]
    found = [len(first(c)) for c in (counts if len(counts) <= _LISTED else counts[:1])]
    named = "possible sizes: " if len(counts) <= _LISTED else "the smallest possible size: "
    raise PolytokError(
        f"nothing of this file fits into {max_bytes} bytes; {named}{', '.join(map(str, found))}"
    )


def size(codes: Codes, spec: TokenizerSpec) -> int:
    """Return the bytes of the file of ``codes`` when it is only packed, and so the most."""
    ids, meta = _parts_of(codes, spec)
    head = _head_of(spec)
    return _packed_size(head, head.levels(spec, meta)[: len(ids)], meta)


def sizes(spec: TokenizerSpec, meta: Meta | None = None) -> list[int]:
    """Return the bytes of a file with the first 1, 2, ... levels, when it is only packed.

    Args:
        meta: of the code, as in its header; a shape with ``iso`` takes a byte more, one with
            ``stretch`` three.
    """
    head, meta = _head_of(spec), meta or {}
    levels = head.levels(spec, meta)
    return [_packed_size(head, levels[: k + 1], meta) for k in range(len(levels))]


def bits_per_level(
    codes: Codes, spec: TokenizerSpec, *, histograms: Histograms | None = None
) -> list[float]:
    """Return the bits that each level of ``codes`` takes: packed, or ideally under histograms."""
    ids, meta = _parts_of(codes, spec)
    levels = _head_of(spec).levels(spec, meta)[: len(ids)]
    if histograms is None:
        return [len(i) * float(np.log2(lv.vocab)) for i, lv in zip(ids, levels, strict=True)]
    return [
        float(-np.log2(f[i] / f.sum()).sum())
        for i, f in zip(ids, frequencies(histograms, levels), strict=True)
    ]


def _write(
    ids: Ids,
    meta: Meta,
    spec: TokenizerSpec,
    weights: str,
    histograms: Histograms | None,
    prior: SymbolModel | None,
) -> bytes:
    form = _head_of(spec)
    levels = form.levels(spec, meta)[: len(ids)]
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
    flags |= list(HEADS).index(spec.modality) << _MODALITY_SHIFT
    head = _PREFIX.pack(MAGIC, VERSION, _fingerprint(weights), flags)
    head += form.write(len(ids), meta)
    return head + _checksum(head, payload) + payload


def _proven(data: bytes, ids: Ids, prior: SymbolModel | None) -> bytes:
    """Return a file; one that is prior coded once the prior has decoded its payload to the ids.

    Floating point may differ between two runs on one machine.
    """
    header, start = _parse(data)
    if prior is None or not header.is_prior_coded:
        return data
    try:
        found = prior.decode(data[start:], [len(level) for level in ids])
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
    header, start = _parse(data)
    if header.modality != spec.modality:
        raise FormatError(f"the file holds a code of {header.modality}, not of {spec.modality}")
    head = _head_of(spec)
    levels = head.levels(spec, header.meta)
    if header.levels > len(levels) or (header.levels < len(levels) and not _allows_prefixes(spec)):
        raise FormatError(
            f"the file holds {header.levels} {head.unit}; this tokenizer has {len(levels)}"
        )
    levels = levels[: header.levels]
    whole = _packed_size(head, levels, header.meta)
    if len(data) > whole:
        raise FormatError(
            f"the file has {len(data)} bytes; {header.levels} {head.unit} take {whole}"
        )
    is_packed = not header.is_range_coded and not header.is_prior_coded
    if is_packed and len(data) < whole and not partial:
        raise FormatError(f"the file is cut: it has {len(data)} bytes of {whole}")
    if header.is_prior_coded and not header.is_intact and partial:
        raise FormatError("the file is damaged or cut, and what a prior coded has no readable part")
    if not header.is_intact and not partial:
        raise FormatError("the file is damaged or cut: its checksum is wrong")
    if bytes.fromhex(header.weights) != _fingerprint(weights):
        raise WeightsError(f"the file was made by weights {header.weights}, not by {weights}")
    payload = bytes(data[start:])
    if header.is_prior_coded:
        ids = _decode_with(prior, payload, header, levels)
    else:
        ids = _decode(payload, header, levels, histograms)
    if not ids:
        raise FormatError(
            f"the file is cut after {len(data)} bytes, before its first {head.unit[:-1]} ends"
        )
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
        ids = prior.decode(payload, [level.count or 0 for level in levels])
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


def _parse(data: bytes) -> tuple[Header, int]:
    """Read the header of a file; also where its payload starts, behind what is said of a prior."""
    if len(data) < _PREFIX.size or data[:3] != MAGIC:
        begin = f" that begin with {bytes(data[:4]).hex()}" if data else ""
        raise FormatError(f"not a .ptk file: {len(data)} bytes{begin}")
    _, version, weights, flags = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise FormatError(f"the file has .ptk version {version}; this program reads {VERSION}")
    code = flags >> _MODALITY_SHIFT
    if flags & 0x0F not in _CODINGS or code >= len(HEADS):
        raise FormatError(f"the file has unknown flags 0x{flags:02x}")
    modality = list(HEADS)[code]
    levels, meta, end = HEADS[modality].read(data, _PREFIX.size)
    body = end + _CHECKSUM.size
    start = body + (_PRIOR.size if flags & _PRIOR_CODED else 0)
    if len(data) < start:
        raise FormatError(f"the file ends after {len(data)} bytes, inside its header of {start}")
    prior, writer, symbols = None, None, None
    if flags & _PRIOR_CODED:
        name, writer, symbols = _PRIOR.unpack_from(data, body)
        prior = name.hex()
    header = Header(
        version=version,
        weights=weights.hex(),
        modality=modality,
        levels=levels,
        is_range_coded=bool(flags & _RANGE_CODED),
        is_intact=data[end:body] == _checksum(data[:end], data[body:]),
        meta=meta,
        prior=prior,
        has_text=bool(flags & _HAS_TEXT),
        writer=writer,
        symbols=symbols,
    )
    return header, start


def _packed_size(head: Head, levels: tuple[Level, ...], meta: Meta) -> int:
    """Bytes of a file that holds just these levels, packed."""
    return _PREFIX.size + head.size(len(levels), meta) + _CHECKSUM.size + num_bytes(levels)


def _allows_prefixes(spec: TokenizerSpec) -> bool:
    return spec.prefix == HEADS[spec.modality].unit


@lru_cache(maxsize=64)
def _head_of(spec: TokenizerSpec) -> Head:
    """Return how files of a tokenizer begin.

    Raises:
        PolytokError: nothing is known of how to restore the modality, or its codes have no fixed
            size.
    """
    if spec.modality not in HEADS:
        raise PolytokError(f".ptk files hold codes of {', '.join(HEADS)}, not of {spec.modality}")
    head = HEADS[spec.modality]
    head.check(spec)
    for level in spec.levels:
        if level.vocab < 2 or not level.count:
            raise PolytokError(
                f".ptk files need a vocabulary above 1 and a fixed count, got {level}"
            )
    return head


def _parts_of(codes: Codes, spec: TokenizerSpec) -> tuple[Ids, Meta]:
    """Check a code against the spec; return its ids, an array (n_k,) per level, and its meta."""
    head = _head_of(spec)
    if len(codes) != 1 or not codes.indices or codes.lengths is not None:
        raise PolytokError("pack takes discrete codes of fixed length in a batch of one")
    if (given := len(codes.indices)) > len(spec.levels):
        raise PolytokError(f"the codes have {given} levels; the tokenizer has {len(spec.levels)}")
    meta = head.checked({name: _unbatched(value) for name, value in codes.meta.items()})
    levels = head.levels(spec, meta)
    ids = head.split([i[0].cpu().numpy() for i in codes.indices], meta)
    if len(ids) > len(levels) or (len(ids) < len(levels) and not _allows_prefixes(spec)):
        raise PolytokError(
            f"the codes have {len(ids)} {head.unit}; the tokenizer has {len(levels)}"
        )
    for k, (i, level) in enumerate(zip(ids, levels, strict=False), 1):
        if len(i) != level.count:
            raise PolytokError(f"level {k} has {len(i)} ids instead of {level.count}")
        if i.min() < 0 or i.max() >= level.vocab:
            bad = int(i.min()) if i.min() < 0 else int(i.max())
            raise PolytokError(
                f"{head.unit[:-1]} {k} has id {bad}, which is not within 0..{level.vocab - 1}"
            )
    return ids, meta


def _unbatched(value: Tensor) -> NDArray[Any]:
    """The only item of a batch, floats as float32."""
    value = value.detach().cpu()
    array: NDArray[Any] = (value.float() if value.is_floating_point() else value).numpy()
    return array[0] if array.ndim and len(array) == 1 else array
