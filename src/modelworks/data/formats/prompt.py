"""Chat messages that end with a question, and in other columns what an answer is to be judged by.

As the OpenAI API writes rows for reinforcement. It is taken only where it is asked for, as `messages` has its column.
"""

from __future__ import annotations

from typing import cast

from modelworks.core.nouns import JsonObject
from modelworks.data.format import BadRow, Format, Row, turns_of
from modelworks.data.record import Prompted


def convert(row: Row) -> Prompted | None:
    turns = tuple(turn for turn in turns_of(row, "messages") if turn.content.strip())
    item = {name: value for name, value in row.items() if name not in {"messages", "split"}}
    if turns and turns[-1].role == "assistant":  # an answer that is known is one to compare with
        item = {"reference": turns[-1].content} | item
        turns = turns[:-1]
    if not turns:
        return None
    if turns[-1].role == "system":
        raise BadRow("messages", "asks nothing", "end it with the user's message")
    return Prompted(turns, cast("JsonObject", item))


PROMPT = Format("prompt", ("messages",), (), convert, rank=-1, makes=Prompted)
