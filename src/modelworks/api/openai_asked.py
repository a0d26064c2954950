"""What may be asked in OpenAI's words, turned to requests for an engine: pure translation, no I/O."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from modelworks.core.errors import Invalid, Problem
from modelworks.core.generation import ChatMessage, GenerateRequest, Guide
from modelworks.core.ids import new_id

# What would change the answer and is not done; each with the value that asks for nothing.
_NOT_DONE: dict[str, tuple[object, ...]] = {
    "audio": (),
    "function_call": ("none",),
    "functions": ([],),
    "modalities": (["text"],),
    "suffix": ("",),
    "web_search_options": (),
}
# Texts, or the tokens of texts.
Prompts: TypeAlias = str | list[str] | list[int] | list[list[int]]
_MOST_PROMPTS, _MOST_INPUTS = 64, 2048


class _Known(BaseModel):
    """Fields that are not known are kept, to be told from those that matter."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


class JsonSchema(_Known):
    name: str = ""
    # `schema` is a method of pydantic's
    schema_: dict[str, Any] = Field({}, alias="schema")


class ResponseFormat(_Known):
    """OpenAI's three types, and two of ours: `regex` with a `pattern`, and `grammar` with one in Lark's language."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    pattern: str | None = None
    grammar: str | None = None


class Asked(_Known):
    """Fields of both kinds of request."""

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, description="an extension: 0 or -1 is off")
    min_p: float | None = Field(None, ge=0, le=1, description="an extension: a share of the likeliest token")
    repetition_penalty: float | None = Field(None, gt=0, le=10, description="an extension: 1 is off")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[int, float] | None = None
    response_format: ResponseFormat | None = None
    ignore_eos: bool | None = Field(None, description="an extension: go on until max_tokens, for measurements")
    n: int | None = Field(None, ge=1, le=16)
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    timeout: float | None = Field(None, gt=0, description="an extension: seconds until the answer is given up")

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class ContentPart(_Known):
    type: str
    text: str | None = None


class Called(BaseModel):
    name: str
    arguments: str = "{}"


class Call(BaseModel):
    id: str = ""
    type: Literal["function"] = "function"
    function: Called


class ChatTurn(_Known):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    tool_calls: list[Call] | None = None
    tool_call_id: str | None = None


class Function(_Known):
    name: str = Field(min_length=1)
    parameters: dict[str, Any] | None = None


class Tool(_Known):
    type: Literal["function"]
    function: Function


class Chosen(BaseModel):
    name: str


class ToolChoice(BaseModel):
    type: Literal["function"]
    function: Chosen


class ChatAsked(Asked):
    messages: list[ChatTurn] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None


class CompletionAsked(Asked):
    prompt: Prompts
    # OpenAI's own default for this older call; 0 with `echo` scores a text
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None


class EmbeddingsAsked(_Known):
    model: str
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


def chat_requests(asked: ChatAsked) -> list[GenerateRequest]:
    """One request for each of the `n` choices.

    Raises:
        Invalid: naming the field that asks for what is not done.
    """
    messages = tuple(
        ChatMessage(
            "system" if turn.role == "developer" else turn.role,
            _text(turn, index), _calls(turn, index), turn.tool_call_id or "",
        )
        for index, turn in enumerate(asked.messages)
    )  # fmt: skip
    if asked.top_logprobs is not None and not asked.logprobs:
        raise invalid("top_logprobs", "given without logprobs", "set logprobs to true")
    given = {"messages": messages, "logprobs": asked.top_logprobs or 0 if asked.logprobs else None, **_tools(asked)}
    return _requests(asked, [given], asked.max_completion_tokens or asked.max_tokens)


def completion_requests(asked: CompletionAsked) -> list[GenerateRequest]:
    """One request for each choice: `n` for every prompt, in order."""
    prompts = _prompts("prompt", asked.prompt, _MOST_PROMPTS)
    if asked.best_of not in (None, asked.n or 1):
        raise invalid("best_of", f"{asked.best_of}, where n is {asked.n or 1}", "leave it out")
    if asked.max_tokens == 0 and not asked.echo:
        raise invalid("max_tokens", "0, and no echo: there would be nothing to answer", "ask for at least 1")
    same = {"logprobs": asked.logprobs, "echo": bool(asked.echo)}
    return _requests(asked, [{"prompt": prompt, **same} for prompt in prompts], asked.max_tokens)


def embedding_requests(asked: EmbeddingsAsked) -> list[GenerateRequest]:
    """One request for each input."""
    if asked.dimensions is not None:
        raise invalid("dimensions", "an embedding has as many as the model's hidden state", "leave it out")
    inputs = _prompts("input", asked.input, _MOST_INPUTS)
    return [GenerateRequest(id=new_id(), model=asked.model, prompt=each, embed=True) for each in inputs]


def invalid(field: str, what: str, remedy: str) -> Invalid:
    problem = Problem(field, what, remedy)
    return Invalid(str(problem), problems=(problem,))


def _requests(asked: Asked, inputs: Sequence[dict[str, Any]], max_tokens: int | None) -> list[GenerateRequest]:
    for name, value in (asked.model_extra or {}).items():
        if name in _NOT_DONE and value is not None and value not in _NOT_DONE[name]:
            raise invalid(name, "not supported by this server", "leave it out")
    bias = asked.logit_bias or {}
    if any(not -100 <= value <= 100 for value in bias.values()):
        raise invalid("logit_bias", "a value beyond -100 to 100", "give one between")
    plain = (
        "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos",
    )  # fmt: skip
    same: dict[str, Any] = {name: value for name in plain if (value := getattr(asked, name)) is not None}
    same |= {"max_tokens": max_tokens, "top_k": max(asked.top_k or 0, 0), "stop": _stops(asked.stop)}
    same |= {"logit_bias": tuple(bias.items()), "guide": _guide(asked.response_format)}
    return [
        # the choices of one request must differ, and still be the same the next time
        GenerateRequest(
            id=new_id(), model=asked.model, seed=None if asked.seed is None else asked.seed + choice, **same, **given
        )
        for given in inputs
        for choice in range(asked.n or 1)
    ]  # fmt: skip


def _prompts(field: str, given: Prompts, most: int) -> list[str | tuple[int, ...]]:
    alone = isinstance(given, str) or (given and isinstance(given[0], int))
    texts: Sequence[Any] = [given] if alone else given
    prompts = [text if isinstance(text, str) else tuple(text) for text in texts]
    if not 1 <= len(prompts) <= most:
        raise invalid(field, f"{len(prompts)} texts", f"give 1 to {most}")
    return prompts


def _guide(asked: ResponseFormat | None) -> Guide | None:
    match asked and asked.type:
        case "json_object":
            return Guide("json_schema", '{"type": "object"}')
        case "json_schema" if asked and asked.json_schema:
            return Guide("json_schema", json.dumps(asked.json_schema.schema_))
        case "regex" if asked and asked.pattern:
            return Guide("regex", asked.pattern)
        case "grammar" if asked and asked.grammar:
            return Guide("lark", asked.grammar)
        case None | "text":
            return None
        case other:
            field = {"regex": "pattern"}.get(str(other), str(other))
            raise invalid(f"response_format.{field}", "missing", f"{other} needs it")


def _tools(asked: ChatAsked) -> dict[str, Any]:
    choice = asked.tool_choice
    if not asked.tools:
        if choice not in (None, "none", "auto"):
            raise invalid("tool_choice", "given without tools", "give tools too")
        return {}
    if choice == "none":
        return {}
    names = tuple(tool.function.name for tool in asked.tools)
    must: tuple[str, ...] = names if choice == "required" else ()
    if isinstance(choice, ToolChoice):
        must = (choice.function.name,)
        if must[0] not in names:
            raise invalid("tool_choice", f"no function {must[0]!r} is among the tools", f"choose of {', '.join(names)}")
    tools = json.dumps([tool.model_dump(exclude_unset=True) for tool in asked.tools])
    one = isinstance(choice, ToolChoice) or asked.parallel_tool_calls is False
    return {"tools": tools, "must_call": must, "one_call": one}


def _calls(turn: ChatTurn, index: int) -> str:
    calls = []
    for number, call in enumerate(turn.tool_calls or ()):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except ValueError:
            where = f"messages.{index}.tool_calls.{number}.function.arguments"
            raise invalid(where, "not JSON", "give them as they were answered") from None
        function = {"name": call.function.name, "arguments": arguments}
        calls.append({"id": call.id, "type": "function", "function": function})
    return json.dumps(calls) if calls else ""


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if len(stops) > 4:
        raise invalid("stop", f"{len(stops)} strings", "give at most 4")
    return tuple(text for text in stops if text)


def _text(turn: ChatTurn, index: int) -> str:
    if turn.content is None or isinstance(turn.content, str):
        return turn.content or ""
    for part in turn.content:
        if part.type != "text" or part.text is None:
            raise invalid(f"messages.{index}.content", f"a part of type {part.type!r}", "this server reads text only")
    return "".join(part.text or "" for part in turn.content)
