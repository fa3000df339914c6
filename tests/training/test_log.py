"""Records of a run: numbers go on charts, sentences are kept and said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polytok.training.log import RunLog, _flat


def test_sentences_of_a_validation_are_kept_and_said_but_not_charted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = {"step": 1, "samples": 8, "val": {"iou": 0.5, "collapse": "No collapse."}}
    with RunLog(tmp_path, step=0, done=0, total=16, is_active=True) as log:
        log.write(record)
    [line] = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line) == record
    said = capsys.readouterr().err.splitlines()
    assert said == ["validation at 8 samples: iou 0.5", "  collapse: No collapse."]
    assert _flat(record) == {"step": 1, "val/iou": 0.5}
