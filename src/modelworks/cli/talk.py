"""`chat` and `generate`: answers from a model, in a conversation or by the file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelworks.cli import render
from modelworks.cli.options import Command, Session, pass_session
from modelworks.core.errors import Invalid, NotFound, Problem

if TYPE_CHECKING:
    from modelworks.cli.answers import Answerer, Question

Decorated = Callable[..., Any]
Obey: TypeAlias = Callable[[str], bool]
_no_order: Obey = lambda _line: False  # noqa: E731  of the type of any other that a conversation may have


def sampling_options(temperature: float) -> Callable[[Decorated], Decorated]:
    def add(command: Decorated) -> Decorated:
        for option in (
            click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
            click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer."),
            click.option("--top-k", type=int, metavar="N", help="Choose among the N likeliest tokens."),
            click.option("--top-p", type=float, metavar="X", help="Choose among the likeliest tokens of this share."),
            click.option(
                "--temperature",
                type=float,
                default=temperature,
                show_default=True,
                metavar="X",
                help="0: the likeliest.",
            ),
            click.option("--max-tokens", type=int, default=512, show_default=True, metavar="N", help="Longest answer."),
        ):
            command = option(command)
        return command

    return add


def _given(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sampling.items() if value not in (None, ())}


@click.command(
    cls=Command, name="chat", short_help="Talk with a model.",
    example=(
        "modelworks chat smollm2-135m",
        "modelworks chat mine/shell 'List big files' --temperature 0",
        "modelworks chat --merge recipe.yaml",
    ),
)  # fmt: skip
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--merge", "recipe", metavar="RECIPE.yaml", help="Instead of MODEL: merge in memory, and talk with that.")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@sampling_options(temperature=0.7)
@pass_session
def chat(
    session: Session, model: str | None, prompt: str | None, recipe: str | None, system: str | None, **sampling: Any
) -> None:
    """Talk with a model, or get one answer to PROMPT (or to what comes in on stdin).

    In a conversation Ctrl-C stops an answer, /clear forgets what was said, Ctrl-D leaves. With --merge nothing is
    written to the disk, and /set changes a coefficient of the recipe between two answers; /save NAME keeps the result.
    """
    from modelworks.cli.answers import open_answerer

    if recipe is not None:
        if prompt is not None:
            raise click.UsageError("--merge stands for MODEL: give at most a PROMPT beside it")
        model, prompt = None, model
    elif model is None:
        raise click.UsageError("name a MODEL, or a recipe with --merge")
    before = [{"role": "system", "content": system}] if system else []
    interactive = prompt is None and sys.stdin.isatty()
    if not interactive:
        prompt = sys.stdin.read().strip() if prompt is None else prompt
        if not prompt:
            raise Invalid("there is no prompt: write it behind the model's name, or send it on stdin")
    with ExitStack() as stack:
        name, obey = str(model), _no_order
        if recipe is not None:
            answerer, name, obey = _live(session, recipe, _given(sampling), stack)
        else:
            answerer = stack.enter_context(open_answerer(session, name, _given(sampling), bare=False))
        if prompt is not None:
            _answer_once(session, answerer, name, [*before, {"role": "user", "content": prompt}])
        else:
            _converse(session, answerer, name, before, obey)


def _live(session: Session, recipe: str, sampling: Mapping[str, Any], stack: ExitStack) -> tuple[Answerer, str, Obey]:
    """Merge in memory: who answers, its name, and what the conversation may order."""
    from modelworks.app.folder_merging import read_merge
    from modelworks.cli.answers import open_live
    from modelworks.cli.live import LiveRecipe, live_name
    from modelworks.cli.spec_flags import read_spec_file

    body, notes = read_merge(read_spec_file(recipe))
    for note in notes:
        session.say(f"note: {note}")
    name = live_name(body)
    answerer = stack.enter_context(open_live(session, name, sampling))
    live = LiveRecipe(session, answerer, name, body)
    live.make(body)
    return answerer, name, live.obey


def _answer_once(session: Session, answerer: Answerer, model: str, messages: list[dict[str, str]]) -> None:
    from modelworks.cli.answers import Question

    question = Question(messages=tuple(messages))
    if session.json:
        render.print_json({"model": model, **vars(answerer.ask(question, lambda _text: None))})
        return
    answerer.ask(question, _write)
    click.echo()


def _converse(session: Session, answerer: Answerer, model: str, before: list[dict[str, str]], obey: Obey) -> None:
    import readline  # noqa: F401 - gives input() its history and line editing

    session.say(f"{model}: Ctrl-C stops an answer, /clear forgets, Ctrl-D leaves")
    if obey is not _no_order:
        from modelworks.cli.live import ORDERS

        session.say(ORDERS)
    messages = list(before)
    while True:
        try:
            asked = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            click.echo()
            return
        if asked == "/clear":
            messages = list(before)
        elif asked and not obey(asked):
            messages.append({"role": "user", "content": asked})
            messages.append({"role": "assistant", "content": _stream(answerer, messages)})


def _stream(answerer: Answerer, messages: list[dict[str, str]]) -> str:
    """One answer, written as it comes; what was said before Ctrl-C counts as said."""
    from modelworks.cli.answers import Question

    pieces: list[str] = []

    def tell(text: str) -> None:
        pieces.append(text)
        _write(text)

    try:
        answerer.ask(Question(messages=tuple(messages)), tell)
    except KeyboardInterrupt:
        click.echo(" ...", nl=False)
    click.echo()
    return "".join(pieces)


def _write(text: str) -> None:
    click.echo(text, nl=False)
    sys.stdout.flush()


@click.command(
    cls=Command, name="generate", short_help="Answer one prompt, or a file of them.",
    example=(
        "modelworks generate smollm2-135m --prompt 'Name three colours'",
        "modelworks generate mine/shell --file prompts.jsonl > answers.jsonl",
    ),
)  # fmt: skip
@click.argument("model")
@click.option("--prompt", metavar="TEXT", help="One prompt; the answer is printed as text.")
@click.option("--file", metavar="FILE", help='JSON lines: {"prompt": ...} or {"messages": [...]}; - is stdin.')
@click.option("--system", metavar="TEXT", help="What the model is told before each prompt.")
@click.option("--raw", is_flag=True, help="Go on from the prompt as it stands, without the chat template.")
@sampling_options(temperature=0.0)
@pass_session
def generate(
    session: Session, model: str, prompt: str | None, file: str | None, system: str | None, raw: bool, **sampling: Any
) -> None:
    """Answer one prompt, or a file of them as JSON lines in the order asked, decoded together."""
    from modelworks.cli.answers import open_answerer

    if (prompt is None) == (file is None):
        raise Invalid("say either --prompt TEXT or --file FILE")
    rows = [{"prompt": prompt}] if file is None else _read_rows(file)
    questions = [_question(row, system, raw) for row in rows]
    with open_answerer(session, model, _given(sampling), bare=raw) as answerer:
        if file is None and not session.json:
            answerer.ask(questions[0], _write)
            click.echo()
            return
        for row, answer in zip(rows, answerer.ask_all(questions), strict=True):
            render.print_json({**row, "model": model, **vars(answer)})


def _question(row: Mapping[str, Any], system: str | None, raw: bool) -> Question:
    from modelworks.cli.answers import Question

    if raw:
        return Question(prompt=row.get("prompt"))
    before = [{"role": "system", "content": system}] if system else []
    asked = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
    return Question(messages=(*before, *asked))


def _read_rows(file: str) -> list[dict[str, Any]]:
    """The file's questions.

    Raises:
        Invalid: with every line that is none.
    """
    if file != "-" and not Path(file).is_file():
        raise NotFound(f"there is no file {file}")
    text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = []
    problems: list[Problem] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            problems.append(Problem(f"line {number}", f"is not JSON: {error}"))
            continue
        row = {"prompt": row} if isinstance(row, str) else row
        if _is_question(row):
            rows.append(row)
        else:
            problems.append(Problem(f"line {number}", 'is neither {"prompt": TEXT} nor {"messages": [...]}'))
    if problems:
        raise Invalid(f"{file}: {len(problems)} lines are no prompts", problems=tuple(problems))
    if not rows:
        raise Invalid(f"{file} holds no prompts")
    return rows


def _is_question(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    messages = row.get("messages")
    if messages is None:
        return isinstance(row.get("prompt"), str)
    return isinstance(messages, list) and bool(messages) and all(_is_message(each) for each in messages)


def _is_message(each: Any) -> bool:
    return isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
