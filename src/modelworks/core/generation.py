"""What a door, the terminal and an engine say to each other: a request for text, and the events of its answer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelworks.core.errors import Invalid, Unavailable


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str
    # What an assistant's turn calls, in JSON as a training row has it: arguments are an object.
    tool_calls: str = ""
    # Which call a tool's turn answers.
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Guide:
    """The form that an answer must have: a JSON schema, a regular expression, or a grammar in Lark's language."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Text asked for: either `messages`, written by the model's chat template, or a bare `prompt`.

    `model` is the name of a model or an adapter. An absent `max_tokens` means up to the end of the context.
    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off. The same seed gives the same text in any company.
    `ignore_eos` goes on behind what ends an answer, as those who measure want it.
    `logprobs` asks for each token's, and for those of so many alternatives. `tools` are functions the model may call,
    in JSON; of those in `must_call` it has to call one, or several unless `one_call`. `echo` repeats the prompt.
    `embed` asks for the prompt's Embedding in place of an answer.
    """

    id: str
    model: str
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    guide: Guide | None = None
    tools: str = ""
    must_call: tuple[str, ...] = ()
    one_call: bool = False
    echo: bool = False
    embed: bool = False

    def beyond(self, can: Collection[str]) -> tuple[str, ...]:
        """The fields that ask for something and are none of `can`, for an engine that refuses them."""
        optional = [each for each in dataclasses.fields(self) if each.default is not dataclasses.MISSING]
        return tuple(
            each.name for each in optional if each.name not in can and getattr(self, each.name) != each.default
        )


@dataclass(frozen=True, slots=True)
class Started:
    """The request was understood and waits for its turn."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Scored:
    """A token and the logarithm of its probability; None where nothing came before it. `hex` are its bytes."""

    hex: str
    logprob: float | None
    # the likeliest in this place, of which the token may be one
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Token:
    """More text; `tokens` may be several where the reader is slower than the engine."""

    text: str
    tokens: int
    scored: tuple[Scored, ...] = ()

    def __add__(self, other: Token) -> Token:
        return Token(self.text + other.text, self.tokens + other.tokens, self.scored + other.scored)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call; `arguments` is JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Embedding:
    """The mean of the last hidden states, of length 1."""

    values: tuple[float, ...]


FinishReason: TypeAlias = Literal["stop", "length", "abort", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Finished:
    """`cached_tokens` of the prompt had been read for a request before."""

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """`code` is one of the error tree's."""

    code: str
    message: str


# Exactly one Finished or Failed ends every request.
EngineEvent: TypeAlias = Started | Token | ToolCall | Embedding | Finished | Failed


class ContextLengthExceeded(Invalid):
    """Prompt and answer together are longer than the model can see."""

    code = "context_length_exceeded"


class ChatTemplateMissing(Invalid):
    """A conversation for a model that does not say how it reads one."""

    code = "chat_template_missing"


class QueueFull(Unavailable):
    """Too many requests wait for this model."""

    code = "queue_full"


class EngineFailed(Unavailable):
    """The engine ended, or could not go on with this request."""

    code = "engine_failed"
