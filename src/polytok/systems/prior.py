"""A generator as the entropy coder of ``.ptk`` files: the loop that draws codes reads and writes.

Both directions run the same cached steps, one item at a time on one thread, so that their floats
agree on one machine. A file says what wrote it; elsewhere decoding is tried and checked.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytok.bitstream.prior import SymbolReader, SymbolWriter, writer_id
from polytok.core.contracts import Batch
from polytok.generators import Generator, Guide, Step

Ids = list[NDArray[np.int64]]
_Code = Callable[[NDArray[np.float32], int], NDArray[np.int64]]


class _Finished(Exception):  # noqa: N818 - it is no error
    """All levels of a prefix are coded."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread: sums of floats depend on how many share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class PriorCoder:
    """Codes ids under the probabilities of a generator; a ``SymbolModel`` of the bitstream.

    Args:
        generator: whose steps are the levels of the code.
        prompt: conditions of one item. guide: the branch they belong to.
        fingerprint: of the generator's weights.
    """

    def __init__(
        self, generator: Generator, prompt: Batch, guide: Guide, *, fingerprint: str
    ) -> None:
        self.generator, self.prompt, self.guide = generator, prompt, guide
        self.fingerprint = fingerprint
        self.has_text = "text" in guide.shares

    @property
    def writer(self) -> int:
        """What computes the probabilities here."""
        capability = torch.backends.cpu.get_cpu_capability()
        return writer_id(torch.__version__, platform.machine(), capability)

    def encode(self, ids: Ids) -> bytes:
        """Code the ids (n_k,) of the first levels."""
        writer = SymbolWriter()

        def write(probabilities: NDArray[np.float32], level: int) -> NDArray[np.int64]:
            writer.write(ids[level], probabilities)
            return ids[level]

        self._run(write, len(ids))
        return writer.payload()

    def decode(self, payload: bytes, num_levels: int) -> Ids:
        """Invert :meth:`encode`.

        Raises:
            FormatError: the payload is none that ``encode`` makes here.
        """
        reader, found = SymbolReader(payload), []

        def read(probabilities: NDArray[np.float32], level: int) -> NDArray[np.int64]:
            found.append(reader.read(probabilities))
            return found[-1]

        self._run(read, num_levels)
        reader.close()
        return found

    def _run(self, code: _Code, num_levels: int) -> None:
        """Walk the generator's steps; ``code`` turns each level's probabilities into its ids."""

        def draw(log_probs: Tensor, step: Step) -> Tensor:
            if step.number >= num_levels:
                raise _Finished
            table = log_probs[0].exp().float().cpu().numpy()
            return torch.from_numpy(code(table, step.number))[None].to(log_probs.device)

        with one_thread():
            try:
                self.generator.generate(
                    self.prompt, count=1, rng=torch.Generator(), guide=self.guide, draw=draw
                )
            except _Finished:
                return
