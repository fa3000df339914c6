"""Prior-coded payloads: ids under the probabilities that a generative model gives each of them.

What gives the probabilities is a :class:`SymbolModel`; this package imports none and no torch.
The probabilities are results of floating point, which other machines may round otherwise: so a
file says what wrote it, and has a checksum of the ids themselves.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import constriction
import numpy as np
from numpy.typing import NDArray

from polytok.bitstream.packing import Ids
from polytok.bitstream.ranging import shortest_payload
from polytok.core.errors import FormatError, PolytokError

if TYPE_CHECKING:
    from polytok.core.contracts import Level

# Files hold places in these two lists: append only, up to 16 names each.
_MACHINES = ("unknown CPU", "x86_64", "aarch64", "arm64")
_CAPABILITIES = (
    "unknown instructions",
    "DEFAULT",
    "NO AVX",
    "AVX2",
    "AVX512",
    "VSX",
    "Z VECTOR",
    "SVE128",
    "SVE256",
)
_UNKNOWN_TORCH = 255
_queue = constriction.stream.queue
_model = constriction.stream.model.Categorical(perfect=False)


class SymbolModel(Protocol):
    """Codes the ids of a tokenizer's levels, coarse to fine, under probabilities of its own."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the model's weights, 8 hex digits."""

    @property
    def writer(self) -> int:
        """What computes the probabilities here, see :func:`writer_id`."""

    @property
    def has_text(self) -> bool:
        """Whether the probabilities depend on a text, which no file holds."""

    def encode(self, ids: Ids) -> bytes:
        """Code the ids (n_k,) of the first levels, see :class:`SymbolWriter`."""

    def decode(self, payload: bytes, counts: Sequence[int]) -> Ids:
        """Invert :meth:`encode`, given the number of ids of each level; see :class:`SymbolReader`.

        Raises:
            FormatError: the payload is none that ``encode`` makes.
        """


class SymbolWriter:
    """Codes ids one step after the other: all that a :class:`SymbolModel` needs to encode."""

    def __init__(self) -> None:
        self._encoder = _queue.RangeEncoder()

    def write(self, ids: NDArray[Any], probabilities: NDArray[Any]) -> None:
        """Append ids (n,) under probabilities (n, V), which need not sum to one.

        Raises:
            PolytokError: the ids do not fit the probabilities, or these cannot be used.
        """
        table = _table(probabilities)
        count, vocab = table.shape
        if ids.shape != (count,) or not np.all((ids >= 0) & (ids < vocab)):
            raise PolytokError(f"ids {ids.shape} do not fit probabilities {table.shape}")
        self._encoder.encode(ids.astype(np.int32), _model, table)

    def payload(self) -> bytes:
        """Return the fewest bytes that decode to all ids so far when zeros follow them."""
        return shortest_payload(self._encoder)


class SymbolReader:
    """Decodes what a :class:`SymbolWriter` coded, given the same probabilities bit for bit."""

    def __init__(self, payload: bytes) -> None:
        # constriction reads zeros after the last word.
        words = np.frombuffer(payload + bytes(-len(payload) % 4), ">u4")
        self._decoder = _queue.RangeDecoder(words.astype(np.uint32))
        self._payload, self._writer = payload, SymbolWriter()

    def read(self, probabilities: NDArray[Any]) -> NDArray[np.int64]:
        """Return the next ids (n,) under probabilities (n, V).

        Raises:
            FormatError: the payload belongs to no code.
            PolytokError: the probabilities cannot be used.
        """
        table = _table(probabilities)
        try:
            ids: NDArray[np.int64] = self._decoder.decode(_model, table).astype(np.int64)
        except AssertionError:  # how constriction tells of a number of no code
            raise FormatError("the prior-coded payload belongs to no code") from None
        self._writer.write(ids, table)
        return ids

    def close(self) -> None:
        """Check that the payload is the one a writer makes of the ids that were read.

        Raises:
            FormatError: it is longer than it needs to be, or another of the same ids.
        """
        if self._writer.payload() != self._payload:
            raise FormatError("the prior-coded payload is not the shortest of its code")


def writer_id(torch_version: str, machine: str, capability: str) -> int:
    """Return 16 bits for what computes probabilities: torch's minor version, CPU, instructions.

    Args:
        torch_version: as in ``torch.__version__``. machine: as of ``platform.machine()``.
        capability: as of ``torch.backends.cpu.get_cpu_capability()``.
    """
    found = re.match(r"2\.(\d+)", torch_version)
    minor = min(int(found[1]), _UNKNOWN_TORCH) if found else _UNKNOWN_TORCH
    name = machine.lower().replace("amd64", "x86_64")
    return minor << 8 | _place(name, _MACHINES) << 4 | _place(capability, _CAPABILITIES)


def describe_writer(writer: int) -> str:
    """Say in words what :func:`writer_id` packed, such as ``torch 2.13 on x86_64 with AVX512``."""
    minor, machine, capability = writer >> 8, writer >> 4 & 15, writer & 15
    version = "of an unknown version" if minor == _UNKNOWN_TORCH else f"2.{minor}"
    return f"torch {version} on {_name(machine, _MACHINES)} with {_name(capability, _CAPABILITIES)}"


def symbols_checksum(ids: Sequence[NDArray[Any]], levels: Sequence[Level]) -> int:
    """Return the CRC-16 of the ids, each as 2 bytes, or as 4 where a vocabulary needs them."""
    checksum = 0xFFFF
    for level_ids, level in zip(ids, levels, strict=True):
        width = "<u2" if level.vocab <= 1 << 16 else "<u4"
        checksum = crc_hqx(level_ids.astype(width).tobytes(), checksum)
    return checksum


def _table(probabilities: NDArray[Any]) -> NDArray[np.float64]:
    """Check probabilities (n, V) and return them as float64, in which the coder's sums are safe."""
    table = np.ascontiguousarray(probabilities, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] < 2:
        raise PolytokError(f"probabilities must be (n, V) with V > 1, got {table.shape}")
    total = table.sum(axis=1)
    if not (np.all(table >= 0) and np.all(total > 1e-300) and np.all(np.isfinite(total))):
        raise PolytokError("probabilities must be finite, not negative, and not all zero")
    return table


def _place(name: str, names: tuple[str, ...]) -> int:
    return names.index(name) if name in names else 0


def _name(place: int, names: tuple[str, ...]) -> str:
    return names[place] if place < len(names) else names[0]
