"""Meshes in, codes out, and back: a shape tokenizer joined with the mesh signal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike

import numpy as np
import torch
import trimesh
from numpy.typing import NDArray

from polytok import bitstream
from polytok.core.contracts import Codes, TokenizerSpec
from polytok.core.errors import PolytokError, SignalError
from polytok.core.seeding import derive, numpy_rng
from polytok.networks.decoders import PlaneField
from polytok.signals import mesh as meshes
from polytok.systems.codec import Codec
from polytok.systems.shape.vat.model import VAT
from polytok.systems.shape.vat.search import SearchResult, refine

Signal = trimesh.Trimesh | str | PathLike[str]
MAX_EFFORT = 9
RESOLUTION = 128
PROBE_RESOLUTION = 48


class ShapeCodec(Codec):
    """What ``polytok.load`` returns for a shape tokenizer.

    Args:
        name: preset or weights tag. weights: fingerprint, 8 hex digits.
    """

    def __init__(self, model: VAT, *, name: str, weights: str) -> None:
        super().__init__(name=name, weights=weights)
        self.model = model.eval().requires_grad_(False)

    @property
    def spec(self) -> TokenizerSpec:
        return self.model.spec

    @property
    def device(self) -> torch.device:
        """Where the model computes; codes and meshes stay on the CPU."""
        return next(self.model.parameters()).device

    @property
    def histograms(self) -> list[NDArray[np.int64]]:
        """Counts per level and id for range coding: the usage in training, in 2^-14 units.

        Finer units would charge an id that training never met more bits than it can ever repay.
        """
        usage = self.model.bottleneck.quantizer.usage.double().cpu()
        return [np.rint(row.cpu().numpy() * 2**14).astype(np.int64) for row in usage]

    def encode(
        self,
        signals: Signal | Sequence[Signal],
        *,
        effort: int = 0,
        levels: int | None = None,
        stretch: bool = True,
        fit: Callable[[Codes], int] | None = None,
        seed: int = 0,
    ) -> Codes:
        """Encode a mesh, a path, or a list of them.

        Args:
            signals: ``trimesh.Trimesh`` in any units, or a file that signals.mesh reads.
            effort: 0 is the feed-forward code; up to 9 refines it against the shape's field.
            levels: scales of the code; all if None. The search then betters a code of so many.
            stretch: whether axes are stretched so that the box of a shape comes near to a cube, and
                shrunk by ``decode``; else its proportions stay, as those of shapes drawn by a
                generator do.
            fit: counts the first scales of a code that may stay. A code of as many is made; what
                the search finds stays whole.
            seed: of the surface samples and the search.

        Raises:
            SignalError: an input has no usable surface, or its code decodes to nothing.
        """
        if not 0 <= effort <= MAX_EFFORT:
            raise PolytokError(f"effort={effort} is not within 0..{MAX_EFFORT}")
        most = len(self.spec.levels)
        if levels is not None and not 1 <= levels <= most:
            raise PolytokError(f"levels={levels} is not within 1..{most}")
        items = (
            [signals] if isinstance(signals, (trimesh.Trimesh, str, PathLike)) else list(signals)
        )
        if not items:
            raise PolytokError("nothing to encode: the list is empty")
        make = partial(
            self._encode_one,
            effort=effort,
            levels=levels or most,
            stretch=stretch,
            fit=fit or (lambda codes: len(codes.indices)),
            seed=seed,
        )
        return Codes.cat([make(item) for item in items])

    def decode(
        self,
        codes: Codes,
        *,
        resolution: int = RESOLUTION,
        levels: int | None = None,
        faces: int | None = None,
    ) -> list[trimesh.Trimesh]:
        """Decode codes to meshes in original units.

        Args:
            resolution: cells along a side of the grid. levels: decode this prefix of scales.
            faces: decimate to at most this many.

        Raises:
            SignalError: a code decodes to an empty mesh, or an argument is out of range.
        """
        if levels is not None:
            codes = codes.prefix(levels=levels)
        out = []
        for item in range(len(codes)):
            one = codes[item]
            mesh = self._extract(self.field(one), resolution)
            mesh = meshes.clean(mesh, max_faces=faces)
            mesh.vertices = self.frame(one).undo(mesh.vertices)
            out.append(mesh)
        return out

    @torch.inference_mode()
    def field(self, codes: Codes) -> PlaneField:
        """Decode a batch of one to its field in the normalised frame."""
        field: PlaneField = self.model.decode(codes.to(self.device))["field"]
        return field

    def frame(self, codes: Codes) -> meshes.Frame:
        """The frame of the field of a code, a batch of one, over the units of the mesh."""
        centre, scale = codes.meta["centre"][0].numpy(), float(codes.meta["scale"][0])
        if "stretch" not in codes.meta:
            return meshes.Frame(centre, scale)
        return meshes.Frame(centre, scale, codes.meta["stretch"][0].double().numpy())

    def batch(self, signal: Signal | meshes.Solid, *, seed: int = 0) -> dict[str, torch.Tensor]:
        """What the encoder takes of a mesh, a path or a solid: one of a batch, on its device.

        Raises:
            SignalError: the input has no usable surface.
        """
        solid = signal if isinstance(signal, meshes.Solid) else meshes.solidify(_read(signal))
        return self._batch(meshes.surface(solid, seed=seed), seed)

    def _encode_one(
        self,
        signal: Signal,
        *,
        effort: int,
        levels: int,
        stretch: bool,
        fit: Callable[[Codes], int],
        seed: int,
    ) -> Codes:
        mesh = _read(signal)
        factors = np.ones(3, np.float32)
        if stretch:
            factors = bitstream.nearest_stretch(meshes.evening(mesh))
        solid = meshes.solidify(mesh, stretch=factors)
        surface = meshes.surface(solid, seed=seed)
        batch = self._batch(surface, seed)
        with torch.inference_mode():
            codes = self.model.encode(batch).to("cpu").prefix(levels=levels)
        meta = {"iso": torch.zeros(1)} | (
            {"stretch": torch.from_numpy(factors)[None]} if stretch else {}
        )
        codes = replace(codes, meta={**codes.meta, **meta})
        codes = codes.prefix(levels=fit(codes))
        search = partial(self._search, codes, batch, solid, fit=fit, seed=seed)
        found = self._fitted(codes, surface)
        if effort:
            # Of a very thin shape an empty field can have the better objective; a mesh is wanted.
            found = self._fitted(search(effort), surface) or found
        # A code may decode to nothing, as it does for some very thin shapes: search harder then.
        for higher in range(max(effort, 1), MAX_EFFORT + 1, 2):
            if found is not None:
                break
            found = self._fitted(search(higher), surface)
        if found is None:
            raise SignalError("the code of this shape decodes to an empty mesh at every effort")
        return found

    def fit_iso(self, field: PlaneField, surface: meshes.Surface) -> float:
        """The value of a field that half of a surface exceeds, as far as a file can hold it.

        An uncertain field is cautious: zero lies inside where parts are thin.
        """
        values = self._evaluate(field, surface.points[: surface.num_uniform])
        return bitstream.nearest_iso(float(np.median(values)))

    def _fitted(self, codes: Codes, surface: meshes.Surface) -> Codes | None:
        """Give a code the value of its field at the surface, or zero; None if neither shows it."""
        # Fields swell thin parts, and one of its true thickness may slip through a grid.
        for iso in (self.fit_iso(self.field(codes), surface), 0.0):
            fitted = replace(codes, meta={**codes.meta, "iso": torch.tensor([iso])})
            if not self.is_empty(fitted):
                return fitted
        return None

    def _batch(self, surface: meshes.Surface, seed: int) -> dict[str, torch.Tensor]:
        """Take a subset of the samples as training does: uniform and sharp in fixed shares."""
        config = self.model.config
        num_sharp = round(config.num_points * config.sharp_fraction)
        rng = numpy_rng(seed, "points")
        sharp = surface.num_uniform + rng.permutation(len(surface.points) - surface.num_uniform)
        uniform = rng.permutation(surface.num_uniform)
        chosen = np.concatenate([uniform[: config.num_points - num_sharp], sharp[:num_sharp]])
        arrays = {
            "points": surface.points[chosen],
            "normals": surface.normals[chosen],
            "centre": np.asarray(surface.frame.centre, np.float32),
            "scale": np.float32(surface.frame.scale),
        }
        return {k: torch.as_tensor(v, device=self.device)[None] for k, v in arrays.items()}

    def _search(
        self,
        codes: Codes,
        batch: dict[str, torch.Tensor],
        solid: meshes.Solid,
        effort: int,
        *,
        fit: Callable[[Codes], int],
        seed: int,
    ) -> Codes:
        prepared = meshes.prepare(solid, seed=derive(seed, "search"))
        with torch.no_grad():
            hidden = self.model.encoder(batch["points"], batch["normals"])
            latents = self.model.bottleneck.gaussian(hidden).latents

        def with_ids(ids: Sequence[torch.Tensor]) -> Codes:
            return replace(codes, indices=tuple(i.cpu() for i in ids))

        results: list[SearchResult] = []
        # Better codes often take more bytes. Where some were refused, one of fewer scales that is
        # free to change may be the best that fits.
        for levels in range(len(codes.indices), 0, -1):
            result = refine(
                self.model,
                latents,
                torch.as_tensor(prepared.queries, device=self.device)[None],
                torch.as_tensor(prepared.sdf, device=self.device)[None],
                effort=effort,
                levels=levels,
                accept=lambda ids: fit(with_ids(ids)) >= len(ids),
                seed=seed,
            )
            results.append(result)
            if not result.num_refused:
                break
        return with_ids(min(results, key=lambda r: r.objective).indices)

    def is_empty(self, codes: Codes) -> bool:
        """Whether a code, a batch of one, decodes to nothing at the usual resolution."""
        field = self.field(codes)
        axis = np.linspace(-1, 1, PROBE_RESOLUTION, dtype=np.float32)
        grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
        if bool((self._evaluate(field, grid) > 0).any()):
            return False
        # A thin board lies between the points of so coarse a grid.
        try:
            self._extract(field, RESOLUTION)
        except SignalError:
            return True
        return False

    def _extract(self, field: PlaneField, resolution: int) -> trimesh.Trimesh:
        surface = meshes.extract(lambda points: self._evaluate(field, points), resolution)
        return trimesh.Trimesh(surface.vertices, surface.faces, process=False)

    @torch.inference_mode()
    def _evaluate(self, field: PlaneField, points: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = torch.from_numpy(points).split(1 << 17)
        return torch.cat([field(p.to(self.device)[None])[0].cpu() for p in parts]).numpy()


def _read(signal: Signal) -> trimesh.Trimesh:
    return meshes.read(signal) if isinstance(signal, (str, PathLike)) else signal
