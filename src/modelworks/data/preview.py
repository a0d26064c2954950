"""What a dataset looks like to a model: how long its rows are, and one of them as it will be read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

from modelworks.core.errors import Invalid
from modelworks.data.record import Preference, Rated, Record, Text, count, read_records
from modelworks.data.render import ChatTemplate, Marked, encode_example, load_tokenizer, mark

MEASURED_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Bucket:
    """So many rows have a length in [at_least, below)."""

    at_least: int
    below: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the sample; `learned` ones carry the loss."""

    text: str
    learned: bool


@dataclass(frozen=True, slots=True)
class Preview:
    """Lengths are in tokens of the model, or in characters where none is given; of rows spread over the dataset."""

    unit: Literal["tokens", "characters"]
    rows_measured: int
    buckets: tuple[Bucket, ...]
    p50: int
    p95: int
    max: int
    sample: tuple[Part, ...]


def preview(dataset_folder: Path, model_folder: Path | None) -> Preview:
    """Measure rows and render the first one as `model_folder` reads it; without a model, as plain words.

    Raises:
        Unsupported: the model has no tokenizer or no chat template.
        Invalid: the dataset is empty.
    """
    records = _spread(dataset_folder)
    if model_folder is None:
        marked = [_mark_plainly(record) for record in records]
        return _preview("characters", [len(each.text) for each in marked], marked[0])
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    examples = [encode_example(tokenizer, template, _longest(record)) for record in records]
    lengths = [len(example.input_ids) for example in examples if example is not None]
    return _preview("tokens", lengths, _with_rejected(mark(tokenizer, template, records[0]), records[0]))


def _spread(dataset_folder: Path) -> list[Record]:
    total = count(dataset_folder, "train") + count(dataset_folder, "validation")
    if total == 0:
        raise Invalid(f"the dataset in {dataset_folder} has no rows")
    step = -(-total // MEASURED_ROWS)
    rows = chain(read_records(dataset_folder, "train"), read_records(dataset_folder, "validation"))
    return [record for index, record in enumerate(rows) if index % step == 0]


def _preview(unit: Literal["tokens", "characters"], lengths: list[int], sample: Marked) -> Preview:
    lengths = sorted(lengths)
    # bucket k holds the lengths of k binary digits: [2^(k-1), 2^k)
    digits = Counter(length.bit_length() for length in lengths)
    buckets = tuple(Bucket(1 << (k - 1) if k else 0, 1 << k, digits[k]) for k in range(min(digits), max(digits) + 1))
    p50, p95 = (lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for share in (50, 95))
    return Preview(unit, len(lengths), buckets, p50, p95, lengths[-1], _parts(sample))


def _parts(sample: Marked) -> tuple[Part, ...]:
    parts: list[Part] = []
    cursor = 0
    for start, end in sample.learned:
        parts += [Part(sample.text[cursor:start], False), Part(sample.text[start:end], True)]
        cursor = end
    parts.append(Part(sample.text[cursor:], False))
    return tuple(part for part in parts if part.text)


def _longest(record: Record) -> Record:
    return record.answered(max(record.chosen, record.rejected, key=len)) if isinstance(record, Preference) else record


def _with_rejected(marked: Marked, record: Record) -> Marked:
    if isinstance(record, Rated):
        return Marked(f"{marked.text}label: {'good' if record.desirable else 'bad'}\n", marked.learned)
    if isinstance(record, Preference):
        return Marked(f"{marked.text}rejected: {record.rejected}\n", marked.learned)
    return marked


def _mark_plainly(record: Record) -> Marked:
    if isinstance(record, Text):
        return Marked(record.text, ((0, len(record.text)),))
    if isinstance(record, Preference):
        return _with_rejected(_mark_plainly(record.answered(record.chosen)), record)
    text, learned = "", []
    for message in record.messages:
        text += f"{message.role}: "
        if message.role == "assistant" and message.learned:
            learned.append((len(text), len(text) + len(message.content)))
        text += f"{message.content}\n"
    return _with_rejected(Marked(text, tuple(learned)), record)
