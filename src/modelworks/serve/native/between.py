"""What lies between a layer's products: by kernels where this processor has them, by torch elsewhere."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelworks.core import kernels
from modelworks.serve.native.team import has_kernels

# The numbers that a kernel takes at once.
_WIDE = 16


def by_kernel(x: Tensor) -> bool:
    return x.is_contiguous() and has_kernels(x.device, x.dtype)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension (arXiv:1910.07467)."""
    if not by_kernel(x):
        return F.rms_norm(x, weight.shape, weight, epsilon)
    made, width = torch.empty_like(x), len(weight)
    rows, least = x.numel() // width, np.array([epsilon], np.float32)
    kernels.call("norm", x.data_ptr(), weight.data_ptr(), made.data_ptr(), rows, width, least)
    return made


def gated(both: Tensor, *, gelu: bool) -> Tensor:
    """The activation of the first half of each row times the second."""
    rows, width = len(both), both.shape[-1] // 2
    if gelu or width % _WIDE or not by_kernel(both):
        gate, up = both.chunk(2, dim=-1)
        return (F.gelu(gate, approximate="tanh") if gelu else F.silu(gate)).mul_(up)
    made = both.new_empty((rows, width))
    kernels.call("gate", both.data_ptr(), made.data_ptr(), rows, width)
    return made


def turn(qkv: Tensor, heads: int, cos: Tensor, sin: Tensor, places: Tensor, held: Tensor) -> None:
    """Give queries, in place, and keys their rotary positions (arXiv:2104.09864), and keep keys and values.

    Args:
        qkv: (T, heads + 2 * kv, head).
        cos, sin: (T, head); the first half of sin is negative.
        held: a layer of the cache laid out flat, (any, head); each row's keys and values go to its `places`
            (T * 2 * kv).
    """
    rows, all_heads, size = qkv.shape
    kv_heads = (all_heads - heads) // 2
    if size % (2 * _WIDE) == 0 and by_kernel(qkv) and held.is_contiguous():
        kernels.call(
            "turn", qkv.data_ptr(), cos.data_ptr(), sin.data_ptr(), places.data_ptr(), held.data_ptr(), rows,
            heads, kv_heads, size, int(held.dtype == torch.float16),
        )  # fmt: skip
        return
    turned, kept = qkv[:, : heads + kv_heads], qkv[:, heads:]
    torch.addcmul(turned * cos[:, None], turned.roll(size // 2, -1), sin[:, None], out=turned)
    held.index_copy_(0, places, kept.reshape(-1, size).to(held.dtype))
