"""Passthrough: one model's weights as they are, or scaled; with slices, layers of several models one upon another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.method import PER_MODEL, Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class PassthroughParams(Params):
    scale: FiniteFloat = Field(1.0, description="factor on the weights", json_schema_extra=PER_MODEL)


def combine(piece: Piece, _params: PassthroughParams, each: Sequence[PassthroughParams]) -> Tensor:
    """Return scale * e; every tensor, and so every slice, has one model."""
    return piece.models[0] * each[0].scale


PASSTHROUGH = Method(
    "passthrough", PassthroughParams, combine, space="weights", models=(1, 1), in_numpy=lambda _params, _each: True
)
