"""Specs and codes that the tests of this folder share."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from polytok.bitstream import SymbolReader, SymbolWriter, tile_grid, writer_id
from polytok.core.contracts import Codes, Level, TokenizerSpec

SLOTS = (1, 4, 9, 16, 25, 36, 49, 64, 100)


@pytest.fixture(scope="session")
def make_spec() -> Callable[..., TokenizerSpec]:
    """Return a function that makes a shape spec from (vocab, count) pairs."""

    def make(pairs: Sequence[tuple[int, int | None]], **changes: object) -> TokenizerSpec:
        values: dict[str, object] = {
            "modality": "shape",
            "output": "field",
            "prefix": "levels",
            "levels": tuple(Level(vocab=v, count=n) for v, n in pairs),
        }
        return TokenizerSpec(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def make_codes() -> Callable[..., Codes]:
    """Return a function that draws a code of a spec; ``skew`` > 1 prefers small ids."""

    def make(spec: TokenizerSpec, seed: int = 0, skew: float = 1.0) -> Codes:
        rng = np.random.default_rng(seed)
        ids = [
            (lv.vocab * rng.random((1, lv.count or 0)) ** skew).astype(np.int64)
            for lv in spec.levels
        ]
        centre = rng.normal(size=(1, 3)).astype(np.float32)
        return Codes(
            indices=tuple(map(torch.from_numpy, ids)),
            meta={
                "centre": torch.from_numpy(centre),
                "scale": torch.tensor([float(np.exp(rng.normal()))], dtype=torch.float32),
            },
        )

    return make


@pytest.fixture(scope="session")
def image_spec() -> Callable[..., TokenizerSpec]:
    """Return a function that makes the spec of an image tokenizer."""

    def make(vocab: int, count: int, **changes: object) -> TokenizerSpec:
        values: dict[str, object] = {
            "modality": "image",
            "output": "image",
            "prefix": "tokens",
            "levels": (Level(vocab=vocab, count=count),),
        }
        return TokenizerSpec(**{**values, **changes})  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def image_codes() -> Callable[..., Codes]:
    """Return a function that draws the code of an image of the given size and tiles."""

    def make(
        spec: TokenizerSpec,
        size: tuple[int, int] = (640, 480),
        tiles: int = 1,
        seed: int = 0,
        skew: float = 1.0,
    ) -> Codes:
        [level], rng = spec.levels, np.random.default_rng(seed)
        rows, columns = tile_grid(*size, tiles)
        ids = level.vocab * rng.random((1, (level.count or 0) * rows * columns)) ** skew
        meta = {"size": torch.tensor([size]), "tiles": torch.tensor([tiles])}
        return Codes(indices=(torch.from_numpy(ids.astype(np.int64)),), meta=meta)

    return make


@pytest.fixture(scope="session")
def preset(make_spec: Callable[..., TokenizerSpec]) -> TokenizerSpec:
    """The levels of a 512-byte shape code: 304 ids of 12 bits."""
    return make_spec([(4096, n) for n in SLOTS])


@pytest.fixture(scope="session")
def preset_histograms(preset: TokenizerSpec) -> list[np.ndarray]:
    """Counts of ids drawn with ``skew=6``; most ids were never seen."""
    rng = np.random.default_rng(7)
    return [
        np.bincount((lv.vocab * rng.random(5000) ** 6).astype(int), minlength=lv.vocab)
        for lv in preset.levels
    ]


@dataclass(frozen=True)
class FakePrior:
    """A symbol model without a network: each id has a favourite, which earlier levels decide.

    Args:
        peak: probability of the favourite. rounding: stands for a machine's floating point.
        favourite: of every id, instead.
    """

    levels: tuple[Level, ...]
    peak: float = 0.9
    text: str | None = None
    rounding: int = 0
    favourite: int | None = None
    fingerprint: str = "5eed0001"
    writer: int = writer_id("2.13.0+cpu", "x86_64", "AVX512")

    @property
    def has_text(self) -> bool:
        return self.text is not None

    def favourites(self, found: Sequence[np.ndarray]) -> np.ndarray:
        """Favourites (n_k,) of the level that follows ``found``."""
        level = self.levels[len(found)]
        if self.favourite is not None:
            return np.full(level.count, self.favourite)
        known = repr((self.text, self.rounding, [ids.tolist() for ids in found]))
        rng = np.random.default_rng(zlib.crc32(known.encode()))
        return rng.integers(level.vocab, size=level.count)

    def table(self, found: Sequence[np.ndarray]) -> np.ndarray:
        level = self.levels[len(found)]
        table = np.full((level.count, level.vocab), (1 - self.peak) / (level.vocab - 1))
        table[np.arange(level.count), self.favourites(found)] = self.peak
        return table

    def encode(self, ids: Sequence[np.ndarray]) -> bytes:
        writer = SymbolWriter()
        for k, level_ids in enumerate(ids):
            writer.write(level_ids, self.table(ids[:k]))
        return writer.payload()

    def decode(self, payload: bytes, counts: Sequence[int]) -> list[np.ndarray]:
        reader, ids = SymbolReader(payload), []
        while len(ids) < len(counts):
            ids.append(reader.read(self.table(ids)))
        reader.close()
        return ids

    def likely(self, codes: Codes, seed: int = 0, luck: float = 0.9) -> Codes:
        """Replace ids by favourites, each with probability ``luck``."""
        rng, found = np.random.default_rng(seed), []
        for old in codes.indices:
            ids = old[0].numpy()
            found.append(np.where(rng.random(len(ids)) < luck, self.favourites(found), ids))
        return replace(codes, indices=tuple(torch.from_numpy(i)[None] for i in found))


@pytest.fixture(scope="session")
def make_prior() -> Callable[..., FakePrior]:
    """Return a function that makes a :class:`FakePrior` of a spec."""

    def make(spec: TokenizerSpec, **changes: object) -> FakePrior:
        return FakePrior(spec.levels, **changes)  # type: ignore[arg-type]

    return make
