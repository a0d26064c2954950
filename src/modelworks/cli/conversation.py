"""What was said between a person and one model, or two beside each other, and the orders that change it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import click
import yaml

from modelworks.api.openai_asked import ChatAsked
from modelworks.cli.answers import Body, request_of
from modelworks.cli.options import Session
from modelworks.core.errors import Invalid, ModelworksError, NotFound
from modelworks.core.registry import nearest

# Of a request, but not of how an answer is drawn.
_NOT_PARAMS = {"model", "messages", "stream", "stream_options", "n", "tools", "tool_choice", "parallel_tool_calls"}
PARAMS = tuple(name for name in ChatAsked.model_fields if name not in _NOT_PARAMS)
ORDERS: Mapping[str, tuple[str, str]] = {
    "/help": ("", "this list"),
    "/system": ("TEXT", "tell the model something before the conversation; - takes it back"),
    "/params": ("KEY VALUE", f"how answers are drawn ({', '.join(PARAMS[:4])}, ...); null takes it back"),
    "/model": ("NAME", "go on with another model"),
    "/beside": ("NAME", "let a second model answer too; alone, the first goes on by itself"),
    "/retry": ("", "ask the last question again"),
    "/undo": ("", "forget the last question and its answer"),
    "/reset": ("", "forget what was said (/clear does too)"),
    "/save": ("FILE", "append the conversation to FILE, as `modelworks upload` reads it"),
    "/quit": ("", "leave, as Ctrl-D does"),
}
Ask: TypeAlias = Callable[[str], None]


@dataclass
class Turn:
    """A question, and what each model said; "" where it said nothing."""

    asked: str
    answers: list[str] = field(default_factory=list)


@dataclass
class Conversation:
    """`models` are one or two; each sees its own answers."""

    models: list[str]
    params: dict[str, Any] = field(default_factory=dict)
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)

    def messages(self, side: int) -> list[dict[str, str]]:
        """What one model is told; a question that it has not answered is only the last."""
        told = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.turns:
            answer = turn.answers[side] if turn.answers else ""
            if answer or turn is self.turns[-1]:
                told.append({"role": "user", "content": turn.asked})
            if answer:
                told.append({"role": "assistant", "content": answer})
        return told

    def bodies(self) -> list[Body]:
        return [
            {"model": model, "messages": self.messages(side), **self.params} for side, model in enumerate(self.models)
        ]


@dataclass
class Orders:
    """Carries out what begins with a slash.

    Args:
        names: every model that can be asked.
        ask: asks a question and adds it to the conversation.
    """

    session: Session
    conversation: Conversation
    names: Callable[[], set[str]]
    ask: Ask

    def obey(self, line: str) -> bool:
        """Carry out an order; False where the line is none.

        Raises:
            EOFError: the person leaves.
        """
        word, _, rest = line.partition(" ")
        if not word.startswith("/") or not word[1:].isalpha():
            return False
        word = "/reset" if word == "/clear" else word
        try:
            if word not in ORDERS:
                raise NotFound(f"there is no {word}; {nearest(word, ORDERS)}")
            getattr(self, f"_{word[1:]}")(rest.strip())
        except (ModelworksError, OSError) as error:
            self.session.say(error.message if isinstance(error, ModelworksError) else str(error))
        return True

    def _help(self, _rest: str) -> None:
        lines = [f"  {f'{order} {what}':<19} {meaning}" for order, (what, meaning) in ORDERS.items()]
        click.echo("\n".join(lines), err=True)
        click.echo("  a line that ends with \\, or Alt-Enter, goes on in the next; Ctrl-C stops an answer", err=True)

    def _quit(self, _rest: str) -> None:
        raise EOFError

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.system = None if rest == "-" else rest
        self.session.say(f"system: {self.conversation.system or '(nothing)'}")

    def _params(self, rest: str) -> None:
        key, _, text = rest.replace("=", " ", 1).partition(" ")
        if key:
            if key not in PARAMS:
                raise Invalid(f"there is no {key}; {nearest(key, PARAMS)}")
            given = self.conversation.params | {key: value_of(text)}
            params = {name: value for name, value in given.items() if value is not None}
            request_of({"model": "", "messages": [{"role": "user", "content": ""}], **params})
            self.conversation.params = params
        shown = (f"{name} {json.dumps(value)}" for name, value in self.conversation.params.items())
        self.session.say(", ".join(shown) or "(the engine's own)")

    def _model(self, rest: str) -> None:
        if rest:
            self.conversation.models[0] = self._known(rest)
        self.session.say(f"model: {' and '.join(self.conversation.models)}")

    def _beside(self, rest: str) -> None:
        added = [self._known(rest)] if rest else []
        self.conversation.models[1:] = added
        for turn in self.conversation.turns:
            # The newcomer goes on from what the first one said.
            turn.answers[1:] = turn.answers[:1] * len(added)
        self._model("")

    def _known(self, name: str) -> str:
        names = self.names()
        if name not in names:
            raise NotFound(f"there is no model {name!r}; {nearest(name, names)}")
        return name

    def _retry(self, _rest: str) -> None:
        self.ask(self._last().asked)

    def _undo(self, _rest: str) -> None:
        self.session.say(f"forgotten: {self._last().asked}")

    def _last(self) -> Turn:
        if not self.conversation.turns:
            raise Invalid("nothing was said yet")
        return self.conversation.turns.pop()

    def _reset(self, _rest: str) -> None:
        self.conversation.turns.clear()

    def _save(self, rest: str) -> None:
        if not rest or not self.conversation.turns:
            raise Invalid("write a file's name, e.g. /save talk.jsonl" if not rest else "nothing was said yet")
        path = Path(rest).expanduser()
        sides = range(len(self.conversation.models))
        rows = [{"messages": self.conversation.messages(side)} for side in sides]
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.session.say(f"added to {path}; modelworks upload {path} --name NAME makes it a dataset")


def value_of(text: str) -> Any:
    """A value as YAML writes it; else the text itself."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text
