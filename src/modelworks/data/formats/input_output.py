"""Input and output, two texts."""

from __future__ import annotations

from modelworks.data.format import Format, Row, converse, text_of
from modelworks.data.record import Conversation


def convert(row: Row) -> Conversation | None:
    system = text_of(row, "system") if "system" in row else ""
    return converse(system, (), text_of(row, "input"), text_of(row, "output"))


INPUT_OUTPUT = Format("input_output", ("input", "output"), ("system",), convert, rank=3)
