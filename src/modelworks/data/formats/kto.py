"""One answer a row, and a label whether it is a good one: prompt and completion, or messages."""

from __future__ import annotations

from modelworks.data.format import BadRow, Format, Row, column_in, finish, text_of, turns_of
from modelworks.data.record import Message, Rated

_LABELS: dict[object, bool] = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def convert(row: Row) -> Rated | None:
    answered = column_in(row, "completion|messages")
    if answered == "messages":
        turns = turns_of(row, "messages")
    else:
        system = text_of(row, "system") if "system" in row else ""
        first = (Message("system", system),) if system.strip() else ()
        prompt, completion = _turns(row, "prompt", "user"), _turns(row, "completion", "assistant")
        turns = (*first, *prompt, *completion) if prompt and completion else ()
    whole = finish(turns, answered)
    if whole is None or len(whole.messages) < 2:
        return None
    return Rated.of(whole.messages, _label(row))


def _turns(row: Row, column: str, role: str) -> tuple[Message, ...]:
    if isinstance(row.get(column), list):
        return turns_of(row, column)
    text = text_of(row, column)
    return (Message(role, text),) if text.strip() else ()


def _label(row: Row) -> bool:
    found = _LABELS.get(text_of(row, "label").strip().lower())
    if found is None:
        remedy = "write true or false; or name a format without label, e.g. messages, to learn from every answer alike"
        raise BadRow("label", f"is {row['label']!r}, which does not tell good from bad", remedy)
    return found


KTO = Format("kto", ("completion|messages", "label"), ("prompt", "system"), convert, rank=9, makes=Rated)
