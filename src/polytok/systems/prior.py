"""A generator as the entropy coder of ``.ptk`` files: what draws codes reads and writes them.

Both directions run the same steps with the same batch on one thread, so that their floats agree on
one machine. A file says what wrote it; elsewhere decoding is tried and checked.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polytok.bitstream.prior import SymbolReader, SymbolWriter, writer_id
from polytok.core.contracts import Batch
from polytok.core.errors import ConfigError
from polytok.generators import Generator, Guide, MaskedOrder, Query, Step

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

        self._run(write, [len(level) for level in ids])
        return writer.payload()

    def decode(self, payload: bytes, counts: Sequence[int]) -> Ids:
        """Invert :meth:`encode`, given the number of ids of each level.

        Raises:
            FormatError: the payload is none that ``encode`` makes here.
        """
        reader, found = SymbolReader(payload), []

        def read(probabilities: NDArray[np.float32], level: int) -> NDArray[np.int64]:
            found.append(reader.read(probabilities))
            return found[-1]

        self._run(read, counts)
        reader.close()
        return found

    def _run(self, code: _Code, counts: Sequence[int]) -> None:
        """Walk the generator's steps; ``code`` turns each level's probabilities into its ids."""
        num_levels = len(counts)

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


class MaskedPriorCoder(PriorCoder):
    """Codes one token after the other under a masked generator, those of all tiles at once.

    The net sees the tokens before and masks in all later places, which masked training covers; it
    runs once per token. A prefix of the tokens is a prefix of the steps.
    """

    process: MaskedOrder

    def __init__(
        self, generator: Generator, prompt: Batch, guide: Guide, *, fingerprint: str
    ) -> None:
        super().__init__(generator, prompt, guide, fingerprint=fingerprint)
        if not isinstance(generator.process, MaskedOrder):
            raise ConfigError(f"{type(generator.process).__name__} is no order of masks")
        self.process = generator.process

    @torch.inference_mode()
    def _run(self, code: _Code, counts: Sequence[int]) -> None:
        """Walk the tokens; level k of a file holds token k of every tile."""
        model, tiles = self.generator, counts[0]
        head: Any = model.head
        [branch] = self.guide.branches([Step(number=0, total=1)])
        with one_thread():
            cond = model.conditioner.branch(model.conditioner.encode(self.prompt), branch, tiles)
            device = cond.vector.device
            ids = torch.full((tiles, self.process.length), self.process.vocab, device=device)
            index = torch.arange(self.process.length, device=device)
            for place in range(len(counts)):
                hidden = model.net(Query(inp=ids, index=index), cond)[:, place]
                table = head.logits(hidden).softmax(-1).cpu().numpy()
                ids[:, place] = torch.from_numpy(code(table, place)).to(device)
