"""Choosing the next token of a whole batch at once; each row by its own settings and its own draw."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from modelworks.serve.native.guide import mask
from modelworks.serve.native.sequence import Sequence

# Enough for nearly every top-p; rows that need more are looked at again with eight times as many.
_CANDIDATES = 128
# A block of so many logits is looked through at once.
_BLOCK = 64


@torch.inference_mode()
def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """Return one token a row of `logits` (N, vocab) float32, or None where the row holds a NaN.

    Takes one draw from each sequence's own stream, greedy ones too, so that a row's text depends on nothing else.
    """
    draws = [sequence.draws.random() for sequence in sequences]
    # max passes NaN on, and +infinity is as far from an answer; asked before anything else could hide it
    sound = logits.amax(dim=-1).isfinite()
    logits = _steer(logits, sequences)
    best, chosen = _best(logits)
    warm = [row for row, sequence in enumerate(sequences) if sequence.request.temperature > 0]
    if warm:
        rows = torch.tensor(warm, device=logits.device)
        chosen[rows] = _draw(logits[rows], [sequences[row] for row in warm], [draws[row] for row in warm])
    sound &= best.isfinite()
    return [token if ok else None for token, ok in zip(chosen.tolist(), sound.tolist(), strict=True)]


def _best(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The highest logit (N,) of each row and the first token that has it; as `max`, which looks at one at a time."""
    rows, vocab = logits.shape
    if vocab % _BLOCK:
        return logits.max(dim=-1)
    blocks = logits.view(rows, -1, _BLOCK)
    best, block = blocks.amax(dim=-1).max(dim=-1)
    inside = blocks[torch.arange(rows, device=logits.device), block].argmax(dim=-1)
    return best, block * _BLOCK + inside


def _steer(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Penalties, biases and grammars, on a copy where anybody asks for one."""
    seen = [(row, sequence.request) for row, sequence in enumerate(sequences) for _ in sequence.seen]
    biased = [(row, *pair) for row, sequence in enumerate(sequences) for pair in sequence.request.logit_bias]
    guided = {row: sequence.matcher for row, sequence in enumerate(sequences) if sequence.matcher is not None}
    if not (seen or biased or guided):
        return logits
    logits, device = logits.clone(), logits.device
    if seen:
        at = (
            torch.tensor([row for row, _ in seen], device=device),
            torch.tensor([token for sequence in sequences for token in sequence.seen], device=device),
        )
        said = torch.tensor([count for sequence in sequences for count in sequence.seen.values()], device=device)
        asked = [(r.repetition_penalty, r.frequency_penalty, r.presence_penalty) for _, r in seen]
        repetition, frequency, presence = torch.tensor(asked, device=device).T
        values = logits[at]
        # Keskar et al. 2019, arXiv:1909.05858, for prompt and answer; the other two are OpenAI's, for the answer.
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[at] = values - frequency * said - presence * (said > 0)
    if biased:
        rows, tokens, values = (torch.tensor(column, device=device) for column in zip(*biased, strict=True))
        logits.index_put_((rows, tokens), values.float(), accumulate=True)
    if guided:
        rows = torch.tensor(list(guided), device=device)
        logits[rows] = logits[rows].masked_fill(~mask(list(guided.values()), logits.shape[-1], device), -math.inf)
    return logits


def _draw(logits: Tensor, sequences: Rows[Sequence], draws: Rows[float]) -> Tensor:
    def column(values: Rows[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float64)[:, None]

    asked = [sequence.request for sequence in sequences]
    # A tiny temperature must not overflow: the best token keeps logit 0.
    temperatures = column([max(each.temperature, 1e-5) for each in asked]).float()
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / temperatures
    if cut := [row for row, each in enumerate(asked) if each.top_k or each.top_p < 1]:
        vocab, rows = logits.shape[-1], torch.tensor(cut, device=logits.device)
        ks = [min(asked[row].top_k, vocab) or vocab for row in cut]
        least = _thresholds(logits[rows], ks, [asked[row].top_p for row in cut])
        logits[rows] = logits[rows].masked_fill(logits[rows] < least, -math.inf)
    if any(each.min_p for each in asked):
        # Nguyen et al. 2024, arXiv:2407.01082: a share of the best, whose logit is 0
        least = column([math.log(each.min_p) if each.min_p else -math.inf for each in asked])
        logits = logits.masked_fill(logits < least, -math.inf)
    # By the inverse of the cumulated distribution in the vocabulary's own order: a rounding difference moves the
    # borders a little, where a sorted order could swap neighbours. A double sum keeps 100k terms exact enough.
    cumulated = logits.exp().cumsum(dim=-1, dtype=torch.float64)
    points = column(draws) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, points, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _thresholds(logits: Tensor, ks: Rows[int], top_ps: Rows[float]) -> Tensor:
    """The least logit (N, 1) that each row keeps: of its k best, the fewest whose probabilities reach top-p."""
    vocab, device = logits.shape[-1], logits.device
    k, p = torch.tensor(ks, device=device)[:, None], torch.tensor(top_ps, device=device)[:, None]
    everything = logits.logsumexp(dim=-1, keepdim=True)
    least = torch.full_like(everything, float("-inf"))
    rows, width = torch.arange(len(ks), device=device), min(_CANDIDATES, vocab)
    while len(rows):
        best = logits[rows].topk(width, dim=-1).values
        # top-p counts among what top-k has left
        kept = best.masked_fill(torch.arange(width, device=device) >= k[rows], float("-inf"))
        total = torch.where(k[rows] <= width, kept.logsumexp(dim=-1, keepdim=True), everything[rows])
        before = (kept - total).exp().cumsum(dim=-1) - (kept - total).exp()
        in_reach = (before < p[rows]) & kept.isfinite()
        all_kept = (p[rows] >= 1) & (k[rows] == vocab)
        found = kept.masked_fill(~in_reach, float("inf")).amin(dim=-1, keepdim=True)
        least[rows] = found.masked_fill(all_kept, float("-inf"))
        # what top-k leaves must be seen whole, for top-p is a share of it
        seen = (k[rows] <= width) | (k[rows] == vocab)
        enough = seen & ((in_reach.sum(dim=-1, keepdim=True) < width) | (p[rows] >= 1))
        rows = rows[~enough.squeeze(1)] if width < vocab else rows[:0]
        width = min(8 * width, vocab)
    return least
