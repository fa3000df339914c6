"""Training a reduced classifier: what the recipes of reduction methods share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from polytok.core import hub
from polytok.core.config import from_dict, to_dict
from polytok.core.errors import ConfigError
from polytok.core.registry import SYSTEMS
from polytok.training import Recipe

CLASSIFIER = "vit-classifier"
DEFAULT_PRESET = "vit-classifier-cifar"

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


@dataclass
class ReductionTraining:
    """A run that is ready to start: what :func:`polytok.training.fit` takes."""

    model: Any
    source: Any
    validate: Callable[[Any], Mapping[str, float]] | None


def prepare(
    recipe: Recipe, kind: type[C], build: Callable[[Any, C], nn.Module]
) -> ReductionTraining:
    """Read the data, and the plain classifier that ``init`` names, and wrap it for training.

    Without ``init`` the classifier starts from random weights, with the sizes that
    ``config.vit`` gives.

    Args:
        kind: of the recipe's configuration.
        build: makes the module that is trained, which has ``logits``, from the plain classifier.

    Raises:
        WeightsError: ``init`` is no folder of a classifier.
        ConfigError: ``init`` holds another system, or the configuration is wrong.
    """
    config = from_dict(kind, recipe.config)
    sizes = dict(recipe.config.get("vit", {}))
    name = sizes.pop("preset", DEFAULT_PRESET)
    if recipe.init:
        info = hub.read_info(Path(recipe.init))
        if info.system != CLASSIFIER:
            raise ConfigError(f"init={recipe.init!r} holds a {info.system}, not a {CLASSIFIER}")
        name, sizes = info.preset, info.config
    plain = SYSTEMS[CLASSIFIER].load().prepare_training(replace(recipe, preset=name, config=sizes))
    return ReductionTraining(build(plain.model, config), plain.source, plain.validate)


def loaded(
    folder: Path, info: hub.Info, kind: type[C], build: Callable[[Any, C], M], device: str
) -> M:
    """Build the model of a run's folder, and fill it with its weights."""
    config = from_dict(kind, info.config)
    model = build(_rebuilt(info.config["vit"]), config)
    hub.load_weights(model, folder)
    return model.to(device).eval()


def _rebuilt(sizes: Mapping[str, Any]) -> Any:
    """The plain classifier of ``config.vit``, with random weights."""
    module = SYSTEMS[CLASSIFIER].load()
    config = module.preset(sizes.get("preset", DEFAULT_PRESET))
    rest = {k: v for k, v in sizes.items() if k != "preset"}
    return module.ViTClassifier(replace(config, **rest))


def sizes_of(classifier: Any) -> dict[str, Any]:
    """What ``config.vit`` is for a run to build ``classifier`` again."""
    return to_dict(classifier.config)


def scaled(image: Tensor) -> Tensor:
    """Images in [0, 1] as the classifier's vision transformer takes them."""
    return image * 2 - 1
