from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.core.errors import Invalid
from modelworks.data.blocks import encode_blocks
from modelworks.data.render import load_tokenizer
from shelf import conversations
from tiny import tiny_llama


def test_documents_are_joined_and_cut_with_nothing_padded_or_lost(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny")
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in ("abcdef", "ghi")))

    encoded = encode_blocks(model, tmp_path, "train", 4)

    tokenizer = load_tokenizer(model)
    # 6 + 3 tokens and two ends of text are two blocks of 4 and one of 3.
    assert [tokenizer.decode(block.input_ids, skip_special_tokens=False) for block in encoded.examples] == [
        "abcd", "ef<|im_end|>g", "hi<|im_end|>",
    ]  # fmt: skip
    assert all(block.labels == block.input_ids for block in encoded.examples)
    assert (encoded.rows, encoded.tokens) == (2, 11)


def test_conversations_are_left_to_sft(tmp_path: Path) -> None:
    model = tiny_llama(tmp_path / "tiny")

    with pytest.raises(Invalid, match="sft"):
        encode_blocks(model, conversations(tmp_path / "rows", [("a", "b")], []).path, "train", 8)
