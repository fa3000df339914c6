"""Which kind of signal a command is about, and what its options mean there.

A kind is a module of this package with the names of :class:`Kind`. Importing this file imports
none of them: one pulls in what reads its signals.
"""

from __future__ import annotations

import glob
import inspect
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
        PolytokError: there is no such model, or it is no tokenizer, or without one some inputs are
            pictures and some are meshes.
    """
    if model is not None:
        from polytok.systems import api

        return of_modality(api.system_of(model, kind="tokenizer").modality), model
    modality = _shared({text: _modality_of(text) for text in inputs})
    return of_modality(modality), DEFAULT_MODELS[modality]


def of_files(*paths: Path) -> Kind:
    """The kind of files that belong together.

    Raises:
        PolytokError: some are pictures and some are meshes.
    """
    return of_modality(_shared({str(path): _of_file(path) for path in paths}))


@dataclass(frozen=True)
class Unread:
    """What may become of a file that cannot be read: anything, so that reading it says why."""

    SUFFIX: str
    WRITABLE: tuple[str, ...]


def of_code(path: Path) -> Kind | Unread:
    """The kind of a ``.ptk`` file, or what stands in for it if it cannot be read."""
    from polytok import bitstream
    from polytok.systems import api

    try:
        return of_modality(bitstream.read_header(api.read_code(path)).modality)
    except (PolytokError, OSError):
        known = [of_modality(modality) for modality in MODULES]
        return Unread(known[0].SUFFIX, tuple(s for kind in known for s in kind.WRITABLE))


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


def _shared(modalities: dict[str, str | None]) -> str:
    """The modality of inputs, by what is known of each; shapes where nothing is known.

    Raises:
        PolytokError: some are pictures and some are meshes.
    """
    first = {modality: text for text, modality in reversed(modalities.items()) if modality}
    if len(first) > 1:
        raise PolytokError(f"{first['image']} is a picture and {first['shape']} is not")
    return next(iter(first), "shape")


def _modality_of(text: str) -> str | None:
    """What an input, a file, pattern, folder or zip, is or holds, if its names or content say."""
    path = Path(text)
    if path.is_dir():
        return _of_names(p.name for p in path.rglob("*"))
    if path.suffix.lower() == ".zip" and path.is_file():
        try:
            with zipfile.ZipFile(path) as archive:
                return _of_names(archive.namelist())
        except (OSError, zipfile.BadZipFile):
            return None
    if glob.has_magic(text) and not path.exists() and _of_names([text]) is None:
        return _joint([_of_file(Path(p)) for p in glob.glob(text, recursive=True)])  # noqa: PTH207
    return _of_file(path)


def _of_names(names: Iterable[str]) -> str | None:
    """What a folder of these names holds."""
    return _joint([_of_suffix(Path(name)) for name in names])


def _joint(modalities: Sequence[str | None]) -> str | None:
    """Meshes if there is one: pictures beside it are its textures."""
    return next((known for known in MODULES if known in modalities), None)


def _of_file(path: Path) -> str | None:
    """What a file is by its extension, or by its first bytes where that is none of ours."""
    from polytok.signals.image.io import is_image

    return _of_suffix(path) or ("image" if path.is_file() and is_image(path) else None)


def _of_suffix(path: Path) -> str | None:
    from polytok.signals import image, mesh

    known = {"shape": mesh.EXTENSIONS, "image": image.EXTENSIONS}
    return next((name for name, found in known.items() if path.suffix.lower() in found), None)
