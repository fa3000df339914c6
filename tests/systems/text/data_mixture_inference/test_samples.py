"""Samples: categories found, cut into parts and read, whatever lies in the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polytok.core.errors import SignalError
from polytok.systems.text.data_mixture_inference.samples import (
    find_categories,
    pieces,
    read,
    split_documents,
)


def folder(root: Path, **texts: str) -> Path:
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_txt", ".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_a_folder_holds_a_category_in_each_entry(tmp_path: Path) -> None:
    folder(tmp_path, en_txt="a\n", code__x_txt="b\n", code__deep__y_txt="c\n", **{".hidden": "d"})
    found = find_categories([str(tmp_path)], num_parts=1)
    assert {c.name: "".join(read(c.parts[0])) for c in found} == {"en": "a\n", "code": "c\nb\n"}


def test_categories_can_be_named(tmp_path: Path) -> None:
    folder(tmp_path, x_txt="a\n", y__z_txt="b=c\n")
    found = find_categories([f"first={tmp_path / 'x.txt'}", f"second={tmp_path / 'y'}"])
    assert [c.name for c in found] == ["first", "second"]
    assert [c.name for c in find_categories([str(tmp_path / "x.txt")])] == ["x"]


LINES = st.lists(st.text("aé日\t ", max_size=30).map(lambda s: s + "\n"), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(LINES, LINES, st.integers(1, 9), st.booleans())
def test_parts_hold_every_line_once(
    tmp_path_factory: pytest.TempPathFactory,
    first: list[str],
    second: list[str],
    num_parts: int,
    by_line: bool,
) -> None:
    root = folder(tmp_path_factory.mktemp("x"), c__a_txt="".join(first), c__b_txt="".join(second))
    (found,) = find_categories([f"c={root / 'c'}"], num_parts=num_parts)
    assert len(found.parts) == num_parts
    texts = ["".join(read(p, by_line=by_line)) for p in found.parts]
    assert "".join(texts) == "".join(first + second)
    if by_line:
        assert [t for p in found.parts for t in read(p, by_line=True)] == first + second


def test_a_budget_is_spread_over_the_parts(tmp_path: Path) -> None:
    folder(tmp_path, c_txt="".join(f"{i:09}\n" for i in range(1000)))
    (found,) = find_categories([str(tmp_path)], num_parts=4, max_bytes=400)
    texts = ["".join(read(p)) for p in found.parts]
    assert [t[:9] for t in texts] == [f"{250 * i:09}" for i in range(4)]
    assert [len(t) for t in texts] == [100] * 4


def test_long_lines_are_read_in_pieces(tmp_path: Path) -> None:
    text = "日é" * 50_000
    folder(tmp_path, c_txt=text)
    (found,) = find_categories([str(tmp_path)], num_parts=3)
    read_texts = [list(read(p)) for p in found.parts]
    assert "".join(t for part in read_texts for t in part) == text
    assert max(len(t) for part in read_texts for t in part) < 70_000
    # A line belongs to the part that it begins in.
    assert [bool(part) for part in read_texts] == [True, False, False]


def test_pieces_end_at_line_ends() -> None:
    text = "".join(f"line {i}\n" for i in range(5000))
    found = list(pieces([text]))
    assert "".join(found) == text
    assert all(p.endswith("\n") for p in found)
    assert max(map(len, found)) < 8300
    assert list(pieces(["a\u2028b\n", "c", "d"])) == ["a\u2028b\n", "c", "d"]


def test_binary_files_are_left_out(tmp_path: Path) -> None:
    folder(tmp_path, c__a_txt="text\n")
    (tmp_path / "c" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x01")
    (tmp_path / "c" / "c.txt").write_bytes("é".encode("latin-1"))
    (found,) = find_categories([str(tmp_path)], num_parts=2)
    assert [p.name for p in found.skipped] == ["b.png", "c.txt"]
    assert "".join("".join(read(p)) for p in found.parts) == "text\n"


def test_text_that_turns_binary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"line\n" * 20_000 + b"\xff\xfe\n")
    (found,) = find_categories([str(path)], num_parts=1)
    with pytest.raises(SignalError, match=r"x\.txt is no UTF-8"):
        list(read(found.parts[0]))


def test_what_is_no_category_is_refused(tmp_path: Path) -> None:
    folder(tmp_path, a__x_txt="1\n", b__x_txt="", c__x_txt="2\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "e.bin").write_bytes(b"\0\1\2")
    for sources, words in (
        (["a=nowhere"], "nowhere: no such file"),
        (["=x"], "not NAME=PATH"),
        ([f"{tmp_path / 'd'}"], "is empty"),
        ([f"x={tmp_path / 'd'}"], "no files"),
        ([f"x={tmp_path / 'b'}"], "no bytes"),
        ([f"x={tmp_path / 'e.bin'}"], "no UTF-8 text"),
        ([f"x={tmp_path / 'a'}", f"x={tmp_path / 'c'}"], "'x' is given twice"),
    ):
        with pytest.raises(SignalError, match=words):
            find_categories(sources)


def test_documents_are_split_in_order() -> None:
    parts = split_documents(["a" * 10, "b" * 10, "c" * 10, "d" * 10], 2)
    assert ["".join(p)[::10] for p in parts] == ["ab", "cd"]
    assert split_documents("x\ny\n", 2) == (("x\n",), ("y\n",))
    assert split_documents([], 3) == ((), (), ())
