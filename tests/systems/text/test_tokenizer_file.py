"""Tokenizer files of every kind, and what is wrong with bad ones."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from polytok.core.errors import SignalError
from polytok.systems.text._shared import BYTE_ALPHABET, to_bytes
from polytok.systems.text._tokenizer_file import (
    distinct_merges,
    merges_of_ranks,
    read_tokenizer,
    without_runs,
)

TEXTS = ["the other weather then", "theme of the mother", "das Wetter  der Mutter"] * 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        show_progress=False,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    return [tuple(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_json_of_both_formats(tokenizer: Tokenizer, tmp_path: Path) -> None:
    content = json.loads(tokenizer.to_str())
    merges = merges_of(tokenizer)
    assert len(merges) == 30
    for written in (merges, [" ".join(m) for m in merges]):
        content["model"]["merges"] = written
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(content))
        for source in (path, str(path), tmp_path):
            found = read_tokenizer(source)
            assert found.model == "BPE"
            assert list(found.merges) == merges
            assert found.vocab == tokenizer.get_vocab()
            assert found.added == ("<s>",)
            assert found.has_rules
            assert found.pre_tokenizer is not None
            assert found.pre_tokenizer["type"] == "ByteLevel"


def test_objects_are_read(tokenizer: Tokenizer) -> None:
    class Fast:
        backend_tokenizer = tokenizer

    assert read_tokenizer(Fast()) == read_tokenizer(tokenizer)


def test_merges_txt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    merges = [*merges_of(tokenizer), ("#", "v"), ("a\u2028", "b")]
    path = tmp_path / "merges.txt"
    lines = [" ".join(m) for m in merges]
    for head in (["#version: 0.2"], []):
        path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
        found = read_tokenizer(path)
        assert list(found.merges) == merges
        assert not found.vocab
        assert not found.has_rules


def test_ranks_give_the_merges_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    merges = merges_of(tokenizer)
    tokens = [*BYTE_ALPHABET, *("".join(m) for m in merges), "qqzz"]
    lines = [f"{base64.b64encode(to_bytes(t)).decode()} {i}" for i, t in enumerate(tokens)]
    path = tmp_path / "x.tiktoken"
    path.write_text("\n".join(lines) + "\n")
    found = read_tokenizer(tmp_path)
    assert list(found.merges) == merges
    assert found.dropped == ("qqzz",)
    assert found.vocab["qqzz"] == len(tokens) - 1


def field(number: int, wire: int, data: bytes) -> bytes:
    size = bytes([len(data)]) if wire == 2 else b""
    return bytes([number << 3 | wire]) + size + data


def sentencepiece(kind: int, pieces: list[tuple[str, float, int]]) -> bytes:
    out = b""
    for text, score, type_ in pieces:
        body = field(1, 2, text.encode()) + field(2, 5, struct.pack("<f", score))
        out += field(1, 2, body + field(3, 0, bytes([type_])))
    trainer = field(1, 2, b"some/file") + field(3, 0, bytes([kind]))
    return out + field(2, 2, trainer) + field(3, 2, field(1, 2, b"nmt_nfkc"))


PIECES = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("ab", -0.0, 1), ("abb", -1.0, 1)]
PIECES += [("a", -2.0, 1), ("b", -3.0, 1)]


def test_sentencepiece_models(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(sentencepiece(2, PIECES))
    found = read_tokenizer(tmp_path)
    assert found.model == "BPE"
    assert found.merges == (("a", "b"), ("ab", "b"))
    assert found.added == ("<unk>", "<s>")
    assert found.vocab["abb"] == 3
    assert found.normalizer == {"type": "NFKC"}
    path.write_bytes(sentencepiece(1, PIECES))
    found = read_tokenizer(path)
    assert found.model == "Unigram"
    assert not found.merges
    assert found.scores == {"ab": 0.0, "abb": -1.0, "a": -2.0, "b": -3.0}


def test_unigram_json(tmp_path: Path) -> None:
    vocab = [["<unk>", 0.0], ["a", -1.5]]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "Unigram", "vocab": vocab}}))
    found = read_tokenizer(path)
    assert (found.model, found.merges) == ("Unigram", ())
    assert found.scores == {"<unk>": 0.0, "a": -1.5}
    assert found.vocab == {"<unk>": 0, "a": 1}


BAD = {
    "empty": b"",
    "blank": b" \n",
    "binary": bytes(range(256)) * 4,
    "text": b"Once upon a time there was no tokenizer.\n",
    "json": b'{"model"',
    "deep": b'{"a":' + b"[" * 200_000,
    "list": b'{"model": []}',
    "merge": b'{"model": {"type": "BPE", "vocab": {}, "merges": ["a b c"]}}',
    "number": b'{"model": {"type": "BPE", "vocab": {}, "merges": [[1, 2]]}}',
    "vocab": b'{"model": {"type": "BPE", "vocab": {"a": "x"}, "merges": []}}',
    "added": b'{"model": {"type": "BPE", "vocab": {}}, "added_tokens": [1]}',
    "unigram": b'{"model": {"type": "Unigram", "vocab": [["a"]]}}',
    "header": b"#version: 0.2\n",
    "ranks": b"YQ== 0\nYg==\n",
    "cut": sentencepiece(2, PIECES)[:-5],
    "latin": "é è\n".encode("latin-1") * 3,
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_on_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(BAD[name])
    with pytest.raises(SignalError) as caught:
        read_tokenizer(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "x.json"):
        with pytest.raises(SignalError, match=tmp_path.name):
            read_tokenizer(path)


def test_one_merge_is_kept_for_each_token() -> None:
    every = [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c"), ("c", "abc")]
    assert distinct_merges(every) == (("a", "b"), ("b", "c"), ("ab", "c"), ("c", "abc"))
    assert distinct_merges(every[:2]) == tuple(every[:2])
    # Equal letters join from the left.
    runs = [("_", "_"), ("_", "__"), ("__", "_")]
    assert distinct_merges(runs) == (("_", "_"), ("__", "_"))


def test_ranks_take_lower_ones_only() -> None:
    ranks = {"a": 0, "b": 1, "c": 2, "bc": 3, "abc": 4, "ab": 5}
    assert merges_of_ranks(ranks) == ((("b", "c"), ("a", "bc"), ("a", "b")), ())


def test_runs_of_blanks_are_left_out() -> None:
    merges = [("Ġ", "Ġ"), ("Ġ", "a"), ("ĠĠ", "Ġ"), ("▁", "▁")]
    assert without_runs(merges) == (("Ġ", "a"),)
