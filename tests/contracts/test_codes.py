"""Codes: what they refuse, and what slicing, joining, cutting and moving keep."""

from __future__ import annotations

import pytest
import torch

from polytok.core.contracts import Bottleneck, Codes, StepContext, Tokenizer
from polytok.core.errors import PolytokError


def ids(count: int, tokens: int) -> torch.Tensor:
    return torch.randint(8, (count, tokens))


@pytest.fixture
def codes() -> Codes:
    return Codes(
        indices=(ids(4, 1), ids(4, 3), ids(4, 6)),
        meta={"centre": torch.randn(4, 3), "scale": torch.rand(4)},
    )


def test_codes_hold_indices_or_latents_but_not_both() -> None:
    for wrong in ({}, {"indices": (ids(1, 2),), "latents": torch.zeros(1, 2, 3)}):
        with pytest.raises(PolytokError, match="exactly one"):
            Codes(**wrong)


@pytest.mark.parametrize(
    "level", [torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(3).long()]
)
def test_indices_are_int64_in_two_dimensions(level: torch.Tensor) -> None:
    with pytest.raises(PolytokError, match="int64"):
        Codes(indices=(level,))


def test_items_keep_a_batch_dimension(codes: Codes) -> None:
    assert len(codes) == 4
    for item in (0, 2, -1):
        one = codes[item]
        assert len(one) == 1
        assert all(
            torch.equal(a[0], b[item]) for a, b in zip(one.indices, codes.indices, strict=True)
        )
        assert torch.equal(one.meta["centre"][0], codes.meta["centre"][item])
    assert len(codes[1:3]) == 2 and len(codes[::2]) == 2
    for beyond in (4, -5):
        with pytest.raises(IndexError, match=str(beyond)):
            codes[beyond]


def test_joining_the_items_gives_the_batch_back(codes: Codes) -> None:
    joined = Codes.cat([codes[i] for i in range(4)])
    assert all(torch.equal(a, b) for a, b in zip(joined.indices, codes.indices, strict=True))
    assert all(torch.equal(joined.meta[k], codes.meta[k]) for k in codes.meta)
    latents = Codes(latents=torch.randn(3, 2, 5), lengths=torch.tensor([1, 2, 2]))
    again = Codes.cat([latents[:1], latents[1:]])
    assert torch.equal(again.latents, latents.latents)
    assert torch.equal(again.lengths, latents.lengths)


def test_prefixes_of_levels(codes: Codes) -> None:
    part = codes.prefix(levels=2)
    assert [i.shape[1] for i in part.indices] == [1, 3]
    assert torch.equal(part.meta["scale"], codes.meta["scale"])
    assert len(codes.prefix(levels=3).indices) == 3


def test_prefixes_of_tokens_shorten_lengths() -> None:
    ragged = Codes(indices=(ids(3, 6),), lengths=torch.tensor([2, 6, 4]), grid=(2, 3))
    part = ragged.prefix(tokens=4)
    assert part.indices[0].shape == (3, 4)
    assert part.lengths.tolist() == [2, 4, 4]
    assert part.grid is None
    latents = Codes(latents=torch.randn(2, 5, 3)).prefix(tokens=2)
    assert latents.latents.shape == (2, 2, 3)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"levels": 1, "tokens": 1}, {"levels": 0}, {"levels": 4}, {"tokens": 0}, {"tokens": 2}],
)
def test_prefixes_that_are_not_there_are_refused(codes: Codes, wrong: dict[str, int]) -> None:
    with pytest.raises(PolytokError, match=r"exactly one|not within 1\.\."):
        codes.prefix(**wrong)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("meta",), {}),
        ((torch.device("meta"),), {}),
        ((), {"device": "meta"}),
        (("meta", torch.float64), {}),
        ((torch.empty(0, device="meta"),), {}),
    ],
)
def test_every_tensor_moves_and_ids_stay_ids(
    codes: Codes, args: tuple[object, ...], kwargs: dict[str, object]
) -> None:
    moved = codes.to(*args, **kwargs)
    assert {t.device.type for t in (*moved.indices, *moved.meta.values())} == {"meta"}
    assert {t.dtype for t in moved.indices} == {torch.int64}


def test_a_dtype_alone_moves_nothing(codes: Codes) -> None:
    moved = codes.to(torch.float64)
    assert moved.meta["scale"].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(moved.indices, codes.indices, strict=True))


def test_the_contracts_themselves_do_nothing_silently() -> None:
    with pytest.raises(TypeError, match="Bottleneck must define forward"):
        Bottleneck()(torch.zeros(1, 1, 1))
    with pytest.raises(TypeError, match="must define encode"):
        Tokenizer().encode({})
    with pytest.raises(TypeError, match="must define forward"):
        Tokenizer()({}, StepContext())
    assert Bottleneck().vocab_sizes == ()
