"""The order of samples: a pure function of the step, whatever the number of processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from polytok.core.contracts import Batch


@runtime_checkable
class SampleSource(Protocol):
    """Numbered training samples.

    ``len`` is the number of signals behind them; ``sample(n)`` takes any n >= 0 and always gives
    the same tensors for the same n, with equal keys and shapes, among them ``seed`` () int64.
    """

    def __len__(self) -> int: ...

    def sample(self, n: int) -> dict[str, Tensor]: ...


def collate(samples: Sequence[dict[str, Tensor]]) -> Batch:
    """Stack samples of equal keys and shapes."""
    return {key: torch.stack([s[key] for s in samples]) for key in samples[0]}


def share(first: int, count: int, rank: int, world: int) -> range:
    """The contiguous slice of samples first .. first + count that a rank takes."""
    size = count // world
    return range(first + rank * size, first + (rank + 1) * size)


def batches(
    source: SampleSource,
    steps: range,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield this rank's share of the batches of ``steps``, in order.

    Step s holds samples s * batch_size .. (s + 1) * batch_size over all ranks together.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Samples(source),
        batch_sampler=_Shares(steps, batch_size, rank, world),
        collate_fn=collate,
        num_workers=num_workers,
        prefetch_factor=4 if num_workers else None,
        worker_init_fn=_start_worker,
        pin_memory=pin_memory,
    )
    return iter(loader)


def start_batches(
    source: SampleSource, step: int, count: int, *, batch_size: int, rank: int, world: int
) -> Iterator[Batch]:
    """Yield this rank's part of the ``count`` batches from ``step`` on.

    The parts are contiguous in the whole window, so joining all ranks' samples in rank order
    gives the same sequence as a single process sees.
    """
    mine = share(step * batch_size, count * batch_size, rank, world)
    size = batch_size // world
    for first in range(mine.start, mine.stop, size):
        yield collate([source.sample(n) for n in range(first, first + size)])


class _Samples(Dataset[dict[str, Tensor]]):
    def __init__(self, source: SampleSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        return self.source.sample(n)


class _Shares(Sampler[list[int]]):
    def __init__(self, steps: range, batch_size: int, rank: int, world: int) -> None:
        self.steps, self.batch_size, self.rank, self.world = steps, batch_size, rank, world

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield list(share(step * self.batch_size, self.batch_size, self.rank, self.world))


def _start_worker(_: int) -> None:
    """Leave Ctrl-C to the training process, which stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
