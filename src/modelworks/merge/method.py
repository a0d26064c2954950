"""What a merge method is: a name, its own parameters, and a pure function over aligned pieces of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from modelworks.core.registry import find_plugins
from modelworks.core.spec import Spec

if TYPE_CHECKING:
    from torch import Tensor  # noqa: TC004  a dataclass does not evaluate its annotations; torch must not load here

    from modelworks.core.errors import Problem  # noqa: TC004  the same


class Params(Spec):
    """The parameters of one method; each method has its own."""


P = TypeVar("P", bound=Params)


@dataclass(frozen=True, slots=True)
class Piece:
    """The same run of elements of one tensor in the base and in every model, in the method's precision.

    `models` are the models' values or their differences, by the method's space; `deltas` always the differences.
    """

    name: str
    start: int  # place of its first element in the tensor
    base: Tensor  # (N)
    models: Tensor  # (M, N)
    deltas: Tensor  # (M, N)


class Look(Protocol):
    """Every tensor that will be merged, to be read piece by piece, as often as a method wants to."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """How many elements each tensor has, by name."""

    def pieces(self, name: str) -> Iterator[Piece]:
        """All of one tensor, from its first element on; in the merge itself, too, pieces come in this order."""

    def in_model_order(self) -> Sequence[str]:
        """The names as the network's class lists its parameters. Loads transformers."""


Combine: TypeAlias = "Callable[[Piece], Tensor]"


@dataclass(frozen=True)
class Method(Generic[P]):
    """A way to merge.

    `combine(tensors, weights, params)` gets the models' values (space "weights") or their differences from the base
    (space "delta") as (M, N) float32, and one factor a model; it returns (N) float32, to which the engine adds the base
    again in space "delta". It works element by element, so that pieces of any size give the same result. To be the same
    on every device, a product and a sum are two operations, never one fused.

    A method that must know more than the elements at hand has `prepare(look, weights, params)` instead: it reads the
    tensors as often as it needs, e.g. for a threshold, and returns what combines the pieces.

    In precision "bfloat16" base and models are rounded before anything else, and so is their difference; the result is
    always bfloat16.
    """

    name: str
    params_type: type[P]
    combine: Callable[[Tensor, tuple[float, ...], P], Tensor] | None = None
    space: Literal["weights", "delta"] = field(kw_only=True)
    prepare: Callable[[Look, tuple[float, ...], P], Combine] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    takes_weights: bool = True
    # What is wrong with the parameters for that many models.
    check: Callable[[P, int], Sequence[Problem]] = lambda _params, _count: ()
    paper: str | None = None

    @property
    def needs_base(self) -> bool:
        return self.space == "delta" or self.prepare is not None

    def begin(self, look: Look, weights: tuple[float, ...], params: P) -> Combine:
        """Read what must be known beforehand; return what combines the pieces, as `combine` would."""
        if self.prepare is not None:
            return self.prepare(look, weights, params)
        combine = self.combine
        if combine is None:
            raise TypeError(f"{self.name} has neither combine nor prepare")
        return lambda piece: combine(piece.models, weights, params)


def methods() -> Mapping[str, Method[Any]]:
    """Every method there is, by name."""
    return find_plugins("modelworks.merge.methods", Method)
