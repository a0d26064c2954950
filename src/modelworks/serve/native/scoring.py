"""How likely a model finds tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.inference_mode()
def score(logits: Tensor, tokens: Sequence[int], count: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """For each row the log-probability of its token, and the `count` likeliest: as the model has them, unsteered."""
    every = logits.log_softmax(dim=-1)
    own = every.gather(1, torch.tensor(tokens, device=logits.device)[:, None]).squeeze(1)
    best = every.topk(min(count, logits.shape[-1]), dim=-1)
    tops = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(mine, list(zip(ids, values, strict=True))) for mine, (ids, values) in zip(own.tolist(), tops, strict=True)]
