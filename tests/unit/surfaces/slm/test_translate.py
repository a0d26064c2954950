"""The SLM API's words and ours."""

from __future__ import annotations

import pytest

from modelworks.core.nouns import JsonObject
from modelworks.surfaces.slm.translate import Pieces, alpaca, to_answer, to_request
from modelworks.surfaces.slm.wire import GenerateIn


def cut(*texts: str) -> list[JsonObject]:
    pieces = Pieces()
    return [piece for text in texts for piece in pieces.add(text)] + [pieces.last()]


def joined(pieces: list[JsonObject]) -> str:
    return "".join(str(piece["text"]) for piece in pieces)


def test_a_prompt_is_put_into_the_alpaca_form() -> None:
    request = to_request(GenerateIn(prompt="What is Python?"), "id", "model")

    assert request.prompt == "### Instruction:\nWhat is Python?\n\n### Response:\n"
    assert (request.max_tokens, request.temperature, request.stop) == (100, 0.7, ("### Instruction:",))


def test_do_sample_false_takes_the_likeliest_token() -> None:
    assert to_request(GenerateIn(prompt="x", do_sample=False), "id", "model").temperature == 0


def test_the_answer_comes_alone_and_behind_its_prompt() -> None:
    answer = to_answer(GenerateIn(prompt="Hi"), "\nHello. ", "cpu")

    assert answer.response == "Hello."
    assert answer.full_response == alpaca("Hi") + "Hello."
    assert answer.settings.model_dump() == {"max_new_tokens": 100, "temperature": 0.7, "do_sample": True}


def test_a_stream_is_cut_into_words_as_the_document_shows() -> None:
    assert cut("On", "ce u", "pon a") == [
        {"text": "Once ", "full_text": "Once", "is_complete": False},
        {"text": "upon ", "full_text": "Once upon", "is_complete": False},
        {"text": "a", "full_text": "Once upon a", "is_complete": True},
    ]


@pytest.mark.parametrize(
    "texts",
    [
        ("  \n", " a  b\n\n", " c d", "\n \n"),
        ("x" * 50, " y ", "z" * 40, "  \n"),
        tuple("这是一个没有空格的句子" * 4 + " 对"),
        ("",),
        (" ", "\n"),
        (" ", " " * 40, "a", " " * 40, "b"),
    ],
)
def test_the_pieces_together_are_the_answer_without_white_space_around_it(texts: tuple[str, ...]) -> None:
    pieces = cut(*texts)

    assert joined(pieces) == "".join(texts).strip()
    assert [piece["is_complete"] for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def test_a_text_without_blanks_is_not_held_back_to_the_end() -> None:
    assert len(cut(*("字" * 100))) > 2
