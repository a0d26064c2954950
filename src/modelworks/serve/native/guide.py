"""Answers of a given form: a JSON schema, a regular expression or a grammar says which tokens may come next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from llguidance import LLMatcher, LLTokenizer
from torch import Tensor

from modelworks.core.errors import Invalid
from modelworks.core.generation import Guide

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Room to write it prettily, and no more: white space without end is the one way to obey a schema and never finish.
_WHITE_SPACE = r"[ ]?|\n[ ]{0,40}"


class Guides:
    """Makes the matchers of one model. Its tables are made at the first need: they take a second."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        self._tokenizer, self._ends = tokenizer, ends

    @cached_property
    def tokens(self) -> LLTokenizer:
        return LLTokenizer(self._tokenizer.to_str(), eos_token=sorted(self._ends) or None)

    def matcher(self, guide: Guide) -> LLMatcher:
        """Compile a guide.

        Raises:
            Invalid: it says why this cannot be.
        """
        try:
            if guide.kind == "json_schema":
                grammar = LLMatcher.grammar_from_json_schema(guide.text, overrides={"whitespace_pattern": _WHITE_SPACE})
            elif guide.kind == "regex":
                grammar = LLMatcher.grammar_from_regex(guide.text)
            else:
                grammar = LLMatcher.grammar_from_lark(guide.text)
        except ValueError as error:
            raise Invalid(f"{guide.kind}: {error}") from None
        matcher = LLMatcher(self.tokens, grammar, log_level=0)
        if matcher.is_error():
            raise Invalid(f"the {guide.kind} cannot be turned into a grammar: {matcher.get_error()}")
        return matcher

    def hexes(self) -> Callable[[int], str]:
        """What gives a token's bytes; the tables are made now, not when a batch waits for it."""
        tokens = self.tokens
        return lambda token: tokens.decode_bytes([token]).hex()


def mask(matchers: Sequence[LLMatcher], vocab: int, device: torch.device) -> Tensor:
    """Which tokens may come next, (rows, vocab); one that cannot go on has none."""
    words = torch.zeros((len(matchers), (vocab + 31) // 32), dtype=torch.int32)
    for row, matcher in zip(words, matchers, strict=True):
        bits = bytearray(matcher.compute_bitmask())
        known = torch.frombuffer(bits, dtype=torch.int32)[: row.shape[0]]
        row[: known.shape[0]] = known
    bits_of = words.to(device)[:, :, None] >> torch.arange(32, dtype=torch.int32, device=device)
    return (bits_of & 1).bool().flatten(1)[:, :vocab]
