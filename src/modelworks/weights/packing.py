"""Rows as one sequence without padding, in which what several begin alike with stands, and is computed, once.

What a position gives depends only on what stands before it. So the system prompt of a chat template, or the prompt of a
pair, is the same work in every row: only attention has to see whole rows, and is cheap beside the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

from modelworks.weights.causal_attention import MOST_TOKENS, attend_causally

if TYPE_CHECKING:
    from torch import Tensor

_NAME = "modelworks_packed"


class Packed(NamedTuple):
    """B rows of up to T tokens as N tokens.

    Attributes:
        ids, positions: (1, N) int64, each token and where it stands in its row.
        places: (B, T) int64, where each token of a row stands among the N; past its end, anywhere.
        owners: (N,) int64, where among the B * T positions each token is taken from.
    """

    ids: Tensor
    positions: Tensor
    places: Tensor
    owners: Tensor


def pack(rows: Sequence[list[int]], device: Any = "cpu") -> Packed:
    """Put rows of token ids into one sequence; beside each stand those that it is alike with for longest."""
    import torch

    width = max(map(len, rows))
    ids: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    places = torch.zeros(len(rows), width, dtype=torch.int64)
    before = 0
    for row in sorted(range(len(rows)), key=rows.__getitem__):
        alike = _alike(rows[before], rows[row]) if ids else 0
        places[row, :alike] = places[before, :alike]
        places[row, alike : len(rows[row])] = torch.arange(len(ids), len(ids) + len(rows[row]) - alike)
        ids += rows[row][alike:]
        positions += range(alike, len(rows[row]))
        owners += range(row * width + alike, row * width + len(rows[row]))
        before = row
    made = (torch.tensor([ids]), torch.tensor([positions]), places, torch.tensor(owners))
    return Packed(*(each.to(device) for each in made))


def _alike(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def can_pack(network: Any, width: int) -> bool:
    """Whether a Llama-like network, here and now, lets every position see all before it and nothing else.

    On a GPU only where `scoring.pack_rows` asked for it, for there padding costs little; and layers that are computed
    again when going back would no longer find how the rows were packed.
    """
    config = network.config
    return (
        getattr(network, "packs_rows", network.device.type == "cpu")
        and config._attn_implementation == "sdpa"
        and not (network.training and network.is_gradient_checkpointing)
        and width <= (getattr(config, "sliding_window", None) or width)
    )


@contextmanager
def attending_to_rows(network: Any, packed: Packed) -> Iterator[dict[str, Any]]:
    """Let `network` attend row by row; what is given is to be passed to it."""
    _register()
    config = network.config
    usual = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield {"input_ids": packed.ids, "position_ids": packed.positions, "packed": packed}
    finally:
        config._attn_implementation = usual


@cache
def _register() -> None:
    """Make known to transformers an attention for which it makes no masks: rows end in what nobody looks at."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    usual = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, packed: Packed, **named: Any) -> Any:
        query, key, value = (_spread(each, packed.places) for each in (query, key, value))
        if (
            query.is_cpu
            and query.dtype == torch.float32
            and packed.places.shape[1] <= MOST_TOKENS
            and not named["dropout"]
        ):
            out = attend_causally(query, key, value, named["scaling"])
        else:
            out, _ = usual(module, query, key, value, mask, **named)
        _, _, heads, dim = out.shape
        return out.reshape(-1, heads * dim).index_select(0, packed.owners).view(1, -1, heads, dim), None

    ALL_ATTENTION_FUNCTIONS.register(_NAME, attend)


def _spread(tokens: Tensor, places: Tensor) -> Tensor:
    """(1, heads, N, D) of the sequence to (B, heads, T, D) of the rows."""
    _, heads, count, dim = tokens.shape
    flat = tokens.transpose(1, 2).reshape(count, heads * dim)
    return flat.index_select(0, places.flatten()).view(*places.shape, heads, dim).transpose(1, 2)
