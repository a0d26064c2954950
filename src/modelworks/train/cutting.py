"""Rows of which max_length leaves nothing to learn: found before a training starts, without torch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import Dataset, Model
from modelworks.data.record import Conversation, Preference, Prompted, Rated, Text, read_records
from modelworks.data.render import IGNORED, ChatTemplate, encode_example, load_tokenizer

# More rows than these are not all looked at; the training itself will.
_MOST_ROWS = 1000
# What a template may write before an answer besides the turns, in bytes.
_AROUND = 256


class AllLabelsMasked(Invalid):
    """Nothing is left to learn once rows are cut to max_length."""

    code = "all_labels_masked"


def cut_problems(model: Model, dataset: Dataset, max_length: int) -> Iterator[Problem]:
    """Refuse rows that are all cut before their answers; the first one that is not ends the search.

    A token has at least one byte, so only rows that may be too long are made tokens.
    """
    encoder, starts, what = None, [], "every"
    for record in read_records(dataset.path, "train") if dataset.train_rows <= _MOST_ROWS else ():
        if isinstance(record, Text | Prompted):
            return
        if isinstance(record, Preference):
            record, what = record.answered(record.chosen), "an"
        if _prompt_bytes(record) + _AROUND < max_length:
            return
        encoder = encoder or (load_tokenizer(model.path), ChatTemplate.load(model.path))
        example = encode_example(*encoder, record)
        # The first position has no predecessor that could predict it.
        starts += (
            [next((at for at, label in enumerate(example.labels) if at and label != IGNORED), 0)] if example else []
        )
        if starts and 0 < starts[-1] < max_length:
            return
    if starts:
        most = sorted(starts)[int(0.95 * (len(starts) - 1))]
        yield Problem(
            "max_length",
            f"{max_length} cuts {what} answer off all {len(starts)} rows; 95 % of the prompts take up to {most} tokens",
            f"raise it well over {most}",
            AllLabelsMasked.code,
        )


def _prompt_bytes(record: Conversation | Rated) -> int:
    prompt = takewhile(lambda turn: turn.role != "assistant" or not turn.learned, record.messages)
    return sum(len(turn.content.encode()) + len(turn.tool_calls) for turn in prompt)
