"""Attention of new tokens to what a cache layer (2, slots, kv, positions, head) holds of their sequences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from modelworks.core import kernels
from modelworks.serve.native.team import find_team, has_kernels

# Of queries (D, kv, group, head), one a sequence, to what a layer of the cache holds: in the same shape.
Attention: TypeAlias = Callable[[Tensor, Tensor], Tensor]

# What the kernel is made for.
_HEAD_SIZES, _MOST_QUERIES_OF_A_HEAD = range(16, 257, 16), 16


def attention_of_one_each(
    slots: Sequence[int], lengths: Sequence[int], group: int, head_size: int, dtype: torch.dtype, device: torch.device
) -> Attention:
    """How sequences attend to as many positions of their slots, each with one token."""
    if has_kernels(device, dtype) and has_kernel(group, head_size):
        return _Listed(slots, lengths)
    return _Padded(slots, lengths, dtype, device)


def has_kernel(group: int, head_size: int) -> bool:
    """Whether a kernel attends with heads of such a size, in groups of so many; it reads float16 as well."""
    return head_size in _HEAD_SIZES and group <= _MOST_QUERIES_OF_A_HEAD and find_team()


class _Listed:
    """By a kernel that reads of every sequence just what there is."""

    def __init__(self, slots: Sequence[int], lengths: Sequence[int]) -> None:
        self._slots, self._lengths = np.array(slots, np.int64), np.array(lengths, np.int64)

    def __call__(self, layer: Tensor, queries: Tensor) -> Tensor:
        count, kv_heads, group, head_size = queries.shape
        if queries.stride()[1:] != (group * head_size, head_size, 1) or not layer.is_contiguous():
            raise ValueError(f"queries {queries.stride()} or cache {layer.stride()} have gaps")
        seen = torch.empty(queries.shape)
        kernels.call(
            "attend", queries.data_ptr(), queries.stride(0), layer.data_ptr(), self._slots, self._lengths,
            seen.data_ptr(), count, layer.shape[1], kv_heads, group, layer.shape[3], head_size,
            int(layer.dtype == torch.float16), np.array([head_size**-0.5], np.float32),
        )  # fmt: skip
        return seen


class _Padded:
    """By torch, over all slots from the first to the last, as long as the longest sequence."""

    def __init__(self, slots: Sequence[int], lengths: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self._first, self._length = min(slots), max(lengths)
        own = [slot - self._first for slot in slots]
        self._span = max(own) + 1
        # Where row i is not slot first + i.
        self._slots = None if own == list(range(self._span)) else torch.tensor(own, device=device)
        self._mask = None
        if self._span > 1:
            # A slot that takes no part sees one position, as softmax over nothing is NaN.
            ends = [1] * self._span
            for slot, length in zip(own, lengths, strict=True):
                ends[slot] = length
            seen = torch.arange(self._length, device=device) < torch.tensor(ends, device=device)[:, None]
            mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
            self._mask = mask[:, None, None, :]

    def __call__(self, layer: Tensor, queries: Tensor) -> Tensor:
        if self._slots is not None:
            spread = queries.new_zeros((self._span, *queries.shape[1:]))
            queries = spread.index_copy_(0, self._slots, queries)
        end = self._first + self._span
        keys, values = layer[:, self._first : end, :, : self._length].to(queries.dtype)
        mask = None if self._mask is None else self._mask.expand(-1, keys.shape[1], -1, -1)
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        return seen if self._slots is None else seen[self._slots]


def attend_prompt(keys: Tensor, values: Tensor, queries: Tensor) -> Tensor:
    """One sequence: keys and values (kv, L, head), queries (n, kv, group, head) that are the last n of the L."""
    count, length = queries.shape[0], keys.shape[1]
    wide = queries.permute(1, 2, 0, 3)  # (kv, group, n, head)
    keys = keys[:, None].expand(-1, wide.shape[1], -1, -1)
    values = values[:, None].expand(-1, wide.shape[1], -1, -1)
    if count == length:
        seen = F.scaled_dot_product_attention(wide, keys, values, is_causal=True)
    else:
        mask = torch.ones(count, length, dtype=torch.bool, device=keys.device).tril(length - count)
        seen = F.scaled_dot_product_attention(wide, keys, values, attn_mask=mask)
    return seen.permute(2, 0, 1, 3)
