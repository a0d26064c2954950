"""The files of the result's tokenizer: of the model whose tokens it has, with what is added to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from modelworks.merge.tokenizer import TEMPLATE, TOKENIZER
from modelworks.merge.vocabulary import Vocabulary
from modelworks.weights.safety import read_object

_FILES = (
    TOKENIZER, TEMPLATE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "generation_config.json",
)  # fmt: skip
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def write_tokenizer(folder: Path, frame: Path, vocabulary: Vocabulary | None, template: str | None) -> None:
    """Give a folder that holds the frame's files the result's tokenizer and chat template."""
    config = read_object(folder / "config.json")
    owner = vocabulary.members[vocabulary.owner].model.path if vocabulary is not None else frame
    if owner != frame:
        for name in _FILES:
            (folder / name).unlink(missing_ok=True)
            if (owner / name).is_file():
                shutil.copyfile(owner / name, folder / name)
        theirs = read_object(owner / "config.json")
        config |= {key: theirs[key] for key in _SPECIAL_IDS if key in theirs}
    if vocabulary is not None:
        text = config.get("text_config")
        (text if isinstance(text, dict) and "vocab_size" in text else config)["vocab_size"] = vocabulary.size
    _write(folder / "config.json", config)
    if vocabulary is not None and vocabulary.added:
        content: Any = read_object(folder / TOKENIZER)
        content["added_tokens"] = [*(content.get("added_tokens") or ()), *vocabulary.added]
        _write(folder / TOKENIZER, content)
    if template is not None:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        held = read_object(settings) if settings.is_file() else {}
        if "chat_template" in held:
            _write(settings, held | {"chat_template": template})


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
