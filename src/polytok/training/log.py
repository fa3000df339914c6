"""What a run says: metrics.jsonl always, TensorBoard when installed, progress on the screen."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor

from polytok.core.errors import ConfigError
from polytok.core.files import write_text


class Means:
    """Means of named scalars since the last reading; nothing leaves the device before that."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, group: str, scalars: Mapping[str, Tensor]) -> None:
        """Take one step's scalars.

        Raises:
            ConfigError: a value is not a scalar.
        """
        for name, value in scalars.items():
            if value.numel() != 1:
                raise ConfigError(f"metric {name!r} has shape {tuple(value.shape)}, not ()")
            self._values[f"{group}/{name}"].append(value.detach().reshape(()))

    def pop(self) -> Tensor:
        """Return the means (n,) in the order of :attr:`names`, and forget the values."""
        means = [torch.stack(v).float().mean() for v in self._values.values()]
        self._values = defaultdict(list)
        return torch.stack([m.to(means[0].device) for m in means])

    @property
    def names(self) -> list[str]:
        return list(self._values)


class RunLog:
    """Writes the records of a run; use as a context. Inactive (rank > 0), it writes nothing.

    Args:
        done, total: samples before this start, and of the whole run.
        step: records after this step are dropped from the file, since they will come again.
    """

    def __init__(self, folder: Path, *, step: int, done: int, total: int, is_active: bool) -> None:
        self.folder, self.done, self.total, self.is_active = folder, done, total, is_active
        self._path = folder / "metrics.jsonl"
        self._board: Any = None
        self._progress: Progress | None = None
        if is_active:
            _drop_after(self._path, step)
        self._start = (time.monotonic(), done)
        self._last = self._start

    def __enter__(self) -> RunLog:
        if not self.is_active:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        if importlib.util.find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.done)
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._progress = Progress(*columns, console=Console(stderr=True))
            self._progress.add_task("training", total=self.total, completed=self.done, note="")
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self._board is not None:
            self._board.close()

    def advance(self, samples: int) -> None:
        """Move the progress bar to ``samples`` done."""
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], completed=samples)

    def write(self, record: dict[str, Any]) -> None:
        """Keep one record: ``step``, ``samples``, then numbers and mappings of numbers.

        A score may be a sentence, which is kept and said, but is on no chart.
        """
        if not self.is_active:
            return
        if "loss" in record:
            now, (then, before) = time.monotonic(), self._last
            rate = (record["samples"] - before) / max(now - then, 1e-9)
            record |= {"samples_per_second": rate, "seconds": now - self._start[0]}
            self._last = (now, record["samples"])
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self._board is not None:
            for name, value in _flat(record).items():
                self._board.add_scalar(name, value, record["samples"])
        self._show(record)

    def say(self, text: str) -> None:
        """Print one line."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        elif self.is_active:
            print(text, file=sys.stderr, flush=True)

    def pause(self) -> None:
        """Leave out the time until now from the next rate, as after a validation."""
        self._last = (time.monotonic(), self._last[1])

    def _show(self, record: dict[str, Any]) -> None:
        if "loss" not in record:
            scores = record.get("val", {})
            values = ", ".join(f"{k} {v:.4g}" for k, v in scores.items() if not _is_text(v))
            self.say(f"validation at {record['samples']:,} samples: {values}")
            for name, text in scores.items():
                if _is_text(text):
                    self.say(f"  {name}: {text}")
            return
        note = f"loss {record['loss']:.4g}, {record['samples_per_second']:.1f}/s, {self._end()}"
        if self._progress is not None:
            self._progress.update(self._progress.task_ids[0], note=note)
            return
        self.say(
            f"{record['stage']}: step {record['step']:,}, {record['samples']:,} of "
            f"{self.total:,} samples, {note}"
        )

    def _end(self) -> str:
        """When the run ends at the pace since its start, validation and saving included."""
        elapsed = time.monotonic() - self._start[0]
        pace = elapsed / max(self._last[1] - self._start[1], 1)
        left = timedelta(seconds=round(pace * (self.total - self._last[1])))
        return f"{left} left, ends {datetime.now() + left:%a %H:%M}"


def _drop_after(path: Path, step: int) -> None:
    """Cut records after ``step``, and a last line that was not finished."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def _flat(record: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by slash-joined names, for charts."""
    out: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            out |= {f"{key}/{name}": v for name, v in value.items() if not _is_text(v)}
        elif isinstance(value, (int, float)) and key != "samples":
            out[key] = value
    return out


def _is_text(value: Any) -> bool:
    return isinstance(value, str)
