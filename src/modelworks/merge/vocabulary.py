"""Tokenizers that differ: whose tokens the result has, and which row of which model embeds each."""

from __future__ import annotations

import re

POLICIES = "say tokenizer: base, first, union, or the model whose tokens the result is to have"
_VOCABULARY = re.compile(
    r"(^|\.)(embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings|tok_embeddings)\.(weight|bias)$"
)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor has a row for each token."""
    return _VOCABULARY.search(name) is not None
