"""What a merge method is: a name, its own parameters, and a pure function over aligned pieces of tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from modelworks.core.registry import find_plugins
from modelworks.core.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor  # noqa: TC004  a dataclass does not evaluate its annotations; torch must not load here


class Params(Spec):
    """The parameters of one method; each method has its own."""


P = TypeVar("P", bound=Params)


@dataclass(frozen=True)
class Method(Generic[P]):
    """A way to merge.

    `combine(tensors, weights, params)` gets the models' values (space "weights") or their differences from the base
    (space "delta") as (M, N) float32, and one factor a model; it returns (N) float32, to which the engine adds the base
    again in space "delta". It works element by element, so that pieces of any size give the same result. To be the same
    on every device, a product and a sum are two operations, never one fused.
    """

    name: str
    params_type: type[P]
    combine: Callable[[Tensor, tuple[float, ...], P], Tensor]
    space: Literal["weights", "delta"]
    takes_weights: bool = True
    paper: str | None = None

    @property
    def needs_base(self) -> bool:
        return self.space == "delta"


def methods() -> Mapping[str, Method[Any]]:
    """Every method there is, by name."""
    return find_plugins("modelworks.merge.methods", Method)
