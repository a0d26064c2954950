"""Calls of functions in an answer: which form a model writes them in, made sure of by a grammar, and read again."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelworks.core.generation import Guide, ToolCall
from modelworks.serve.native.detokenize import tail_that_may_begin

# Mistral writes a call after its mark as NAME{...} or NAME[ARGS]{...} too.
_NAMED = re.compile(r"\s*([\w.-]+)(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Form:
    """`opens` begins a call; without `closes` calls go on to the answer's end. `bare`: or the answer is JSON."""

    opens: str
    closes: str = ""
    arguments: str = "arguments"
    is_list: bool = False
    bare: bool = False


HERMES = Form("<tool_call>", "</tool_call>")
MISTRAL = Form("[TOOL_CALLS]", is_list=True)
LLAMA = Form("<|python_tag|>", arguments="parameters", bare=True)


def form_of(template: str) -> Form:
    """The form that a chat template teaches; Hermes' where it does not say."""
    if HERMES.opens in template:
        return HERMES
    if MISTRAL.opens in template:
        return MISTRAL
    return LLAMA if LLAMA.opens in template or '"parameters":' in template else HERMES


def guide_of(form: Form, tools: str, names: Sequence[str], one: bool, special: dict[str, int]) -> Guide:
    """A grammar of answers that are calls of the functions `names`, with arguments as their schemas have them.

    `special` are tokens that no text stands for.
    """
    functions = [tool["function"] for tool in json.loads(tools)]
    functions = [function for function in functions if function["name"] in names]
    rules = [f"f{index}: %json {json.dumps(_schema(form, each))}" for index, each in enumerate(functions)]
    call = " | ".join(f"f{index}" for index in range(len(functions)))
    if form.is_list:
        more = "" if one else ' ("," call)*'
        start = f'{_mark(form.opens, special)} "[" call{more} "]"'
    elif form.closes:
        around = f'{_mark(form.opens, special)} "\\n" call "\\n" {_mark(form.closes, special)}'
        start = around if one else f'{around} ("\\n" {around})*'
    else:
        start = "call"
    return Guide("lark", "\n".join((f"start: {start}", f"call: {call}", *rules)))


class CallReader:
    """Takes an answer's text as it comes; gives it back, or the calls that it holds, each when it is whole."""

    def __init__(self, form: Form) -> None:
        self._form, self._held, self._inside, self._begun = form, "", False, False
        self.found = 0

    def read(self, text: str, last: bool) -> list[str | ToolCall]:
        """What is certain after this text; everything if it is the last."""
        self._held += text
        said: list[str | ToolCall] = []
        while self._turn(said, last):
            pass
        return [each for each in said if each]

    def _turn(self, said: list[str | ToolCall], last: bool) -> bool:
        form = self._form
        if self._inside:
            body, closed, rest = self._held.partition(form.closes) if form.closes else (self._held, "", "")
            if not (closed or last):
                return False
            calls = _parse(body)
            self.found += len(calls)
            said += calls or [form.opens * (not form.bare) + body + closed]
            self._held, self._inside = rest, False
            return bool(rest)
        if form.bare and not self._begun and self._held.lstrip()[:1] in ("{", "["):
            self._inside = True
            return True
        before, opened, rest = self._held.partition(form.opens)
        if opened:
            self._held, self._inside = rest, True
        else:
            keep = 0 if last else tail_that_may_begin(before, (form.opens,))
            before, self._held = before[: len(before) - keep], before[len(before) - keep :]
        if before.strip() or not (self.found or opened):  # blanks between calls are nobody's words
            self._begun |= bool(before.strip())
            said.append(before)
        return bool(opened)


def _parse(text: str) -> list[ToolCall]:
    """The calls that a text is, or none."""
    try:
        body = _read(text)
        return [_call(each) for each in (body if isinstance(body, list) else [body])]
    except (ValueError, TypeError, KeyError):
        return []


def _read(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if not (named := _NAMED.fullmatch(text)):
            raise
    return {"name": named[1], "arguments": json.loads(named[2])}


def _call(body: dict[str, Any]) -> ToolCall:
    if not isinstance(body["name"], str):
        raise TypeError
    arguments = body.get("arguments", body.get("parameters", {}))
    # Mistral's template takes ids of nine letters and digits, and no others
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(secrets.token_hex(5)[:9], body["name"], text)


def _schema(form: Form, function: dict[str, Any]) -> dict[str, Any]:
    arguments = dict(function.get("parameters") or {"type": "object"})
    # references count from the root
    shared = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    properties = {"name": {"const": function["name"]}, form.arguments: arguments}
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
        "x-guidance": {"whitespace_pattern": " ?"}, **shared,
    }  # fmt: skip


def _mark(text: str, special: dict[str, int]) -> str:
    return f"<[{special[text]}]>" if text in special else json.dumps(text)
