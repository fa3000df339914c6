"""The format's page tells the truth: its example and its sizes are what the code makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch

from polytok.bitstream import pack, sizes, unpack
from polytok.core.contracts import Codes, TokenizerSpec
from polytok.systems.shape.vat.config import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "ptk-format.md").read_text()


def test_example(make_spec: Callable[..., TokenizerSpec]) -> None:
    example = bytes.fromhex(re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)[-1])
    spec = make_spec([(16, 1), (16, 3)])
    codes = Codes(
        indices=(torch.tensor([[10]]), torch.tensor([[1, 2, 15]])),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    assert pack(codes, spec, weights="0badcafe") == example
    assert [i.tolist() for i in unpack(example, spec, weights="0badcafe").indices] == [
        [[10]],
        [[1, 2, 15]],
    ]


def test_sizes_of_the_presets(make_spec: Callable[..., TokenizerSpec]) -> None:
    rows = dict(re.findall(r"^\| `(vat-[\w-]+)` \| ([\d, ]+) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == PRESETS.keys()
    for name, config in PRESETS.items():
        spec = make_spec([(config.codebook_size, n) for n in config.slots])
        assert rows[name] == ", ".join(map(str, sizes(spec)))
        if name.startswith("vat-512b"):
            assert sizes(spec)[-1] <= 512
    for name in ("vat-512b", "vat-512b-small"):
        config = PRESETS[name]
        spec = make_spec([(config.codebook_size, n) for n in config.slots])
        assert any(230 <= n <= 256 for n in sizes(spec))
