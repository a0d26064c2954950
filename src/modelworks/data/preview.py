"""What a dataset looks like to a model: how long its rows are, what is cut off, and some rows as they will be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from modelworks.core.errors import Invalid
from modelworks.data.record import Conversation, Preference, Prompted, Rated, Record, Text, count, read_records
from modelworks.data.render import IGNORED, ChatTemplate, Marked, encode_example, load_tokenizer, mark
from modelworks.data.tools import in_words

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MEASURED_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Bucket:
    """So many rows have a length in [at_least, below)."""

    at_least: int
    below: int
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a sample; `learned` ones carry the loss, `cut` ones lie behind `max_length` and are not read."""

    text: str
    learned: bool
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Preview:
    """Lengths are in tokens of the model, or in characters where none is given; of rows spread over the dataset.

    Of `rows_measured`, `truncated_rows` are longer than `max_length`, and `masked_rows` have nothing left to learn.
    """

    unit: Literal["tokens", "characters"]
    rows_measured: int
    buckets: tuple[Bucket, ...]
    p50: int
    p95: int
    p99: int
    max: int
    max_length: int | None
    truncated_rows: int
    masked_rows: int
    # the first row, one in the middle, and the longest
    samples: tuple[tuple[Part, ...], ...]


def preview(dataset_folder: Path, model_folder: Path | None, max_length: int | None = None) -> Preview:
    """Measure rows and render some as `model_folder` reads them; without a model, as plain words.

    Raises:
        Unsupported: the model has no tokenizer.
        ChatTemplateMissing: it has no chat template.
        Invalid: the dataset is empty.
    """
    records = _spread(dataset_folder)
    if model_folder is None:
        max_length, masked_rows = None, 0
        marked = [_mark_plainly(record) for record in records]
        lengths = [len(each.text) for each in marked]
        samples = tuple((*_parts(marked[index]), *_aside(records[index])) for index in _shown(lengths))
    else:
        reader = _Reader(model_folder, max_length)
        measured = [reader.measure(record) for record in records]
        lengths, masked_rows = [length for length, _ in measured], sum(masked for _, masked in measured)
        samples = tuple(reader.show(records[index]) for index in _shown(lengths))
    lengths.sort()
    # bucket k holds the lengths of k binary digits: [2^(k-1), 2^k)
    digits = Counter(length.bit_length() for length in lengths)
    buckets = tuple(Bucket(1 << (k - 1) if k else 0, 1 << k, digits[k]) for k in range(min(digits), max(digits) + 1))
    p50, p95, p99 = (lengths[min(len(lengths) - 1, len(lengths) * share // 100)] for share in (50, 95, 99))
    unit: Literal["tokens", "characters"] = "tokens" if model_folder else "characters"
    truncated_rows = 0 if max_length is None else sum(length > max_length for length in lengths)
    return Preview(
        unit, len(lengths), buckets, p50, p95, p99, lengths[-1], max_length, truncated_rows, masked_rows, samples
    )


class _Reader:
    def __init__(self, model_folder: Path, max_length: int | None) -> None:
        self.tokenizer: Tokenizer = load_tokenizer(model_folder)
        self.template = ChatTemplate.load(model_folder)
        self.max_length = max_length

    def measure(self, record: Record) -> tuple[int, bool]:
        """Tokens, of the longer answer if there are two, and whether `max_length` leaves nothing to learn."""
        if isinstance(record, Prompted):
            length = len(self._encode(record).ids)
            return length, self.max_length is not None and length > self.max_length
        length, masked = 0, False
        for each in _conversations(record):
            example = encode_example(self.tokenizer, self.template, each)
            length = max(length, len(self._encode(each).ids) if example is None else len(example.input_ids))
            # The first position has no predecessor that could predict it.
            labels = () if example is None else example.labels[1 : self.max_length]
            masked |= all(label == IGNORED for label in labels)
        return length, masked

    def show(self, record: Record) -> tuple[Part, ...]:
        marked = mark(self.tokenizer, self.template, record)
        starts = [start for start, _ in self._encode(record).offsets]
        limit = len(starts) if self.max_length is None else self.max_length
        cut = starts[limit] if limit < len(starts) else len(marked.text)
        return (*_parts(marked, cut), *_aside(record))

    def _encode(self, record: Record) -> Encoding:
        text = mark(self.tokenizer, self.template, record).text
        return self.tokenizer.encode(text, add_special_tokens=isinstance(record, Text))


def _spread(dataset_folder: Path) -> list[Record]:
    total = count(dataset_folder, "train") + count(dataset_folder, "validation")
    if total == 0:
        raise Invalid(f"the dataset in {dataset_folder} has no rows")
    step = -(-total // MEASURED_ROWS)
    rows = chain(read_records(dataset_folder, "train"), read_records(dataset_folder, "validation"))
    return [record for index, record in enumerate(rows) if index % step == 0]


def _shown(lengths: list[int]) -> list[int]:
    return list(dict.fromkeys((0, len(lengths) // 2, lengths.index(max(lengths)))))


def _parts(sample: Marked, cut: int | None = None) -> tuple[Part, ...]:
    cut = len(sample.text) if cut is None else cut
    borders = sorted({0, cut, len(sample.text), *chain.from_iterable(sample.learned)})
    return tuple(
        Part(
            sample.text[start:end], any(first <= start and end <= last for first, last in sample.learned), start >= cut
        )
        for start, end in pairwise(borders)
    )


def _conversations(record: Record) -> Iterable[Record]:
    if isinstance(record, Preference):
        return record.answered(record.chosen), record.answered(record.rejected)
    return (record,)


def _aside(record: Record) -> tuple[Part, ...]:
    """What a row holds beside its conversation."""
    if isinstance(record, Rated):
        return (Part(f"label: {'good' if record.desirable else 'bad'}\n", False),)
    return (Part(f"rejected: {record.rejected}\n", False),) if isinstance(record, Preference) else ()


def _mark_plainly(record: Record) -> Marked:
    if isinstance(record, Text):
        return Marked(record.text, ((0, len(record.text)),))
    if isinstance(record, Preference):
        return _mark_plainly(record.answered(record.chosen))
    text, learned = "", []
    if isinstance(record, Conversation):
        record = in_words(record)
    for message in record.messages:
        text += f"{message.role}: "
        if message.role == "assistant" and message.learned:
            learned.append((len(text), len(text) + len(message.content)))
        text += f"{message.content}\n"
    return Marked(text, tuple(learned))
