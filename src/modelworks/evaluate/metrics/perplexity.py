"""Cross-entropy and perplexity: how likely a model finds the answers of the held-out rows, a token at a time."""

from __future__ import annotations

import math
from statistics import geometric_mean

from modelworks.data.batches import encode_split, in_batches, pad_right
from modelworks.evaluate.metric import Measured, Metric, Subject
from modelworks.weights.scoring import answer_loss


def measure(subject: Subject) -> Measured:
    """Average over tokens, not rows: a long answer weighs more."""
    import torch

    spec = subject.spec
    held_out = encode_split(
        subject.model_folder, subject.dataset_folder, "validation", spec.max_length, spec.limit
    ).examples
    if not held_out:
        return Measured(values={})
    total = 0.0
    tokens = done = 0
    with torch.inference_mode():
        for indices in in_batches(held_out, spec.batch_size):
            batch = pad_right((held_out[index].input_ids, held_out[index].labels) for index in indices)
            loss, count = answer_loss(
                subject.network, batch["input_ids"].to(subject.device), batch["labels"].to(subject.device)
            )
            total, tokens, done = total + loss.item(), tokens + count, done + len(indices)
            subject.tell(done / len(held_out))
    loss_a_token = total / tokens
    # exp overflows at 710; a model that bad need not be told apart from a worse one.
    return Measured(values={"loss": loss_a_token, "perplexity": math.exp(min(loss_a_token, 700.0))})


PERPLEXITY = Metric("perplexity", ("loss", "perplexity"), measure, better="lower", mean=geometric_mean)
