"""Tensors of a few elements as the engine hands them to a merge method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modelworks.merge.method import Method, Piece

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

    def pieces(self, every: int = 1) -> Iterator[Piece]:
        for start in range(0, self.size, self.elements * every):
            stop = min(start + self.elements, self.size)
            base = None if self.base is None else self.base[start:stop]
            yield Piece(self.name, self.shape, start, base, self.models[:, start:stop])


def merged(
    method: Method[Any],
    models: Sequence[torch.Tensor],
    base: torch.Tensor | None = None,
    params: Mapping[str, Any] = {},
    weights: Sequence[float] = (),
    elements: int = 0,
) -> torch.Tensor:
    """What becomes of a tensor when it is merged whole, or in pieces of so many elements."""
    shape = models[0].shape
    flat = None if base is None else base.float().flatten()
    look = Looked(torch.stack(list(models)).float().flatten(1), flat, whole_shape=tuple(shape))
    look.elements = look.size if method.whole or not elements else elements
    shared = method.params_type.model_validate(params)
    own = [{"weight": weight} for weight in weights] or [{}] * len(models)
    combine = method.begin(look, shared, [method.params_type.model_validate({**params, **each}) for each in own])
    parts = [combine(piece) + (piece.base if method.space == "delta" else 0) for piece in look.pieces()]
    return torch.cat(parts).view(shape)
