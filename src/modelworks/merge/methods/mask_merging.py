"""Mask merging (DARE) as the merging-eval package computes it: drop changes at random, rescale the rest, then merge."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, FiniteFloat

from modelworks.core.errors import Problem
from modelworks.merge import merging_eval
from modelworks.merge.magnitudes import count_magnitudes, kth_smallest
from modelworks.merge.method import Method, Params, Piece

if TYPE_CHECKING:
    from torch import Tensor

    from modelworks.merge.method import Combine, Look

Rate = Annotated[float, Field(ge=0, le=1)]
_DRAWN_AT_ONCE = 1 << 20


class MaskMergingParams(Params):
    weight_mask_rates: tuple[Rate, ...] | None = Field(
        None, description="share of each model's changes that is dropped, one a model; default 0.5 each"
    )
    mask_strategy: Literal["random", "magnitude"] = Field("random", description="drop at random, or the smallest")
    use_weight_rescale: bool = Field(True, description="divide what is kept by the share kept")
    mask_apply_method: Literal["average_merging", "task_arithmetic", "ties_merging", "ties_merging_dare"] = Field(
        "average_merging", description="how to merge what is left"
    )
    seed: int = Field(42, ge=0, lt=1 << 63, description="of the random masks")
    scaling_coefficient: FiniteFloat = Field(1.0, description="for mask_apply_method, unless it is average_merging")
    param_value_mask_rate: float = Field(0.8, ge=0, le=1, description="for mask_apply_method ties_merging...")

    def rates(self, count: int) -> tuple[float, ...]:
        return (0.5,) * count if self.weight_mask_rates is None else self.weight_mask_rates


def check(params: MaskMergingParams, count: int) -> list[Problem]:
    problems = []
    rates = params.rates(count)
    if len(rates) != count:
        problems.append(
            Problem(
                "weight_mask_rates", f"{len(rates)} rates for {count} models", "give one a model, in the same order"
            )
        )
    if params.mask_strategy == "magnitude" and 0 in rates:
        problems.append(
            Problem("weight_mask_rates", "by magnitude, a rate is more than 0", "leave that model's at 1e-9")
        )
    if params.mask_apply_method == "ties_merging_dare" and params.param_value_mask_rate == 0:
        problems.append(Problem("param_value_mask_rate", "for ties_merging_dare it is more than 0", "use ties_merging"))
    return problems


def prepare(look: Look, params: MaskMergingParams, count: int) -> Combine:
    """Mask every model's changes (Yu et al. 2024, arXiv:2311.03099), and merge the models that result."""
    masked = _Masked(look, params, params.rates(count))
    scale, rate = params.scaling_coefficient, params.param_value_mask_rate
    if params.mask_apply_method == "average_merging":
        return lambda piece: merging_eval.mean(masked.of(piece).models)
    if params.mask_apply_method == "task_arithmetic":
        return lambda piece: piece.base + merging_eval.scaled_sum(masked.of(piece).deltas, scale)
    if params.mask_apply_method == "ties_merging":
        of_tensor = {name: merging_eval.prepare_ties(_Tensor(masked, name), rate, scale) for name in masked.sizes}
        return lambda piece: piece.base + of_tensor[piece.name](masked.of(piece))
    change = merging_eval.prepare_ties_of_whole_model(masked, rate, scale)
    return lambda piece: piece.base + change(masked.of(piece))


class _Masked:
    """A Look at the models as they are once masked."""

    def __init__(self, look: Look, params: MaskMergingParams, rates: Sequence[float]) -> None:
        self.sizes = look.sizes
        self._look = look
        self._rates = rates
        self._rescales = params.use_weight_rescale
        random = params.mask_strategy == "random"
        self._kept = _kept_at_random(look, rates, params.seed) if random else _kept_largest(look, rates)

    def pieces(self, name: str) -> Iterator[Piece]:
        return map(self.of, self._look.pieces(name))

    def in_model_order(self) -> Sequence[str]:
        return self._look.in_model_order()

    def of(self, piece: Piece) -> Piece:
        changes = piece.deltas * self._kept(piece)
        for row, rate in enumerate(self._rates):
            if self._rescales and rate != 1:
                changes[row] = changes[row] / (1 - rate)
        models = piece.base + changes
        return Piece(piece.name, piece.shape, piece.start, piece.base, models)


class _Tensor:
    """A TensorLook at one masked tensor."""

    def __init__(self, masked: _Masked, name: str) -> None:
        self.name, self.size, self.shape = name, masked.sizes[name], (masked.sizes[name],)
        self._masked = masked

    def pieces(self, every: int = 1) -> Iterator[Piece]:
        return islice(self._masked.pieces(self.name), 0, None, every)


def _kept_largest(look: Look, rates: Sequence[float]) -> Combine:
    """1 where a change is larger than the smallest that are dropped, else 0, as (M, N)."""
    import torch

    thresholds = {}
    for name, size in look.sizes.items():
        counts = count_magnitudes(piece.deltas for piece in look.pieces(name))
        rows = [kth_smallest(row[None], int(size * rate)) for row, rate in zip(counts, rates, strict=True)]
        thresholds[name] = torch.cat(rows)
    return lambda piece: (piece.deltas.abs() > thresholds[piece.name]).to(piece.deltas.dtype)


def _kept_at_random(look: Look, rates: Sequence[float], seed: int) -> Combine:
    """1 with a chance of 1 - rate, else 0, as (M, N): torch's draws for one model after the other."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    scratch = torch.empty(_DRAWN_AT_ONCE, dtype=torch.int8)
    names = look.in_model_order()
    states: list[dict[str, Tensor]] = []
    for _ in rates:
        states.append({})
        for name in names:
            states[-1][name] = dice.get_state()
            for start in range(0, look.sizes[name], _DRAWN_AT_ONCE):
                # One draw an element, whatever is made of it: as many as the masks will take.
                scratch[: look.sizes[name] - start].random_(generator=dice)
    mine = threading.local()

    def kept(piece: Piece) -> Tensor:
        # A thread takes the pieces of a tensor in their order, another thread those of another tensor.
        if not hasattr(mine, "generators"):
            mine.generators = [torch.Generator() for _ in rates]
        masks = torch.empty(piece.deltas.shape, dtype=piece.deltas.dtype)
        for mask, rate, generator, known in zip(masks, rates, mine.generators, states, strict=True):
            if piece.start == 0:
                generator.set_state(known[piece.name])
            torch.bernoulli(torch.full_like(mask, rate), generator=generator, out=mask)
        return (1 - masks).to(piece.deltas.device)

    return kept


MASK_MERGING = Method(
    "mask_merging", MaskMergingParams, prepare_model=prepare, reads_base=True, space="weights", precision="bfloat16",
    reads=2, check=check, paper="arXiv:2311.03099",
)  # fmt: skip
