"""The chat template turned to text, and text to tokens: one way for training, evaluation and serving.

Neither torch nor transformers is needed: the tokenizer is the `tokenizers` library's, from `tokenizer.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelworks.core.errors import Invalid, Unsupported
from modelworks.core.generation import ChatTemplateMissing
from modelworks.data.record import Conversation, Message, Preference, Prompted, Record, Text
from modelworks.data.tools import in_words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

IGNORED = -100
MAX_TEMPLATE_BYTES = 64 * 1024
# Put in place of an answer to see what the template writes around it; private use, so that no text holds it.
_STAND_IN = "\ue000answer\ue000"
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a model writes a conversation. `source` is None for a model that has no template."""

    model_folder: Path
    source: str | None
    # e.g. {"bos_token": "<s>", "eos_token": "</s>"}
    special_tokens: Mapping[str, str]

    @classmethod
    def load(cls, model_folder: Path) -> ChatTemplate:
        """Read the template and the special tokens; a model without a template only fails when it is to render."""
        config = _read_json(model_folder / "tokenizer_config.json")
        tokens = {**_special_tokens(_read_json(model_folder / "special_tokens_map.json")), **_special_tokens(config)}
        return cls(model_folder, _find_source(model_folder, config), tokens)

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens.get("eos_token")

    @property
    def takes_tools(self) -> bool:
        return self.source is not None and "tool_calls" in self.source

    @property
    def offers_tools(self) -> bool:
        """Whether it tells the model which functions there are."""
        return self.source is not None and re.search(r"\btools\b", self.source) is not None

    def check(self) -> str:
        """Return the source; raises ChatTemplateMissing if there is none."""
        if self.source is None:
            raise ChatTemplateMissing(
                f"{self.model_folder} has no chat template (neither chat_template.jinja nor chat_template in "
                "tokenizer_config.json): add one, use an instruct model, or give plain text (/v1/completions; rows of "
                "format text)"
            )
        return self.source

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False, tools: str = "") -> str:
        """Write `messages` as the model was taught to read them; the prompt for an answer ends the text if asked for.

        `tools` are a Conversation's.

        Raises:
            ChatTemplateMissing: the model has none.
            Invalid: the template refuses these messages or goes over a limit.
        """
        from modelworks.data import sandbox

        source = self.check()
        variables = {
            **self.special_tokens,
            "messages": [
                {"role": message.role, "content": message.content}
                | ({"tool_calls": json.loads(message.tool_calls)} if message.tool_calls else {})
                | ({"tool_call_id": message.call_id} if message.call_id else {})
                for message in messages
            ],
            "tools": json.loads(tools) if tools else [],
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return sandbox.render(source, variables)
        except sandbox.TemplateFailed as error:
            raise Invalid(f"the chat template of {self.model_folder} cannot render this: {error}") from None


@dataclass(frozen=True, slots=True)
class Example:
    """Tokens to train on; a label is the token itself where it is learned and IGNORED elsewhere."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class Marked:
    """A record as the model reads it; `learned` are the [start, end) character spans that carry the loss."""

    text: str
    learned: tuple[tuple[int, int], ...]


def load_tokenizer(model_folder: Path) -> Tokenizer:
    """Load `tokenizer.json` with truncation and padding off."""
    from tokenizers import Tokenizer

    path = model_folder / "tokenizer.json"
    if not path.is_file():
        raise Unsupported(f"{model_folder} has no tokenizer.json; convert its tokenizer to the fast format")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise Invalid(f"{path} is not a tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_example(
    tokenizer: Tokenizer, template: ChatTemplate, record: Record, max_length: int | None = None
) -> Example | None:
    """Turn a record into tokens and labels, keeping the first `max_length` tokens.

    In a conversation every answer is learned with its end-of-turn token, the rest is ignored; by position, as in some
    models padding and end of turn are the same token. Plain text is learned whole, with the end-of-text token; of a
    preference the chosen answer.

    Returns:
        None if nothing would be learned, i.e. `max_length` cuts away every answer.
    """
    if not isinstance(record, Text):
        marked = mark(tokenizer, template, record)
        # The template writes the beginning-of-text token itself where the model wants one.
        encoding = tokenizer.encode(marked.text, add_special_tokens=False)
        ids = encoding.ids
        labels = _labels(ids, encoding.offsets, marked.learned)
        # What follows the last answer, often a line break, is never generated.
        while labels and labels[-1] == IGNORED:
            labels.pop()
        ids = ids[: len(labels)]
    else:
        ids = tokenizer.encode(record.text).ids
        labels = list(ids)
    end = eos_id(tokenizer, template)
    if ids and end is not None and not _is_special(tokenizer, ids[-1]):
        ids, labels = [*ids, end], [*labels, end]
    ids, labels = ids[:max_length], labels[:max_length]
    return Example(ids, labels) if any(label != IGNORED for label in labels) else None


def mark(tokenizer: Tokenizer, template: ChatTemplate, record: Record) -> Marked:
    """Render a record and find what is learned of it."""
    if isinstance(record, Text):
        return Marked(record.text, ((0, len(record.text)),))
    if isinstance(record, Preference):
        record = record.answered(record.chosen)
    if isinstance(record, Prompted):
        return Marked(template.render(record.messages, add_generation_prompt=True), ())
    tools = ""
    if isinstance(record, Conversation):
        record = record if template.takes_tools else in_words(record)
        tools = record.tools
    text = template.render(record.messages, tools=tools)
    return Marked(text, tuple(_find_answers(tokenizer, template, record.messages, text, tools)))


def eos_id(tokenizer: Tokenizer, template: ChatTemplate) -> int | None:
    return None if template.eos_token is None else tokenizer.token_to_id(template.eos_token)


def _find_answers(
    tokenizer: Tokenizer, template: ChatTemplate, messages: Sequence[Message], text: str, tools: str
) -> Iterator[tuple[int, int]]:
    closing = tuple(token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    for index, message in enumerate(messages):
        if message.role == "assistant" and message.learned:
            start, end = _find_answer(template, messages, index, text, tools)
            rest = text[end:].lstrip()
            # the end-of-turn token is learned as well: how else would the model stop
            mark = max((token for token in closing if rest.startswith(token)), key=len, default=None)
            yield start, end if mark is None else len(text) - len(rest) + len(mark)


def _find_answer(
    template: ChatTemplate, messages: Sequence[Message], index: int, text: str, tools: str
) -> tuple[int, int]:
    """Where answer `index` lies in `text`: from the end of its prompt to the end of its words."""
    other = Message("assistant", _STAND_IN)
    rendered = template.render([*messages[:index], other, *messages[index + 1 :]], tools=tools)
    head, found, tail = rendered.partition(_STAND_IN)
    prompt = template.render(messages[:index], add_generation_prompt=True, tools=tools) if index else head
    if found and text.endswith(tail):
        # The prompt goes first: some templates write more before an answer, e.g. its thinking, which is learned too.
        for before in (prompt, head):
            if text.startswith(before) and len(before) + len(tail) < len(text):
                return len(before), len(text) - len(tail)
    raise Unsupported(
        f"the chat template of {template.model_folder} rewrites the conversation so that message {index + 1}, an "
        "answer to learn, cannot be told from the rest; use a model with a plainer template"
    )


def _labels(ids: list[int], offsets: list[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> list[int]:
    # Tokenizers may trim white space off the offsets: a token of blanks then lies at its end, with no width. Hence
    # `first < end`, not `first <= end`: what ends where the answer begins is not part of it.
    return [
        token if any(first <= start and first < end <= last for first, last in spans) else IGNORED
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]


def _is_special(tokenizer: Tokenizer, token: int) -> bool:
    added = tokenizer.get_added_tokens_decoder().get(token)
    return added is not None and added.special


def _find_source(model_folder: Path, config: Mapping[str, object]) -> str | None:
    path = model_folder / "chat_template.jinja"
    if path.is_file():
        if path.stat().st_size > MAX_TEMPLATE_BYTES:
            raise Invalid(f"{path} is larger than {MAX_TEMPLATE_BYTES} bytes; that is no chat template")
        return path.read_text(encoding="utf-8")
    found = config.get("chat_template") or _read_json(model_folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {entry["name"]: entry["template"] for entry in found if {"name", "template"} <= entry.keys()}
        found = named.get("default")
    if not isinstance(found, str):
        return None
    if len(found.encode()) > MAX_TEMPLATE_BYTES:
        raise Invalid(f"the chat template of {model_folder} is larger than {MAX_TEMPLATE_BYTES} bytes")
    return found


def _special_tokens(config: Mapping[str, object]) -> dict[str, str]:
    tokens = {}
    for key in _SPECIAL:
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            tokens[key] = text
    return tokens


def _read_json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Invalid(f"{path} is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise Invalid(f"{path} is not a JSON object")
    return body
