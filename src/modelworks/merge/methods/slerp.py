"""Slerp: the point between two models on the arc, not on the line, so that lengths do not shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field, FiniteFloat

from modelworks.merge.gram import cosines, prepare_mix, slerp_factors
from modelworks.merge.method import Method, Params

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, TensorLook

# Beyond this cosine, and below its negative, the line is as good as the arc, or the arc is not defined.
_LINEAR = 0.9995


class SlerpParams(Params):
    t: FiniteFloat = Field(0.5, description="how far from the first model (0) to the second (1)")


def prepare(look: TensorLook, params: SlerpParams, _each: Sequence[SlerpParams]) -> Combine:
    """Walk the arc: [sin((1-t)w) x + sin(tw) y] / sin w, w the angle between tensors (Shoemake 1985).

    Where they are nearly parallel or opposite, (1-t) x + t y; a tensor of zeros counts as at a right angle.
    """

    def solve(products: Tensor) -> Tensor:
        cosine = cosines(products, 1e-8)[0, 1]
        return slerp_factors(cosine, params.t, cosine.abs() > _LINEAR)

    return prepare_mix(look, solve)


SLERP = Method("slerp", SlerpParams, prepare=prepare, space="weights", models=(2, 2), reads=2)
