"""What a merge method is: a name, its own parameters, and a pure function over aligned pieces of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeAlias, TypeVar

from pydantic import ConfigDict

from modelworks.core import kernels
from modelworks.core.registry import find_plugins
from modelworks.core.spec import Spec
from modelworks.merge.arrays import Array, bare, floats, library, widened

if TYPE_CHECKING:
    from torch import Tensor  # noqa: TC004  a dataclass does not evaluate its annotations; torch must not load here

    from modelworks.core.errors import Problem  # noqa: TC004  the same
    from modelworks.merge.factors import Factors, Matrix  # noqa: TC004  the same

# Of a parameter's Field(json_schema_extra=...): each model may have its own value.
PER_MODEL: dict[str, Any] = {"per_model": True}


# So many elements are sampled together.
_RUN = 8


# The parameters of one method; methods with the same ones share a type. Every number may differ from tensor to tensor
# (see schedule.py), and those marked PER_MODEL from model to model as well. A method is given the values that hold for
# the tensor at hand: plain numbers.
class Params(Spec):
    # `lambda` is no name for a field in Python: it is the alias of lambda_.
    model_config = ConfigDict(populate_by_name=True)


P = TypeVar("P", bound=Params)

# A model's change on a run of elements: float32; or the bfloat16 bits of the model and of the base.
Change: TypeAlias = "tuple[Array, Array | None]"


class Piece:
    """The same run of elements of one tensor in the base and in every model, in the method's precision.

    For a method that takes them, these are numpy's arrays on a processor.

    Attributes:
        name: of the tensor in the result.
        shape: of the whole tensor.
        start: place of the piece's first element in the tensor; the piece is flat.
        base: (N), or None where there is none.
        models: (M, N), the models' values.
        deltas: (M, N), their differences from the base; 0 throughout where a model repeats it.
        stored: the bfloat16 bits (N) and (M, N) of base and models, where they are nothing else and at hand.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        start: int,
        base: Tensor | None,
        models: Tensor | None = None,
        deltas: Tensor | None = None,
        stored: tuple[Array, Array] | None = None,
    ) -> None:
        """Either of `models` and `deltas` is worked out from the other, or from `stored`, when it is asked for."""
        self.name, self.shape, self.start, self.stored = name, shape, start, stored
        self._base = base
        # What a method keeps of the changes, if it was found when the tensor was looked at.
        self.kept: Array | None = None
        if models is not None:
            self.models = models
        if deltas is not None:
            self.deltas = deltas

    @property
    def has_base(self) -> bool:
        return self._base is not None or self.stored is not None

    @property
    def base(self) -> Tensor:
        if self._base is None and self.stored is not None:
            self._base = widened(self.stored[0])
        if self._base is None:
            raise TypeError(f"{self.name}: the method reads a base that it did not ask for")
        return self._base

    @cached_property
    def models(self) -> Tensor:
        return self.base + self.deltas

    @cached_property
    def deltas(self) -> Tensor:
        if self.stored is None:
            return self.models - self.base
        rows: Tensor = widened(self.stored[1])
        rows -= self.base
        return rows

    @property
    def changes(self) -> Sequence[Change]:
        """The deltas, each as it is nearest at hand."""
        if self.stored is None:
            return [(bare(row), None) for row in self.deltas]
        return [(bits, self.stored[0]) for bits in self.stored[1]]

    def empty_rows(self) -> Array:
        """Room for what is kept of the deltas: (M, N) float32."""
        if self.stored is None:
            return library(self.deltas).empty_like(self.deltas)
        return library(self.stored[1]).empty(self.stored[1].shape, dtype="float32")

    def add_base(self, merged: Array) -> None:
        """Turn what a method makes of the deltas, as numpy's array, into weights."""
        if self.stored is None:
            merged += self.base
        else:
            kernels.call("add", merged, self.stored[0], len(merged))

    def sampled(self, every: int) -> Array:
        """Of the deltas each `every`-th run of a few elements, which are read faster than single ones: (M, n)."""
        rows, window = self.deltas if self.stored is None else self.stored[1], every * _RUN
        windows = rows.shape[1] // window
        if every == 1 or not windows:
            return self.deltas

        def thin(rows: Array) -> Array:
            apart = rows[..., : windows * window].reshape(*rows.shape[:-1], windows, window)
            return apart[..., :_RUN].reshape(*rows.shape[:-1], windows * _RUN)

        return thin(self.deltas) if self.stored is None else self.map(thin).deltas

    def map(self, change: Callable[[Array], Array]) -> Piece:
        """The same with each of its arrays changed."""
        rows = {key: change(value) for key, value in self.__dict__.items() if key in {"models", "deltas"}}
        stored = None if self.stored is None else (change(self.stored[0]), change(self.stored[1]))
        base = None if self._base is None else change(self._base)
        return Piece(self.name, self.shape, self.start, base, stored=stored, **rows)

    def part(self, start: int, stop: int, base: Tensor | None = None) -> Piece:
        """Its own elements `start` to `stop`; with this base, where it has none."""
        part = self.map(lambda rows: rows[..., start:stop])
        part.start += start
        part._base = part._base if base is None else base
        return part

    def column(self, values: Sequence[float]) -> Array:
        """One number a model as (M, 1) float32, beside the models on their device."""
        if self.stored is not None:
            return floats(values, self.stored[0])[:, None]
        rows = self.__dict__.get("deltas", self._base)
        rows = self.models if rows is None else rows
        return floats(values, rows)[:, None]


class TensorLook(Protocol):
    """One tensor that will be merged, to be read piece by piece, as often as a method wants to."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def size(self) -> int:
        """How many elements it has."""

    def pieces(self, every: int = 1) -> Iterator[Piece]:
        """All of it from the first element on; always the same pieces, whatever the pieces of the merge itself.

        Args:
            every: read only each second, third ... of them.
        """


class Look(Protocol):
    """Every tensor that will be merged, for a method that must know the whole model first."""

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
    """A way to merge, by one of four functions. `params` hold for the tensor, `each[i]` for model i on that tensor.

    `combine(piece, params, each)` works element by element, so that pieces of any size give the same result. It returns
    (N) float32: the new values (space "weights"), or what the engine adds to the base (space "delta"). To be the same
    on every device, a product and a sum are two operations, never one fused. A `whole` method's piece is always a
    whole tensor, to be seen in its shape.

    `prepare(look, params, each)` reads one tensor first, as often as it needs, e.g. for a threshold or an angle, and
    returns what combines its pieces. In memory it keeps no more than a few pieces.

    `prepare_model(look, params, count)` is the same for all tensors of `count` models at once; its parameters are the
    same for every tensor.

    `factor(matrix, params, each)` returns the change of one matrix as thin factors: the result is an adapter.

    In precision "bfloat16" base and models are rounded before anything else, and so is their difference; the result is
    always bfloat16.
    """

    name: str
    params_type: type[P]
    combine: Callable[[Piece, P, Sequence[P]], Tensor] | None = None
    space: Literal["weights", "delta"] = field(kw_only=True)
    prepare: Callable[[TensorLook, P, Sequence[P]], Combine] | None = None
    prepare_model: Callable[[Look, P, int], Combine] | None = None
    factor: Callable[[Matrix, P, Sequence[P]], Factors] | None = None
    # Which matrices of full models have a part in an adapter.
    covers: Callable[[str, P], bool] = lambda _name, _params: True
    # Whether it merges nothing but adapters of the base.
    adapters_only: bool = False
    whole: bool = False
    # Whether `piece.base` is read; always in space "delta". "if given": where `piece.has_base`.
    reads_base: bool | Literal["if given"] = False
    # How many models it merges, beside the base: at least, at most.
    models: tuple[int, int | None] = (1, None)
    precision: Literal["float32", "bfloat16"] = "float32"
    # What is wrong with the parameters for that many models.
    check: Callable[[P, int], Sequence[Problem]] = lambda _params, _count: ()
    # What is wrong with those of one tensor together.
    check_each: Callable[[P, Sequence[P]], Sequence[Problem]] = lambda _params, _each: ()
    # Whether, with these parameters of a tensor, its functions take numpy's arrays as well as torch's tensors.
    in_numpy: Callable[[P, Sequence[P]], bool] = lambda _params, _each: False
    # How often it reads its inputs; for estimates.
    reads: int = 1
    paper: str | None = None

    @property
    def gives_adapter(self) -> bool:
        return self.factor is not None

    @property
    def needs_base(self) -> bool:
        return self.space == "delta" or self.reads_base is True

    @property
    def takes_weights(self) -> bool:
        return "weight" in self.params_type.model_fields

    def begin(self, look: TensorLook, params: P, each: Sequence[P]) -> Combine:
        """Read what must be known of a tensor beforehand; return what combines its pieces."""
        if self.prepare is not None:
            return self.prepare(look, params, each)
        combine = self.combine
        if combine is None:
            raise TypeError(f"{self.name} has neither combine nor prepare")
        return lambda piece: combine(piece, params, each)


def methods() -> Mapping[str, Method[Any]]:
    """Every method there is, by name."""
    return find_plugins("modelworks.merge.methods", Method)
