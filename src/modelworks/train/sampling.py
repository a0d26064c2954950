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
    logits, cache, mask = _read(network, prompts, device)
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


def _read(network: Any, prompts: Sequence[list[int]], device: Any) -> tuple[Tensor, Any, Tensor]:
    """Read each different prompt once, padded on the left."""
    import torch
    from transformers import DynamicCache

    different = list(dict.fromkeys(map(tuple, prompts)))
    width = max(map(len, different))
    ids = torch.tensor([[0] * (width - len(each)) + list(each) for each in different], device=device)
    mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in different], device=device)
    cache = DynamicCache(config=network.config)
    logits = _next(network, ids, cache, mask)
    where = {each: row for row, each in enumerate(different)}
    chosen = torch.tensor([where[tuple(each)] for each in prompts], device=device)
    cache.batch_select_indices(chosen)
    return logits[chosen], cache, mask[chosen]


def _next(network: Any, ids: Tensor, cache: Any, mask: Tensor) -> Tensor:
    places = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    # No mask where nothing is padded: attention is quicker without.
    given = None if bool(mask.all()) else mask
    logits: Tensor = network(
        input_ids=ids, attention_mask=given, position_ids=places, past_key_values=cache, logits_to_keep=1
    ).logits[:, -1]
    return logits.float()


def _draw(logits: Tensor, how: Sampling) -> Tensor:
    """Draw from the softmax: the largest of the logits, each with Gumbel noise."""
    import torch

    logits = logits / how.temperature
    if how.top_p < 1:
        likeliest, order = logits.sort(descending=True)
        shares = likeliest.softmax(-1)
        beyond = shares.cumsum(-1) - shares >= how.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), float("-inf"))
    noise = torch.empty_like(logits).exponential_().log_()
    return (logits - noise).argmax(-1)
