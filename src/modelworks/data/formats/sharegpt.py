"""ShareGPT: a list `conversations` of from (human, gpt, system) and value; the system prompt may stand apart."""

from __future__ import annotations

from modelworks.data.format import Format, Row, finish, text_of, tools_of, turns_of
from modelworks.data.record import Conversation, Message


def convert(row: Row) -> Conversation | None:
    turns = turns_of(row, "conversations", calls=True)
    if "system" in row and not any(turn.role == "system" for turn in turns):
        turns = (Message("system", text_of(row, "system")), *turns)
    return finish(turns, "conversations", tools_of(row))


SHAREGPT = Format("sharegpt", ("conversations",), ("system", "tools|functions"), convert, rank=6)
