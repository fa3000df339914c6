"""Shapes from text, pictures or nothing: a generator joined with its tokenizer's codec."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike

import torch
from PIL import Image
from torch import Tensor

from polytok.core.contracts import Batch, Codes
from polytok.core.errors import ConfigError, PolytokError, WeightsError
from polytok.core.seeding import torch_rng
from polytok.generators import DraftExpert, Guide, Known, Sampling, constant
from polytok.networks.pretrained import SmallTextTower
from polytok.signals import image as images
from polytok.systems.drawing import MICRO_BATCH, CodeGenerator, check_count
from polytok.systems.prior import PriorCoder
from polytok.systems.shape.codec import ShapeCodec
from polytok.systems.shape.vat.generator import VATGenerator

Picture = Image.Image | str | PathLike[str]
MAX_COUNT = 10_000
MAX_DRAWS = 8
DRAFT = 30.0
# Of a shape that was never measured: its longest side is 1.
UNIT_SCALE = 1.96


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a code costs under a generator.

    Args:
        nats: per token, for every level. tokens: of every level.
    """

    nats: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def nats_per_token(self) -> float:
        """Mean over all tokens."""
        return sum(n * t for n, t in zip(self.nats, self.tokens, strict=True)) / sum(self.tokens)


class ShapeGenerator(CodeGenerator):
    """What ``polytok.load`` returns for a shape generator."""

    model: VATGenerator
    codec: ShapeCodec

    def generate(
        self,
        text: str | None = None,
        image: Picture | None = None,
        *,
        count: int = 1,
        seed: int = 0,
        cfg: float = 2.0,
        draft: float | None = None,
        blend: float = 0.5,
        sampling: Sampling | None = None,
    ) -> Codes:
        """Draw ``count`` codes, each of which decodes to a mesh of longest side 1.

        Item i of a seed is the same whatever ``count`` is. ``meta["draws"]`` says how many draws
        an item took: one that decodes to nothing is drawn again with the next stream.

        Args:
            text, image: conditions; both are blended, ``blend`` being the share of the image. An
                image without transparency and with one plain border colour is cut out of it; any
                other is used as it is.
            cfg: guidance strength w of (1 + w) c - w u, at every scale: the first ones decide
                what a shape is.
            draft: how near to stay to what the conditions lead to expect on the whole, see
                :class:`DraftExpert`; 0 for any shape that fits them. By default 0 for a text
                alone, and ``DRAFT`` with an image, for a generator that drafts.

        Raises:
            PolytokError: a number is out of range, or the prompt cannot be used.
        """
        parts = self.stream(
            text,
            image,
            count=count,
            seed=seed,
            cfg=cfg,
            draft=draft,
            blend=blend,
            sampling=sampling,
        )
        return Codes.cat(list(parts))

    def complete(
        self,
        codes: Codes,
        from_scale: int,
        *,
        text: str | None = None,
        image: Picture | None = None,
        count: int = 1,
        seed: int = 0,
        cfg: float = 2.0,
        draft: float | None = None,
        blend: float = 0.5,
        sampling: Sampling | None = None,
    ) -> Codes:
        """Draw the scales from ``from_scale`` (1..K) on anew, keeping those before it.

        Args:
            codes: one code with at least ``from_scale`` - 1 scales; others as in :meth:`generate`.
        """
        parts = self.stream(
            text,
            image,
            count=count,
            seed=seed,
            cfg=cfg,
            draft=draft,
            blend=blend,
            sampling=sampling,
            kept=self.coarse(codes, from_scale),
        )
        return Codes.cat(list(parts))

    def coarse(self, codes: Codes, from_scale: int) -> Codes | None:
        """The scales of one code before ``from_scale`` (1..K); None if that is the first.

        Raises:
            ConfigError: there is more than one code, the scale is out of range, or the code is
                none of this generator's tokenizer.
        """
        if len(codes) != 1:
            raise ConfigError(f"one code can be completed at a time, got {len(codes)}")
        most = min(len(self.spec.levels), len(codes.indices) + 1)
        if not 1 <= from_scale <= most:
            raise ConfigError(f"from_scale={from_scale} is not within 1..{most}")
        self._check_codes(codes)
        return codes.prefix(levels=from_scale - 1) if from_scale > 1 else None

    def score(
        self, codes: Codes, *, text: str | None = None, image: Picture | None = None
    ) -> list[Score]:
        """What codes cost in nats per token, without guidance.

        Raises:
            PolytokError: the codes are none of this generator's tokenizer, or not whole.
        """
        self._check_codes(codes)
        slots = self.model.process.slots
        if len(codes.indices) != len(slots):
            raise ConfigError(f"a whole code has {len(slots)} scales, got {len(codes.indices)}")
        prompt, shares = self._prompt(text, image, len(codes), blend=0.5)
        branch = "+".join(shares) or "null"
        conditioner = self.model.conditioner
        with torch.inference_mode():
            ids = torch.cat(codes.indices, dim=1).to(self.device)
            example = self.model.process.corrupt({"ids": ids})
            cond = conditioner.branch(conditioner.encode(prompt), branch, len(codes))
            losses = self.model.head.loss(self.model.net(example.query, cond), example.target)
        rows = [losses[:, span].mean(1).tolist() for span in self.model.process.spans]
        return [Score(nats=nats, tokens=slots) for nats in zip(*rows, strict=True)]

    def prior(self, text: str | None = None) -> PriorCoder:
        """Return the entropy coder of ``.ptk`` files that this generator is, given a text."""
        prompt, shares = self._prompt(text, None, 1, blend=0.5)
        return PriorCoder(self.model, prompt, Guide(shares=shares), fingerprint=self.weights)

    def is_cut(self, text: str) -> bool:
        """Whether a text is longer than the text tower reads."""
        tower = self.model.tower("text")
        return isinstance(tower, SmallTextTower) and tower.is_cut([text])[0]

    def stream(
        self,
        text: str | None = None,
        image: Picture | None = None,
        *,
        count: int,
        seed: int = 0,
        cfg: float = 2.0,
        draft: float | None = None,
        blend: float = 0.5,
        sampling: Sampling | None = None,
        kept: Codes | None = None,
    ) -> Iterator[Codes]:
        """Draw codes as :meth:`generate` does, a few at a time, in bounded memory.

        Args:
            kept: the first scales of one code, which all items keep, with its place and size.
        """
        check_count(count, MAX_COUNT)
        if not 0 <= cfg < float("inf"):
            raise ConfigError(f"cfg={cfg} is not a finite number of at least 0")
        if not 0 <= blend <= 1:
            raise ConfigError(f"blend={blend} is not within [0, 1]")
        prompt, shares = self._prompt(text, image, MICRO_BATCH, blend=blend)
        guide = Guide(shares=shares, strength=cfg if shares else 0.0, schedule=constant)
        if draft is None:
            draft = DRAFT if image is not None and self.model.config.is_drafted else 0.0
        expert = self._expert(prompt, shares, draft) if draft else None
        draw = partial(self.model.generate, prompt, guide=guide, expert=expert)
        return self._stream(draw, count, seed, sampling or Sampling(), kept)

    def _expert(self, prompt: Batch, shares: Mapping[str, float], draft: float) -> DraftExpert:
        if not shares:
            raise ConfigError(f"draft={draft} needs a text or an image to draft from")
        return self.model.expert(prompt, "+".join(shares), MICRO_BATCH, draft)

    def _stream(
        self,
        draw: Callable[..., Codes],
        count: int,
        seed: int,
        sampling: Sampling,
        kept: Codes | None,
    ) -> Iterator[Codes]:
        known = self._known(kept)
        for start in range(0, count, MICRO_BATCH):
            items = range(start, start + MICRO_BATCH)
            wanted = items[: count - start]
            done: dict[int, Codes] = {}
            for attempt in range(MAX_DRAWS):
                rngs = [torch_rng(seed, "item", i, attempt, device=str(self.device)) for i in items]
                codes = draw(count=MICRO_BATCH, rng=rngs, sampling=sampling, known=known).to("cpu")
                for place, item in enumerate(wanted):
                    if item not in done and not self.codec.is_empty(codes[place]):
                        done[item] = _measured(codes[place], attempt + 1, kept)
                if len(done) == len(wanted):
                    break
            else:
                lost = next(i for i in wanted if i not in done)
                raise PolytokError(
                    f"item {lost} of seed {seed} decoded to nothing {MAX_DRAWS} times in a row"
                )
            yield Codes.cat([done[i] for i in wanted])

    def _prompt(
        self, text: str | None, image: Picture | None, count: int, *, blend: float
    ) -> tuple[Batch, dict[str, float]]:
        """Tensors of ``count`` equal prompts, and the shares of their modalities."""
        prompt: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        for name, given, share in (("image", image, blend), ("text", text, 1 - blend)):
            if given is None:
                continue
            tower = self.model.tower(name)
            if tower is None:
                raise WeightsError(f"{self.name} was trained without {name}")
            signal = (
                images.read(given)
                if isinstance(given, (str, PathLike)) and name == "image"
                else given
            )
            prompt |= tower.prepare([signal] * count)
            shares[name] = share
        if len(shares) == 1:
            shares = dict.fromkeys(shares, 1.0)
        return {k: v.to(self.device) for k, v in prompt.items()}, shares

    def _known(self, prefix: Codes | None) -> Known | None:
        if prefix is None:
            return None
        ids = torch.zeros(1, self.model.process.length, dtype=torch.int64)
        given = torch.cat(prefix.indices, dim=1)
        ids[:, : given.shape[1]] = given
        mask = (torch.arange(ids.shape[1]) < given.shape[1])[None]
        return Known(
            ids=ids.repeat(MICRO_BATCH, 1).to(self.device),
            mask=mask.repeat(MICRO_BATCH, 1).to(self.device),
        )

    def _check_codes(self, codes: Codes) -> None:
        for number, (ids, level) in enumerate(
            zip(codes.indices, self.spec.levels, strict=False), 1
        ):
            if (
                ids.shape[1] != level.count
                or not 0 <= int(ids.min()) <= int(ids.max()) < level.vocab
            ):
                raise ConfigError(
                    f"scale {number} does not fit {self.codec.name}: {ids.shape[1]} ids up to "
                    f"{int(ids.max())}, but it has {level.count} of {level.vocab}"
                )


def _measured(codes: Codes, draws: int, kept: Codes | None) -> Codes:
    """Give a code its place and size, which it has from what it keeps of another, if it does."""
    meta = {"centre": torch.zeros(1, 3), "scale": torch.full((1,), UNIT_SCALE)}
    if kept is not None:
        meta |= kept.meta
    return replace(codes, meta={**meta, "draws": torch.full((1,), draws)})
