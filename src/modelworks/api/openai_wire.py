"""OpenAI's words for an answer, a piece of an answer and an error: pure translation, no I/O."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from modelworks.core.errors import ModelworksError, NotFound
from modelworks.core.generation import EngineEvent, Finished, FinishReason, Scored, Token, ToolCall
from modelworks.core.nouns import Adapter, Deployment, JsonObject, JsonValue, Model


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


@dataclass
class Choice:
    """One answer as it gathers."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    end: Finished | None = None

    def take(self, event: EngineEvent) -> None:
        if isinstance(event, Token):
            self.text += event.text
            self.scored += event.scored
        elif isinstance(event, ToolCall):
            self.calls.append(event)
        elif isinstance(event, Finished):
            self.end = event


def whole_answer(reply: Reply, choices: Sequence[Choice]) -> JsonObject:
    ends = [choice.end for choice in choices if choice.end is not None]
    return {
        "id": reply.id, "object": reply.dialect.whole, "created": reply.created, "model": reply.model,
        "choices": [
            {
                "index": index, **_said(reply, choice),
                "logprobs": _logprobs(reply, choice.scored, 0), "finish_reason": _reason(end.reason),
            }
            for index, (choice, end) in enumerate(zip(choices, ends, strict=True))
        ],
        "usage": usage(ends, reply.choices), "system_fingerprint": None,
    }  # fmt: skip


class Pieces:
    """The chunks of one streamed answer: same id, time and model in all of them."""

    def __init__(self, reply: Reply) -> None:
        self._reply, self._is_chat = reply, reply.dialect.is_chat
        self._head: JsonObject = {
            "id": reply.id, "object": reply.dialect.piece, "created": reply.created, "model": reply.model,
            "system_fingerprint": None,
        }  # fmt: skip
        # By choice: how many characters of it, and how many calls, are told.
        self._told: dict[int, int] = {}
        self._calls: dict[int, int] = {}

    @property
    def with_usage(self) -> bool:
        return self._reply.with_usage

    def first(self, index: int) -> JsonObject | None:
        return self._choice(index, {"delta": {"role": "assistant", "content": ""}}) if self._is_chat else None

    def text(self, index: int, token: Token) -> JsonObject:
        told = self._told.get(index, 0)
        self._told[index] = told + sum(map(_length, token.scored))
        body: JsonObject = {"delta": {"content": token.text}} if self._is_chat else {"text": token.text}
        return self._choice(index, body, logprobs=_logprobs(self._reply, token.scored, told))

    def call(self, index: int, call: ToolCall) -> JsonObject:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        return self._choice(index, {"delta": {"tool_calls": [{"index": number, **_call(call)}]}})

    def last(self, index: int, reason: FinishReason) -> JsonObject:
        return self._choice(index, {"delta": {}} if self._is_chat else {"text": ""}, _reason(reason))

    def usage(self, ends: Sequence[Finished]) -> JsonObject:
        return {**self._head, "choices": [], "usage": usage(ends, self._reply.choices)}

    def _choice(
        self, index: int, body: JsonObject, reason: str | None = None, logprobs: JsonObject | None = None
    ) -> JsonObject:
        choice: JsonObject = {"index": index, **body, "logprobs": logprobs, "finish_reason": reason}
        return {**self._head, "choices": [choice], **({"usage": None} if self.with_usage else {})}


def embeddings(model: str, vectors: Sequence[Sequence[float]], as_base64: bool, read: int) -> JsonObject:
    """Numbers, or as the official client asks for them: little-endian float32 in base64."""
    told: list[JsonValue] = [
        base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if as_base64 else list(vector)
        for vector in vectors
    ]
    return {
        "object": "list", "model": model, "usage": {"prompt_tokens": read, "total_tokens": read},
        "data": [{"object": "embedding", "index": index, "embedding": each} for index, each in enumerate(told)],
    }  # fmt: skip


def usage(ends: Sequence[Finished], choices: int = 1) -> JsonObject:
    """Tokens read and written; the `choices` of one prompt, which follow each other, count it once."""
    read = sum(end.prompt_tokens for end in ends[::choices])
    cached = sum(end.cached_tokens for end in ends[::choices])
    written = sum(end.completion_tokens for end in ends)
    return {
        "prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": cached},
    }  # fmt: skip


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


def _said(reply: Reply, choice: Choice) -> JsonObject:
    if not reply.dialect.is_chat:
        return {"text": choice.text}
    text = choice.text if choice.text.strip() or not choice.calls else None
    message: JsonObject = {"role": "assistant", "content": text, "refusal": None}
    return {"message": message | ({"tool_calls": [_call(call) for call in choice.calls]} if choice.calls else {})}


def _call(call: ToolCall) -> JsonObject:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs(reply: Reply, scored: Sequence[Scored], start: int) -> JsonObject | None:
    """In the form of either call; `start` is where the first token's text lies in the answer's."""
    if not scored:
        return None
    if reply.dialect.is_chat:
        content: list[JsonValue] = [
            {**_scored(each.hex, each.logprob), "top_logprobs": [_scored(*other) for other in each.top]}
            for each in scored
        ]
        return {"content": content, "refusal": None}
    tops: list[JsonValue] = [
        None
        if each.logprob is None
        else {_readable(token): value for token, value in (*each.top, (each.hex, each.logprob))}
        for each in scored
    ]
    return {
        "tokens": [_readable(each.hex) for each in scored], "token_logprobs": [each.logprob for each in scored],
        "top_logprobs": tops, "text_offset": list(accumulate(map(_length, scored[:-1]), initial=start)),
    }  # fmt: skip


def _scored(token: str, value: float | None) -> JsonObject:
    raw = bytes.fromhex(token)
    return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}


def _readable(token: str) -> str:
    """A token's text; where it is no whole character, its bytes as OpenAI writes them."""
    raw = bytes.fromhex(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _length(token: Scored) -> int:
    """How many characters begin in it."""
    return sum(byte & 0xC0 != 0x80 for byte in bytes.fromhex(token.hex))


def _reason(reason: FinishReason) -> str:
    # an answer that was cut off from outside is not whole, which is what clients take "length" for
    return "length" if reason == "abort" else reason
