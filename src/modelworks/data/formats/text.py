"""Plain text, learned whole."""

from __future__ import annotations

from modelworks.data.format import Format, Row, text_of
from modelworks.data.record import Text


def convert(row: Row) -> Text | None:
    text = text_of(row, "text")
    return Text(text) if text.strip() else None


TEXT = Format("text", ("text",), (), convert, rank=0, makes=Text)
