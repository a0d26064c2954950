"""Weights kept in fewer bits than they are computed with, on CPUs: less memory, and less of it to read for a token."""

from __future__ import annotations

import torch
from torch import Tensor

from modelworks.core import kernels
from modelworks.serve.native.checkpoint import Linear
from modelworks.serve.native.team import find_team

# More rows than these are computed by making weights whole, a piece at a time, for oneDNN's product.
FEW_ROWS = 32
_PIECE = 1 << 21
# As many outputs lie side by side in memory.
_PANEL = 16


class HalfLinear(Linear):
    """As Linear, in float32 from weights of float16, which are widened as they are multiplied: see product.c."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self._outer, self._inner = weight.shape
        self.weight = torch.empty((-(-self._outer // _PANEL), self._inner, _PANEL), dtype=torch.float16)
        self._panels = self.weight.data_ptr()
        source = weight.contiguous()
        # Whether every weight is what it was.
        self.exact = not kernels.call("pack", source.data_ptr(), self._panels, self._outer, self._inner)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x, self.bias)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        total = self._product(x, other.contiguous(), self._outer)
        return total if self.bias is None else total.add_(self.bias)

    def whole(self) -> Tensor:
        return self.weight.transpose(1, 2).reshape(-1, self._inner)[: self._outer].float()

    def _product(self, x: Tensor, start: Tensor | None, start_step: int = 0) -> Tensor:
        rows, made = x.contiguous(), torch.empty((len(x), self._outer))
        added = 0 if start is None else start.data_ptr()
        kernels.call(
            "multiply", rows.data_ptr(), self._panels, added, made.data_ptr(), len(x), self._outer, self._inner,
            start_step,
        )  # fmt: skip
        return made


class Int8Linear(Linear):
    """As Linear, with a byte for each weight and a scale for each output: off by a 254th of the largest of its row.

    Few rows are multiplied in bfloat16 with sums in float32: torch has no fast kernel for float32.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        outer, inner = weight.shape
        self._pieces = [slice(at, at + max(1, _PIECE // inner)) for at in range(0, outer, max(1, _PIECE // inner))]
        # the kernel reads 32 weights at a time
        self._few = FEW_ROWS if inner % 32 == 0 else 0
        self.weight = torch.empty((outer, inner), dtype=torch.int8)
        self.scales = torch.empty(outer, dtype=torch.bfloat16)
        for piece in self._pieces:
            rows = weight[piece].float()
            self.scales[piece] = (rows.abs().amax(dim=1) / 127).clamp_(min=1e-30)
            self.weight[piece] = rows.div(self.scales[piece, None]).round_().clamp_(-127, 127)

    def __call__(self, x: Tensor) -> Tensor:
        if len(x) <= self._few:
            few = x.bfloat16().contiguous()
            product: Tensor = torch.ops.aten._weight_int8pack_mm(few, self.weight, self.scales).to(x.dtype)
        else:
            product = torch.cat([_times(x, self.weight[piece]) for piece in self._pieces], dim=1).mul_(self.scales)
        return product if self.bias is None else product.add_(self.bias)

    def whole(self) -> Tensor:
        return self.weight * self.scales[:, None].float()


def keep_exact(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """In float16 where that holds every weight, as of a checkpoint in 16 bits; else as it is."""
    if not find_team():
        return Linear(weight, bias)
    kept = HalfLinear(weight, bias)
    return kept if kept.exact else Linear(weight, bias)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.to(x.dtype), None, "none", [], "")
    return product
