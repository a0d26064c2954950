"""Run a model's chat template without trusting it: no way out of the sandbox, bounded output, bounded time.

Renders as transformers' `apply_chat_template` does: same block trimming, filters and globals. Import inside functions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import TYPE_CHECKING

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from modelworks.core.clock import now

if TYPE_CHECKING:
    from jinja2.parser import Parser
    from jinja2.runtime import Context

MAX_OUTPUT_CHARACTERS = 8 * 1024 * 1024
MAX_SECONDS = 1.0

_deadline: ContextVar[float] = ContextVar("deadline")


class TemplateFailed(Exception):
    """The template refused its input, is wrong in itself, or went over a limit."""


def render(source: str, variables: Mapping[str, object]) -> str:
    """Render the template `source`.

    Raises:
        TemplateFailed: saying why, in words that go into a message.
    """
    token = _deadline.set(time.monotonic() + MAX_SECONDS)
    pieces: list[str] = []
    room = MAX_OUTPUT_CHARACTERS
    try:
        for piece in _compile(source).generate(variables):
            room -= len(piece)
            if room < 0:
                raise TemplateFailed(f"it writes more than {MAX_OUTPUT_CHARACTERS} characters")
            pieces.append(piece)
    # what an expression in a template can raise, besides jinja's own
    except (
        jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError, TypeError,
        ValueError,
    ) as error:  # fmt: skip
        raise TemplateFailed(str(error) or type(error).__name__) from None
    finally:
        _deadline.reset(token)
    return "".join(pieces)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**"})

    def tick(self) -> None:
        if time.monotonic() > _deadline.get():
            raise TemplateFailed(f"it takes longer than {MAX_SECONDS:g} s")

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        # A loop or a recursive macro may never write anything, so each turn of either looks at the clock.
        tree = super()._parse(source, name, filename)
        _Bounding().visit(tree)
        blocks: list[nodes.For | nodes.Macro] = [*tree.find_all(nodes.For), *tree.find_all(nodes.Macro)]
        for block in blocks:
            call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            block.body.insert(0, nodes.ExprStmt(call).set_lineno(block.lineno))
        return tree

    def bounded(self, text: str) -> str:
        if len(text) > MAX_OUTPUT_CHARACTERS:
            raise TemplateFailed(f"it puts together more than {MAX_OUTPUT_CHARACTERS} characters")
        return text

    def call(self, context: Context, obj: object, /, *arguments: object, **named: object) -> object:
        if any(isinstance(value, int) and _size(value) > MAX_OUTPUT_CHARACTERS for value in arguments):
            raise TemplateFailed("it calls for something huge")
        return super().call(context, obj, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        # 'x' * 10**9 and 9 ** 9**9 would fill the memory in one step, between two looks at the clock.
        if operator != "+":
            huge = _size(left) * _size(right) > MAX_OUTPUT_CHARACTERS
            if huge or (operator == "**" and isinstance(right, int) and abs(right) > 64):
                raise TemplateFailed(f"it computes {operator} with huge operands")
        elif isinstance(left, str | list | tuple) and _size(left) + _size(right) > MAX_OUTPUT_CHARACTERS:
            raise TemplateFailed(f"it puts together more than {MAX_OUTPUT_CHARACTERS} characters")
        return super().call_binop(context, operator, left, right)


class _Bounding(NodeTransformer):
    """Puts every `~` through `bounded`: a loop that doubles a text would fill the memory before its time is up."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - jinja2 calls it by this name
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("bounded"), [node], [], None, None).set_lineno(node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's words in some templates; it changes nothing in the text."""

    tags = {"generation"}  # noqa: RUF012 - declared so by jinja2

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _size(value: object) -> int:
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, str | list | tuple) else 1


@lru_cache(maxsize=32)
def _compile(source: str) -> jinja2.Template:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: now().astimezone().strftime(form)
    return environment.from_string(source)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes for HTML
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
