"""Causal attention over a few hundred tokens, forwards and back, in products large enough for a CPU.

Torch's own kernel multiplies small tiles. Here queries go in blocks, each against the keys up to its end, with the
heads that share a key as rows of one product; the probabilities are kept for the way back, which takes less time than
making them again, and memory that grows with the square of the length.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Over more tokens the probabilities would take too much memory.
MOST_TOKENS = 512
_MOST_BLOCKS, _LEAST_BLOCK = 4, 48


def attend_causally(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Softmax(scaling * QK^T)V, where position t sees those up to t.

    Args:
        query: (B, H, T, D), float32.
        key, value: (B, K, T, D); each is of H / K heads, one after the other.

    Returns:
        (B, T, H, D).
    """
    batch, heads, tokens, dim = query.shape
    grouped = query.view(batch, key.shape[1], -1, tokens, dim)
    out: Tensor = _function().apply(grouped, key, value, scaling)
    return out.view(batch, tokens, heads, dim)


@cache
def _function() -> Any:
    import torch

    class CausalAttention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
            batch, keys, group, tokens, dim = ctx.shape = query.shape
            key, value = (each.reshape(batch * keys, tokens, dim) for each in (key, value))
            out = query.new_empty(batch, tokens, keys, group, dim)
            kept = []
            for first, end in _blocks(tokens):
                asked = (query[:, :, :, first:end] * scaling).reshape(batch * keys, -1, dim)
                likely = asked @ key[:, :end].mT  # (batch * keys, group * (end - first), end)
                likely.view(batch * keys, group, end - first, end)[..., first:] += _later(end - first)
                torch.softmax(likely, -1, out=likely)
                out[:, first:end] = _to_tokens(likely @ value[:, :end], query.shape)
                kept += [asked, likely]
            ctx.save_for_backward(key, value, *kept)
            ctx.scaling = scaling
            return out

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            key, value, *kept = ctx.saved_tensors
            batch, keys, _, tokens, dim = ctx.shape
            of_query = torch.empty_like(grad)
            of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
            for number, (first, end) in enumerate(_blocks(tokens)):
                asked, likely = kept[2 * number : 2 * number + 2]
                given = grad[:, first:end].permute(0, 2, 3, 1, 4).reshape(batch * keys, -1, dim)
                of_value[:, :end] += likely.mT @ given
                of_likely = torch._softmax_backward_data(given @ value[:, :end].mT, likely, -1, likely.dtype)
                of_query[:, first:end] = _to_tokens(of_likely @ key[:, :end], ctx.shape)
                of_key[:, :end] += of_likely.mT @ asked
            of_key, of_value = (each.view(batch, keys, tokens, dim) for each in (of_key, of_value))
            return of_query.mul_(ctx.scaling).permute(0, 2, 3, 1, 4), of_key, of_value, None

    return CausalAttention


def _blocks(tokens: int) -> list[tuple[int, int]]:
    size = max(_LEAST_BLOCK, math.ceil(tokens / _MOST_BLOCKS))
    return [(first, min(tokens, first + size)) for first in range(0, tokens, size)]


@cache
def _later(size: int) -> Tensor:
    """(size, size), what is added where a key comes after the query."""
    import torch

    return torch.full((size, size), -math.inf).triu(1)


def _to_tokens(block: Tensor, shape: Any) -> Tensor:
    """(batch * keys, group * n, dim) to (batch, n, keys, group, dim)."""
    batch, keys, group, _, dim = shape
    return block.view(batch, keys, group, -1, dim).permute(0, 3, 1, 2, 4)
