"""Alpaca: an instruction, an optional input to it, and the output; also `system` and earlier turns in `history`."""

from __future__ import annotations

from modelworks.data.format import BadRow, Format, Row, converse, text_of
from modelworks.data.record import Conversation, Message


def convert(row: Row) -> Conversation | None:
    instruction, output = text_of(row, "instruction"), text_of(row, "output")
    given = text_of(row, "input") if "input" in row else ""
    prompt = f"{instruction}\n\n{given}" if instruction.strip() and given.strip() else instruction or given
    system = text_of(row, "system") if "system" in row else ""
    return converse(system, _history(row.get("history")), prompt, output)


def _history(value: object) -> list[Message]:
    """Earlier turns, a list of [question, answer] pairs."""
    turns: list[Message] = []
    if value is None or value == "":
        return turns
    if not isinstance(value, list):
        raise BadRow("history", "is not a list of [question, answer] pairs")
    for index, pair in enumerate(value):
        match pair:
            case [str(question), str(answer)] if question.strip() and answer.strip():
                turns += [Message("user", question), Message("assistant", answer)]
            case _:
                raise BadRow(f"history[{index}]", "is not a pair of texts", 'write ["question", "answer"]')
    return turns


ALPACA = Format("alpaca", ("instruction", "output"), ("input", "system", "history"), convert, rank=5)
