"""A tensor seen through a function, so that what is worked out of the changes can be selected from like changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelworks.merge.method import Piece, TensorLook

if TYPE_CHECKING:
    from torch import Tensor  # noqa: TC004  a dataclass does not evaluate its annotations; torch must not load here


@dataclass(frozen=True)
class Derived:
    """A TensorLook that shows, as changes, `rows` of each piece: (R, N), worked out element by element."""

    look: TensorLook
    rows: Callable[[Piece], Tensor]

    @property
    def name(self) -> str:
        return self.look.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.look.shape

    @property
    def size(self) -> int:
        return self.look.size

    def pieces(self, every: int = 1) -> Iterator[Piece]:
        for piece in self.look.pieces(every):
            yield Piece(piece.name, piece.shape, piece.start, None, deltas=self.rows(piece))
