"""Which kind of signal a command is about, and what its options mean there.

A kind is a module of this package with the names of :class:`Kind`. Importing this file imports
none of them: one pulls in what reads its signals.
"""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from polytok.core.errors import PolytokError

if TYPE_CHECKING:
    from polytok.core.contracts import Codes
    from polytok.systems.codec import Codec
    from polytok.systems.prior import PriorCoder

MODULES = {"shape": "polytok.cli.shapes", "image": "polytok.cli.images"}
GENERATORS = {"shape": "polytok.cli.generation", "image": "polytok.cli.image_generation"}
DEFAULT_MODELS = {"shape": "vat-512b-small", "image": "one-d-piece-tiny"}

Row = dict[str, Any]


class Kind(Protocol):
    """What commands do with one kind of signal; options are keywords, named as on the line."""

    NOUN: str
    """One signal, in words."""
    UNIT: str
    """What a shorter code has fewer of, in words."""
    EXTENSIONS: tuple[str, ...]
    """Of files that hold a signal."""
    WRITABLE: tuple[str, ...]
    """Of files that a decoded signal can become."""
    SUFFIX: str
    """The one it becomes when nothing is said."""
    FACTS: tuple[str, ...]
    """Numbers beside the scores that describe a signal."""

    encode: Callable[..., Codes]
    """Encode a file, and say what of it is left out: ``(codec, source, **options)``."""
    decode: Callable[..., Row]
    """Decode to a file: ``(codec, codes, target, force=, **options)`` gives facts to show."""
    count: Callable[..., int]
    """How many units a code has: ``(codec, codes)``."""
    prefix: Callable[..., Codes]
    """The first units of a code: ``(codec, codes, **options)``."""
    facts: Callable[..., Row]
    """What ``info`` says beside what all files have: ``(codec, header, codes, size)``."""
    compare: Callable[..., Row]
    """Score one file against another: ``(first, second, **options)``."""
    read: Callable[..., Any]
    """Read a file to score against: ``(path)``."""
    score: Callable[..., Row]
    """Encode, decode and score: ``(codec, truth, seed=, **options)``."""
    failed: Callable[..., Row | None]
    """Scores of a truth that cannot be encoded, if there are any: ``(truth, seed=)``."""
    settings: Callable[..., Row]
    """What scores depend on: ``(**options)``."""
    conventions: Callable[[], Row]
    """What scores mean."""


def of_modality(modality: str) -> Kind:
    """The kind of a modality.

    Raises:
        PolytokError: no command knows it.
    """
    if modality not in MODULES:
        raise PolytokError(f"codes of {modality} have no commands; known: {', '.join(MODULES)}")
    return cast(Kind, import_module(MODULES[modality]))


class Drawing(Protocol):
    """What ``generate`` does for one kind of signal; options are keywords, named as on the line."""

    NOUN: str
    """One signal, in words."""
    generate: Callable[..., None]
    """Draw to files: ``(model, output, count=, seed=, device=, force=, as_json=, **options)``."""


def of_generator(model: str) -> Drawing:
    """How what a generator draws is written.

    Raises:
        PolytokError: there is no such model, or it is no generator, or no command knows its kind.
    """
    from polytok.systems import api

    modality = api.system_of(model, kind="generator").modality
    if modality not in GENERATORS:
        raise PolytokError(f"{modality} cannot be generated; known: {', '.join(GENERATORS)}")
    return cast(Drawing, import_module(GENERATORS[modality]))


def of_inputs(model: str | None, inputs: list[str]) -> tuple[Kind, str]:
    """The kind of a model, and its name; without one, the kind of the inputs and its default.

    Raises:
        PolytokError: there is no such model, or it is no tokenizer.
    """
    if model is not None:
        from polytok.systems import api

        return of_modality(api.system_of(model, kind="tokenizer").modality), model
    modality = "image" if inputs and all(map(_holds_pictures, inputs)) else "shape"
    return of_modality(modality), DEFAULT_MODELS[modality]


def of_files(*paths: Path) -> Kind:
    """The kind of files that belong together.

    Raises:
        PolytokError: some are pictures and some are not.
    """
    are_pictures = {path: _is_picture(path.name) for path in paths}
    if len(set(are_pictures.values())) > 1:
        picture = next(p for p, is_picture in are_pictures.items() if is_picture)
        other = next(p for p, is_picture in are_pictures.items() if not is_picture)
        raise PolytokError(f"{picture} is a picture and {other} is not")
    return of_modality("image" if all(are_pictures.values()) else "shape")


def of_code(path: Path) -> Kind:
    """The kind of a ``.ptk`` file; shapes if it cannot be read, which whoever reads it will say."""
    from polytok import bitstream
    from polytok.systems import api

    try:
        return of_modality(bitstream.read_header(api.read_code(path)).modality)
    except (PolytokError, OSError):
        return of_modality("shape")


class Opened:
    """Codecs and priors of ``.ptk`` files, each loaded once, found by the files' fingerprints.

    Args:
        model: instead of what the registry finds. prior, text: see ``api.prior_for``.
    """

    def __init__(self, model: str | None, prior: str | None, text: str | None) -> None:
        self.model, self.prior, self.text = model, prior, text
        self._codecs: dict[str, Codec] = {}
        self._priors: dict[str | None, PriorCoder | None] = {None: None}

    def read(self, path: Path, *, partial: bool) -> tuple[Kind, Codec, Codes]:
        """Read a code, its kind, and the codec that decodes it."""
        from polytok import bitstream
        from polytok.cli import show
        from polytok.systems import api

        data = api.read_code(path)
        header = bitstream.read_header(data)
        if header.weights not in self._codecs:
            self._codecs[header.weights] = api.codec_for(data, self.model)
        if header.prior not in self._priors:
            self._priors[header.prior] = api.prior_for(data, self.prior, self.text)
        kind, codec = of_modality(header.modality), self._codecs[header.weights]
        codes = codec.unpack(data, partial=partial, prior=self._priors[header.prior])
        if partial and not header.is_intact:
            found = f"{kind.count(codec, codes)} whole {kind.UNIT}"
            show.note(f"{path}: cut or damaged; decoding its {found}")
        return kind, codec, codes


def options(kind: Kind | Drawing, function: Callable[..., Any], **given: Any) -> dict[str, Any]:
    """The options that were given, as keywords of a function of a kind.

    Raises:
        PolytokError: it has no such option.
    """
    known = inspect.signature(function).parameters
    chosen = {name: value for name, value in given.items() if value is not None}
    for name in chosen:
        if name not in known:
            option = name.replace("_", "-")
            raise PolytokError(f"--{option} is not for {kind.NOUN}s")
    return chosen


def _holds_pictures(text: str) -> bool:
    """Whether an input, a file, pattern, folder or zip, is a picture or has such and no mesh."""
    path = Path(text)
    if path.is_dir():
        return _are_pictures(p.name for p in path.rglob("*"))
    if path.suffix.lower() == ".zip" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return _are_pictures(archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return False
    return _is_picture(text)


def _are_pictures(names: Iterable[str]) -> bool:
    from polytok.signals.mesh import EXTENSIONS

    found = [Path(name).suffix.lower() for name in names]
    return not any(s in EXTENSIONS for s in found) and any(_is_picture(s) for s in found)


def _is_picture(name: str) -> bool:
    from polytok.signals.image import EXTENSIONS

    return name.lower().endswith(EXTENSIONS)
