"""Pictures in, codes out, and back: an image tokenizer joined with the image signal."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from polytok import bitstream
from polytok.core.contracts import Codes, Tokenizer, TokenizerSpec
from polytok.core.errors import ConfigError, PolytokError, SignalError
from polytok.signals import image as images
from polytok.systems.codec import Codec
from polytok.systems.image.search import MAX_EFFORT, Searchable, refine
from polytok.systems.images import check_ids

Signal = Image.Image | Tensor | str | PathLike[str]
MAX_SIDE = 4096  # of a decoded picture, unless another size is asked for
LARGEST_SIDE = 16_384
MICRO_BATCH = 16  # tiles that a network sees together
AUTO_TILES = (1, 2, 3, 4, 6, 8, 12, 16)  # what ``--tiles auto`` chooses from


class ImageCodec(Codec):
    """What ``polytok.load`` returns for an image tokenizer.

    A picture becomes a grid of square tiles, each with tokens of its own; decoded tiles are joined
    and resized to the picture's own width and height, so its aspect ratio is kept.

    Args:
        model: takes ``image`` (B, 3, size, size) in [0, 1], gives one level of tokens.
        size: pixels per side of a tile.
        name: preset or weights tag. weights: fingerprint, 8 hex digits.

    Raises:
        ConfigError: the codes of the tokenizer are not such tokens.
    """

    def __init__(self, model: Tokenizer, *, size: int, name: str, weights: str) -> None:
        super().__init__(name=name, weights=weights)
        levels = model.spec.levels
        if len(levels) != 1 or not levels[0].count:
            raise ConfigError(
                f"{name} has no codec: it gives no fixed number of tokens of one kind"
            )
        self.model, self.size = model.eval().requires_grad_(False), size

    @property
    def spec(self) -> TokenizerSpec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        """Where the model computes; codes and pictures stay on the CPU."""
        return next(self.model.parameters()).device

    @property
    def num_tokens(self) -> int:
        """Tokens of a tile in a whole code."""
        return self.spec.levels[0].count or 0

    @property
    def histograms(self) -> list[NDArray[np.int64]] | None:
        """Counts per token position and id for range coding.

        The ``token_counts`` of the model; without them the usage in training, in 2^-14 units, for
        all positions. Bottlenecks that track none, such as those without a table of codes, have
        none.
        """
        counts: Tensor | None = getattr(self.model, "token_counts", None)
        if counts is not None:
            return list(counts.cpu().numpy().astype(np.int64))
        usage = getattr(self.model.bottleneck, "usage", None)
        if usage is None:
            return None
        pooled = np.rint(usage.double().cpu().numpy() * 2**14).astype(np.int64)
        return [pooled] * self.num_tokens

    def encode(
        self,
        signals: Signal | Sequence[Signal],
        *,
        tokens: int | None = None,
        tiles: int | Sequence[int] = 1,
        effort: int = 0,
        fit: Callable[[Codes], int] | None = None,
        background: Sequence[int] = images.WHITE,
        note: Callable[[str], object] | None = None,
    ) -> Codes:
        """Encode a picture, a path, floats (3, H, W) in [0, 1], or a list of them.

        Args:
            tokens: keep so many of every tile, the first ones; default all.
            effort: 0 is the feed-forward code; up to 9 searches for tokens that decode nearer to
                the picture, see :mod:`polytok.systems.image.search`.
            fit: counts the tokens of every tile that may stay. A search is for a code of as many,
                which stays whole; without one, cutting a code later gives the same.
            tiles: along the longest side, 1..16; the other side has as many as keep them nearest
                to square. Of several, the number whose code of effort 0, of as many tokens as
                ``fit`` counts, decodes nearest to the picture by squared error.
            background: red, green, blue in 0..255, over which transparency is laid.
            note: is told, on one line each, what of a picture is changed or left out.

        Raises:
            SignalError: a picture cannot be read, or an array is no image in [0, 1].
            PolytokError: ``tokens``, ``tiles`` or ``effort`` is out of range, the tokenizer cannot
                search, or the pictures of a list have different numbers of tiles.
        """
        choices = tuple(sorted(set(tiles))) if isinstance(tiles, Iterable) else (tiles,)
        if not choices:
            raise PolytokError("tiles: there is no number to choose from")
        for number in choices:  # what is out of range is refused before anything is read
            bitstream.tile_grid(1, 1, number)
        if tokens is not None:
            self._check_tokens(tokens, self.num_tokens)
        self._check_effort(effort)
        items = _listed(signals)
        if not items:
            raise PolytokError("nothing to encode: the list is empty")
        make = partial(self._encode_one, choices=choices, tokens=tokens, effort=effort, fit=fit)
        parts = [make(self.read(item, background, note=note)) for item in items]
        counts = sorted({_num_tiles(part) for part in parts})
        if len(counts) > 1:
            raise PolytokError(
                f"the pictures have {counts[0]} to {counts[-1]} tiles; encode them one by one"
            )
        return Codes.cat(parts)

    def decode(
        self, codes: Codes, *, tokens: int | None = None, size: int | None = None
    ) -> list[Image.Image]:
        """Decode codes to pictures.

        Args:
            tokens: decode only the first of every tile.
            size: pixels of the longest side; default that of the original, at most 4096.

        Raises:
            PolytokError: an argument is out of range, or codes are not those of pictures, or have
                ids outside the vocabulary.
        """
        if size is not None and not 1 <= size <= LARGEST_SIDE:
            raise PolytokError(f"size={size} is not within 1..{LARGEST_SIDE}")
        if tokens is not None:
            codes = self.prefix(codes, tokens)
        if codes.indices:
            check_ids(codes, self.spec)
        return [self._decode_one(codes[item], size) for item in range(len(codes))]

    def prefix(self, codes: Codes, tokens: int) -> Codes:
        """Keep the first ``tokens`` tokens of every tile.

        Raises:
            PolytokError: there are not as many, or the tokenizer decodes whole codes only.
        """
        tiles = _num_tiles(codes)
        self._check_tokens(tokens, codes.indices[0].shape[1] // tiles)
        return codes.prefix(tokens=tokens * tiles)

    def read(
        self,
        signal: Signal,
        background: Sequence[int] = images.WHITE,
        *,
        note: Callable[[str], object] | None = None,
    ) -> Image.Image:
        """The ``RGB`` picture that is encoded; see :meth:`encode`."""
        if isinstance(signal, Tensor):
            # Arrays know no bfloat16; whole numbers stay what they are, and are refused.
            values = signal.float() if signal.is_floating_point() else signal
            return images.from_array(values.detach().cpu().numpy())
        if isinstance(signal, Image.Image):
            picture = images.plain(signal, note=note)
        elif isinstance(signal, (str, PathLike)):
            picture = images.read(signal, note=note)
        else:
            raise SignalError(
                "a picture is a path, an image of Pillow or a tensor of floats (3, H, W), not "
                f"{type(signal).__name__}"
            )
        return images.flat(picture, background, note=note)

    def _encode_one(
        self,
        picture: Image.Image,
        *,
        choices: Sequence[int],
        tokens: int | None,
        effort: int,
        fit: Callable[[Codes], int] | None,
    ) -> Codes:
        code = partial(self._first_code, picture, tokens=tokens)
        best = code(choices[0]) if len(choices) == 1 else self._nearest(picture, choices, code, fit)
        return self._searched(picture, best, effort, fit) if effort else best

    @torch.no_grad()
    def _first_code(self, picture: Image.Image, tiles: int, *, tokens: int | None) -> Codes:
        """What the encoder gives."""
        parts = self._cut(picture, tiles)
        ids = torch.cat([self.model.encode({"image": part}).indices[0] for part in parts])
        return _coded(picture, tiles, ids[:, :tokens])

    def _nearest(
        self,
        picture: Image.Image,
        choices: Sequence[int],
        code: Callable[[int], Codes],
        fit: Callable[[Codes], int] | None,
    ) -> Codes:
        """The code that shows most of a picture, of those with a token for each of their tiles."""
        best, least = None, math.inf
        for tiles in choices:
            codes = code(tiles)
            try:
                kept = None if fit is None else fit(codes)
            except PolytokError:
                # No more tiles fit either; if this is the first, its error tells what would.
                if best is None:
                    raise
                break
            shown = codes if kept is None else self.prefix(codes, kept)
            if (error := _difference(self._decode_one(shown, None), picture)) < least:
                best, least = codes, error
        assert best is not None
        return best

    def _searched(
        self, picture: Image.Image, codes: Codes, effort: int, fit: Callable[[Codes], int] | None
    ) -> Codes:
        """A better code with as many tiles, of the tokens that fit."""
        assert isinstance(self.model, Searchable)
        tiles = int(codes.meta["tiles"])
        parts = self._cut(picture, tiles)
        ids = codes.indices[0].view(-1, _num_tiles(codes)).T.to(self.device)
        kept = ids.shape[1] if fit is None else fit(codes)
        while True:
            pairs = zip(parts, ids[:, :kept].split(MICRO_BATCH), strict=True)
            found = [refine(self.model, *pair, effort=effort) for pair in pairs]
            codes = _coded(picture, tiles, torch.cat(found))
            # Other tokens can take more bytes; then fewer are searched for, and none is cut off.
            before, kept = kept, kept if fit is None else fit(codes)
            if kept >= before:
                return codes

    def _cut(self, picture: Image.Image, tiles: int) -> tuple[Tensor, ...]:
        """Tiles as batches that a network sees together."""
        grid = bitstream.tile_grid(*picture.size, tiles)
        values = torch.from_numpy(images.to_tiles(picture, self.size, grid))
        return values.to(self.device).split(MICRO_BATCH)

    @torch.inference_mode()
    def _decode_one(self, codes: Codes, size: int | None) -> Image.Image:
        tiles = _num_tiles(codes)
        ids = codes.indices[0].view(-1, tiles).T
        width, height = codes.meta["size"][0].tolist()
        grid = bitstream.tile_grid(width, height, int(codes.meta["tiles"]))
        values = [
            self.model.decode(Codes(indices=(part.to(self.device),)))["image"].float().cpu()
            for part in ids.split(MICRO_BATCH)
        ]
        return images.from_tiles(torch.cat(values).numpy(), grid, _fitted((width, height), size))

    def _check_effort(self, effort: int) -> None:
        if not 0 <= effort <= MAX_EFFORT:
            raise PolytokError(f"effort={effort} is not within 0..{MAX_EFFORT}")
        if effort and not isinstance(self.model, Searchable):
            raise PolytokError(
                f"effort={effort}: {self.name} has no search, as TiTok and One-D-Piece have; use 0"
            )

    def _check_tokens(self, tokens: int, present: int) -> None:
        if not 1 <= tokens <= present:
            raise PolytokError(f"tokens={tokens} is not within 1..{present}")
        if tokens < present and self.spec.prefix != "tokens":
            raise PolytokError(
                f"tokens={tokens}: {self.name} decodes whole codes of {present} only"
            )


def _listed(signals: Any) -> list[Signal]:
    """Signals as a list, of one if it is one, right or wrong."""
    one = (Image.Image, Tensor, str, PathLike, bytes, bytearray, np.ndarray)
    is_one = isinstance(signals, one) or not isinstance(signals, Iterable)
    return [signals] if is_one else list(signals)


def _coded(picture: Image.Image, tiles: int, ids: Tensor) -> Codes:
    """Codes of a picture from the ids (tiles, n) of its tiles."""
    return Codes(
        # The first token of every tile, then the second, so a prefix is a shorter code.
        indices=(ids.T.reshape(1, -1).cpu(),),
        meta={"size": torch.tensor([picture.size]), "tiles": torch.tensor([tiles])},
    )


def _difference(picture: Image.Image, truth: Image.Image) -> float:
    """Mean squared difference, of a picture that may be smaller than the true one."""
    if truth.size != picture.size:
        truth = truth.resize(picture.size, Image.Resampling.LANCZOS)
    one, other = (np.asarray(p, np.float32) for p in (picture, truth))
    return float(np.square(one - other).mean())


def _num_tiles(codes: Codes) -> int:
    """Tiles of the pictures of a batch, the same for all.

    Raises:
        PolytokError: the codes do not say, or have no whole tokens.
    """
    if not codes.indices or not {"size", "tiles"} <= codes.meta.keys():
        raise PolytokError("codes of pictures have indices, and meta 'size' and 'tiles'")
    width, height = codes.meta["size"][0].tolist()
    tiles = math.prod(bitstream.tile_grid(width, height, int(codes.meta["tiles"][0])))
    if (count := codes.indices[0].shape[1]) % tiles:
        raise PolytokError(f"{count} tokens are not the same number in all of {tiles} tiles")
    return tiles


def _fitted(original: tuple[int, int], size: int | None) -> tuple[int, int]:
    """Width and height of a decoded picture: ``size`` on its longest side."""
    longest = max(original)
    wanted = min(longest, MAX_SIDE) if size is None else size
    width, height = (max(1, round(side * wanted / longest)) for side in original)
    return width, height
