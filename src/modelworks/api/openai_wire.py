"""OpenAI's words for a request, an answer, a piece of an answer and an error: pure translation, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from modelworks.core.errors import Invalid, ModelworksError, NotFound, Problem
from modelworks.core.generation import ChatMessage, Finished, FinishReason, GenerateRequest
from modelworks.core.ids import new_id
from modelworks.core.nouns import Adapter, Deployment, JsonObject, JsonValue, Model

# What would change the answer and is not done; each with the value that asks for nothing.
_NOT_DONE: dict[str, tuple[object, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (),
    "web_search_options": (),
}


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class Asked(BaseModel):
    """Fields of both kinds of request. Unknown ones are kept, to be told from those that matter."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="an extension: 0 or -1 is off")
    n: int | None = Field(None, ge=1, le=16)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ContentPart(BaseModel):
    model_config = ConfigDict(extra="allow")

    type: str
    text: str | None = None


class ChatTurn(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None


class ChatAsked(Asked):
    messages: list[ChatTurn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)


class CompletionAsked(Asked):
    prompt: str | list[str]
    # OpenAI's own default for this older call
    max_tokens: int | None = Field(16, ge=1)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How the chat and the plain call differ in their answers."""

    id_prefix: str
    whole: str
    piece: str
    is_chat: bool


CHAT = Dialect("chatcmpl-", "chat.completion", "chat.completion.chunk", True)
PLAIN = Dialect("cmpl-", "text_completion", "text_completion", False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What all parts of one answer share; `choices` is how many there are of each prompt."""

    dialect: Dialect
    id: str
    created: int
    model: str
    choices: int
    with_usage: bool


def chat_requests(asked: ChatAsked) -> list[GenerateRequest]:
    """One request for each of the `n` choices.

    Raises:
        Invalid: naming the field that asks for what is not done.
    """
    messages = tuple(
        ChatMessage("system" if turn.role == "developer" else turn.role, _text(turn, index))
        for index, turn in enumerate(asked.messages)
    )
    return _requests(asked, [{"messages": messages}], asked.max_completion_tokens or asked.max_tokens)


def completion_requests(asked: CompletionAsked) -> list[GenerateRequest]:
    """One request for each choice: `n` for every prompt, in order."""
    prompts = [asked.prompt] if isinstance(asked.prompt, str) else asked.prompt
    if not 1 <= len(prompts) <= 64:
        raise _invalid("prompt", f"{len(prompts)} prompts", "give 1 to 64")
    return _requests(asked, [{"prompt": prompt} for prompt in prompts], asked.max_tokens)


def whole_answer(reply: Reply, texts: Sequence[str], ends: Sequence[Finished]) -> JsonObject:
    choices: list[JsonValue] = []
    for index, (text, end) in enumerate(zip(texts, ends, strict=True)):
        said: JsonObject = {"message": {"role": "assistant", "content": text, "refusal": None}}
        body: JsonObject = said if reply.dialect.is_chat else {"text": text}
        choices.append({"index": index, **body, "logprobs": None, "finish_reason": _reason(end.reason)})
    return {
        "id": reply.id, "object": reply.dialect.whole, "created": reply.created, "model": reply.model,
        "choices": choices, "usage": usage(ends, reply.choices), "system_fingerprint": None,
    }  # fmt: skip


class Pieces:
    """The chunks of one streamed answer: same id, time and model in all of them."""

    def __init__(self, reply: Reply) -> None:
        self._reply, self._is_chat = reply, reply.dialect.is_chat
        self._head: JsonObject = {
            "id": reply.id, "object": reply.dialect.piece, "created": reply.created, "model": reply.model,
            "system_fingerprint": None,
        }  # fmt: skip

    @property
    def with_usage(self) -> bool:
        return self._reply.with_usage

    def first(self, index: int) -> JsonObject | None:
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}) if self._is_chat else None

    def text(self, index: int, text: str) -> JsonObject:
        return self._choice(index, {"delta": {"content": text}} if self._is_chat else {"text": text})

    def last(self, index: int, reason: FinishReason) -> JsonObject:
        return self._choice(index, {"delta": {}} if self._is_chat else {"text": ""}, _reason(reason))

    def usage(self, ends: Sequence[Finished]) -> JsonObject:
        return {**self._head, "choices": [], "usage": usage(ends, self._reply.choices)}

    def _choice(self, index: int, body: JsonObject, reason: str | None = None) -> JsonObject:
        choice: JsonObject = {"index": index, **body, "logprobs": None, "finish_reason": reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self.with_usage else {})}


def usage(ends: Sequence[Finished], choices: int = 1) -> JsonObject:
    """Tokens read and written; the `choices` of one prompt, which follow each other, count it once."""
    read = sum(end.prompt_tokens for end in ends[::choices])
    written = sum(end.completion_tokens for end in ends)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def model_card(found: Model | Adapter) -> JsonObject:
    """An adapter is a model to OpenAI's clients; `parent` is its base."""
    parent = found.base_name if isinstance(found, Adapter) else None
    return {
        "id": found.name, "object": "model", "created": int(found.created_at.timestamp()), "owned_by": "modelworks",
        "root": parent or found.name, "parent": parent,
    }  # fmt: skip


def live_card(deployment: Deployment) -> JsonObject:
    """A merge that is served from memory."""
    created = int(deployment.created_at.timestamp())
    return entry_card(deployment.model_name) | {"created": created, "owned_by": "modelworks"}


def entry_card(name: str) -> JsonObject:
    """A model of the operator's own; when it was made is not known."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "user", "root": name, "parent": None}


def openai_error_body(error: ModelworksError, status: int) -> JsonObject:
    """An error in OpenAI's form; `param` is the field, where a single one is to blame."""
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    code = "model_not_found" if isinstance(error, ModelNotFound) else error.code
    param = error.problems[0].where if len(error.problems) == 1 else None
    return {"error": {"message": error.message, "type": kind, "param": param, "code": code}}


class ModelNotFound(NotFound):
    """The `model` of a request means nothing here."""

    code = "model_not_found"


def _requests(asked: Asked, inputs: Sequence[dict[str, Any]], max_tokens: int | None) -> list[GenerateRequest]:
    _refuse_what_is_not_done(asked)
    return [
        GenerateRequest(
            id=new_id(),
            model=asked.model,
            max_tokens=max_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            top_k=max(asked.top_k or 0, 0),
            # the choices of one request must differ, and still be the same the next time
            seed=None if asked.seed is None else asked.seed + choice,
            stop=_stops(asked.stop),
            **given,
        )
        for given in inputs
        for choice in range(asked.n or 1)
    ]


def _refuse_what_is_not_done(asked: Asked) -> None:
    for name, value in (asked.model_extra or {}).items():
        if name in _NOT_DONE and value is not None and value not in _NOT_DONE[name]:
            raise _invalid(name, "not supported by this server", "leave it out")


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > 4:
        raise _invalid("stop", f"{len(stops)} strings", "give at most 4")
    return tuple(text for text in stops if text)


def _text(turn: ChatTurn, index: int) -> str:
    if turn.content is None or isinstance(turn.content, str):
        return turn.content or ""
    for part in turn.content:
        if part.type != "text" or part.text is None:
            raise _invalid(f"messages.{index}.content", f"a part of type {part.type!r}", "this server reads text only")
    return "".join(part.text or "" for part in turn.content)


def _reason(reason: FinishReason) -> str:
    # an answer that was cut off from outside is not whole, which is what clients take "length" for
    return "length" if reason == "abort" else reason


def _invalid(field: str, what: str, remedy: str) -> Invalid:
    problem = Problem(field, what, remedy)
    return Invalid(str(problem), problems=(problem,))
