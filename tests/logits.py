"""What the native engine computes of each prompt, read step by step below its loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from modelworks.core.generation import GenerateRequest
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.model import LoadedModel
from modelworks.serve.native.scheduler import Scheduler
from modelworks.serve.native.sequence import Sequence as Answer


def answer(name: str, tokens: Sequence[int], adapter: str | None = None) -> Answer:
    request = GenerateRequest(id=name, model="m", prompt="", temperature=0)
    return Answer(request, list(tokens), len(tokens), 10_000, Detokenizer(lambda ids: ""), adapter)


def steps(model: LoadedModel, scheduler: Scheduler) -> Iterator[list[tuple[Answer, torch.Tensor]]]:
    """Compute step by step; of each who is to get a token, and the logits (vocab,) to take it from."""
    while pieces := scheduler.plan():
        scheduler.make_ready(model.runner.cache)
        logits = model.runner.forward(pieces)
        giving = [piece.sequence for piece in pieces if piece.gives_token]
        for piece in pieces:
            piece.sequence.cached += piece.count
        yield list(zip(giving, logits, strict=True))


def read_logits(
    model: LoadedModel,
    answers: Sequence[Answer],
    follow: Sequence[Sequence[int]],
    tokens_per_step: int = 64,
    together: int = 8,
) -> list[torch.Tensor]:
    """Feed each prompt, then its `follow` tokens one by one, all together; logits (1 + len(follow), vocab) of each."""
    scheduler = Scheduler(together, tokens_per_step, model.runner.cache.fits)
    todo = {one.id: list(tokens) for one, tokens in zip(answers, follow, strict=True)}
    seen: dict[str, list[torch.Tensor]] = {one.id: [] for one in answers}
    for one in answers:
        scheduler.add(one)
    for found in steps(model, scheduler):
        for one, row in found:
            seen[one.id].append(row)
            if todo[one.id]:
                one.tokens.append(todo[one.id].pop(0))
            else:
                scheduler.remove(one)
    model.runner.cache.clear()
    return [torch.stack(seen[one.id]) for one in answers]
