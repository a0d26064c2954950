"""Choosing the next token of a whole batch at once; each row by its own temperature, top-k, top-p and draw."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from modelworks.serve.native.sequence import Sequence

# Enough for nearly every top-p; rows that need more are sorted whole.
_CANDIDATES = 128


@torch.inference_mode()
def sample(logits: Tensor, sequences: Rows[Sequence]) -> list[int | None]:
    """Return one token a row of `logits` (N, vocab) float32, or None where the row holds a NaN.

    Takes one draw from each sequence's own stream, greedy ones too, so that a row's text depends on nothing else.
    """
    draws = [sequence.draws.random() for sequence in sequences]
    best, chosen = logits.max(dim=-1)
    warm = [row for row, sequence in enumerate(sequences) if sequence.request.temperature > 0]
    if warm:
        rows = torch.tensor(warm, device=logits.device)
        chosen[rows] = _draw(
            logits[rows],
            temperatures=[sequences[row].request.temperature for row in warm],
            top_ks=[sequences[row].request.top_k for row in warm],
            top_ps=[sequences[row].request.top_p for row in warm],
            draws=[draws[row] for row in warm],
        )
    # max passes NaN on, and +infinity is as far from an answer
    sound = best.isfinite().tolist()
    return [token if ok else None for token, ok in zip(chosen.tolist(), sound, strict=True)]


def _draw(
    logits: Tensor, temperatures: Rows[float], top_ks: Rows[int], top_ps: Rows[float], draws: Rows[float]
) -> Tensor:
    def column(values: Rows[float]) -> Tensor:
        return torch.tensor(values, device=logits.device, dtype=torch.float64)[:, None]

    # A tiny temperature must not overflow: the best token keeps logit 0.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / column([max(t, 1e-5) for t in temperatures]).float()
    if any(top_ks) or any(top_p < 1 for top_p in top_ps):
        vocab = logits.shape[-1]
        ks = [min(top_k, vocab) if top_k else vocab for top_k in top_ks]
        logits = logits.masked_fill(logits < _thresholds(logits, ks, top_ps), float("-inf"))
    # By the inverse of the cumulated distribution in the vocabulary's own order: a rounding difference moves the
    # borders a little, where a sorted order could swap neighbours. Double precision keeps 100k terms exact enough.
    cumulated = torch.softmax(logits, dim=-1, dtype=torch.float64).cumsum(dim=-1)
    points = column(draws) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, points, right=True).squeeze(1).clamp(max=logits.shape[-1] - 1)


def _thresholds(logits: Tensor, ks: Rows[int], top_ps: Rows[float]) -> Tensor:
    """The least logit (N, 1) that each row keeps: of its k best, the fewest whose probabilities reach top-p."""
    vocab = logits.shape[-1]
    width = min(_CANDIDATES, vocab)
    k, p = torch.tensor(ks, device=logits.device)[:, None], torch.tensor(top_ps, device=logits.device)[:, None]
    everything = logits.logsumexp(dim=-1, keepdim=True)
    while True:
        best = logits.topk(width, dim=-1).values
        # top-p counts among what top-k has left
        kept = best.masked_fill(torch.arange(width, device=logits.device) >= k, float("-inf"))
        total = torch.where(k <= width, kept.logsumexp(dim=-1, keepdim=True), everything)
        before = (kept - total).exp().cumsum(dim=-1) - (kept - total).exp()
        in_reach = (before < p) & kept.isfinite()
        enough = (in_reach.sum(dim=-1, keepdim=True) < width) | (p >= 1)
        if width == vocab or bool(enough.all()):
            least = kept.masked_fill(~in_reach, float("inf")).amin(dim=-1, keepdim=True)
            return torch.where((p >= 1) & (k > width), float("-inf"), least)
        width = vocab
