"""What a model family must say so that every method can reduce it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from polytok.reducers.reducer import Reducer
from polytok.reducers.state import TokenState


class Host(ABC):
    """A model family: where its blocks are, and the parts of one block. It holds no state.

    Legend: x (B, n, C) the residual stream, y its norm, q, k, v (B, H, n, d).
    """

    library: ClassVar[str]

    def fits(self, core: nn.Module) -> bool:
        """Whether a model of the right class is laid out as this host knows it."""
        return True

    @abstractmethod
    def check(self, core: nn.Module, root: nn.Module, reducer: Reducer, restore: str) -> None:
        """Refuse a model of the family that cannot be reduced as is.

        Args:
            core: the model of the family. root: what the user handed in, which holds it.

        Raises:
            PolytokError: a block or attention is of an unknown class, or a head cannot work.
        """

    @abstractmethod
    def install(self, core: nn.Module, root: nn.Module) -> None:
        """Swap the class of the model, and of what holds it where that must know."""

    @abstractmethod
    def blocks(self, core: nn.Module) -> Sequence[nn.Module]:
        """Its blocks, in order."""

    @abstractmethod
    def prefix(self, core: nn.Module) -> int:
        """Number of its class and register tokens, which come first."""

    @abstractmethod
    def has_class_token(self, core: nn.Module) -> bool:
        """Whether the first token is a class token."""

    @abstractmethod
    def patcher(self, core: nn.Module) -> nn.Module:
        """The module that cuts images into patches."""

    @abstractmethod
    def grid(self, core: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Rows and columns of patches of images of a height and width, or of its usual ones."""

    @abstractmethod
    def image_size(self, core: nn.Module) -> tuple[int, int]:
        """Height and width of its usual images."""

    @abstractmethod
    def norm(self, block: nn.Module, x: Tensor) -> Tensor:
        """What the attention sees."""

    @abstractmethod
    def query_key(self, block: nn.Module, y: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor]:
        """q and k as they enter the product, normalised and rotated."""

    @abstractmethod
    def value(self, block: nn.Module, y: Tensor) -> Tensor:
        """v."""

    def qkv(
        self, block: nn.Module, y: Tensor, rope: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v, by one product where the block has one."""
        return (*self.query_key(block, y, rope), self.value(block, y))

    @abstractmethod
    def scale(self, block: nn.Module) -> float:
        """Factor on the logits."""

    @abstractmethod
    def attend(
        self, block: nn.Module, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Attention as the block does it, fused or not, to (B, n, H d).

        ``bias`` is broadcastable to (B, H, n, n) and added to the logits.
        """

    @abstractmethod
    def dropout(self, block: nn.Module) -> float:
        """How much of its attention a block drops now: 0 in eval mode."""

    @abstractmethod
    def project(self, block: nn.Module, y: Tensor, out: Tensor) -> Tensor:
        """Gate, norm and output projection of (B, n, H d)."""

    @abstractmethod
    def add_attention(self, block: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """The first residual sum, with layer scale and drop path."""

    @abstractmethod
    def mlp(self, block: nn.Module, x: Tensor) -> Tensor:
        """The second half of the block, with its residual sum."""

    def rope(self, native: dict[str, Any], state: TokenState) -> Tensor | None:
        """Rotary positions of the patch tokens that are left, from a block's keyword arguments."""
        return None

    @abstractmethod
    def arguments(
        self, native: dict[str, Any], state: TokenState, bias: Tensor | None
    ) -> dict[str, Any]:
        """Keyword arguments of a block's own forward on reduced tokens.

        Args:
            native: those it was called with. bias: log sizes, see :meth:`TokenState.bias`.
        """

    def resume(
        self,
        block: nn.Module,
        plain: Callable[..., Tensor],
        x: Tensor,
        native: dict[str, Any],
        state: TokenState,
    ) -> Tensor:
        """A whole block on reduced tokens: its own forward with their sizes and positions."""
        bias = state.bias()
        bias = None if bias is None else bias.to(x.dtype)
        return plain(x, **self.arguments(native, state, bias))

    @abstractmethod
    def linears(self, block: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The attention and the MLP of a block, whose linear layers are counted."""


def heads(x: Tensor, count: int) -> Tensor:
    """(B, n, H d) -> (B, H, n, d)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)
