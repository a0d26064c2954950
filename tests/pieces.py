"""Tensors of a few elements as the engine hands them to a merge method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from modelworks.merge.method import Piece

Rows = Sequence[Sequence[float]]


def piece_of(
    models: Rows | None = None,
    *,
    deltas: Rows | None = None,
    base: Sequence[float] | None = None,
    shape: tuple[int, ...] | None = None,
) -> Piece:
    """A whole tensor as one piece; with `deltas`, the base is 0 unless it is given."""
    values, changes = (None if rows is None else torch.tensor(rows).float() for rows in (models, deltas))
    size = len((models or deltas or [[]])[0])
    own = torch.zeros(size) if base is None and deltas is not None else None if base is None else torch.tensor(base)
    return Piece("model.layers.0.mlp.up_proj.weight", shape or (size,), 0, own, values, changes)


@dataclass
class Looked:
    """A TensorLook at a tensor in memory, in pieces of a given number of elements."""

    models: torch.Tensor  # (M, N)
    base: torch.Tensor | None = None  # (N)
    elements: int = 1 << 18
    name: str = "model.layers.0.mlp.up_proj.weight"
    whole_shape: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return self.models.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole_shape or (self.size,)

    def pieces(self) -> Iterator[Piece]:
        for start in range(0, self.size, self.elements):
            stop = min(start + self.elements, self.size)
            base = None if self.base is None else self.base[start:stop]
            yield Piece(self.name, self.shape, start, base, self.models[:, start:stop])
