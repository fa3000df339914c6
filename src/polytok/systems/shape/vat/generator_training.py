"""How VAT's generator is trained: codes, captions and pictures of shapes, and its scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from polytok.core import hub
from polytok.core.config import from_dict, override
from polytok.core.contracts import StepContext
from polytok.core.errors import ConfigError
from polytok.core.seeding import derive, numpy_rng
from polytok.data.codes import CodeFolder, CodeIndex, missing_passes, write_pass
from polytok.data.prepared import PreparedFolder
from polytok.data.shapes import ShapeSampling, ShapeSource
from polytok.data.views import ViewFolder, render_folder
from polytok.networks.pretrained import (
    HFImageTower,
    SmallImageTower,
    SmallTextTower,
    TextTokenizer,
    Tower,
)
from polytok.signals.mesh import ViewSampling
from polytok.systems.shape.vat.config import VATConfig
from polytok.systems.shape.vat.generator import VATGenerator, VATGeneratorConfig, preset
from polytok.systems.shape.vat.model import VAT
from polytok.systems.shape.vat.training import prepared_folder
from polytok.training import Recipe

if TYPE_CHECKING:
    from polytok.systems.shape.codec import ShapeCodec

NO_CAPTION = "random object"
VAL_SEED = 1_000_003
VAL_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class CodeSampling:
    """What a generator's training sample is drawn from.

    Args:
        aligned, distorted: passes over the shapes whose codes agree with pictures (every second
            mirrored), and passes of stretched and mirrored shapes, which have none.
        stretch: of distorted passes.
        aligned_share: of the samples drawn, where there are passes of both kinds. Pictures are
            learnt from aligned ones alone, all else from both.
    """

    aligned: int = 4
    distorted: int = 4
    stretch: float = 0.25
    aligned_share: float = 0.5

    def __post_init__(self) -> None:
        if self.aligned < 0 or self.distorted < 0 or not self.aligned + self.distorted:
            raise ConfigError(f"aligned={self.aligned} and distorted={self.distorted} passes")
        if not 0 <= self.aligned_share <= 1:
            raise ConfigError(f"aligned_share={self.aligned_share} is not within [0, 1]")


class Backdrops:
    """Colours objects and what is behind them, as photographs differ and renders do not.

    Args:
        plain: probability of a white backdrop. bare: of an object as it was drawn.
    """

    def __init__(self, plain: float = 0.5, bare: float = 0.3) -> None:
        self.plain, self.bare = plain, bare

    def __call__(self, view: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
        """A picture (3, S, S) in [0, 1] from lightness and opacity (2, S, S), 0..255.

        A backdrop that is not white is a slope between two colours.
        """
        light, alpha = view.astype(np.float32) / 255
        grey, tint = rng.uniform(0.3, 1.0), rng.uniform(0.0, 0.5)
        colour = (1 - tint) * grey + tint * rng.uniform(0.0, 1.0, (3, 1, 1))
        colour = np.ones((3, 1, 1)) if rng.uniform() < self.bare else colour
        behind = np.ones((3, 1, 1))
        if rng.uniform() >= self.plain:
            way, turn = np.linspace(-0.5, 0.5, light.shape[0]), rng.uniform(0, 2 * np.pi)
            slope = 0.5 + np.cos(turn) * way[:, None] + np.sin(turn) * way
            ends = rng.uniform(0.0, 1.0, (2, 3, 1, 1))
            behind = (ends[0] + (ends[1] - ends[0]) * slope).clip(0, 1)
        picture = alpha * (light * colour) + (1 - alpha) * behind
        return torch.from_numpy(picture.astype(np.float32))


class CodeSource:
    """Sample number n -> ids, text and a picture, a pure function of (seed, n).

    Each epoch visits every shape once, in an order of its own; an epoch's pass is drawn per shape.

    Args:
        text: tower that captions are prepared for. views: pictures of the same shapes.
        backdrops: how they are coloured. aligned_share: see :class:`CodeSampling`.
    """

    def __init__(
        self,
        codes: CodeFolder,
        *,
        text: Tower | None = None,
        views: ViewFolder | None = None,
        backdrops: Backdrops | None = None,
        aligned_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        if views is not None and views.index.names != codes.index.names:
            raise ConfigError("the views are not of the shapes that the codes are of")
        self.codes, self.views, self.seed = codes, views, seed
        self.backdrops, self.aligned_share = backdrops or Backdrops(), aligned_share
        kinds = [kind != "none" for kind in codes.index.aligned]
        self.aligned = [k for k, is_aligned in enumerate(kinds) if is_aligned]
        self.distorted = [k for k, is_aligned in enumerate(kinds) if not is_aligned]
        index = codes.index
        self.text = {} if text is None else text.prepare(index.captions)
        self.is_named = [c not in ("", NO_CAPTION) for c in index.captions]

    def __len__(self) -> int:
        return len(self.codes)

    def sample(self, n: int) -> dict[str, Tensor]:
        """Draw sample n: ids (L,), seed (), and where there is such a condition text, text_mask,
        has_text (), image (3, S, S), has_image ().
        """
        epoch, place = divmod(n, len(self))
        shape = int(numpy_rng(self.seed, "epoch", epoch).permutation(len(self))[place])
        rng = numpy_rng(self.seed, "sample", n)
        is_aligned = rng.uniform() < self.aligned_share
        passes = (self.aligned if is_aligned else self.distorted) or self.aligned or self.distorted
        return self.draw(shape, passes[int(rng.integers(len(passes)))], n)

    def draw(self, shape: int, number: int, n: int) -> dict[str, Tensor]:
        """A sample of one shape and one pass."""
        out = {
            "ids": self.codes.ids[number, shape].long(),
            "seed": torch.tensor(derive(self.seed, "noise", n)),
        }
        if self.text:
            out |= {key: rows[shape] for key, rows in self.text.items()}
            out["has_text"] = torch.tensor(self.is_named[shape])
        if self.views is not None:
            out |= self._picture(shape, self.codes.index.aligned[number], n)
        return out

    def _picture(self, shape: int, aligned: str, n: int) -> dict[str, Tensor]:
        assert self.views is not None
        rng = numpy_rng(self.seed, "picture", n)
        choices = self.views.pictures[shape]
        view = choices[int(rng.integers(len(choices)))]
        # The mirror image of a shape, seen from the mirrored side, is the mirror image of a view.
        view = view[..., ::-1] if aligned == "mirrored" else view
        return {
            "image": self.backdrops(view, rng),
            "has_image": torch.tensor(aligned != "none"),
        }


@torch.no_grad()
def encode_shapes(
    model: VAT, store: PreparedFolder, out: Path, sampling: CodeSampling, *, weights: str, seed: int
) -> CodeFolder:
    """Encode prepared shapes in several passes; those that are there already are kept.

    Raises:
        ConfigError: ``out`` holds other codes.
    """
    aligned = tuple("mirrored" if a % 2 else "same" for a in range(sampling.aligned))
    aligned += ("none",) * sampling.distorted
    index = CodeIndex(
        weights=weights,
        slots=model.config.slots,
        names=tuple(store.names),
        captions=tuple(str(r.get("caption", "")) for r in store.records),
        aligned=aligned,
        stretch=sampling.stretch if sampling.distorted else 0.0,
        seed=seed,
    )
    for number in missing_passes(out, index):
        write_pass(out, number, _encode_pass(model, store, aligned[number], sampling, seed, number))
    return CodeFolder(out)


def _encode_pass(
    model: VAT,
    store: PreparedFolder,
    aligned: str,
    sampling: CodeSampling,
    seed: int,
    number: int,
) -> Tensor:
    config: VATConfig = model.config
    is_free = aligned == "none"
    varied = ShapeSampling(
        num_points=config.num_points,
        sharp_fraction=config.sharp_fraction,
        num_volume=1,
        num_near=1,
        rotate=False,
        mirror=is_free,
        stretch=sampling.stretch if is_free else 0.0,
        mix=0.0,
    )
    source = ShapeSource(store, varied, seed=derive(seed, "pass", number))
    device = next(model.parameters()).device
    ids = torch.empty(len(store), sum(config.slots), dtype=torch.int32)
    flip = torch.tensor([-1.0 if aligned == "mirrored" else 1.0, 1.0, 1.0])
    for start in range(0, len(store), VAL_BATCH):
        numbers = range(start, min(start + VAL_BATCH, len(store)))
        samples = [source.sample(n) for n in numbers]
        batch = {
            k: (torch.stack([s[k] for s in samples]) * flip).to(device)
            for k in ("points", "normals")
        }
        found = torch.cat(model.encode(batch).indices, dim=1).cpu()
        ids[[source.index(n) for n in numbers]] = found.to(torch.int32)
    return ids


class GeneratorValidation:
    """Scores on unseen codes without a condition and with each: cross-entropy ``ce`` in nats per
    slot, but not while only drafts are trained, and squared error ``draft`` where there are drafts.
    """

    def __init__(self, source: CodeSource, count: int) -> None:
        rows = [source.draw(shape, 0, shape) for shape in range(min(count, len(source)))]
        self.batches = [
            {k: torch.stack([r[k] for r in part]) for k in part[0]}
            for part in (rows[i : i + VAL_BATCH] for i in range(0, len(rows), VAL_BATCH))
        ]

    def __call__(self, model: nn.Module) -> dict[str, float]:
        assert isinstance(model, VATGenerator)
        device = next(model.parameters()).device
        kinds = [m for m in model.conditioner.modalities if m in self.batches[0]]
        out = {}
        for kind in ("", *kinds):
            keys = {"ids", "seed", *((kind, f"{kind}_mask", f"has_{kind}") if kind else ())}
            losses, drafts = [], []
            for batch in self.batches:
                part = {
                    k: v if k == "seed" else v.to(device) for k, v in batch.items() if k in keys
                }
                found = model(part, StepContext())
                if "losses" in found.output:
                    losses.append(found.output["losses"].float().cpu())
                if "draft" in found.losses:
                    drafts.append(float(found.losses["draft"]) * len(part["ids"]))
            suffix = f"_{kind}" if kind else ""
            if drafts:
                out[f"draft{suffix}"] = sum(drafts) / sum(len(b["ids"]) for b in self.batches)
            if losses:
                mean = torch.cat(losses).mean(0)
                out[f"ce{suffix}"] = float(mean.mean())
            if losses and not kind:
                spans = enumerate(model.process.spans)
                out |= {f"ce_scale_{k + 1}": float(mean[s].mean()) for k, s in spans}
        return out


@dataclass
class VATGeneratorTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: VATGenerator
    source: CodeSource
    validate: Callable[[nn.Module], Mapping[str, float]] | None


def prepare_training(recipe: Recipe) -> VATGeneratorTraining:
    """Build the model and sources of a recipe; prepares and encodes what is missing.

    Raises:
        WeightsError: the tokenizer has no weights. ConfigError: it has others than the recipe says.
    """
    from polytok.systems import api

    config = override(preset(recipe.preset), **recipe.config)
    sampling = from_dict(CodeSampling, recipe.sampling)
    codec = api.load_codec(config.tokenizer, modality="shape")
    if config.tokenizer_weights not in ("", codec.weights):
        raise ConfigError(
            f"tokenizer_weights={config.tokenizer_weights}, but {config.tokenizer!r} has "
            f"{codec.weights}"
        )
    config = replace(config, tokenizer_weights=codec.weights)
    torch.manual_seed(recipe.train.seed)
    model = VATGenerator(config, codec.model.bottleneck.quantizer)
    folder = prepared_folder(recipe.data.train, recipe.data.prepared)
    codes = _codes(folder, codec, sampling)
    anew = _go_on(model, api.find_weights(recipe.init)[0]) if recipe.init else ["text"]
    if config.text is not None and "text" in anew:
        captions = [c for c in codes.index.captions if c != NO_CAPTION]
        tower = model.tower("text")
        assert isinstance(tower, SmallTextTower)
        tower.tokenizer = TextTokenizer.train(captions, config.text.vocab_size)
    views = _views(recipe.data.train, folder, codes, model.tower("image"))
    source = CodeSource(
        codes,
        text=model.tower("text"),
        views=views,
        aligned_share=sampling.aligned_share,
        seed=recipe.train.seed,
    )
    validate = None
    if recipe.data.val:
        plain = replace(sampling, aligned=1, distorted=0)
        folder = prepared_folder(recipe.data.val, recipe.data.prepared)
        codes = _codes(folder, codec, plain)
        views = _views(recipe.data.val, folder, codes, model.tower("image"))
        held_out = CodeSource(
            codes,
            text=model.tower("text"),
            views=views,
            backdrops=Backdrops(plain=1.0, bare=1.0),
            seed=VAL_SEED,
        )
        validate = GeneratorValidation(held_out, recipe.data.num_val)
    return VATGeneratorTraining(model=model, source=source, validate=validate)


def _go_on(model: VATGenerator, folder: Path) -> list[str]:
    """Fill a model with the weights of a folder; drafts it lacks and other towers start anew.

    Returns:
        The modalities of towers that do.
    """
    before = from_dict(VATGeneratorConfig, hub.read_info(folder).config)
    changed = [m for m in ("text", "image") if getattr(before, m) != getattr(model.config, m)]
    towers = [f"conditioner.*.{m}*" for m in changed]
    drafts = ["conditioner.draft.*"] if before.is_drafted != model.config.is_drafted else []
    hub.load_weights(model, folder, lacking=[*towers, *drafts], unused=[*towers, *drafts])
    return changed


def _codes(folder: Path, codec: ShapeCodec, sampling: CodeSampling) -> CodeFolder:
    """Codes of prepared shapes, made beside them."""
    out = folder.with_name(f"{folder.name}-codes-{codec.weights}")
    store = PreparedFolder(folder)
    return encode_shapes(codec.model, store, out, sampling, weights=codec.weights, seed=0)


def _views(source: str, folder: Path, codes: CodeFolder, tower: Tower | None) -> ViewFolder | None:
    """Pictures of the meshes of a folder or zip, drawn beside its prepared shapes."""
    if tower is None:
        return None
    assert isinstance(tower, (HFImageTower, SmallImageTower))
    sampling = ViewSampling(size=tower.size)
    out = folder.with_name(f"{folder.name}-views-{tower.size}")
    return render_folder(source, out, codes.index.names, sampling)
