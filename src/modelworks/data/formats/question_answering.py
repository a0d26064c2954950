"""Questions and answers, with the context they come from or without; of several answers the first is learned."""

from __future__ import annotations

import contextlib

import orjson

from modelworks.data.format import BadRow, Format, Row, column_in, converse, kind_of, text_of
from modelworks.data.record import Conversation


def prompt_for(question: str, context: str) -> str:
    """How a model trained on such rows is asked; without a context the question stands alone."""
    if not context.strip():
        return question
    return f"Answer the question in words of the context.\n\nContext: {context}\n\nQuestion: {question}"


def convert(row: Row) -> Conversation | None:
    question = text_of(row, "question")
    context = text_of(row, "context") if "context" in row else ""
    return converse("", (), prompt_for(question, context) if question.strip() else "", _answer(row))


def _answer(row: Row) -> str:
    column = column_in(row, "answer|answers")
    value = row.get(column)
    if column == "answers" and isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        with contextlib.suppress(orjson.JSONDecodeError):  # a table's cell may hold them as JSON
            value = orjson.loads(value)
    if isinstance(value, dict):
        value = value.get("text")
        if not isinstance(value, list):
            raise BadRow(column, f"has a text that is {kind_of(value)}", 'write {"text": ["..."]}')
    if not isinstance(value, list):
        return text_of(row, column)
    for answer in value:
        if not isinstance(_text(answer), str):
            raise BadRow(column, f"holds {kind_of(answer)}, not only texts", "write every answer as a string")
    # No answer at all, as SQuAD has it for questions that its context does not answer: nothing to learn.
    return next((text for answer in value if (text := str(_text(answer))).strip()), "")


def _text(answer: object) -> object:
    """An answer is a text, or an object with one."""
    return answer.get("text") if isinstance(answer, dict) else answer


QUESTION_ANSWERING = Format("question_answering", ("question", "answer|answers"), ("context",), convert, rank=2)
