"""Pairs of answers as TRL's trainers take them: what dpo and the reward model share."""

from __future__ import annotations

from typing import Any

from modelworks.core.errors import Invalid
from modelworks.core.nouns import JsonObject
from modelworks.data.pairs import EncodedPairs
from modelworks.train.strategy import Setup


def count_pairs(setup: Setup, learned: EncodedPairs, held_out: EncodedPairs) -> JsonObject:
    """Count what was encoded.

    Raises:
        Invalid: no pair is left to learn.
    """
    if not learned.pairs:
        raise Invalid(f"max_length {setup.max_length} cuts an answer off all {learned.rows} rows; raise it")
    return {
        "train_rows": len(learned.pairs),
        "train_tokens": sum(pair.tokens for pair in learned.pairs),
        "validation_rows": len(held_out.pairs),
        "truncated_rows": learned.truncated,
        "masked_rows": learned.masked,
    }


def pair_rows(encoded: EncodedPairs, whole: bool = False) -> Any:
    """Put the pairs in a `datasets.Dataset`; `whole`: each answer with its prompt, as a reward model reads it."""
    from datasets import Dataset

    return Dataset.from_list(
        [
            {
                "prompt_ids": pair.prompt_ids,
                "chosen_ids": [*pair.prompt_ids, *pair.chosen_ids] if whole else pair.chosen_ids,
                "rejected_ids": [*pair.prompt_ids, *pair.rejected_ids] if whole else pair.rejected_ids,
                "length": pair.tokens,
            }
            for pair in encoded.pairs
        ]
    )
