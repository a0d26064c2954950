"""A request turned into the tokens of its prompt: the same ones whatever engine answers it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from modelworks.core.errors import Invalid
from modelworks.core.generation import ContextLengthExceeded, GenerateRequest
from modelworks.data.record import Message
from modelworks.data.render import ChatTemplate, load_tokenizer
from modelworks.weights.safety import read_object


class Reader(Protocol):
    """What of a model reads prompts."""

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def max_context(self) -> int: ...


def read_prompt(model: Reader, request: GenerateRequest) -> list[int]:
    """The tokens of a request's prompt, to which an answer of the length asked for can be added.

    Raises:
        ContextLengthExceeded: with both numbers.
        Invalid: the chat template refuses the messages or has no functions, or there is nothing to go on from.
    """
    tokens = _tokens(model, request)
    if not tokens:
        raise Invalid("the prompt is empty; give at least one word")
    wanted = 0 if request.embed else 1 if request.max_tokens is None else request.max_tokens
    if len(tokens) + wanted > model.max_context:
        raise ContextLengthExceeded(
            f"{model.name} sees at most {model.max_context} tokens; the prompt has {len(tokens)} and "
            f"{wanted} more are asked for: shorten the prompt or lower max_tokens"
        )
    return tokens


def _tokens(model: Reader, request: GenerateRequest) -> list[int]:
    if request.messages is None:
        if isinstance(request.prompt, tuple):
            vocabulary = model.tokenizer.get_vocab_size()
            if beyond := [token for token in request.prompt if not 0 <= token < vocabulary]:
                raise Invalid(f"prompt: {beyond[0]} is no token of {model.name}, which has {vocabulary}")
            return list(request.prompt)
        return list(model.tokenizer.encode(request.prompt or "").ids)
    if request.tools and not model.template.offers_tools:
        raise Invalid(f"tools: the chat template of {model.name} has no place for functions; leave them out")
    messages = [Message(each.role, each.content, True, each.tool_calls, each.call_id) for each in request.messages]
    text = model.template.render(messages, add_generation_prompt=True, tools=request.tools)
    # the template writes the beginning-of-text token itself where the model wants one
    return list(model.tokenizer.encode(text, add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class Prompts:
    """The half of a model that needs no weights. `ends` are the tokens that end an answer."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate
    max_context: int
    ends: frozenset[int]

    @classmethod
    def load(cls, folder: Path, name: str, most: int | None) -> Prompts:
        """Read a model folder; `most` lowers how many tokens it sees."""
        config = read_object(folder / "config.json")
        generation = folder / "generation_config.json"
        told = read_object(generation) if generation.is_file() else {}
        tokenizer, template = load_tokenizer(folder), ChatTemplate.load(folder)
        ends = told.get("eos_token_id", config.get("eos_token_id"))
        end = tokenizer.token_to_id(template.eos_token) if template.eos_token else None
        known = {each for each in [*(ends if isinstance(ends, list) else [ends]), end] if isinstance(each, int)}
        sees = config.get("max_position_embeddings")
        if not isinstance(sees, int):
            raise Invalid(f"{folder / 'config.json'}: max_position_embeddings is missing; take the model's own file")
        return cls(name, tokenizer, template, min(most or sees, sees), frozenset(known))

    def read(self, request: GenerateRequest) -> list[int]:
        """As `read_prompt`."""
        return read_prompt(self, request)
