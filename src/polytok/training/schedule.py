"""Learning rates: warm-up and cosine over the run, a factor per stage and parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from polytok.core.contracts import Stage
from polytok.core.errors import ConfigError
from polytok.training.stages import check_globs, matches

NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.batchnorm._BatchNorm,
)


def rate_factor(done: float, warmup: float, total: float, final: float) -> float:
    """Factor of the peak rate after ``done`` of ``total`` samples.

    Args:
        warmup: samples of the linear rise. final: the factor at the end of the cosine.
    """
    if done < warmup:
        return done / warmup
    fraction = (done - warmup) / max(total - warmup, 1)
    return final + (1 - final) * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2


def stage_factors(name: str, stages: Sequence[Stage]) -> tuple[float, ...]:
    """Learning-rate factor of a parameter in every stage; the first matching glob wins.

    Raises:
        ConfigError: a stage trains the parameter and gives it no factor.
    """
    factors = []
    for stage in stages:
        factor = next((f for glob, f in stage.lr.items() if fnmatchcase(name, glob)), None)
        if factor is None and matches(name, stage.train):
            raise ConfigError(
                f"stage {stage.name!r} trains {name!r} without a learning-rate factor; "
                "add a row '*' = 1.0"
            )
        factors.append(0.0 if factor is None else float(factor))
    return tuple(factors)


def parameter_groups(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    stages: Sequence[Stage],
    weight_decay: float,
    muon: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Group parameters for one optimiser that serves all stages.

    Each group has ``factors``, one per stage, and ``orthogonal``: whether it holds the matrices
    that the globs of ``muon`` name. Parameters that a stage does not train get no
    gradient there, so the optimiser leaves them and their moments alone.
    """
    for stage in stages:
        check_globs(parameters, stage.lr, f"lr glob of stage {stage.name!r}")
    check_globs(parameters, muon, "train.muon glob")
    groups: dict[tuple[bool, bool, tuple[float, ...]], list[nn.Parameter]] = {}
    decayed = decayed_names(model)
    for name, parameter in parameters.items():
        is_matrix = name in decayed and parameter.ndim == 2
        key = (name in decayed, is_matrix and matches(name, muon), stage_factors(name, stages))
        groups.setdefault(key, []).append(parameter)
    return [
        {
            "params": params,
            "weight_decay": weight_decay if decays else 0.0,
            "orthogonal": orthogonal,
            "factors": factors,
        }
        for (decays, orthogonal, factors), params in groups.items()
    ]


def decayed_names(model: nn.Module) -> set[str]:
    """Names of the parameters that decay: matrices and kernels, not embeddings or norms."""
    names = set()
    for path, module in model.named_modules():
        if isinstance(module, (nn.Embedding, *NORMS)):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if name.endswith("weight") and parameter.ndim >= 2:
                names.add(f"{path}.{name}" if path else name)
    return names
