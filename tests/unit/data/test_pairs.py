from __future__ import annotations

from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.pairs import encode_pairs
from modelworks.data.render import load_tokenizer
from shelf import conversations, preferences
from tiny import tiny_llama

ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def read(model: Path, ids: list[int]) -> str:
    return str(load_tokenizer(model).decode(ids, skip_special_tokens=False))


def test_both_answers_follow_one_prompt_and_end_their_turn(tmp_path: Path, model: Path) -> None:
    rows = preferences(tmp_path / "rows", [("hi", "yes", "yellow")])

    encoded = encode_pairs(model, rows.path, "train", 128)

    (pair,) = encoded.pairs
    # The y of both answers is no part of the prompt.
    assert read(model, pair.prompt_ids) == ASKED
    assert [read(model, ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == ["yes<|im_end|>", "yellow<|im_end|>"]
    assert pair.tokens == 2 * len(pair.prompt_ids) + 4 + 7


def test_a_cut_answer_is_counted_and_a_lost_one_left_out(tmp_path: Path, model: Path) -> None:
    rows = preferences(tmp_path / "rows", [("hi", "yes", "yellow"), ("h" * 30, "yes", "no")])
    # The prompt is 21 tokens: a byte each, and one for each of three marks. There is room for "yello".
    room = 21 + 5

    encoded = encode_pairs(model, rows.path, "train", room)

    assert (encoded.rows, encoded.truncated, encoded.masked, len(encoded.pairs)) == (2, 1, 1, 1)
    assert read(model, encoded.pairs[0].rejected_ids) == "yello"


def test_conversations_are_no_pairs(tmp_path: Path, model: Path) -> None:
    rows = conversations(tmp_path / "rows", [("hi", "yes")], [])

    with pytest.raises(Invalid, match="no preference"):
        encode_pairs(model, rows.path, "train", 128)
