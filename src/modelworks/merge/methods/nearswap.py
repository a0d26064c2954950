"""NearSwap: take from a model what is near to the base anyway, and the less of it the further away it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.arrays import library
from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor


class NearswapParams(Params):
    t: float = Field(1e-4, ge=0, description="differences up to this are taken whole, larger ones to this size")


def combine(piece: Piece, params: NearswapParams, _each: Sequence[NearswapParams]) -> Tensor:
    """Interpolate each weight: p e + (1-p) b, p = min(t / |e - b|, 1) (alchemonaut 2024, QuartetAnemoi-70B-t0.0001)."""
    model, base = piece.models[0], piece.base
    lib = library(base)
    share: Tensor = lib.clip(lib.reciprocal(lib.clip(abs(base - model), 1e-6, None)) * params.t, None, 1)
    return share * model + (1 - share) * base


NEARSWAP = Method(
    "nearswap",
    NearswapParams,
    combine,
    space="weights",
    reads_base=True,
    models=(1, 1),
    in_numpy=lambda _params, _each: True,
)
