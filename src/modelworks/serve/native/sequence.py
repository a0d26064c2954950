"""One answer in the making: its tokens, how many of them the cache holds, and how it is sampled."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from llguidance import LLMatcher
from torch import Tensor

from modelworks.core.errors import Invalid
from modelworks.core.generation import Embedding, FinishReason, GenerateRequest, Scored, Token, ToolCall
from modelworks.serve.native.calls import CallReader
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.scoring import score
from modelworks.serve.native.speculation import Lookup

# Token, its log-probability, and the likeliest in its place.
Score = tuple[int, float | None, list[tuple[int, float]]]


@dataclass(eq=False)
class Sequence:
    """`cached` of the `tokens` (prompt, then answer) have their keys and values in cache slot `slot`.

    `reused` of the prompt's were there before it came. `matcher` says what may come next, `calls` finds calls of
    functions in the text, `hex_of` gives a token's bytes.
    """

    request: GenerateRequest
    tokens: list[int]
    prompt_tokens: int
    max_length: int
    detokenizer: Detokenizer
    adapter: str | None = None
    matcher: LLMatcher | None = None
    calls: CallReader | None = None
    hex_of: Callable[[int], str] | None = None
    slot: int | None = None
    cached: int = 0
    reused: int = 0
    told: int = 0
    finished: FinishReason | None = None
    draws: random.Random = field(init=False)
    # Tokens that a penalty looks at, and how often the answer has them.
    seen: dict[int, int] = field(init=False)
    scores: list[Score] = field(default_factory=list)
    lookup: Lookup = field(default_factory=Lookup)
    _sum: Tensor | None = None

    def __post_init__(self) -> None:
        # One draw a token, from the request's own seed: company, order and preemption change nothing.
        self.draws = random.Random(self.request.seed)
        asked = self.request
        self.seen = dict.fromkeys(self.tokens, 0) if asked.repetition_penalty != 1 else {}
        self._counts = bool(self.seen or asked.presence_penalty or asked.frequency_penalty)

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def is_read_only(self) -> bool:
        """Whether no answer is wanted: the prompt is read, and that is all."""
        return self.max_length <= self.prompt_tokens

    @property
    def speculates(self) -> bool:
        """Whether a token is chosen by nothing but the logits and a draw, so that several may be at once."""
        return self.matcher is None and not self._counts and self.request.logprobs is None

    @property
    def reads_all(self) -> bool:
        """Whether `read` needs the hidden states of the whole prompt, so that none of it may come from a cache."""
        asked = self.request
        return self.generated == 0 and (asked.embed or (asked.echo and asked.logprobs is not None))

    def read(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        """Take the last hidden states of the tokens that were just read, the first of them number `cached`."""
        if self.cached == 0:  # once more after a preemption
            self._sum, self.scores = None, []
        if self.request.embed:
            mine = hidden.float().sum(dim=0)
            self._sum = mine if self._sum is None else self._sum + mine
            return
        if self.cached == 0:
            self.scores.append((self.tokens[0], None, []))
        following = self.tokens[self.cached + 1 : self.cached + 1 + len(hidden)]
        if following:
            found = score(head(hidden[: len(following)]).float(), following, self.request.logprobs or 0)
            self.scores += [(token, *each) for token, each in zip(following, found, strict=True)]

    def embedding(self) -> Embedding:
        if self._sum is None:
            raise ValueError(f"sequence {self.id} has read nothing")
        return Embedding(tuple((self._sum / self._sum.norm().clamp(min=1e-12)).tolist()))

    def accept(self, token: int, ends: frozenset[int]) -> str:
        """Take the token just sampled; return the text that is certain by now, and note whether this is the end.

        Raises:
            Invalid: the form asked for cannot be kept any longer.
        """
        ends = frozenset() if self.request.ignore_eos else ends
        self.tokens.append(token)
        if self._counts:
            self.seen[token] = self.seen.get(token, 0) + 1
        whole = False
        if self.matcher is not None:
            self.matcher.consume_token(token)
            if self.matcher.is_error() or (token in ends and self.matcher.stop_reason() in _GAVE_UP):
                raise Invalid(
                    f"the answer cannot go on in the form asked for at token {self.generated}: "
                    f"{self.matcher.get_error() or self.matcher.stop_reason()}; ask for a simpler one"
                )
            whole = self.matcher.is_stopped()
        if token in ends:
            self.finished = "stop"
            return self.detokenizer.close()
        text = self.detokenizer.add(token)
        full = len(self.tokens) >= self.max_length
        if full or whole:
            text += self.detokenizer.close()
        if self.detokenizer.stopped or whole:
            self.finished = "stop"
        elif full:
            self.finished = "length"
        return text

    def tell(self, text: str) -> list[Token | ToolCall]:
        """What is to be told of text that became certain, once `accept` has taken its token."""
        told: list[Token | ToolCall] = [Token(text, 0)] if text else []
        if self.calls is not None:
            said = self.calls.read(text, last=self.finished is not None)
            told = [Token(each, 0) if isinstance(each, str) else each for each in said]
            if self.calls.found and self.finished == "stop":
                self.finished = "tool_calls"
        if not told and not (self.finished and self.scores):
            return []
        count, self.told = self.generated - self.told, self.generated
        scored, self.scores = self._scored(), []
        for index, each in enumerate(told):
            if isinstance(each, Token):
                told[index] = Token(each.text, count, scored)
                return told
        return [*told, Token("", count, scored)] if scored else told

    def echo(self, text: str) -> Token:
        scored, self.scores = self._scored(), []
        return Token(text, 0, scored)

    def _scored(self) -> tuple[Scored, ...]:
        if self.hex_of is None:
            return ()
        return tuple(
            Scored(self.hex_of(token), own, tuple((self.hex_of(each), value) for each, value in top))
            for token, own, top in self.scores
        )


_GAVE_UP = ("ParserTooComplex", "LexerTooComplex", "InternalError")
