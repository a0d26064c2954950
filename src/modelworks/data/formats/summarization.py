"""Summaries: a document (also named article or text) and its summary."""

from __future__ import annotations

from modelworks.data.format import Format, Row, converse, text_of
from modelworks.data.record import Conversation


def prompt_for(document: str) -> str:
    """How a model trained on such rows is asked."""
    return f"Summarize the following text:\n\n{document}"


def convert(row: Row) -> Conversation | None:
    document = text_of(row, "document|article|text")
    return converse("", (), prompt_for(document) if document.strip() else "", text_of(row, "summary"))


SUMMARIZATION = Format("summarization", ("document|article|text", "summary"), (), convert, rank=1)
