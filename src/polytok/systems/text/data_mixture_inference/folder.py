"""A folder of counts: one file per category, made in parallel, gone on with after a stop."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from polytok.core.errors import PolytokError, SignalError
from polytok.core.files import write_text
from polytok.data.workers import Failure, run_jobs, termination_as_interrupt
from polytok.systems.text.data_mixture_inference.counting import (
    PairTranscript,
    Target,
    count_word_pairs,
    count_words,
)
from polytok.systems.text.data_mixture_inference.samples import Category, read

HEAD = "target.json"
_SUFFIX = ".npz"


@dataclass(frozen=True)
class CountSettings:
    """What is read of the samples: parts and bytes of each category, pieces or single lines."""

    parts: int
    max_bytes: int | None
    by_line: bool


@dataclass(frozen=True)
class _Job:
    category: Category
    target: Target
    settings: CountSettings
    path: str


def count_folder(
    categories: Sequence[Category],
    target: Target,
    out: Path,
    settings: CountSettings,
    *,
    processes: int | None = None,
    done: Callable[[str, int, int], None] | None = None,
) -> tuple[int, int]:
    """Count every category that ``out`` has no counts of; returns how many are there and are new.

    Args:
        done: called with the name of a counted category, how many are counted, and of how many.

    Raises:
        PolytokError: ``out`` holds counts of another tokenizer or under other settings, or a
            category cannot be counted; the others are counted all the same.
    """
    _claim(out, target, settings)
    jobs = [_Job(c, target, settings, str(_path(out, c.name))) for c in categories]
    left = [j for j in jobs if not Path(j.path).exists()]
    counted, failed = len(jobs) - len(left), []
    with termination_as_interrupt(), closing(run_jobs(_count, left, processes=processes)) as found:
        for job, result in found:
            if isinstance(result, Failure):
                failed.append(f"category {job.category.name!r}: {result.reason}")
                continue
            counted += 1
            if done:
                done(job.category.name, counted, len(jobs))
    if failed:
        raise PolytokError("; ".join(failed))
    return len(jobs), len(left)


def _count(job: _Job) -> bool:
    rules = job.target.rules
    words = [count_words(read(p, by_line=job.settings.by_line), rules) for p in job.category.parts]
    count_word_pairs(words, job.target, job.category.name).save(job.path)
    return True


def _path(out: Path, name: str) -> Path:
    if not name or name != Path(name).name:
        raise SignalError(f"category {name!r} cannot be the name of a file")
    return out / f"{name}{_SUFFIX}"


def _claim(out: Path, target: Target, settings: CountSettings) -> None:
    """Say in ``out`` what it holds counts of, or see that it holds no others."""
    head = {"settings": asdict(settings), "target": target.as_dict()}
    if not (out / HEAD).exists():
        if out.is_file() or (out.is_dir() and any(out.glob(f"*{_SUFFIX}"))):
            raise PolytokError(f"{out} holds something else; give another folder")
        write_text(out / HEAD, json.dumps(head, ensure_ascii=False) + "\n")
        return
    known = _head(out)
    if Target.from_dict(known["target"]).fingerprint != target.fingerprint:
        raise PolytokError(f"{out} holds counts of another tokenizer; give another folder")
    if known["settings"] != asdict(settings):
        raise PolytokError(f"{out} was counted under {known['settings']}; give another folder")


def _head(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / HEAD).read_text())
        return {"target": found["target"], "settings": found["settings"]}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise SignalError(f"{folder} is no folder of counts: no readable {HEAD}") from None


def load_folder(folder: Path) -> tuple[Target, list[PairTranscript]]:
    """Read what :func:`count_folder` wrote.

    Raises:
        SignalError: it is no such folder, or a file in it is damaged.
    """
    target = Target.from_dict(_head(folder)["target"])
    paths = sorted(p for p in folder.glob(f"*{_SUFFIX}") if not p.name.startswith("."))
    if not paths:
        raise SignalError(f"{folder} holds no counts yet")
    return target, [PairTranscript.load(p) for p in paths]
