"""What a door, the terminal and an engine say to each other: a request for text, and the events of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from modelworks.core.errors import Invalid, Unavailable


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn; `role` is system, user, assistant or tool."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """Text asked for: either `messages`, written by the model's chat template, or a bare `prompt`.

    `model` is the name of a model or an adapter. An absent `max_tokens` means up to the end of the context.
    `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 are off. The same seed gives the same text in any company.
    """

    id: str
    model: str
    messages: tuple[ChatMessage, ...] | None = None
    prompt: str | None = None
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Started:
    """The request was understood and waits for its turn."""

    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """More text; `tokens` may be several where the reader is slower than the engine."""

    text: str
    tokens: int


FinishReason: TypeAlias = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True)
class Finished:
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """`code` is one of the error tree's."""

    code: str
    message: str


# Exactly one Finished or Failed ends every request.
EngineEvent: TypeAlias = Started | Token | Finished | Failed


class ContextLengthExceeded(Invalid):
    """Prompt and answer together are longer than the model can see."""

    code = "context_length_exceeded"


class QueueFull(Unavailable):
    """Too many requests wait for this model."""

    code = "queue_full"


class EngineFailed(Unavailable):
    """The engine ended, or could not go on with this request."""

    code = "engine_failed"
