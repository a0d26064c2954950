"""ShareGPT: a list `conversations` of from (human, gpt, system) and value; the system prompt may stand apart."""

from __future__ import annotations

from modelworks.data.format import Format, Row, finish, text_of, turns_of
from modelworks.data.record import Conversation, Message


def convert(row: Row) -> Conversation | None:
    turns = turns_of(row, "conversations")
    if "system" in row and not any(turn.role == "system" for turn in turns):
        turns = (Message("system", text_of(row, "system")), *turns)
    return finish(turns, "conversations")


SHAREGPT = Format("sharegpt", ("conversations",), ("system",), convert, rank=6)
