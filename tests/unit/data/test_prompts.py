from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.importer import import_file
from modelworks.data.prompts import encode_prompts
from modelworks.data.render import load_tokenizer
from modelworks.data.spec import ImportSpec
from shelf import conversations, preferences
from tiny import tiny_llama

ASKED = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def test_a_prompt_is_all_before_the_answer_which_it_is_judged_by(tmp_path: Path, model: Path) -> None:
    rows = conversations(tmp_path / "rows", [("h" * 50, "no"), ("hi", "yes")], [])

    # The first is longer than 40 tokens.
    (prompt,) = encode_prompts(model, rows.path, "train", 40)

    assert load_tokenizer(model).decode(prompt.ids, skip_special_tokens=False) == ASKED
    assert (prompt.row, prompt.item) == (2, {"reference": "yes"})
    pairs = preferences(tmp_path / "pairs", [("hi", "good", "bad")])
    assert encode_prompts(model, pairs.path, "train", 40)[0].item == {"reference": "good"}


def test_rows_for_reinforcement_keep_what_else_they_hold(tmp_path: Path, model: Path) -> None:
    asked = {"role": "user", "content": "hi"}
    source, folder = tmp_path / "rows.jsonl", tmp_path / "rows"
    known = {"role": "assistant", "content": "yes"}
    rows = [{"messages": [asked], "answer": 4, "split": "train"}, {"messages": [asked, known], "answer": 5}]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder.mkdir()

    report = import_file(source, folder, ImportSpec(format="prompt", validation_share=0))

    assert report.train_rows == 2
    found = encode_prompts(model, folder, "train", 40)
    assert [prompt.item for prompt in found] == [{"answer": 4}, {"answer": 5, "reference": "yes"}]
    assert [prompt.messages[-1].content for prompt in found] == ["hi", "hi"]


def test_plain_text_asks_for_nothing(tmp_path: Path, model: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "once"}) + "\n")

    with pytest.raises(Invalid, match="ask for no answer"):
        encode_prompts(model, tmp_path, "train", 40)
