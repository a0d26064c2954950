"""Chat messages as the OpenAI API writes them: a list of role and content."""

from __future__ import annotations

from modelworks.data.format import Format, Row, finish, tools_of, turns_of
from modelworks.data.record import Conversation


def convert(row: Row) -> Conversation | None:
    return finish(turns_of(row, "messages", calls=True), "messages", tools_of(row))


MESSAGES = Format("messages", ("messages",), ("tools|functions",), convert, rank=7)
