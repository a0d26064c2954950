"""Examples put together: grouped by length, padded on the right, learned positions marked."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.data.record import Split, read_records
from modelworks.data.render import IGNORED, ChatTemplate, Example, encode_example, load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Encoded:
    """One side of a dataset as tokens; `truncated` rows lost their end, `masked` ones every answer (left out)."""

    examples: tuple[Example, ...]
    rows: int
    truncated: int
    masked: int
    # Where each example stands in the file, counted from 1.
    lines: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(len(example.input_ids) for example in self.examples)


def encode_split(
    model_folder: Path, dataset_folder: Path, split: Split, max_length: int, limit: int | None = None
) -> Encoded:
    """Turn the first `limit` rows of one side into tokens, as `model_folder` writes them."""
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    examples: list[Example] = []
    lines: list[int] = []
    rows = truncated = masked = 0
    for record in read_records(dataset_folder, split):
        if limit is not None and rows == limit:
            break
        rows += 1
        whole = encode_example(tokenizer, template, record)
        if whole is None:
            masked += 1
            continue
        example = Example(whole.input_ids[:max_length], whole.labels[:max_length])
        truncated += len(whole.input_ids) > max_length
        # The first position has no predecessor that could predict it.
        if any(label != IGNORED for label in example.labels[1:]):
            examples.append(example)
            lines.append(rows)
        else:
            masked += 1
    return Encoded(tuple(examples), rows, truncated, masked, tuple(lines))


def order_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> list[int]:
    """Shuffle so that each `batch_size` consecutive indices are of like length; a short batch comes last."""
    rng = random.Random(seed)
    indices = list(range(len(lengths)))
    rng.shuffle(indices)
    # Sorting within windows, not overall, so that a batch is not made of the same rows in every epoch.
    window = batch_size * max(1, min(50, len(lengths) // (batch_size * 4)))
    batches: list[list[int]] = []
    for start in range(0, len(indices), window):
        near = sorted(indices[start : start + window], key=lambda index: lengths[index])
        batches += [near[first : first + batch_size] for first in range(0, len(near), batch_size)]
    short = [batches.pop()] if batches and len(batches[-1]) < batch_size else []
    rng.shuffle(batches)
    return [index for batch in [*batches, *short] for index in batch]


def in_batches(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Yield indices of like length together, longest first, so that too little memory shows at once."""
    indices = sorted(range(len(examples)), key=lambda index: -len(examples[index].input_ids))
    for start in range(0, len(indices), batch_size):
        yield indices[start : start + batch_size]


def pad_right(examples: Iterable[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    """Stack (input_ids, labels) to `(B, T)` int64 tensors.

    There is no attention mask: what is padded lies behind every real token, where causal attention does not look, and
    carries no label. Hence also any token may fill it.
    """
    import torch

    rows = list(examples)
    width = max(len(input_ids) for input_ids, _ in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for row, (ids, wanted) in enumerate(rows):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, : len(wanted)] = torch.tensor(wanted)
    return {"input_ids": input_ids, "labels": labels}
