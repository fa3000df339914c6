"""Mutate .ptk files and check that nothing but a PolytokError ever comes out of reading them.

    python scripts/fuzz_ptk.py --count 1000000 --seed 0

Half of the mutants get a right checksum, so that they reach the decoders. Every code that is read
must have ids inside its vocabulary and finite restore-units data, and memory must stay bounded.
"""

from __future__ import annotations

import argparse
import resource
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

import numpy as np
import torch

from polytok.bitstream import pack, read_header, sizes, truncate, unpack
from polytok.core.contracts import Codes, Level, TokenizerSpec
from polytok.core.errors import PolytokError

WEIGHTS = "0badcafe"
HEADER = 30
EXTRAS = ((0x80, 1), (0x40, 3))  # bits of byte 9, and by how many bytes the header is longer
FLAGS = (0x00, 0x40, 0x80, 0xC0)
MAX_GROWTH_MIB = 64
Mutate = Callable[[bytearray, Random], None]


@dataclass(frozen=True)
class Target:
    """A tokenizer's spec, its histograms, and valid files of it to start from."""

    name: str
    spec: TokenizerSpec
    histograms: list[np.ndarray]
    files: list[bytes]


def make_target(name: str, pairs: list[tuple[int, int]], seed: int) -> Target:
    """Pack codes of (vocab, count) levels: packed and range coded, whole and truncated."""
    rng = np.random.default_rng(seed)
    spec = TokenizerSpec(
        modality="shape",
        output="field",
        prefix="levels",
        levels=tuple(Level(vocab=v, count=n) for v, n in pairs),
    )
    histograms = [
        np.bincount((v * rng.random(2000) ** 6).astype(int), minlength=v) for v, _ in pairs
    ]
    files = []
    for skew in (1.0, 6.0):
        ids = [torch.from_numpy((v * rng.random((1, n)) ** skew).astype(int)) for v, n in pairs]
        centre = torch.from_numpy(rng.normal(size=(1, 3)).astype(np.float32))
        stretch = {"stretch": torch.tensor([[1.0, 2.0**0.25, 8.0]])}
        iso = {"iso": torch.tensor([-0.75])}
        for more in ({}, iso, stretch, {**iso, **stretch}):
            meta = {"centre": centre, "scale": torch.ones(1) * 0.7, **more}
            codes = Codes(indices=tuple(ids), meta=meta)
            data = pack(codes, spec, weights=WEIGHTS, histograms=histograms)
            short = truncate(data, spec, len(data) - 1, weights=WEIGHTS, histograms=histograms)
            files += [data, short]
    assert {read_header(f).is_range_coded for f in files} == {False, True}
    return Target(name, spec, histograms, files)


def flip(data: bytearray, rng: Random) -> None:
    """Flip one to eight bits."""
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: Random) -> None:
    """Drop the end."""
    del data[rng.randrange(len(data)) :]


def grow(data: bytearray, rng: Random) -> None:
    """Append bytes, now and then many."""
    data += rng.randbytes(rng.choice((1, 2, 4, 16, 4096)))


def splice(data: bytearray, rng: Random) -> None:
    """Copy one stretch of the file over another place, or remove or repeat it."""
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    place = rng.randrange(len(data))
    data[place : place + rng.choice((0, stop - start))] = data[start:stop]


def noise(data: bytearray, rng: Random) -> None:
    """Replace the payload, or everything, by random bytes."""
    start = rng.choice((0, HEADER))
    length = rng.choice((len(data) - start, rng.randrange(600)))
    data[start:] = rng.randbytes(length)


def field(data: bytearray, rng: Random) -> None:
    """Give one field of the header another value."""
    value = rng.choice((0.0, -1.0, 1e-40, 3e38, float("nan"), float("inf"), -float("inf")))
    start, new = rng.choice(
        (
            (3, bytes([rng.randrange(256)])),
            (4, rng.randbytes(4)),
            (8, bytes([rng.choice((0, 1, 1, 2, 16, 17, rng.randrange(256)))])),
            (9, bytes([rng.choice((0, 1, 2, 3, 4, 9, 10, 63)) | rng.choice(FLAGS)])),
            (10 + 4 * rng.randrange(4), struct.pack("<f", value)),
            (10 + 4 * rng.randrange(4), rng.randbytes(4)),
        )
    )
    data[start : start + len(new)] = new


def level_count(data: bytearray, rng: Random) -> None:
    """Announce other levels or the other coder, with as many bytes as fit or not."""
    data[8] = rng.randrange(2)
    data[9] = rng.randrange(12) | rng.choice(FLAGS)
    if rng.random() < 0.5:
        del data[rng.randrange(HEADER, len(data) + 1) :]


MUTATIONS: tuple[Mutate, ...] = (flip, cut, grow, splice, noise, field, level_count)


def mutants(target: Target, rng: Random) -> Iterator[tuple[str, bytes]]:
    """Yield mutated files for ever, with the name of the last mutation."""
    while True:
        data = bytearray(rng.choice(target.files))
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            mutate = rng.choice(MUTATIONS)
            if len(data) > HEADER:
                mutate(data, rng)
        if rng.random() < 0.5 and len(data) >= HEADER:
            end = HEADER + sum(size for flag, size in EXTRAS if data[9] & flag)
            crc = zlib.crc32(data[end:], zlib.crc32(data[: end - 4]))
            data[end - 4 : end] = struct.pack("<I", crc)
        yield mutate.__name__, bytes(data)


def check(target: Target, data: bytes, rng: Random) -> str:
    """Read a mutant; return what came of it: ``read``, or the name of the error."""
    partial = rng.random() < 0.25
    try:
        codes = unpack(
            data, target.spec, weights=WEIGHTS, histograms=target.histograms, partial=partial
        )
    except PolytokError as error:
        if "\n" in str(error) or len(str(error)) > 300:
            raise AssertionError(f"not one short line: {error!r}") from error
        return type(error).__name__
    for ids, level in zip(codes.indices, target.spec.levels, strict=False):
        low, high = ids.aminmax()
        assert ids.shape == (1, level.count)
        assert int(low) >= 0 and int(high) < level.vocab
    centre, scale = codes.meta["centre"][0].tolist(), float(codes.meta["scale"])
    assert max(map(abs, centre)) <= 1.0001e30 and 0.9999e-30 <= scale <= 1.0001e30
    header = read_header(data)
    if partial:
        return "read partially"
    if header.is_range_coded:
        return "read, range coded"
    # Packed files and codes are one to one.
    assert pack(codes, target.spec, weights=WEIGHTS) == data
    return "read, packed"


def peak_mib() -> float:
    """Peak memory of this process."""
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    """Run the mutations, print progress and the final counts; exits 1 at the first failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    slots = (1, 4, 9, 16, 25, 36, 49, 64, 100)
    targets = [
        make_target("12 bits, nine levels", [(4096, n) for n in slots], args.seed),
        make_target("6 bits, four levels", [(64, n) for n in slots[:4]], args.seed + 1),
        make_target("radix", [(100, 1), (3, 9), (1000, 20)], args.seed + 2),
    ]
    rng, outcomes, done = Random(args.seed), Counter[str](), 0
    start, before = time.monotonic(), peak_mib()
    for k, target in enumerate(targets):
        source = mutants(target, rng)
        for _ in range(k, args.count, len(targets)):
            name, data = next(source)
            try:
                outcomes[check(target, data, rng)] += 1
            except Exception as error:
                print(f"FAILED on {target.name} after {name}: {error!r}\n{data.hex()}")
                raise SystemExit(1) from error
            done += 1
            if done % max(1, args.count // 20) == 0:
                rate = done / (time.monotonic() - start)
                print(f"{done:>9} mutants, {rate:.0f}/s, {dict(outcomes)}", flush=True)
    growth = peak_mib() - before
    print(
        f"{done} mutants of {len(targets)} specs (largest file {sizes(targets[0].spec)[-1]} bytes) "
        f"in {time.monotonic() - start:.0f} s: {dict(outcomes)}; memory grew by {growth:.1f} MiB"
    )
    if growth > MAX_GROWTH_MIB:
        raise SystemExit(f"memory grew by more than {MAX_GROWTH_MIB} MiB")


if __name__ == "__main__":
    main()
