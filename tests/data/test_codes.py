"""Folders of codes: passes that go on where they stopped, and are never mixed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polytok.core.errors import ConfigError, PolytokError
from polytok.data.codes import CodeFolder, CodeIndex, missing_passes, pass_path, write_pass

INDEX = CodeIndex(
    weights="00c0ffee",
    slots=(1, 4),
    names=("a.glb", "b.glb", "c.glb"),
    captions=("a", "b", "c"),
    aligned=("same", "mirrored"),
)
IDS = torch.arange(15).view(3, 5)


def test_only_missing_passes_are_asked_for(tmp_path: Path) -> None:
    assert missing_passes(tmp_path, INDEX) == [0, 1]
    write_pass(tmp_path, 0, IDS)
    assert missing_passes(tmp_path, INDEX) == [1]
    write_pass(tmp_path, 1, IDS + 1)
    folder = CodeFolder(tmp_path)
    assert folder.ids.dtype == torch.int32
    assert torch.equal(folder.ids.long(), torch.stack([IDS, IDS + 1]))
    assert (len(folder), folder.passes, folder.index) == (3, 2, INDEX)


@pytest.mark.parametrize(
    "other",
    [
        replace(INDEX, aligned=("same", "none")),
        replace(INDEX, weights="12345678"),
        replace(INDEX, stretch=0.25),
        replace(INDEX, names=("a.glb", "b.glb", "d.glb")),
    ],
)
def test_codes_of_another_kind_are_refused(other: CodeIndex, tmp_path: Path) -> None:
    missing_passes(tmp_path, INDEX)
    with pytest.raises(ConfigError, match="other codes"):
        missing_passes(tmp_path, other)


def test_codes_without_an_index_are_refused(tmp_path: Path) -> None:
    write_pass(tmp_path, 0, IDS)
    with pytest.raises(ConfigError, match="without"):
        missing_passes(tmp_path, INDEX)


def test_an_unfinished_or_damaged_folder_is_one_line(tmp_path: Path) -> None:
    missing_passes(tmp_path, INDEX)
    write_pass(tmp_path, 0, IDS)
    with pytest.raises(PolytokError, match="has no codes"):
        CodeFolder(tmp_path)
    write_pass(tmp_path, 1, IDS[:2])
    with pytest.raises(PolytokError, match=r"\(2, 5\) instead of \(3, 5\)"):
        CodeFolder(tmp_path)
    pass_path(tmp_path, 1).write_bytes(b"no tensors")
    with pytest.raises(PolytokError, match="has no codes"):
        CodeFolder(tmp_path)
