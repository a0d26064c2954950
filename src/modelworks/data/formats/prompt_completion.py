"""Prompt and completion, each a text or a list of messages."""

from __future__ import annotations

from modelworks.data.format import Format, Row, converse, finish, text_of, turns_of
from modelworks.data.record import Conversation


def convert(row: Row) -> Conversation | None:
    if isinstance(row.get("prompt"), list) and isinstance(row.get("completion"), list):
        return finish((*turns_of(row, "prompt"), *turns_of(row, "completion")), "completion")
    system = text_of(row, "system") if "system" in row else ""
    return converse(system, (), text_of(row, "prompt"), text_of(row, "completion"))


PROMPT_COMPLETION = Format("prompt_completion", ("prompt", "completion"), ("system",), convert, rank=4)
