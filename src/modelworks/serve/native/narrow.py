"""Weights kept in fewer bits than they are computed with, on CPUs: less memory, and less of it to read for a token."""

from __future__ import annotations

import torch
from torch import Tensor

from modelworks.serve.native.checkpoint import Linear

# More rows than these are computed by making weights whole, a piece at a time, for oneDNN's product.
FEW_ROWS = 32
_PIECE = 1 << 21
# The operation itself: on the way to it torch looks through every argument, at a tenth of what a token takes.
_HALF_PRODUCT = torch.ops.quantized.linear_dynamic_fp16._op
# Half of what lies between the smallest numbers of float16.
_NOTHING = 2.0**-25


class HalfLinear(Linear):
    """As Linear, in float32 from weights of float16: FBGEMM widens them as it multiplies, and is faster for it."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.weight = torch.ops.quantized.linear_prepack_fp16(weight.contiguous(), bias)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = _HALF_PRODUCT(x, self.weight)
        return product

    def whole(self) -> Tensor:
        weight: Tensor = torch.ops.quantized.linear_unpack_fp16(self.weight)[0]
        return weight


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
    if torch.backends.quantized.engine not in {"x86", "fbgemm"}:
        return Linear(weight, bias)
    off = max(float((part.half().float() - part).abs().max()) for part in torch.split(weight, 4096))
    return HalfLinear(weight, bias) if off <= _NOTHING else Linear(weight, bias)


def _times(x: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight.to(x.dtype), None, "none", [], "")
    return product
