"""ToMe: in every block, the most alike pairs of tokens become one.

"Token Merging: Your ViT But Faster" (arXiv 2210.09461), written from the maths of the paper; the
official code is for non-commercial use and was not used. No training is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from polytok.reducers import Reducer, Schedule, Scores, TokenMap, TokenState
from polytok.reducers.maps import Backend
from polytok.reducers.matching import cosine, halves, merge_halves


@dataclass(frozen=True, kw_only=True)
class ToMe(Reducer):
    """Alternate tokens, match each of one half to its most alike of the other, merge the best r.

    Alike is the cosine of keys, mean over heads. Features are means weighted by size, and
    attention to a token grows with its size. At most half of the patches go at once.

    Args:
        backend: ``onehot`` merges by a matrix product, for runtimes without scatter-add.
    """

    tracks_size: ClassVar[bool] = True
    backend: Backend = "scatter"

    def choose(self, state: TokenState, scores: Scores, keep: int) -> TokenMap:
        keys = scores.key_mean().detach()
        a, b = halves(state.patches, keys.device)
        alike = cosine(keys[:, a], keys[:, b])
        size = None if state.size is None else state.size[:, state.prefix :]
        return merge_halves(alike, state.patches - keep, weights=size, backend=self.backend)

    def least(self, patches: int) -> int:
        return patches - patches // 2

    def layers(self, depth: int) -> tuple[int, ...]:
        return tuple(range(depth))

    def schedule(self, depth: int) -> Schedule:
        return Schedule.removals(8, self.layers(depth))

    def macs(self, length: int, keep: int, dim: int) -> int:
        return (length // 2) ** 2 * dim


PRESETS = {"tome": ToMe()}
