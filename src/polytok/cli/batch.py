"""Many inputs to as many outputs: one failure costs one file."""

from __future__ import annotations

import glob
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polytok.cli import show
from polytok.core.errors import PolytokError, one_line

Work = Callable[[Path, Path], dict[str, Any]]
Suffix = Callable[[Path], str]
FAILED = 2


@dataclass(frozen=True)
class Batch:
    """Pairs of an input and where its result goes."""

    jobs: tuple[tuple[Path, Path], ...]
    is_single: bool

    @staticmethod
    def of(
        inputs: list[str],
        output: Path,
        suffix: str | Suffix,
        *,
        force: bool,
        known: tuple[str, ...],
    ) -> Batch:
        """Expand files, globs and folders; one plain file may be given a file as output.

        Args:
            suffix: of results in an output folder, or what gives that of a source.
            known: extensions looked for in folders.

        Raises:
            PolytokError: nothing matches, several inputs share a result, or a result exists and
                ``force`` is false.
        """
        sources = _expand(inputs, known)
        is_single = len(sources) == 1 and not Path(inputs[0]).is_dir()
        if is_single and not output.is_dir() and output.suffix:
            jobs = [(sources[0][0], output)]
        elif output.is_file():
            raise PolytokError(f"{output} is a file, but there are {len(sources)} inputs")
        else:
            to = suffix if callable(suffix) else lambda _: suffix
            jobs = [(s, output / below.with_suffix(to(s))) for s, below in sources]
        targets = [t for _, t in jobs]
        if len(set(targets)) < len(targets):
            twice = next(t for t in targets if targets.count(t) > 1)
            raise PolytokError(f"several inputs would become {twice}; give them other names")
        if not force:
            taken = [t for t in targets if t.exists()]
            if taken:
                raise PolytokError(f"{taken[0]} exists already; use --force to replace it")
        return Batch(tuple(jobs), is_single)

    def check_targets(self, writable: Callable[[Path], tuple[str, ...]]) -> None:
        """Refuse results of an unknown kind before any work is done.

        Args:
            writable: extensions that the result of a source may have.
        """
        for source, target in self.jobs:
            check_target(target, writable(source))

    def run(self, work: Work, *, as_json: bool, verb: str) -> int:
        """Do every job; a line or a JSON row per result. Returns the exit status."""
        rows, failures = [], []
        for number, (source, target) in enumerate(self.jobs, start=1):
            start = time.perf_counter()
            try:
                row = {"input": str(source), "output": str(target), **work(source, target)}
            except (PolytokError, OSError, MemoryError) as error:
                if self.is_single:
                    raise
                reason = str(error) if isinstance(error, PolytokError) else one_line(error)
                failures.append((source, reason))
                continue
            rows.append({**row, "seconds": round(time.perf_counter() - start, 3)})
            if not as_json:
                facts = ", ".join(f"{v:,} {k}" for k, v in row.items() if isinstance(v, int))
                show.line(f"[{number}/{len(self.jobs)}] {target}: {facts}")
        if as_json:
            failed = [{"input": str(s), "error": reason} for s, reason in failures]
            print(json.dumps({"results": rows, "failures": failed}))
        for source, reason in failures:
            show.note(f"failed: {_named(source, reason)}")
        if failures:
            show.note(f"error: {verb} failed for {len(failures)} of {len(self.jobs)} inputs")
        return FAILED if failures else 0


def check_target(target: Path, known: Sequence[str]) -> None:
    """Refuse to write a folder, or a file of a kind that is not ``known``."""
    if target.suffix.lower() not in known:
        raise PolytokError(
            f"{target} has extension {target.suffix or 'none'!r}; known: {', '.join(known)}"
        )
    if target.is_dir():
        raise PolytokError(f"{target} is a folder, not a file")


def _named(source: Path, reason: str) -> str:
    return reason if reason.startswith(str(source)) else f"{source}: {reason}"


def _expand(inputs: list[str], known: tuple[str, ...]) -> list[tuple[Path, Path]]:
    """Inputs, each with its path below the folder it was found in."""
    found: dict[Path, Path] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in known)
            if not inside:
                raise PolytokError(f"{text} has no files of kind {', '.join(known)}")
            found |= {p: p.relative_to(path) for p in inside}
        elif path.exists() or not glob.has_magic(text):
            found[path] = Path(path.name)
        else:
            matches = sorted(Path(p) for p in glob.glob(text, recursive=True))  # noqa: PTH207
            if not matches:
                raise PolytokError(f"{text} matches no file")
            found |= {p: Path(p.name) for p in matches if p.is_file()}
    return list(found.items())
