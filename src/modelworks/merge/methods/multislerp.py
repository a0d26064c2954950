"""Multi-SLERP: the mean direction of any number of models, at their mean length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.core.errors import Problem
from modelworks.merge.gram import norms, prepare_mix
from modelworks.merge.method import PER_MODEL, Method, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook

# A mean of unit vectors that is shorter has no direction but that of rounding errors.
_LEAST_MEAN = 1e-6


class MultislerpParams(Params):
    weight: FiniteFloat = Field(1.0, description="share of a model", json_schema_extra=PER_MODEL)
    normalize_weights: bool = Field(True, description="divide the weights by their sum")
    eps: float = Field(1e-8, ge=0, description="added to lengths that are divided by")


def check_each(params: MultislerpParams, each: Sequence[MultislerpParams]) -> list[Problem]:
    if params.normalize_weights and abs(sum(its.weight for its in each)) < 1e-8:
        what = "the weights add up to 0, so there is no mean"
        return [Problem("weight", what, "change one, or set normalize_weights false")]
    return []


def prepare(look: TensorLook, params: MultislerpParams, each: Sequence[MultislerpParams]) -> Combine:
    """Go into the mean direction as far as the models lie on average, from 0 or from the base where there is one.

    m = (w_1 u_1 + ... + w_M u_M) / |...| with u_i = x_i / |x_i|; the result is (w_1 |x_1| + ... + w_M |x_M|) m.
    The method (Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea) then moves m by the weighted
    mean of the u_i in its tangent space, which is 0: m is that mean's own direction. Where models cancel each other
    out there is no direction, and the result is w_1 x_1 + ... + w_M x_M.
    """
    import torch

    total = sum(its.weight for its in each) if params.normalize_weights else 1.0
    weights = torch.tensor([its.weight / total for its in each], dtype=torch.float64)

    def solve(products: Tensor) -> Tensor:
        if len(weights) == 1:
            return torch.ones_like(weights)
        lengths = norms(products)
        shares = weights / (lengths + params.eps).clamp(min=torch.finfo(torch.float64).tiny)
        mean = (shares @ products @ shares).clamp(min=0).sqrt()
        if mean < max(params.eps, _LEAST_MEAN) * weights.abs().sum():
            return weights
        return shares / mean * (weights @ lengths)

    return prepare_mix(look, solve, on_base=True)


MULTISLERP = Method(
    "multislerp", MultislerpParams, prepare=prepare, space="weights", reads_base="if given", check_each=check_each,
    reads=2,
)  # fmt: skip
