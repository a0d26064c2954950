"""Preferences as tokens: two answers behind one prompt."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from modelworks.core.errors import Invalid
from modelworks.data.record import Preference, Split, read_records
from modelworks.data.render import IGNORED, ChatTemplate, Example, encode_example, load_tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """`prompt_ids + chosen_ids` and `prompt_ids + rejected_ids` are the two conversations."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def tokens(self) -> int:
        return 2 * len(self.prompt_ids) + len(self.chosen_ids) + len(self.rejected_ids)


@dataclass(frozen=True, slots=True)
class EncodedPairs:
    """One side of a dataset; `truncated` rows lost the end of an answer, `masked` ones a whole one (left out)."""

    pairs: tuple[Pair, ...]
    rows: int
    truncated: int
    masked: int


def encode_pairs(model_folder: Path, dataset_folder: Path, split: Split, max_length: int) -> EncodedPairs:
    """Turn the preferences of one side into tokens, as `model_folder` writes conversations."""
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    pairs: list[Pair] = []
    rows = truncated = masked = 0
    for record in read_records(dataset_folder, split):
        if not isinstance(record, Preference):
            raise Invalid(f"{dataset_folder} holds a row that is no preference; import it as preference")
        rows += 1
        chosen, rejected = (
            encode_example(tokenizer, template, record.answered(answer)) for answer in (record.chosen, record.rejected)
        )
        pair = None if chosen is None or rejected is None else _pair(chosen, rejected, max_length)
        if pair is None:
            masked += 1
            continue
        truncated += any(each and len(each.input_ids) > max_length for each in (chosen, rejected))
        pairs.append(pair)
    return EncodedPairs(tuple(pairs), rows, truncated, masked)


def _pair(chosen: Example, rejected: Example, max_length: int) -> Pair | None:
    starts = (next(at for at, label in enumerate(each.labels) if label != IGNORED) for each in (chosen, rejected))
    # Tokens may differ before the answers, where the first word of one melts into what stands before it.
    pairs = zip(chosen.input_ids, rejected.input_ids, strict=False)
    start = min(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)), *starts)
    answers = [each.input_ids[start:max_length] for each in (chosen, rejected)]
    # The first position has no predecessor that could predict it.
    return Pair(chosen.input_ids[:start], *answers) if start and all(answers) else None
