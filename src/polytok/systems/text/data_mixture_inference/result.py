"""What an inference says: shares with intervals, how well they fit, and what to mind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polytok.core.errors import SignalError

Shares = dict[str, float]


@dataclass(frozen=True)
class Fit:
    """How well the shares explain the merges.

    Args:
        misfit: sum of all slacks, in shares of pairs; 0 when every merge beats every rival.
        gap: what rows that were left out could add to ``misfit`` at most.
        slackless: share of merges without a slack of their own.
    """

    misfit: float
    gap: float
    slackless: float


@dataclass(frozen=True)
class MixtureResult:
    """The inferred mixture of a tokenizer's training text.

    Args:
        byte_share, pair_share: of each category, sum 1. Pairs are what the program weighs; bytes
            are what a corpus is measured in.
        byte_interval: low and high end for each category, None without a bootstrap.
        by_merges: byte shares from the first so many merges alone.
        merge_slack: for each merge. pair_slack: of the pairs that have one.
        missing_merges: merges that occur in no sample; they are skipped.
        rounds: of solving. seconds: in the solver and the search for rows.
        caveats: what the reader should know, a sentence each.
    """

    byte_share: Shares
    pair_share: Shares
    byte_interval: dict[str, tuple[float, float]] | None
    by_merges: dict[int, Shares]
    fit: Fit
    merge_slack: tuple[float, ...]
    pair_slack: dict[str, float]
    missing_merges: tuple[str, ...]
    rounds: int
    seconds: float
    caveats: tuple[str, ...]

    @property
    def num_merges(self) -> int:
        return len(self.merge_slack)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return asdict(self)

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> MixtureResult:
        """Read the values of :meth:`as_dict`.

        Raises:
            SignalError: they are not those of a result.
        """
        try:
            given = dict(values)
            given["fit"] = Fit(**{k: float(v) for k, v in given["fit"].items()})
            given["by_merges"] = {int(k): _shares(v) for k, v in given["by_merges"].items()}
            for name in ("byte_share", "pair_share", "pair_slack"):
                given[name] = _shares(given[name])
            if given["byte_interval"] is not None:
                ends = given["byte_interval"].items()
                given["byte_interval"] = {k: (float(low), float(high)) for k, (low, high) in ends}
            for name in ("merge_slack", "missing_merges", "caveats"):
                given[name] = tuple(given[name])
            return MixtureResult(**given)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise SignalError(f"not a result of mixture inference: {error!r}") from None


def _shares(values: Mapping[str, Any]) -> Shares:
    return {str(k): float(v) for k, v in values.items()}


def mean_squared_error(found: Mapping[str, float], truth: Mapping[str, float]) -> float:
    """Mean over categories of the squared error of shares; the paper reports its log10."""
    names = sorted(set(found) | set(truth))
    return float(np.mean([(found.get(n, 0.0) - truth.get(n, 0.0)) ** 2 for n in names]))


def byte_shares(pair_shares: NDArray[np.float64], bytes_per_pair: NDArray[np.float64]) -> Any:
    """Shares of bytes (..., K) from shares of pairs (..., K)."""
    weighed = pair_shares * bytes_per_pair
    return weighed / weighed.sum(axis=-1, keepdims=True)
