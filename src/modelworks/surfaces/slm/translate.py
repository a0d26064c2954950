"""Between the SLM API's words and ours: the alpaca prompt, the request, the pieces of a stream."""

from __future__ import annotations

import re

from modelworks.core.generation import GenerateRequest
from modelworks.core.nouns import JsonObject
from modelworks.surfaces.slm.wire import GenerateIn, GenerateOut, SettingsOut

STOP = "### Instruction:"
# A text without blanks, as Chinese is written, is not held back for ever.
LONGEST_PIECE = 32
_WORD = re.compile(r"\s*\S+\s+(?=\S)")


def alpaca(prompt: str) -> str:
    return f"{STOP}\n{prompt}\n\n### Response:\n"


def to_request(asked: GenerateIn, request_id: str, model: str) -> GenerateRequest:
    return GenerateRequest(
        id=request_id,
        model=model,
        prompt=alpaca(asked.prompt),
        max_tokens=asked.max_new_tokens,
        temperature=asked.temperature if asked.do_sample else 0.0,
        stop=(STOP,),
    )


def to_answer(asked: GenerateIn, text: str, device: str) -> GenerateOut:
    response = text.strip()
    return GenerateOut(
        prompt=asked.prompt,
        response=response,
        full_response=alpaca(asked.prompt) + response,
        device=device,
        settings=SettingsOut(**asked.model_dump(exclude={"prompt"})),
    )


class Pieces:
    """Cuts an answer into words, each with the blanks behind it; together they are the stripped answer."""

    def __init__(self) -> None:
        self._full = self._rest = ""

    def add(self, text: str) -> list[JsonObject]:
        """The pieces that are certain now. The last word waits for its blank, a blank for what follows it."""
        self._rest += text
        if not self._full:
            self._rest = self._rest.lstrip()
        pieces = []
        while word := _WORD.match(self._rest):
            pieces.append(self._piece(word.end()))
        if len(self._rest) > LONGEST_PIECE and not self._rest[-1].isspace():
            pieces.append(self._piece(len(self._rest)))
        return pieces

    def last(self) -> JsonObject:
        self._rest = self._rest.rstrip()
        return self._piece(len(self._rest)) | {"is_complete": True}

    def _piece(self, end: int) -> JsonObject:
        text, self._rest = self._rest[:end], self._rest[end:]
        self._full += text
        return {"text": text, "full_text": self._full.strip(), "is_complete": False}
