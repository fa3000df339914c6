"""One forward pass of a reduced model: the state of its tokens, handed explicitly to every block.

A pass is made by the model's forward and lives as long as it. A block reads the state of its own
layer and writes the next one's, so a block that runs again (gradient checkpointing) sees what it
saw before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout

from polytok.core.errors import PolytokError
from polytok.reducers.maps import Merge, TokenMap
from polytok.reducers.reduction import Reduction
from polytok.reducers.schedule import Schedule
from polytok.reducers.scores import Scores
from polytok.reducers.state import TokenState
from polytok.reducers.swap import Swapped


class Pass:
    """The tokens of one forward pass.

    Args:
        reduction: what is applied. prefix: of the model. depth: number of its blocks.
        schedule: instead of the reduction's own, for this call.
    """

    def __init__(
        self, reduction: Reduction, prefix: int, depth: int, schedule: Schedule | None = None
    ) -> None:
        self.reduction, self.prefix, self.depth = reduction, prefix, depth
        self.schedule = schedule
        self.keeps: tuple[int, ...] = ()
        self.states: dict[int, TokenState] = {}
        for recorder in reduction.recorders:
            recorder.append(self)

    @property
    def history(self) -> list[TokenState]:
        """The states at the input of each block that ran, and behind the last of them."""
        return [self.states[layer] for layer in sorted(self.states)]

    @property
    def state(self) -> TokenState:
        """The state behind the last block that ran."""
        return self.states[max(self.states)]

    def run(
        self, block: nn.Module, plain: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run a block on the tokens that are left, (B, n, C) -> (B, m, C).

        A block that keeps everything, before anything was reduced, is its own ``plain`` forward.
        """
        layer: int = block.reduction_layer  # type: ignore[assignment]
        if layer == 0:
            self._start(x)
        state, keep = self.states[layer], self.keeps[layer]
        if keep < state.patches:
            step = Step(self.reduction, block, plain, args, kwargs)
            x, state = step.reduce(x, state, keep)
        elif state.maps:
            x = self.reduction.host.resume(block, plain, x, kwargs, state)
        else:
            x = plain(x, *args, **kwargs)
        self.states[layer + 1] = replace(state, layer=layer + 1)
        return self.restored(x, layer) if layer == self.depth - 1 else x

    def restored(self, x: Tensor, layer: int) -> Tensor:
        """What a block gave, with every patch in its place where the reduction restores."""
        return self.states[layer + 1].expand(x) if self.reduction.restore == "grid" else x

    def _start(self, x: Tensor) -> None:
        patches = x.shape[1] - self.prefix
        self.keeps = self.reduction.resolve(patches, self.depth, self.schedule)
        self.states[0] = TokenState(num_patches=patches, prefix=self.prefix)


def new_pass(core: Any, keep: Any = None) -> Pass:
    """A pass of a reduced model, with another ``keep`` than its own if one is given."""
    reduction: Reduction = core.reduction
    schedule = None if keep is None else reduction.schedule.like(keep)
    host = reduction.host
    made: Pass = (reduction.make_pass or Pass)(
        reduction, host.prefix(core), len(host.blocks(core)), schedule
    )
    return made


@dataclass
class Step:
    """A block that reduces: written once over the sub-modules that a host names."""

    reduction: Reduction
    block: nn.Module
    plain: Callable[..., Tensor]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def reduce(self, x: Tensor, state: TokenState, keep: int) -> tuple[Tensor, TokenState]:
        where = self.reduction.reducer.where
        if where == "mid":
            return self._between(x, state, keep)
        if where == "input":
            return self._before(x, state, keep)
        return self._behind(x, state, keep)

    def _between(self, x: Tensor, state: TokenState, keep: int) -> tuple[Tensor, TokenState]:
        host, block, bias = self.reduction.host, self.block, state.bias()
        y = host.norm(block, x)
        q, k, v = host.qkv(block, y, self._rope(state))
        out = host.project(block, y, host.attend(block, q, k, v, bias))
        x = host.add_attention(block, x, out)
        scores = Scores(x, q, k, host.scale(block), bias, state.prefix)
        x, state, _ = self._mapped(x, state, scores, keep)
        return host.mlp(block, x), state

    def _before(self, x: Tensor, state: TokenState, keep: int) -> tuple[Tensor, TokenState]:
        host, block, bias = self.reduction.host, self.block, state.bias()
        q, k = host.query_key(block, host.norm(block, x), self._rope(state))
        scores = Scores(x, q, k, host.scale(block), bias, state.prefix)
        if not self.reduction.reducer.reuses_attention:
            x, state, _ = self._mapped(x, state, scores, keep)
            return host.resume(block, self.plain, x, self.kwargs, state), state
        attention = scores.attention()
        x, state, chosen = self._mapped(x, state, scores, keep)
        y = host.norm(block, x)
        v = host.value(block, y)
        assert isinstance(chosen, Merge)
        merged = merged_attention(attention, chosen).to(v.dtype)
        out = dropout(merged, host.dropout(block)) @ v
        out = host.project(block, y, out.transpose(1, 2).flatten(2))
        return host.mlp(block, host.add_attention(block, x, out)), state

    def _behind(self, x: Tensor, state: TokenState, keep: int) -> tuple[Tensor, TokenState]:
        host, block, bias = self.reduction.host, self.block, state.bias()
        q, k = host.query_key(block, host.norm(block, x), self._rope(state))
        scores = Scores(x, q, k, host.scale(block), bias, state.prefix)
        if state.maps:
            scores.x = host.resume(block, self.plain, x, self.kwargs, state)
        else:
            scores.x = self.plain(x, *self.args, **self.kwargs)
        x, state, _ = self._mapped(scores.x, state, scores, keep)
        return x, state

    def _rope(self, state: TokenState) -> Tensor | None:
        return self.reduction.host.rope(self.kwargs, state)

    def _mapped(
        self, x: Tensor, state: TokenState, scores: Scores, keep: int
    ) -> tuple[Tensor, TokenState, TokenMap]:
        reducer = self.reduction.reducer
        chosen = reducer.choose(state, scores, keep).behind(state.prefix)
        keeps = self.reduction.restore == "grid"
        state = state.after(x, chosen, tracks_size=reducer.tracks_size, keeps=keeps)
        return chosen.apply(x), state, chosen


def merged_attention(attention: Tensor, chosen: Merge) -> Tensor:
    """(B, H, n, n) -> (B, H, m, m): keys are added up, queries averaged, so rows still sum to 1."""
    heads, before, after = attention.shape[1], attention.shape[2], chosen.count
    keys = chosen.add(attention.permute(0, 3, 1, 2).flatten(2)).unflatten(2, (heads, before))
    queries = chosen.apply(keys.permute(0, 3, 2, 1).flatten(2)).unflatten(2, (heads, after))
    return queries.transpose(1, 2)


class ReducedBlock(Swapped):
    """In front of a block's class: runs as part of a pass when it is handed one."""

    reduction_layer: int

    def forward(self, x: Tensor, *args: Any, tokens: Pass | None = None, **kwargs: Any) -> Tensor:
        """The block's own forward without a pass. Shapes as in :meth:`Pass.run`."""
        plain = super().forward  # type: ignore[misc]
        if tokens is None:
            return plain(x, *args, **kwargs)
        return tokens.run(self, plain, x, *args, **kwargs)  # type: ignore[arg-type]


def refuse_mask(*masks: Any) -> None:
    """Refuse attention masks, whose rows would no longer fit.

    Raises:
        PolytokError: one is given.
    """
    if any(mask is not None and mask is not False for mask in masks):
        raise PolytokError(
            "a reduced model takes no attention mask; use it inside polytok.reducers.paused(model)"
        )
