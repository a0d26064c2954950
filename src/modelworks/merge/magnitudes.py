"""Order statistics of magnitudes without sorting, and without holding a tensor in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# Of a bfloat16 without its sign; as whole numbers they are in the order of the magnitudes.
_PATTERNS = 1 << 15


def count_magnitudes(pieces: Iterable[Tensor]) -> Tensor:
    """Count how often each magnitude occurs in each row.

    Args:
        pieces: (M, N) bfloat16 each; at least one.

    Returns:
        (M, 32768) int64, by the magnitude's bit pattern.
    """
    import torch

    counts: Tensor | None = None
    for rows in pieces:
        patterns = rows.abs().view(torch.int16)
        found = torch.stack([torch.bincount(row, minlength=_PATTERNS) for row in patterns])
        counts = found if counts is None else counts.add_(found)
    if counts is None:
        raise ValueError("there is nothing to count")
    return counts


def kth_smallest(counts: Tensor, k: int) -> Tensor:
    """The k-th smallest magnitude of each row that was counted, as (M, 1) bfloat16; 0 for k = 0."""
    import torch

    wanted = torch.full((len(counts), 1), k, device=counts.device)
    patterns = torch.searchsorted(counts.cumsum(1), wanted)
    return patterns.to(torch.int16).view(torch.bfloat16)
