"""A request turned into a sequence: rendered, tokenised, measured, its form compiled."""

from __future__ import annotations

from functools import partial
from typing import Protocol

from modelworks.core.errors import Invalid
from modelworks.core.generation import GenerateRequest
from modelworks.serve.native.calls import CallReader, form_of, guide_of
from modelworks.serve.native.detokenize import Detokenizer
from modelworks.serve.native.guide import Guides
from modelworks.serve.native.sequence import Sequence
from modelworks.serve.prompt import Reader, read_prompt


class GuidingReader(Reader, Protocol):
    @property
    def guides(self) -> Guides: ...


def prepare(model: GuidingReader, request: GenerateRequest, adapter: str | None) -> Sequence:
    """Make the sequence of a request.

    Raises:
        ContextLengthExceeded: with both numbers.
        Invalid: the chat template refuses the messages or has no functions, the form cannot be compiled, or there is
            nothing to go on from.
    """
    tokens = read_prompt(model, request)
    wanted = 0 if request.embed else request.max_tokens
    vocabulary = model.tokenizer.get_vocab_size()
    if beyond := [token for token, _ in request.logit_bias if not 0 <= token < vocabulary]:
        raise Invalid(f"logit_bias: {beyond[0]} is no token of {model.name}, which has {vocabulary}")
    form = form_of(model.template.source or "") if request.tools and not request.guide else None
    guide, decode = request.guide, model.tokenizer.decode
    if form is not None:
        # the marks of calls are special tokens in some models
        decode = partial(decode, skip_special_tokens=False)
        if request.must_call:
            added = model.tokenizer.get_added_tokens_decoder().items()
            special = {token.content: id_ for id_, token in added if token.special}
            guide = guide_of(form, request.tools, request.must_call, request.one_call, special)
    return Sequence(
        request, tokens, len(tokens), model.max_context if wanted is None else len(tokens) + wanted,
        Detokenizer(decode, request.stop), adapter,
        matcher=model.guides.matcher(guide) if guide else None,
        calls=CallReader(form) if form else None,
        hex_of=model.guides.hexes() if request.logprobs is not None else None,
    )  # fmt: skip
