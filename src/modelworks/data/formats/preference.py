"""Preferences: a prompt, a chosen and a rejected answer, as texts or messages; also as OpenAI and others name them."""

from __future__ import annotations

from modelworks.data.format import BadRow, Format, Row, column_in, finish, text_of, turns_of
from modelworks.data.record import Message, Preference

CHOSEN, REJECTED = "chosen|preferred_output|chosen_messages", "rejected|non_preferred_output|rejected_messages"


def convert(row: Row) -> Preference | None:
    chosen, rejected = _turns(row, CHOSEN), _turns(row, REJECTED)
    if not chosen or not rejected:
        return None
    prompt, asked = _prompt(row), chosen[:-1]
    if asked != rejected[:-1]:
        column = column_in(row, REJECTED)
        raise BadRow(column, "answers another prompt than the chosen one", "both must differ in the last message only")
    if set(prompt) <= set(asked):  # they tell the prompt again, or alone
        prompt = asked
    elif asked:
        prompt = (*prompt, *asked)
    return _finish(row, prompt, chosen[-1], rejected[-1])


def _finish(row: Row, prompt: tuple[Message, ...], chosen: Message, rejected: Message) -> Preference | None:
    if not prompt:
        raise BadRow("prompt", "is missing", "give every row a prompt, or begin both answers with its messages")
    if prompt[-1].role == "assistant":
        raise BadRow("prompt", "ends with the assistant's message", "the last message must ask for an answer")
    better = finish((*prompt, chosen), column_in(row, CHOSEN))
    worse = finish((*prompt, rejected), column_in(row, REJECTED))
    if better is None or worse is None or better == worse:
        return None
    return Preference(better.messages[:-1], chosen.content, rejected.content)


def _turns(row: Row, column: str) -> tuple[Message, ...]:
    column = column_in(row, column)
    if isinstance(row.get(column), list | dict):
        return turns_of(row, column)
    answer = text_of(row, column)
    return (Message("assistant", answer),) if answer.strip() else ()


def _prompt(row: Row) -> tuple[Message, ...]:
    column = column_in(row, "prompt|conversations|instruction|input")
    value = row.get(column)
    if isinstance(value, dict):
        if value.get("tools"):
            raise BadRow(column, "has tools, which cannot be learned from yet", "leave such rows out")
        return turns_of(value, "messages")
    if isinstance(value, list):
        return turns_of(row, column)
    text, system = (text_of(row, name) if name in row else "" for name in (column, "system"))
    if column == "instruction" and "input" in row and (given := text_of(row, "input")).strip():
        text = f"{text}\n\n{given}"
    turns = (Message("system", system), Message("user", text))
    return tuple(turn for turn in turns if turn.content.strip()) if text.strip() else ()


PREFERENCE = Format(
    "preference", (CHOSEN, REJECTED), ("prompt|conversations|instruction|input", "system"), convert,
    rank=8, makes=Preference,
)  # fmt: skip
