"""Prompts alone, to be answered: what is asked, and what is known about a good answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modelworks.core.errors import Invalid
from modelworks.core.nouns import JsonObject
from modelworks.data.record import Conversation, Message, Preference, Prompted, Split, read_records
from modelworks.data.render import ChatTemplate, load_tokenizer


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that waits for an answer, and its tokens.

    `item` is what else its row holds; "reference", where there is one, is an answer that is known to be good.
    """

    messages: tuple[Message, ...]
    ids: list[int]
    item: JsonObject
    # Of its side of the dataset, from 1.
    row: int


def encode_prompts(model_folder: Path, dataset_folder: Path, split: Split, max_length: int) -> list[Prompt]:
    """Render the prompts of one side; those over `max_length` are left out."""
    tokenizer, template = load_tokenizer(model_folder), ChatTemplate.load(model_folder)
    prompts = []
    for row, record in enumerate(read_records(dataset_folder, split), start=1):
        if isinstance(record, Prompted):
            messages, item = record.messages, record.item
        elif isinstance(record, Preference):
            messages, item = record.prompt, {"reference": record.chosen}
        elif isinstance(record, Conversation):
            messages, item = record.messages[:-1], {"reference": record.messages[-1].content}
        else:
            raise Invalid(f"{dataset_folder} holds rows that ask for no answer; take conversations")
        text = template.render(messages, add_generation_prompt=True)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        if messages and len(ids) <= max_length:
            prompts.append(Prompt(messages, ids, item, row))
    return prompts
