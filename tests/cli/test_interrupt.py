"""Ctrl-C while a file is written: what is finished stays, and nothing is left half written."""

from __future__ import annotations

from pathlib import Path

import pytest

from polytok import cli


@pytest.mark.parametrize("when", ["work", "write"])
def test_interrupted_batch(
    when: str,
    model: Path,
    box: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from polytok.systems.shape.codec import ShapeCodec

    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in ("a.glb", "b.glb", "c.glb"):
        (folder / name).write_bytes(box.read_bytes())
    write, encode = Path.write_bytes, ShapeCodec.encode
    calls: list[object] = []

    def stop_while_writing(path: Path, data: bytes) -> int:
        calls.append(path)
        if len(calls) == 2:
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt
        return write(path, data)

    def stop_while_encoding(codec: ShapeCodec, item: object, **options: int) -> object:
        calls.append(item)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return encode(codec, item, **options)

    if when == "write":
        monkeypatch.setattr(Path, "write_bytes", stop_while_writing)
    else:
        monkeypatch.setattr(ShapeCodec, "encode", stop_while_encoding)
    arguments = ["encode", str(folder), "-o", str(out), "--model", str(model)]
    assert cli.run(arguments) == cli.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"
    assert len(calls) == 2
    assert [p.name for p in out.iterdir()] == ["a.ptk"]
