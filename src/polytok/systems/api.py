"""The library's front door: load weights, open and save codes, train recipes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from polytok.core import registry
from polytok.core.errors import ConfigError, FormatError, UnknownNameError, WeightsError
from polytok.core.files import write_bytes, write_text

if TYPE_CHECKING:
    from polytok.core import hub
    from polytok.core.contracts import Codes
    from polytok.systems.codec import Codec
    from polytok.systems.image.codec import ImageCodec
    from polytok.systems.image.generation import ImageGenerator
    from polytok.systems.prior import PriorCoder
    from polytok.systems.shape.codec import ShapeCodec
    from polytok.systems.shape.generation import ShapeGenerator
    from polytok.training import FitResult, Recipe

StrPath = str | PathLike[str]
MAX_FILE = 1 << 17
SHIPPED = Path(__file__).parent.parent / "weights"


def load(name: StrPath, *, weights: StrPath | None = None, device: str = "cpu") -> Any:
    """Load a tokenizer, a generator or another model with its weights.

    Args:
        name: a weights tag (``vat-512b-small.shapes1``), a preset that has default weights, a
            folder with config.json and model.safetensors, or a Hugging Face repository id.
        weights: tag or folder of the weights of the preset ``name``, such as one that
            ``polytok convert`` wrote.

    Returns:
        a :class:`Codec` for a tokenizer, joined with its signal; what the system has for others.

    Raises:
        UnknownNameError: nothing has this name. WeightsError: the preset has no trained weights,
            or ``weights`` are those of another preset.
    """
    described = _described(name if weights is None else weights)
    if weights is not None and (found := described[3].preset) != name:
        raise WeightsError(f"{weights} holds weights of {found}, not of {name}")
    return _build(*described, device)


def find_weights(name: StrPath) -> tuple[Path, str]:
    """The folder of a model by its name, and the name it goes by; see :func:`load`."""
    folder = Path(name)
    if (folder / "config.json").is_file():
        return folder, str(name)
    return _find(str(name))


def system_of(name: StrPath, *, kind: registry.Kind | None = None) -> registry.System:
    """The registered system of a model by its name, see :func:`load`; nothing is built.

    Raises:
        WeightsError: it is not of this kind.
    """
    system = _described(name)[2]
    _check(name, system, kind or system.kind, None)
    return system


@overload
def load_codec(name: StrPath, *, device: str = ..., modality: Literal["shape"]) -> ShapeCodec: ...
@overload
def load_codec(name: StrPath, *, device: str = ..., modality: Literal["image"]) -> ImageCodec: ...
@overload
def load_codec(name: StrPath, *, device: str = ..., modality: str | None = ...) -> Codec: ...
def load_codec(name: StrPath, *, device: str = "cpu", modality: str | None = None) -> Codec:
    """Load a tokenizer.

    Args:
        modality: that it must have.

    Raises:
        WeightsError: the name is that of another kind of system, which is named; or of another
            modality. See also :func:`load`.
    """
    from polytok.systems.codec import Codec

    folder, label, system, info = _described(name)
    _check(name, system, "tokenizer", modality)
    model = _build(folder, label, system, info, device)
    if not isinstance(model, Codec):
        raise WeightsError(f"{str(name)!r} ({system.name}) has no codec of files")
    return model


@overload
def load_generator(
    name: StrPath, *, device: str = ..., modality: Literal["shape"] = ...
) -> ShapeGenerator: ...
@overload
def load_generator(
    name: StrPath, *, device: str = ..., modality: Literal["image"]
) -> ImageGenerator: ...
@overload
def load_generator(name: StrPath, *, device: str = ..., modality: str) -> Any: ...
def load_generator(name: StrPath, *, device: str = "cpu", modality: str = "shape") -> Any:
    """Load a generator with its tokenizer.

    Args:
        modality: that it must have.

    Raises:
        WeightsError: the name is that of another kind of system, which is named; or of another
            modality. See also :func:`load`.
    """
    folder, label, system, info = _described(name)
    _check(name, system, "generator", modality)
    return _build(folder, label, system, info, device)


def notice(codec: Codec) -> str:
    """What whoever encodes with the weights of a codec should know; empty if nothing is to say."""
    row = registry.WEIGHTS.get(codec.name)
    return row.notice if row else ""


def _described(name: StrPath) -> tuple[Path, str, registry.System, hub.Info]:
    """Folder and label of a model, its system, and what its config.json says."""
    from polytok.core import hub

    folder, label = find_weights(name)
    info = hub.read_info(folder)
    if info.system not in registry.SYSTEMS:
        raise UnknownNameError("system", info.system, registry.SYSTEMS)
    return folder, label, registry.SYSTEMS[info.system], info


def _build(folder: Path, label: str, system: registry.System, info: hub.Info, device: str) -> Any:
    return system.load().load_model(folder, info, name=label, device=device)


def _check(name: StrPath, system: registry.System, kind: str, modality: str | None) -> None:
    """Refuse a system of another kind or modality before its weights are read."""
    found: str = system.kind
    wanted = kind
    if found == kind and modality not in (None, system.modality):
        found, wanted = f"{kind} of {system.modality}s", f"{kind} of {modality}s"
    if found != wanted:
        raise WeightsError(f"{str(name)!r} is a {found} ({system.name}); a {wanted} is needed here")


def _find(name: str) -> tuple[Path, str]:
    if name in registry.WEIGHTS:
        return SHIPPED / registry.WEIGHTS[name].path, name
    if name in registry.preset_names():
        tag = registry.system_of(name).default_weights.get(name)
        if tag is None or tag not in registry.WEIGHTS:
            raise WeightsError(
                f"preset {name!r} has no trained weights; train a recipe and load its folder"
            )
        return SHIPPED / registry.WEIGHTS[tag].path, tag
    if "/" in name and not Path(name).exists() and name.count("/") == 1:
        from polytok.core import hub

        return hub.download(name), name
    raise UnknownNameError("model", name, [*registry.WEIGHTS, *registry.preset_names()])


def read_code(path: StrPath) -> bytes:
    """Read a ``.ptk`` file, and no more than any such file can hold.

    Raises:
        FormatError: it is larger than every preset's code.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise FormatError(f"{path} is larger than {MAX_FILE} bytes, so it is no .ptk file")
    return data


def codec_for(data: bytes, model: StrPath | None = None) -> Codec:
    """Load the codec that wrote a ``.ptk`` file, by the fingerprint in its header.

    Raises:
        WeightsError: no registered weights have this fingerprint and no ``model`` is given.
    """
    from polytok import bitstream

    if model is not None:
        return load_codec(model)
    fingerprint = bitstream.read_header(data).weights
    for tag, weights in registry.WEIGHTS.items():
        if weights.fingerprint == fingerprint:
            return load_codec(tag)
    known = ", ".join(f"{t} ({w.fingerprint})" for t, w in registry.WEIGHTS.items()) or "none"
    raise WeightsError(
        f"the file was written by weights {fingerprint}, which are not known here (known: {known});"
        " name them with --model"
    )


def prior_for(
    data: bytes, prior: StrPath | None = None, text: str | None = None
) -> PriorCoder | None:
    """Load what coded the payload of a ``.ptk`` file; None if no prior did.

    Args:
        prior: name or folder of the generator, if no registry knows it. text: what the file was
            coded with, if it was.

    Raises:
        WeightsError: the generator is not known here and none is given.
    """
    from polytok import bitstream

    header = bitstream.read_header(data)
    if header.prior is None:
        return None
    if prior is not None:
        return load_generator(prior, modality=header.modality).prior(text)
    for tag, weights in registry.WEIGHTS.items():
        if weights.fingerprint == header.prior:
            return load_generator(tag, modality=header.modality).prior(text)
    raise WeightsError(
        f"the file was coded with prior {header.prior}, which is not known here; name it with "
        "--prior"
    )


def prior_of(codec: Codec, prior: StrPath | None = None, text: str | None = None) -> PriorCoder:
    """Load a tokenizer's entropy coder: ``prior``, else the generator of its weights or preset.

    Raises:
        WeightsError: there is none, or it belongs to other weights.
    """
    own = [tag for tag, weights in registry.WEIGHTS.items() if weights.draws == codec.name]
    name = prior or (own[-1] if own else f"{codec.name.partition('.')[0]}-gen")
    generator = load_generator(name, modality=codec.spec.modality)
    if generator.codec.weights != codec.weights:
        raise WeightsError(
            f"{generator.name} codes weights {generator.codec.weights}, not {codec.weights}"
        )
    return generator.prior(text)


def pack(codes: Codes, model: StrPath | Codec = "vat-512b-small") -> list[bytes]:
    """Turn codes into the bytes of one ``.ptk`` file each."""
    return _codec(model).pack(codes)


def unpack(data: bytes, model: StrPath | None = None) -> Codes:
    """Turn the bytes of a ``.ptk`` file into codes."""
    return codec_for(data, model).unpack(data, prior=prior_for(data))


def save(
    codes: Codes,
    path: StrPath,
    model: StrPath | Codec = "vat-512b-small",
    *,
    force: bool = True,
) -> int:
    """Write one code to a ``.ptk`` file, whole or not at all; returns its bytes."""
    if len(codes) != 1:
        raise ConfigError(f"a .ptk file holds one item, got {len(codes)}; save codes[i]")
    data = pack(codes, model)[0]
    write_bytes(path, data, force=force)
    return len(data)


def open(path: StrPath, model: StrPath | None = None) -> tuple[Codes, Codec]:
    """Read a ``.ptk`` file: its codes, and the codec that decodes them."""
    data = read_code(path)
    codec = codec_for(data, model)
    return codec.unpack(data, prior=prior_for(data)), codec


def train(
    recipe: StrPath,
    run_dir: StrPath,
    overrides: Sequence[str] = (),
    minutes: float | None = None,
) -> FitResult:
    """Run a recipe, or continue it; ``run_dir`` is then a folder that :func:`load` takes.

    Args:
        overrides: ``a.b=value`` replaces a value of the recipe; values are JSON, else text.
        minutes: save and stop after so long.

    Raises:
        ConfigError: the recipe or an override is wrong, or ``run_dir`` holds another run.
    """
    from polytok.core.config import from_dict, to_dict
    from polytok.training import Recipe

    values = to_dict(Recipe.read(recipe))
    for text in overrides:
        _set(values, text)
    if minutes is not None:
        values["train"]["time_limit_minutes"] = float(minutes)
    return train_recipe(from_dict(Recipe, values), run_dir)


def train_recipe(recipe: Recipe, run_dir: StrPath) -> FitResult:
    """Run a recipe that has been read, or continue it, see :func:`train`."""
    from polytok.core import hub
    from polytok.core.config import to_dict
    from polytok.training import fit

    system = registry.system_of(recipe.preset)
    module = system.load()
    training = module.prepare_training(recipe)
    config = to_dict(training.model.config)
    is_begun = (Path(run_dir) / hub.WEIGHTS).is_file()
    if is_begun and not hub.read_info(run_dir).config.items() <= config.items():
        raise ConfigError(f"{run_dir} holds a run of another configuration; use another folder")
    hub.write_info(run_dir, training.model.config, system=system.name, preset=recipe.preset)
    write_text(Path(run_dir) / "recipe.json", json.dumps(to_dict(recipe), indent=2) + "\n")
    if hasattr(training, "write_files"):
        training.write_files(Path(run_dir))
    return fit(
        training.model,
        recipe.plan(module.STAGES),
        training.source,
        recipe.train,
        run_dir,
        validate=training.validate,
        adversary=getattr(training, "adversary", None),
    )


def _codec(model: StrPath | Codec) -> Codec:
    return load_codec(model) if isinstance(model, (str, PathLike)) else model


def _set(values: dict[str, Any], text: str) -> None:
    path, found, raw = text.partition("=")
    if not found:
        raise ConfigError(f"override {text!r} is not of the form a.b=value")
    *parents, key = path.split(".")
    target: Any = values
    for parent in parents:
        target = target.get(parent) if isinstance(target, dict) else None
    if not isinstance(target, dict):
        raise ConfigError(f"override {text!r}: the recipe has no {'.'.join(parents)}")
    parse: Callable[[str], Any] = json.loads
    try:
        target[key] = parse(raw)
    except ValueError:
        target[key] = raw
