"""Pairs of answers as TRL's trainers take them: what dpo, orpo and the reward model share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from modelworks.core.nouns import JsonObject
from modelworks.data.pairs import EncodedPairs, EncodedRatings, Pair, encode_pairs
from modelworks.train.cutting import AllLabelsMasked
from modelworks.train.network import build_network
from modelworks.train.strategy import Setup, Training


def read_pairs(setup: Setup) -> tuple[EncodedPairs, EncodedPairs, JsonObject]:
    """The pairs to learn, those that are held out, and what they came to.

    Raises:
        AllLabelsMasked: no pair is left to learn.
    """
    learned, held_out = (
        encode_pairs(setup.model.path, setup.dataset.path, split, setup.max_length) for split in ("train", "validation")
    )
    return learned, held_out, count_pairs(setup, learned, held_out)


def train_on_pairs(
    setup: Setup, make_trainer: Callable[..., Any], names: Mapping[str, str], watched: tuple[str, ...]
) -> Training:
    """Tokenise, load, and put around both the trainer that `make_trainer` makes of setup, network and both sides.

    Args:
        names: what is measured, by our name for it, under the trainer's.
        watched: of what the trainer logs, what users are told.
    """
    learned, held_out, counts = read_pairs(setup)
    if setup.spec.lora_dropout:
        what = f"{setup.spec.strategy} compares answers without dropout; lora_dropout is left out"
        setup.job.log(what, level="warning")
    network = build_network(setup)
    trainer = make_trainer(setup, network, learned, held_out)
    measure = make_measure(setup, trainer, held_out.pairs, names)
    return Training(trainer=trainer, network=network, counts=counts, measure=measure, watched=watched)


def make_measure(
    setup: Setup, trainer: Any, rows: Sequence[object], names: Mapping[str, str]
) -> Callable[[], dict[str, float]]:
    """What measures the held-out `rows`: under each name, what `trainer` tells of them under another, if it does."""

    def measure() -> dict[str, float]:
        if not rows:
            return {}
        setup.job.progress(0, len(rows), "rows", stage="measuring")
        found = trainer.evaluate()
        return {name: float(found[f"eval_{key}"]) for name, key in names.items() if f"eval_{key}" in found}

    return measure


def count_pairs(
    setup: Setup, learned: EncodedPairs | EncodedRatings, held_out: EncodedPairs | EncodedRatings
) -> JsonObject:
    """Count what was encoded.

    Raises:
        AllLabelsMasked: nothing is left to learn.
    """
    kept, left_out = (
        len(side.pairs if isinstance(side, EncodedPairs) else side.ratings) for side in (learned, held_out)
    )
    if not kept:
        raise AllLabelsMasked(f"max_length {setup.max_length} cuts an answer off all {learned.rows} rows; raise it")
    return {
        "train_rows": kept,
        "train_tokens": learned.tokens,
        "validation_rows": left_out,
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
                # What both are padded to.
                "length": max(_lengths(pair)),
                "lengths": _lengths(pair),
                "line": pair.line,
            }
            for pair in encoded.pairs
        ]
    )


def _lengths(pair: Pair) -> list[int]:
    return [len(pair.prompt_ids) + len(answer) for answer in (pair.chosen_ids, pair.rejected_ids)]
