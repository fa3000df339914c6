"""Images of a class, or of none: a generator joined with its tokenizer's codec."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from polytok import bitstream
from polytok.core.contracts import Batch, Codes
from polytok.core.errors import ConfigError, UnknownNameError
from polytok.core.seeding import torch_rng
from polytok.generators import Guide, Known
from polytok.systems.classics.maskgit import MaskGIT, check_cfg
from polytok.systems.drawing import MICRO_BATCH, CodeGenerator, check_count
from polytok.systems.image.codec import ImageCodec
from polytok.systems.prior import MaskedPriorCoder

Label = int | str
MAX_COUNT = 100_000


class ImageGenerator(CodeGenerator):
    """What ``polytok.load`` returns for an image generator."""

    model: MaskGIT
    codec: ImageCodec

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, if they are known."""
        return self.model.config.classes

    def generate(
        self,
        label: Label | Sequence[Label] | None = None,
        *,
        count: int = 1,
        seed: int = 0,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        known: Codes | Known | None = None,
    ) -> Codes:
        """Draw ``count`` codes of square pictures.

        Item i of a seed is the same whatever ``count`` is.

        Args:
            label: class by number or name, of all items or one each; None for no class.
            steps: passes of the net, 1..length. cfg: guidance strength w of (1 + w) c - w u.
            temperature: of the noise, see :class:`MaskGITConfig`; all three default to the
                model's own.
            known: what is given of one code, or of ``count``: ids and where they hold, to fill in
                what is missing; or codes, whose first tokens stay and whose sides are taken over.

        Raises:
            UnknownNameError: there is no class of this name. ConfigError: another argument is out
                of range, or the model knows no classes.
        """
        parts = self.stream(
            label,
            count=count,
            seed=seed,
            steps=steps,
            cfg=cfg,
            temperature=temperature,
            known=known,
        )
        return Codes.cat(list(parts))

    def stream(
        self,
        label: Label | Sequence[Label] | None = None,
        *,
        count: int,
        seed: int = 0,
        steps: int | None = None,
        cfg: float | None = None,
        temperature: float | None = None,
        known: Codes | Known | None = None,
    ) -> Iterator[Codes]:
        """Draw codes as :meth:`generate` does, a few at a time, in bounded memory."""
        check_count(count, MAX_COUNT)
        check_cfg(self.model.config.cfg if cfg is None else cfg)
        self.model.process.plan(steps)
        labels = self._labels(label, count)
        sides = torch.full((1, 2), self.codec.size)
        if isinstance(known, Codes):
            sides, known = known.meta.get("size", sides), self._first(known)
        if known is not None:
            known = self._fitted(known, count)
        options = {"steps": steps, "cfg": cfg, "temperature": temperature}
        return self._stream(labels, known, sides, count, seed, options)

    def images(self, codes: Codes, *, size: int | None = None) -> list[Image.Image]:
        """Decode codes to pictures; see :meth:`ImageCodec.decode`."""
        return self.codec.decode(codes, size=size)

    def prior(self, text: str | None = None) -> MaskedPriorCoder:
        """Return the entropy coder of ``.ptk`` files that this generator is, of no class.

        Raises:
            ConfigError: there is a text, which it does not know.
        """
        if text is not None:
            raise ConfigError(f"text={text!r}: {self.name} knows no texts")
        return MaskedPriorCoder(self.model, {}, Guide(), fingerprint=self.weights)

    def _stream(
        self,
        labels: Tensor | None,
        known: Known | None,
        sides: Tensor,
        count: int,
        seed: int,
        options: dict[str, float | None],
    ) -> Iterator[Codes]:
        for start in range(0, count, MICRO_BATCH):
            numbers = range(start, start + MICRO_BATCH)
            rngs = [torch_rng(seed, "item", i, device=str(self.device)) for i in numbers]
            # The last batch is as large as the others; what it has too many is thrown away.
            items = torch.tensor([min(i, count - 1) for i in numbers])
            prompt: Batch = {} if labels is None else {"label": labels[items].to(self.device)}
            with torch.inference_mode():
                codes = self.model.draw(
                    prompt,
                    count=MICRO_BATCH,
                    rng=rngs,
                    known=known and self._taken(known, items),
                    **options,  # type: ignore[arg-type]
                ).to("cpu")
            kept = codes[: min(MICRO_BATCH, count - start)]
            rows = items[: len(kept)] % len(sides)
            meta = {"size": sides[rows], "tiles": torch.ones(len(kept), dtype=torch.int64)}
            yield replace(kept, meta=meta)

    def _labels(self, label: Label | Sequence[Label] | None, count: int) -> Tensor | None:
        """Numbers (count,) of the classes of all items."""
        if label is None:
            return None
        given = [label] * count if isinstance(label, (int, str)) else list(label)
        if len(given) != count:
            raise ConfigError(f"{len(given)} labels are given for {count} items")
        return torch.tensor([self._number(one) for one in given])

    def _number(self, label: Label) -> int:
        total = self.model.config.num_classes
        if not total:
            raise ConfigError(f"label={label!r}: {self.name} was trained without classes")
        if label in self.classes:
            return self.classes.index(str(label))
        if isinstance(label, str) and not label.isdecimal():
            raise UnknownNameError("class", label, self.classes)
        if not 0 <= int(label) < total:
            raise ConfigError(f"label={label} is not within 0..{total - 1}")
        return int(label)

    def _first(self, codes: Codes) -> Known:
        """What codes of one tile give: their first tokens."""
        length = self.model.config.length
        ids = codes.indices[0] if len(codes.indices) == 1 else None
        if ids is None or not 1 <= ids.shape[1] <= length:
            raise ConfigError(f"known codes must have one level of 1..{length} ids")
        if {"size", "tiles"} <= codes.meta.keys():
            width, height = codes.meta["size"][0].tolist()
            grid = bitstream.tile_grid(width, height, int(codes.meta["tiles"][0]))
            if math.prod(grid) != 1:
                raise ConfigError(f"known codes have {math.prod(grid)} tiles; one is drawn")
        whole = torch.zeros(len(ids), length, dtype=torch.int64)
        whole[:, : ids.shape[1]] = ids
        return Known(ids=whole, mask=torch.arange(length).expand_as(whole) < ids.shape[1])

    def _fitted(self, known: Known, count: int) -> Known:
        """Known ids of one item or ``count``, checked."""
        config = self.model.config
        shapes = {tuple(known.ids.shape), tuple(known.mask.shape)}
        if len(shapes) > 1 or not shapes <= {(1, config.length), (count, config.length)}:
            raise ConfigError(
                f"known ids must be (1, {config.length}) or ({count}, {config.length}), got "
                f"{tuple(known.ids.shape)} and {tuple(known.mask.shape)}"
            )
        given = known.ids[known.mask]
        if len(given) and not 0 <= int(given.min()) <= int(given.max()) < config.vocab:
            raise ConfigError(f"known ids are not within 0..{config.vocab - 1}")
        return known

    def _taken(self, known: Known, items: Tensor) -> Known:
        rows = items % len(known.ids)
        return Known(ids=known.ids[rows].to(self.device), mask=known.mask[rows].to(self.device))
