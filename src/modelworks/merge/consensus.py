"""Joining thinned-out changes: the parameters, the election of signs and the rescaling that such methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, FiniteFloat

from modelworks.core import kernels
from modelworks.merge.arrays import Array, bare, floats, is_numpy, library
from modelworks.merge.method import PER_MODEL, Method, Params
from modelworks.merge.selection import keep_largest, keep_middle

if TYPE_CHECKING:
    from modelworks.merge.method import Change, Combine, Piece, TensorLook
    from modelworks.merge.selection import Keep

_LEAST = 1e-7


class ThinningParams(Params):
    weight: FiniteFloat = Field(
        1.0, description="factor on a model's changes; may be negative", json_schema_extra=PER_MODEL
    )
    density: float = Field(
        1.0, ge=0, le=1, description="share of a model's changes that is kept", json_schema_extra=PER_MODEL
    )
    lambda_: FiniteFloat = Field(1.0, alias="lambda", description="factor on the merged changes")
    normalize: bool = Field(False, description="divide by the sum of the weights that take part")
    rescale: bool = Field(False, description="enlarge what is kept, to make up for what is dropped")


class OutlierParams(ThinningParams):
    gamma: float = Field(
        0.01,
        ge=0,
        le=1,
        description="share of a model's changes, the largest, that is dropped",
        json_schema_extra=PER_MODEL,
    )


P = TypeVar("P", bound=ThinningParams)


def thinning(
    name: str,
    params_type: type[P],
    thin: Callable[[TensorLook, P, Sequence[P]], Keep],
    *,
    elects: bool,
    in_numpy: bool = True,
    **facts: Any,
) -> Method[P]:
    """A method that joins what `thin` keeps of each model's changes.

    Args:
        in_numpy: whether `thin` takes numpy's arrays as well.
        facts: what else there is to say of a Method.
    """

    def prepare(look: TensorLook, params: P, each: Sequence[P]) -> Combine:
        return join(thin(look, params, each), params, each, elects=elects)

    def takes_numpy(params: P, _each: Sequence[P]) -> bool:
        return in_numpy and (elects or not params.normalize)

    return Method(name, params_type, prepare=prepare, space="delta", in_numpy=takes_numpy, **facts)


def largest(look: TensorLook, params: ThinningParams, each: Sequence[ThinningParams]) -> Keep:
    """Of each tensor int(density * size) changes, the largest, at least one; of equal ones the first."""
    keep = keep_largest(look, [its.density for its in each])
    return restore_l1(look, keep, len(each)) if params.rescale else keep


def all_but_outliers(look: TensorLook, params: OutlierParams, each: Sequence[OutlierParams]) -> Keep:
    """Of each tensor int(gamma * size) changes, the largest, are dropped, int(density * size) of the next are kept."""
    keep = keep_middle(look, [its.density for its in each], [its.gamma for its in each])
    return restore_l1(look, keep, len(each)) if params.rescale else keep


def join(keep: Keep, params: ThinningParams, each: Sequence[ThinningParams], *, elects: bool) -> Combine:
    """Sum the weighted changes that are kept: all of them, or those of the elected sign.

    The sign of sum(w_i d_i) is elected for each element, plus where it is 0 (TIES: Yadav et al. 2023,
    arXiv:2306.01708, Algorithm 1, there with equal weights).
    """
    weights = [its.weight for its in each]
    divided = _total(weights) if params.normalize and not elects else 1.0

    def combine(piece: Piece) -> Array:
        kept = keep(piece)
        for row, weight in zip(kept, weights, strict=True):
            if weight != 1:
                row *= weight
        if elects:
            merged = _elected(kept, weights, params.normalize)
        else:
            merged = _sum(kept)
            if divided != 1:
                merged /= floats(divided, merged)
        if params.lambda_ != 1:
            merged *= params.lambda_
        return merged

    return combine


def _total(weights: Sequence[float]) -> float:
    """The sum of weights in float32, in the order of torch; 1 where there is nothing to divide by."""
    import torch

    total = torch.tensor(weights, dtype=torch.float32).sum()
    return 1.0 if abs(total) < 1e-8 else float(total)


def _sum(rows: Array) -> Array:
    total = rows[0] + rows[1] if len(rows) > 1 else library(rows).asarray(rows[0], copy=True)
    for row in rows[2:]:
        total += row
    return total


def _elected(rows: Array, weights: Sequence[float], normalize: bool) -> Array:
    """The sum of what has the elected sign, divided if asked to by its models' weights, if that is not 0.

    Spoils the rows. By their bits, whose first is the sign, it takes half as long as by comparing and multiplying.
    """
    lib = library(rows)
    if is_numpy(bare(rows)):
        merged = lib.empty_like(rows[0])
        given = bare(floats(weights, merged))
        kernels.call("elect", bare(rows), *rows.shape, given, int(normalize), bare(merged))
        return merged
    total = _sum(rows)
    against, agrees = ~total.view(lib.int32), lib.empty_like(total.view(lib.int32))
    for row in rows.view(lib.int32):
        lib.bitwise_xor(row, against, out=agrees)
        agrees >>= 31  # 1 throughout where the signs are alike
        row &= agrees
    merged = _sum(rows)
    merged += total * 0  # a GPU's sum does not keep the sign of a NaN, which then agrees with nothing
    if normalize:
        merged /= _divisor(rows, weights)
    return merged


def _divisor(rows: Array, weights: Sequence[float]) -> Array:
    """The sum of the weights of those that are not 0; 1 where that is 0."""
    total = sum((row != 0) * floats(weight, row) for row, weight in zip(rows, weights, strict=True))
    total += total == 0
    return total


def restore_l1(look: TensorLook, keep: Keep, models: int) -> Keep:
    """Scale what is kept of each model's changes so that their magnitudes add up to as much as before."""
    before, after = [0.0] * models, [0.0] * models
    for piece in look.pieces():
        piece.kept = keep(piece)
        _add_up(piece.changes, before)
        _add_up([(bare(row), None) for row in piece.kept], after)
    # Where next to nothing was, or is left, there is nothing to restore.
    factors = [1.0 if was < _LEAST or left < _LEAST else was / left for was, left in zip(before, after, strict=True)]

    def restored(piece: Piece) -> Array:
        kept, piece.kept = keep(piece) if piece.kept is None else piece.kept, None
        kept *= piece.column(factors)
        return kept

    return restored


def _add_up(changes: Sequence[Change], totals: list[float]) -> None:
    """Add the magnitudes of each change to its total, in float64."""
    import numpy as np

    for place, (values, base) in enumerate(changes):
        if is_numpy(values):
            total = np.zeros(1)
            kernels.call("add_up", values, 0 if base is None else base, len(values), total)
            totals[place] += float(total[0])
        else:
            totals[place] += float(abs(values).double().sum())
