"""Documents as tokens, one behind the other and cut into blocks of one length: nothing padded, nothing lost."""

from __future__ import annotations

from pathlib import Path

from modelworks.core.errors import Invalid
from modelworks.data.batches import Encoded
from modelworks.data.record import Split, Text, read_records
from modelworks.data.render import ChatTemplate, Example, encode_example, load_tokenizer


def encode_blocks(model_folder: Path, dataset_folder: Path, split: Split, max_length: int) -> Encoded:
    """Pack the texts of one side, each with the end-of-text token behind it; the last block may be shorter."""
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    blocks: list[Example] = []
    # of each block, the row that it ends in
    lines: list[int] = []
    rest: list[int] = []
    rows = 0
    for record in read_records(dataset_folder, split):
        if not isinstance(record, Text):
            raise Invalid(f"{dataset_folder} holds a row that is no plain text; learn it with the strategy sft")
        rows += 1
        document = encode_example(tokenizer, template, record)
        rest += document.input_ids if document else []
        while len(rest) >= max_length:
            blocks.append(_block(rest[:max_length]))
            lines.append(rows)
            del rest[:max_length]
    # A lone token has no predecessor that could predict it.
    if len(rest) > 1:
        blocks.append(_block(rest))
        lines.append(rows)
    return Encoded(tuple(blocks), rows, truncated=0, masked=0, lines=tuple(lines))


def _block(ids: list[int]) -> Example:
    return Example(ids, list(ids))
