"""One question to everybody in a conversation, and their answers shown as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import click

from modelworks.cli import render
from modelworks.cli.answers import Answer, Answerer
from modelworks.cli.columns import Columns, are_wide_enough
from modelworks.cli.conversation import Conversation, Turn
from modelworks.cli.options import Session
from modelworks.cli.sampling import DEFAULT_MAX_TOKENS
from modelworks.core.errors import ModelworksError

# What a model writes must not steer the terminal: no escapes, no bells.
_HARMLESS = dict.fromkeys({*range(32), *range(127, 160)} - {9, 10})


@dataclass
class Talk:
    """Asks, and shows what is answered. `was_stopped`: Ctrl-C was the last that was heard of the person."""

    session: Session
    answerer: Answerer
    conversation: Conversation
    stats: bool = False
    was_stopped: bool = False

    def answer_once(self, prompt: str) -> None:
        self.conversation.params.setdefault("max_tokens", DEFAULT_MAX_TOKENS)
        self.conversation.turns.append(Turn(prompt))
        if self.session.json:
            for body in self.conversation.bodies():
                answer = vars(self.answerer.ask(body, lambda _text: None))
                facts = {key: value for key, value in answer.items() if key != "tool_calls" or value}
                render.print_json({"model": body["model"], **facts})
            return
        for error in self._show(self.conversation.bodies()):
            raise error

    def ask(self, text: str) -> None:
        """Ask everybody; what was said before Ctrl-C counts as said, and a question without an answer does not."""
        self.was_stopped = False
        turn = Turn(text)
        self.conversation.turns.append(turn)
        for error in self._show(self.conversation.bodies(), turn):
            full = error.code == "context_length_exceeded"
            self.session.say(error.message + ("; /undo or /reset makes room" if full else ""))
        if not any(turn.answers):
            self.conversation.turns.remove(turn)

    def _show(self, bodies: Sequence[Mapping[str, Any]], turn: Turn | None = None) -> list[ModelworksError]:
        """Write every answer as it comes, and keep it in `turn`; return what went wrong."""
        said = [Said() for _ in bodies]
        answers: Sequence[Answer | BaseException] = ()
        with ExitStack() as stack:
            columns = None
            if len(bodies) > 1 and are_wide_enough():
                columns = stack.enter_context(Columns([body["model"] for body in bodies]))

            def tell(side: int, text: str) -> None:
                said[side].hear(text)
                if columns:
                    columns.tell(side, text.translate(_HARMLESS))
                elif len(bodies) == 1:
                    _write(text)

            try:
                answers = self.answerer.ask_beside(bodies, tell)
            except KeyboardInterrupt:
                if turn is None:
                    raise
                self.was_stopped = True
        for body, one in zip(bodies, said, strict=True):
            if len(bodies) > 1 and not columns:
                click.echo(click.style(f"{body['model']}:", bold=True) + f"\n{one.text}")
        if len(bodies) == 1 and said[0].text:
            click.echo(" ..." if self.was_stopped else "")
        if turn is not None:
            turn.answers = [one.text for one in said]
        self._tell_speed(bodies, said, answers)
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, ModelworksError):
                raise answer
        return [answer for answer in answers if isinstance(answer, ModelworksError)]

    def _tell_speed(
        self, bodies: Sequence[Mapping[str, Any]], said: Sequence[Said], answers: Sequence[Answer | BaseException]
    ) -> None:
        for side, one in enumerate(said if self.stats else ()):
            counted = getattr(answers[side], "completion_tokens", None) if answers else None
            whose = f"{bodies[side]['model']}: " if len(bodies) > 1 else ""
            if one.pieces:
                self.session.say(click.style(whose + one.speed(counted or one.pieces), dim=True))


class Said:
    """What one model says, and when."""

    def __init__(self) -> None:
        self.text, self.pieces = "", 0
        self.asked = self.first = self.last = time.monotonic()

    def hear(self, text: str) -> None:
        self.last = time.monotonic()
        self.first = self.first if self.pieces else self.last
        self.text += text
        self.pieces += 1

    def speed(self, tokens: int) -> str:
        """Tokens per second, from the first one on: what came before is told apart."""
        writing = self.last - self.first
        rate = f", {(tokens - 1) / writing:.1f} tokens/s" if tokens > 1 and writing > 0 else ""
        return f"{tokens} tokens{rate}, first after {self.first - self.asked:.2f} s"


def _write(text: str) -> None:
    click.echo(text.translate(_HARMLESS) if sys.stdout.isatty() else text, nl=False)
    sys.stdout.flush()
