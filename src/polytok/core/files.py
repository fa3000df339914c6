"""Files that are either whole or absent: written aside, then renamed."""

from __future__ import annotations

import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polytok.core.errors import PolytokError, one_line


@contextmanager
def atomic_path(target: str | os.PathLike[str], *, force: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside ``target`` that becomes ``target`` when the block ends well.

    The temporary name keeps the suffix, so writers that look at extensions work.

    Raises:
        PolytokError: ``target`` exists and ``force`` is false, or it is a folder, or its own folder
            cannot be written.
    """
    target = Path(target)
    if not force and target.exists():
        raise PolytokError(f"{target} exists already; use --force to replace it")
    if target.is_dir():
        raise PolytokError(f"{target} is a folder, not a file")
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


@contextmanager
def opened_folder(source: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder: ``source`` itself, or where its zip is unpacked while the block lasts.

    Raises:
        PolytokError: ``source`` is missing, neither folder nor zip, or cannot be unpacked.
    """
    source = Path(source)
    if source.is_dir():
        yield source
        return
    if not source.exists():
        raise PolytokError(f"{source}: no such file or folder")
    if not zipfile.is_zipfile(source):
        raise PolytokError(f"{source} is neither a folder nor a zip")
    with tempfile.TemporaryDirectory(prefix="polytok-") as name:
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(name)
        except (zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            # zipfile raises RuntimeError for encrypted members and unknown compressions.
            raise PolytokError(f"{source} cannot be unpacked: {one_line(error)}") from error
        yield Path(name)
