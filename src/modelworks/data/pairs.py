"""Preferences as tokens: two answers behind one prompt; and single answers that are rated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from modelworks.core.errors import Invalid
from modelworks.data.record import Preference, Rated, Record, Split, read_records
from modelworks.data.render import IGNORED, ChatTemplate, Example, encode_example, load_tokenizer


@dataclass(frozen=True, slots=True)
class Pair:
    """`prompt_ids + chosen_ids` and `prompt_ids + rejected_ids` are the two conversations."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    # Where the row stands in its file, from 1.
    line: int

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

    @property
    def tokens(self) -> int:
        return sum(pair.tokens for pair in self.pairs)


@dataclass(frozen=True, slots=True)
class Rating:
    """A prompt, one answer to it, and whether that is a good one."""

    prompt_ids: list[int]
    answer_ids: list[int]
    desirable: bool
    line: int


@dataclass(frozen=True, slots=True)
class EncodedRatings:
    """One side of a dataset; `truncated` answers lost their end, `masked` ones everything (left out)."""

    ratings: tuple[Rating, ...]
    rows: int
    truncated: int
    masked: int

    @property
    def tokens(self) -> int:
        return sum(len(rating.prompt_ids) + len(rating.answer_ids) for rating in self.ratings)


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
        pair = None if chosen is None or rejected is None else _pair(chosen, rejected, max_length, rows)
        if pair is None:
            masked += 1
            continue
        truncated += any(each and len(each.input_ids) > max_length for each in (chosen, rejected))
        pairs.append(pair)
    return EncodedPairs(tuple(pairs), rows, truncated, masked)


def encode_ratings(model_folder: Path, dataset_folder: Path, split: Split, max_length: int) -> EncodedRatings:
    """Turn rated answers into tokens; of a preference the chosen answer is a good one, the rejected a bad one."""
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    ratings: list[Rating] = []
    rows = truncated = masked = 0
    for line, record in enumerate(read_records(dataset_folder, split), start=1):
        for rated in _rated(record, dataset_folder):
            rows += 1
            example = encode_example(tokenizer, template, rated)
            start = None if example is None else _answer_start(example)
            if example is None or not start or start >= max_length:
                masked += 1
                continue
            truncated += len(example.input_ids) > max_length
            ids = example.input_ids[:max_length]
            ratings.append(Rating(ids[:start], ids[start:], rated.desirable, line))
    return EncodedRatings(tuple(ratings), rows, truncated, masked)


def _rated(record: Record, dataset_folder: Path) -> tuple[Rated, ...]:
    if isinstance(record, Rated):
        return (record,)
    if isinstance(record, Preference):
        answers = ((record.chosen, True), (record.rejected, False))
        return tuple(Rated(record.answered(answer).messages, good) for answer, good in answers)
    raise Invalid(f"{dataset_folder} holds a row that is neither rated nor a preference; import it as kto")


def _answer_start(example: Example) -> int:
    return next(at for at, label in enumerate(example.labels) if label != IGNORED)


def _pair(chosen: Example, rejected: Example, max_length: int, line: int) -> Pair | None:
    # Tokens may differ before the answers, where the first word of one melts into what stands before it.
    pairs = zip(chosen.input_ids, rejected.input_ids, strict=False)
    start = min(
        sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)),
        _answer_start(chosen),
        _answer_start(rejected),
    )
    chosen_ids, rejected_ids = chosen.input_ids[start:max_length], rejected.input_ids[start:max_length]
    if not (start and chosen_ids and rejected_ids):  # the first position has no predecessor that could predict it
        return None
    return Pair(chosen.input_ids[:start], chosen_ids, rejected_ids, line)
