"""What the page on cheaper vision transformers shows works as written."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import polytok
from polytok.networks.pretrained.optional import import_hf
from reducers.models import tiny_deit

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cheaper-vits.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
@torch.no_grad()
def test_a_block_of_code_runs(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)  # dataclasses look their module up
    model = tiny_deit(depth=12)
    images = torch.rand(2, 3, 64, 64)
    page.__dict__.update(model=model, images=images, polytok=polytok)
    if "create_model" in BLOCKS[number]:
        monkeypatch.setattr(import_hf("timm"), "create_model", lambda *_, **__: model)
    exec(compile(BLOCKS[number], "page", "exec"), page.__dict__)
