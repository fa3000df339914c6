"""Files are whole or absent, whatever interrupts their writing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from polytok.core.errors import PolytokError
from polytok.core.files import atomic_path, write_bytes, write_text


def test_writes_into_new_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.bin"
    write_bytes(target, b"\x00\xff")
    assert target.read_bytes() == b"\x00\xff"
    write_text(target.with_suffix(".txt"), "é")
    assert target.with_suffix(".txt").read_bytes() == "é".encode()
    assert sorted(p.name for p in target.parent.iterdir()) == ["c.bin", "c.txt"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "mesh.glb"
    write_bytes(target, b"old")
    with atomic_path(target) as aside:
        assert aside.parent == target.parent and aside.suffix == ".glb"
        aside.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("has_old", [False, True])
def test_nothing_is_left_when_writing_stops(
    tmp_path: Path, error: type[BaseException], has_old: bool
) -> None:
    target = tmp_path / "mesh.ptk"
    if has_old:
        target.write_bytes(b"old")
    with pytest.raises(error), atomic_path(target) as aside:
        aside.write_bytes(b"half")
        raise error
    assert list(tmp_path.iterdir()) == [target] * has_old
    assert not has_old or target.read_bytes() == b"old"


def test_folders_are_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "a.ptk"
    target.mkdir()
    with pytest.raises(PolytokError, match=r"a\.ptk is a folder, not a file"):
        write_bytes(target, b"data")
    assert list(tmp_path.rglob("*")) == [target]


def test_nothing_is_overwritten_without_force(tmp_path: Path) -> None:
    target = tmp_path / "mesh.ptk"
    write_bytes(target, b"old", force=False)
    with pytest.raises(PolytokError, match=r"mesh\.ptk exists already"):
        write_bytes(target, b"new", force=False)
    assert target.read_bytes() == b"old"
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX ones")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_bytes(tmp_path / "ours", b"")
        (tmp_path / "plain").write_bytes(b"")
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    ours, plain = (stat.S_IMODE((tmp_path / n).stat().st_mode) for n in ("ours", "plain"))
    assert ours == plain == 0o666 & ~mask


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PolytokError, match="cannot write") as caught:
        write_bytes(tmp_path / "file" / "x.ptk", b"")
    assert "\n" not in str(caught.value)


def test_a_target_that_is_a_folder_keeps_its_content(tmp_path: Path) -> None:
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    with pytest.raises((OSError, PolytokError)):
        write_bytes(folder, b"2")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
    assert (folder / "x").read_bytes() == b"1"
