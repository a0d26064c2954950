"""Karcher: the mean of any number of models on the sphere, the point with the least squared angles to them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from modelworks.merge.gram import norms, prepare_mix
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook


class KarcherParams(Params):
    max_iter: int = Field(10, ge=0, description="steps at most")
    tol: float = Field(1e-5, gt=0, description="a step, an angle and a length below this are none")


def prepare(look: TensorLook, params: KarcherParams, _each: Sequence[KarcherParams]) -> Combine:
    """Find the Karcher mean m of the unit tensors u_i, at the mean length (arXiv:2603.04972).

    Repeat v = mean(theta_i / sin theta_i (u_i - cos theta_i m)), m = cos|v| m + sin|v| v / |v|, theta_i being the angle
    between u_i and m, until |v| < tol. All of it happens in the span of the u_i, so m is kept as its coordinates there.
    It begins at the mean of the u_i, or at the first if that is 0. A model opposite to m gives it no direction, and
    one of zeros has none: they count for the length alone.
    """
    return prepare_mix(look, lambda products: _factors(products, params))


def _factors(products: Tensor, params: KarcherParams) -> Tensor:
    import torch

    lengths = norms(products)
    there = lengths > params.tol
    factors = torch.zeros_like(lengths)
    if there.any():
        units = products[there][:, there] / lengths[there][:, None] / lengths[there]
        factors[there] = _mean(units, params) / lengths[there] * lengths.mean()
    return factors


def _mean(products: Tensor, params: KarcherParams) -> Tensor:
    """Coordinates of the Karcher mean of unit vectors with these inner products."""
    import torch

    def length(vector: Tensor) -> float:
        return math.sqrt(max(float(vector @ products @ vector), 0))

    count = len(products)
    mean = torch.full((count,), 1 / count, dtype=torch.float64)
    if length(mean) < params.tol:
        mean = torch.eye(count, dtype=torch.float64)[0]
    mean = mean / length(mean)
    for _ in range(params.max_iter):
        cosine = (products @ mean).clamp(-1, 1)
        angle = torch.acos(cosine)
        pull = torch.where(torch.sin(angle) < params.tol, 0, angle / torch.sin(angle) / count)
        step = pull - (pull @ cosine) * mean
        size = length(step)
        if size < params.tol:
            break
        mean = math.cos(size) * mean + math.sin(size) / size * step
        mean = mean / length(mean)
    return mean


KARCHER = Method("karcher", KarcherParams, prepare=prepare, space="weights", reads=2, paper="arXiv:2603.04972")
