"""Answers drawn from a network that is being trained: prompts that repeat are read once, and rows that end leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float
    top_p: float


def sample_answers(
    network: Any, prompts: Sequence[list[int]], how: Sampling, ends: Sequence[int], check: Callable[[], None]
) -> list[list[int]]:
    """Draw an answer to each prompt, with its end-of-turn token where it came to one.

    Args:
        ends: tokens that end an answer.
        check: called before each token; may raise.
    """
    import torch

    was_training = network.training
    network.eval()  # no dropout: what is learned from is what the model says
    try:
        with torch.inference_mode():
            return _sample(network, prompts, how, ends, check)
    finally:
        network.train(was_training)


def _sample(
    network: Any, prompts: Sequence[list[int]], how: Sampling, ends: Sequence[int], check: Callable[[], None]
) -> list[list[int]]:
    import torch

    device = next(network.parameters()).device
    logits, cache, mask = _read(network, prompts, device, how.max_new_tokens)
    ending = torch.tensor(ends, device=device)
    answers: list[list[int]] = [[] for _ in prompts]
    rows = torch.arange(len(prompts), device=device)
    for _ in range(how.max_new_tokens):
        check()
        tokens = _draw(logits, how)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            answers[row].append(token)
        going = ~torch.isin(tokens, ending)
        if not going.any():
            break
        if not going.all():
            rows, tokens, mask = rows[going], tokens[going], mask[going]
            cache.batch_select_indices(going.nonzero()[:, 0])
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        logits = _next(network, tokens[:, None], cache, mask)
    return answers


def _read(network: Any, prompts: Sequence[list[int]], device: Any, room: int) -> tuple[Tensor, Any, Tensor]:
    """Read each different prompt once, padded on the left."""
    import torch
    from transformers import DynamicCache

    different = list(dict.fromkeys(map(tuple, prompts)))
    width = max(map(len, different))
    ids = torch.tensor([[0] * (width - len(each)) + list(each) for each in different], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in different], device=device)
    cache = _growing(DynamicCache(config=network.config), width + room)
    logits = _next(network, ids, cache, mask)
    where = {each: row for row, each in enumerate(different)}
    chosen = torch.tensor([where[tuple(each)] for each in prompts], device=device)
    cache.batch_select_indices(chosen)
    return logits[chosen], cache, mask[chosen]


def _growing(cache: Any, width: int) -> Any:
    """Let the layers of `cache` that keep everything take it up in place; the library's copy all at every token."""
    from transformers.cache_utils import DynamicLayer

    class Growing(DynamicLayer):  # type: ignore[misc] # transformers is untyped
        _layer_type = None  # no kind of its own
        rooms: Any = None

        def update(self, keys: Tensor, values: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(keys, values)
            filled = self.get_seq_length()
            end = filled + keys.shape[-2]
            if self.rooms is None:
                self.rooms = [each.new_empty(*each.shape[:2], width, each.shape[-1]) for each in (keys, values)]
            for room, new in zip(self.rooms, (keys, values), strict=True):
                room[:, :, filled:end] = new
            self.keys, self.values = (room[:, :, :end] for room in self.rooms)
            return self.keys, self.values

        def batch_select_indices(self, indices: Tensor) -> None:
            self.rooms = [room[indices] for room in self.rooms]
            self.keys, self.values = (room[:, :, : self.get_seq_length()] for room in self.rooms)

    cache.layers = [Growing() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _next(network: Any, ids: Tensor, cache: Any, mask: Tensor) -> Tensor:
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    # No mask where nothing is padded: attention is quicker without.
    given = None if bool(mask.all()) else mask
    logits: Tensor = network(
        input_ids=ids, attention_mask=given, position_ids=places, past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]
    return logits.float()


def _draw(logits: Tensor, how: Sampling) -> Tensor:
    """Draw from the softmax: where the sum of the shares passes a random number."""
    import torch

    logits = logits / how.temperature
    if how.top_p < 1:
        likeliest, order = logits.sort(descending=True)
        shares = likeliest.softmax(-1)
        beyond = shares.cumsum(-1) - shares >= how.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    # In float64, so that no share is lost among so many.
    sums = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    at = torch.rand(len(sums), 1, dtype=torch.float64, device=sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
