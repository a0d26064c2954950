"""NuSLERP: slerp by weights, of whole tensors, rows or columns, and of task vectors where there is a base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.gram import Vectors, cosines, prepare_mix, slerp_factors
from modelworks.merge.method import PER_MODEL, Method, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook

# Vectors whose cosine is 1 or -1 in float32 are parallel.
_PARALLEL = 2.0**-24


class NuslerpParams(Params):
    weight: FiniteFloat = Field(1.0, description="share of a model", json_schema_extra=PER_MODEL)
    nuslerp_flatten: bool = Field(True, description="take a tensor as one vector")
    nuslerp_row_wise: bool = Field(
        False, description="unless flattened: vectors run along the first dimension instead of the last"
    )


def prepare(look: TensorLook, params: NuslerpParams, each: Sequence[NuslerpParams]) -> Combine:
    """Walk the arc: [sin((1-t)w) x + sin(tw) y] / sin w with t = w_2 / (w_1 + w_2), of e or, with a base, of e - b.

    Where the vectors are parallel, (1-t) x + t y; where the weights add up to 0, t is 0.5.
    """
    first, second = (its.weight for its in each)
    t = second / (first + second) if abs(first + second) >= 1e-6 else 0.5

    def solve(products: Tensor) -> Tensor:
        cosine = cosines(products, 1e-7)[0, 1]
        return slerp_factors(cosine, t, 1 - cosine.square() < _PARALLEL)

    vectors: Vectors = "tensor" if params.nuslerp_flatten else "columns" if params.nuslerp_row_wise else "rows"
    return prepare_mix(look, solve, vectors, on_base=True)


NUSLERP = Method(
    "nuslerp", NuslerpParams, prepare=prepare, space="weights", reads_base="if given", models=(2, 2), reads=2
)  # fmt: skip
