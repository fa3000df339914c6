"""The format's page tells the truth: its examples and its sizes are what the code makes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polytok.bitstream import describe_writer, pack, sizes, unpack, writer_id
from polytok.core.contracts import Codes, TokenizerSpec
from polytok.systems.shape.vat.config import PRESETS

PAGE = (Path(__file__).parents[2] / "docs" / "ptk-format.md").read_text()
PACKED, PRIOR_CODED, IMAGE = map(bytes.fromhex, re.findall(r"```\n(.*?)```", PAGE, re.DOTALL))


def test_example_of_a_packed_file(make_spec: Callable[..., TokenizerSpec]) -> None:
    spec = make_spec([(16, 1), (16, 3)])
    codes = Codes(
        indices=(torch.tensor([[10]]), torch.tensor([[1, 2, 15]])),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    assert pack(codes, spec, weights="0badcafe") == PACKED
    assert [i.tolist() for i in unpack(PACKED, spec, weights="0badcafe").indices] == [
        [[10]],
        [[1, 2, 15]],
    ]


def test_example_of_a_prior_coded_file(
    make_spec: Callable[..., TokenizerSpec], make_prior: Callable[..., Any]
) -> None:
    spec = make_spec([(16, 1), (16, 30)])
    prior = make_prior(spec, peak=0.85, favourite=3)
    codes = Codes(
        indices=(torch.full((1, 1), 3), torch.full((1, 30), 3)),
        meta={"centre": torch.tensor([[1.0, -2.0, 0.5]]), "scale": torch.tensor([0.25])},
    )
    assert pack(codes, spec, weights="0badcafe", prior=prior) == PRIOR_CODED
    assert len(pack(codes, spec, weights="0badcafe")) == 46
    back = unpack(PRIOR_CODED, spec, weights="0badcafe", prior=prior)
    assert all(map(torch.equal, back.indices, codes.indices))


def test_example_of_an_image(image_spec: Callable[..., TokenizerSpec]) -> None:
    spec = image_spec(16, 3)
    codes = Codes(
        indices=(torch.tensor([[10, 1, 2, 15, 0, 7]]),),
        meta={"size": torch.tensor([[300, 150]]), "tiles": torch.tensor([2])},
    )
    assert pack(codes, spec, weights="0badcafe") == IMAGE
    back = unpack(IMAGE, spec, weights="0badcafe")
    assert torch.equal(back.indices[0], codes.indices[0])
    assert {k: v.tolist() for k, v in back.meta.items()} == {"size": [[300, 150]], "tiles": [2]}


def test_sizes_of_small_pictures(image_spec: Callable[..., TokenizerSpec]) -> None:
    found = re.search(r"a 64 x 64 picture with ([\d, ]+) tokens", PAGE)
    assert found is not None
    tokens = [int(n) for n in found[1].split(", ")]
    rows = re.findall(r"^\| (\d+) \| ([\d, ]+) \|$", PAGE, re.MULTILINE)
    assert [vocab for vocab, _ in rows] == ["1024", "4096"]
    meta = {"size": np.array([64, 64]), "tiles": np.array(1)}
    for vocab, listed in rows:
        whole = sizes(image_spec(int(vocab), 127), meta)
        assert listed == ", ".join(str(whole[k - 1]) for k in tokens)


def test_lists_of_writers() -> None:
    found = re.search(r"CPUs are (.*?); instructions, in torch's words, (.*?)\.\s", PAGE, re.DOTALL)
    assert found is not None
    cpus, instructions = (
        re.findall(r"(\d+) ([\w ]+)", " ".join(s.split())) for s in found.groups()
    )
    assert [int(n) for n, _ in cpus] == list(range(4))
    assert [int(n) for n, _ in instructions] == list(range(9))
    for number, name in cpus[1:]:
        assert f" on {name} with " in describe_writer(int(number) << 4)
    for number, name in instructions[1:]:
        assert describe_writer(int(number)).endswith(f" with {name}")
        assert writer_id("2.13.0", "x86_64", name) & 15 == int(number)


def test_sizes_of_the_presets(make_spec: Callable[..., TokenizerSpec]) -> None:
    rows = dict(re.findall(r"^\| `(vat-[\w-]+)` \| ([\d, ]+) \|$", PAGE, re.MULTILINE))
    assert rows.keys() == PRESETS.keys()
    for name, config in PRESETS.items():
        spec = make_spec([(config.codebook_size, n) for n in config.slots])
        assert rows[name] == ", ".join(map(str, sizes(spec)))
        if name.startswith("vat-512b"):
            assert sizes(spec)[-1] + 1 <= 512  # with the value of the surface
    for name in ("vat-512b", "vat-512b-small"):
        config = PRESETS[name]
        spec = make_spec([(config.codebook_size, n) for n in config.slots])
        assert any(230 <= n <= 256 for n in sizes(spec))
