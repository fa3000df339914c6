"""What a ``.ptk`` file holds beside its ids, by modality, and how the ids of a code are levels.

A :class:`Head` stands between the flags of a file and its checksum. The container knows levels
only: a code is a list of them, and its first ones are a shorter code. What the levels of a code
are, its head says: those of the tokenizer for shapes, the positions of the tokens for images.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from polytok.bitstream.packing import Ids
from polytok.core.errors import FormatError, PolytokError

if TYPE_CHECKING:
    from polytok.core.contracts import Level, TokenizerSpec

Meta = Mapping[str, NDArray[Any]]
"""What restores a signal besides its ids: arrays by name."""

_MAX_SIDE = (1 << 16) - 1
_MAX_TILES = 16
_MAX_LEVELS = 63
ISO_UNITS = 32
STRETCH_UNITS = 16
_COUNTED = struct.Struct("<B")
_VARINT_BYTES = 3


class Head(Protocol):
    """How files of one modality begin, and how their codes are cut into levels."""

    @property
    def unit(self) -> Literal["levels", "tokens"]:
        """What a shorter code has fewer of; ``spec.prefix`` of tokenizers that allow it."""

    def check(self, spec: TokenizerSpec) -> None:
        """Refuse a tokenizer whose codes have no place in such files.

        Raises:
            PolytokError: the number of its levels is none of theirs.
        """

    def levels(self, spec: TokenizerSpec, meta: Meta) -> tuple[Level, ...]:
        """Vocabulary and count per level of a whole code."""

    def split(self, indices: Sequence[NDArray[np.int64]], meta: Meta) -> Ids:
        """Turn the indices of a code, one array per level of the spec, into ids per level.

        Raises:
            PolytokError: they are not whole levels.
        """

    def join(self, ids: Ids) -> Ids:
        """Invert :meth:`split`."""

    def checked(self, meta: Meta) -> Meta:
        """Return the meta of a code in the dtypes of a file.

        Raises:
            PolytokError: an array is missing, has another shape, or a value out of bounds.
        """

    def size(self, count: int, meta: Meta) -> int:
        """Number of bytes that :meth:`write` gives."""

    def write(self, count: int, meta: Meta) -> bytes:
        """Bytes of a file whose code has ``count`` levels."""

    def read(self, data: bytes, start: int) -> tuple[int, Meta, int]:
        """Read the count of levels and the meta from byte ``start`` on; also where they end.

        Raises:
            FormatError: the file ends before, or holds what :meth:`write` does not write.
        """


@dataclass(frozen=True)
class _Field:
    """One row of a shape's meta: ``shape`` float32 values, each within [low, high]."""

    name: str
    shape: tuple[int, ...]
    low: float
    high: float

    @property
    def num_values(self) -> int:
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class _Extra:
    """A row of a shape's meta that a file may lack, as a bit of its first byte says.

    A file holds it as whole numbers, one byte each: ``step`` of the values, and ``value`` of those.
    """

    name: str
    shape: tuple[int, ...]
    flag: int
    dtype: str
    step: Callable[[NDArray[Any]], NDArray[Any]]
    value: Callable[[NDArray[Any]], NDArray[Any]]
    allowed: str

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape))

    def nearest(self, values: ArrayLike) -> NDArray[np.float32]:
        """The values that a file can hold nearest to others; NaN where there is none."""
        with np.errstate(all="ignore"):
            return self.value(self.step(np.asarray(values, np.float64))).astype(np.float32)

    def checked(self, meta: Meta) -> NDArray[np.float32]:
        values = _found(meta, self.name, self.shape).astype(np.float32)
        if not np.array_equal(self.nearest(values), values):
            raise FormatError(f"{self.name}={values.tolist()} is not {self.allowed}")
        return values

    def write(self, values: NDArray[Any]) -> bytes:
        return self.step(np.asarray(values, np.float64)).astype(self.dtype).tobytes()

    def read(self, data: bytes, start: int) -> NDArray[np.float32]:
        steps = np.frombuffer(data, self.dtype, self.num_bytes, start)
        return self.value(steps.astype(np.float64)).astype(np.float32).reshape(self.shape)


_ISO = _Extra(
    name="iso",
    shape=(),
    flag=0x80,
    dtype="i1",
    step=lambda v: np.clip(np.rint(v * 32), -128, 127),
    value=lambda n: n / 32,
    allowed="a multiple of 1/32 within -4..3.96875",
)
_STRETCH = _Extra(
    name="stretch",
    shape=(3,),
    flag=0x40,
    dtype="u1",
    step=lambda v: np.clip(np.rint(np.log2(v) * 16), 0, 255),
    value=lambda n: np.exp2(n / 16),
    allowed="three powers of 2^(1/16) within 1..62757",
)


class ShapeHead:
    """One byte for the number of levels, then ``centre`` (3,) and ``scale`` () as float32.

    Two more may follow, of which the top bits of the first byte tell: ``iso`` (), the value of the
    field at the surface, and ``stretch`` (3,), the factors along the axes beside ``scale``.
    """

    unit: Literal["levels", "tokens"] = "levels"
    # The bounds leave room for the restored coordinates in float32.
    _fields = (_Field("centre", (3,), -1e30, 1e30), _Field("scale", (), 1e-30, 1e30))
    _num_values = sum(f.num_values for f in _fields)
    _extras = (_ISO, _STRETCH)

    def check(self, spec: TokenizerSpec) -> None:
        if not 1 <= len(spec.levels) <= _MAX_LEVELS:
            raise PolytokError(
                f".ptk files hold 1..{_MAX_LEVELS} levels; this tokenizer has {len(spec.levels)}"
            )

    def levels(self, spec: TokenizerSpec, meta: Meta) -> tuple[Level, ...]:
        return spec.levels

    def split(self, indices: Sequence[NDArray[np.int64]], meta: Meta) -> Ids:
        return list(indices)

    def join(self, ids: Ids) -> Ids:
        return ids

    def checked(self, meta: Meta) -> Meta:
        parts = [np.ravel(_found(meta, f.name, f.shape).astype("<f4")) for f in self._fields]
        extras = {e.name: e.checked(meta) for e in self._extras if e.name in meta}
        return {**self._split(np.concatenate(parts)), **extras}

    def size(self, count: int, meta: Meta) -> int:
        extras = sum(e.num_bytes for e in self._extras if e.name in meta)
        return _COUNTED.size + 4 * self._num_values + extras

    def write(self, count: int, meta: Meta) -> bytes:
        values = np.concatenate([np.ravel(meta[f.name]) for f in self._fields])
        parts = [values.astype("<f4").tobytes()]
        for extra in self._extras:
            if extra.name in meta:
                count |= extra.flag
                parts.append(extra.write(meta[extra.name]))
        return _COUNTED.pack(count) + b"".join(parts)

    def read(self, data: bytes, start: int) -> tuple[int, Meta, int]:
        if start >= len(data):
            raise _ends(data)
        extras = [e for e in self._extras if data[start] & e.flag]
        count = data[start] & _MAX_LEVELS
        if not count:
            raise FormatError("the file holds no level")
        place = start + _COUNTED.size + 4 * self._num_values
        end = place + sum(e.num_bytes for e in extras)
        if len(data) < end:
            raise _ends(data)
        meta = self._split(np.frombuffer(data, "<f4", self._num_values, start + _COUNTED.size))
        for extra in extras:
            meta[extra.name] = extra.read(data, place)
            place += extra.num_bytes
        return count, meta, end

    def _split(self, values: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Split values into the fields and check their bounds, which NaN fails."""
        out, start = {}, 0
        for field in self._fields:
            part = values[start : start + field.num_values].astype(np.float32)
            if not bool(np.all((part >= field.low) & (part <= field.high))):
                raise FormatError(
                    f"{field.name}={part.reshape(field.shape).tolist()} is not within "
                    f"{field.low:g}..{field.high:g}"
                )
            out[field.name] = part.reshape(field.shape)
            start += field.num_values
        return out


class ImageHead:
    """Four varints: tokens of every tile, width, height, and tiles along the longest side.

    The levels of an image are the positions of its tokens: the first token of every tile, then
    the second of every tile, ... The meta is ``size`` (2,), width and height in pixels, and
    ``tiles`` (), of which :func:`tile_grid` makes rows and columns.
    """

    unit: Literal["levels", "tokens"] = "tokens"

    def check(self, spec: TokenizerSpec) -> None:
        if len(spec.levels) != 1:
            raise PolytokError(
                f".ptk files hold images of 1 level; this tokenizer has {len(spec.levels)}"
            )

    def levels(self, spec: TokenizerSpec, meta: Meta) -> tuple[Level, ...]:
        from polytok.core.contracts import Level

        [level] = spec.levels
        position = Level(vocab=level.vocab, count=num_tiles(self.checked(meta)))
        return (position,) * (level.count or 0)

    def split(self, indices: Sequence[NDArray[np.int64]], meta: Meta) -> Ids:
        count = num_tiles(meta)
        [ids] = indices
        if len(ids) % count:
            raise PolytokError(f"{len(ids)} tokens are not the same number in all of {count} tiles")
        return list(ids.reshape(-1, count))

    def join(self, ids: Ids) -> Ids:
        return [np.concatenate(ids)]

    def checked(self, meta: Meta) -> Meta:
        size, tiles = _found(meta, "size", (2,)), _found(meta, "tiles", ())
        if size.dtype.kind not in "iu" or tiles.dtype.kind not in "iu":
            raise PolytokError(f"size and tiles are whole numbers, not {size.dtype}, {tiles.dtype}")
        _bounded(width=int(size[0]), height=int(size[1]), tiles=int(tiles))
        return {"size": size.astype(np.int64), "tiles": tiles.astype(np.int64)}

    def size(self, count: int, meta: Meta) -> int:
        return len(self.write(count, meta))

    def write(self, count: int, meta: Meta) -> bytes:
        width, height = meta["size"].tolist()
        return b"".join(map(_varint, (count, width, height, int(meta["tiles"]))))

    def read(self, data: bytes, start: int) -> tuple[int, Meta, int]:
        values: list[int] = []
        for _ in range(4):
            value, start = _read_varint(data, start)
            values.append(value)
        count, width, height, tiles = values
        if not count:
            raise FormatError("the file holds no token")
        meta = {"size": np.array([width, height]), "tiles": np.array(tiles)}
        return count, self.checked(meta), start


HEADS: dict[str, Head] = {"shape": ShapeHead(), "image": ImageHead()}
"""By modality; a modality's place is its code in the flags of a file: append only."""


def nearest_iso(value: float) -> float:
    """The value of a field at its surface that a file can hold, nearest to ``value``."""
    return float(_ISO.nearest(value))


def nearest_stretch(factors: ArrayLike) -> NDArray[np.float32]:
    """The factors (3,) along the axes that a file can hold, nearest to others in ratio."""
    return _STRETCH.nearest(factors)


def tile_grid(width: int, height: int, tiles: int) -> tuple[int, int]:
    """Return rows and columns of an image's tiles, ``tiles`` of them along its longest side.

    The other side has as many as come nearest to square tiles, half a tile rounded up, at least
    one: whole-number arithmetic, since a file does not hold the grid itself.

    Raises:
        PolytokError: a side is not within 1..65535, or ``tiles`` not within 1..16.
    """
    _bounded(width=width, height=height, tiles=tiles)
    longest = max(width, height)
    rows, columns = (max(1, (2 * tiles * s + longest) // (2 * longest)) for s in (height, width))
    return rows, columns


def num_tiles(meta: Meta) -> int:
    """Number of tiles of an image by its meta."""
    width, height = (int(side) for side in meta["size"])
    rows, columns = tile_grid(width, height, int(meta["tiles"]))
    return rows * columns


def _bounded(**values: int) -> None:
    for name, value in values.items():
        most = _MAX_TILES if name == "tiles" else _MAX_SIDE
        if not 1 <= value <= most:
            raise FormatError(f"{name}={value} is not within 1..{most}")


def _found(meta: Meta, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    if name not in meta:
        raise PolytokError(f"the codes have no meta {name!r}")
    if meta[name].shape != shape:
        raise PolytokError(f"meta {name!r} has shape {meta[name].shape}, not {shape}")
    return meta[name]


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, start: int) -> tuple[int, int]:
    """Read a varint of up to three bytes; also where it ends."""
    value = 0
    for place in range(_VARINT_BYTES):
        if start + place >= len(data):
            raise _ends(data)
        byte = data[start + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if place and not byte:
                raise FormatError("the header holds a number with more bytes than it needs")
            return value, start + place + 1
    raise FormatError(f"the header holds a number of more than {_VARINT_BYTES} bytes")


def _ends(data: bytes) -> FormatError:
    return FormatError(f"the file ends after {len(data)} bytes, inside its header")
