"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polytok.core.errors import PolytokError


@contextmanager
def atomic_path(target: str | os.PathLike[str], *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` when the block ends well.

    The temporary name keeps the suffix, so writers that look at extensions work.

    Raises:
        PolytokError: ``target`` exists and ``force`` is false, or its folder cannot be written.
    """
    target = Path(target)
    if not force and target.exists():
        raise PolytokError(f"{target} exists already; use --force to replace it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.stem}.", suffix=f".part{target.suffix}", dir=target.parent
        )
    except OSError as error:
        raise PolytokError(f"cannot write {target}: {error.strerror or error}") from error
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        # mkstemp makes private files; a result should have the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        aside.chmod(0o666 & ~mask)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def write_bytes(target: str | os.PathLike[str], data: bytes, *, force: bool = True) -> None:
    """Write ``data`` to ``target`` in one step: a reader sees all of it or none of it."""
    with atomic_path(target, force=force) as aside:
        aside.write_bytes(data)


def write_text(target: str | os.PathLike[str], text: str, *, force: bool = True) -> None:
    """Write ``text`` as UTF-8 to ``target`` in one step."""
    write_bytes(target, text.encode(), force=force)
