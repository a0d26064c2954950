"""One answer in the making: its tokens, how many of them the cache holds, and how it is sampled."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from modelworks.core.generation import FinishReason, GenerateRequest
from modelworks.serve.native.detokenize import Detokenizer


@dataclass(eq=False)
class Sequence:
    """`cached` of the `tokens` (prompt, then answer) have their keys and values in cache slot `slot`."""

    request: GenerateRequest
    tokens: list[int]
    prompt_tokens: int
    max_length: int
    detokenizer: Detokenizer
    adapter: str | None = None
    slot: int | None = None
    cached: int = 0
    told: int = 0
    finished: FinishReason | None = None
    draws: random.Random = field(init=False)

    def __post_init__(self) -> None:
        # One draw a token, from the request's own seed: company, order and preemption change nothing.
        self.draws = random.Random(self.request.seed)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    def untold(self) -> int:
        """How many tokens came since this was last asked."""
        count, self.told = self.generated - self.told, self.generated
        return count

    def accept(self, token: int, ends: frozenset[int]) -> str:
        """Take the token just sampled; return the text that is certain by now, and note whether this is the end."""
        self.tokens.append(token)
        if token in ends:
            self.finished = "stop"
            return self.detokenizer.close()
        text = self.detokenizer.add(token)
        full = len(self.tokens) >= self.max_length
        if full:
            text += self.detokenizer.close()
        if self.detokenizer.stopped:
            self.finished = "stop"
        elif full:
            self.finished = "length"
        return text
