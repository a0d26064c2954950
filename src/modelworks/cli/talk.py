"""`chat`: a conversation with a model, or with two beside each other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from modelworks.cli.options import Command, Session, pass_session
from modelworks.cli.sampling import DEFAULT_MAX_TOKENS, given, sampling_options
from modelworks.core.errors import Invalid

if TYPE_CHECKING:
    from modelworks.cli.answers import Answerer
    from modelworks.cli.exchange import Talk

Obey: TypeAlias = Callable[[str], bool]


@click.command(
    cls=Command, name="chat", short_help="Talk with a model.",
    example=(
        "modelworks chat smollm2-135m",
        "modelworks chat smollm2-135m --beside mine/shell --stats",
        "modelworks chat mine/shell 'List big files' --temperature 0",
        "modelworks chat --merge recipe.yaml",
    ),
)  # fmt: skip
@click.argument("model", required=False)
@click.argument("prompt", required=False)
@click.option("--merge", "recipe", metavar="RECIPE.yaml", help="Instead of MODEL: merge in memory, and talk with that.")
@click.option("--beside", metavar="MODEL", help="A second model that answers everything too.")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@click.option("--stats", is_flag=True, help="Tell the speed of each answer.")
@sampling_options(temperature=0.7, longest=f"to the context's end; {DEFAULT_MAX_TOKENS} with a PROMPT")
@pass_session
def chat(
    session: Session, model: str | None, prompt: str | None, recipe: str | None, beside: str | None,
    system: str | None, stats: bool, **sampling: Any,
) -> None:  # fmt: skip
    """Talk with a model, or get one answer to PROMPT (or to what comes in on stdin).

    In a conversation /help lists what can be ordered, Ctrl-C stops an answer, Ctrl-D leaves. A second MODEL in the
    place of PROMPT answers beside the first. With --merge nothing is written to the disk, and /set changes a
    coefficient of the recipe between two answers; /save NAME keeps the result.
    """
    from modelworks.cli.answers import open_answerer
    from modelworks.cli.conversation import Conversation
    from modelworks.cli.exchange import Talk

    if recipe is not None:
        if prompt is not None:
            raise click.UsageError("--merge stands for MODEL: give at most a PROMPT beside it")
        model, prompt = None, model
    elif model is None:
        raise click.UsageError("name a MODEL, or a recipe with --merge")
    is_terminal = sys.stdin.isatty()
    if prompt is None and not is_terminal:
        prompt = sys.stdin.read().strip()
        if not prompt:
            raise Invalid("there is no prompt: write it behind the model's name, or send it on stdin")
    with ExitStack() as stack:
        models, obey = [str(model)] if model else [], None
        if recipe is not None:
            answerer, name, obey = _live(session, recipe, stack)
            models = [name]
        else:
            answerer = stack.enter_context(open_answerer(session, models))
        if is_terminal and prompt and not beside and prompt.split() == [prompt] and prompt in answerer.names():
            beside, prompt = prompt, None
        models += [beside] if beside else []
        talk = Talk(session, answerer, Conversation(models, given(sampling), system), stats)
        if prompt is None:
            _converse(talk, obey)
        else:
            talk.answer_once(prompt)


def _live(session: Session, recipe: str, stack: ExitStack) -> tuple[Answerer, str, Obey]:
    """Merge in memory: who answers, its name, and what the conversation may order."""
    from modelworks.app.folder_merging import read_merge
    from modelworks.cli.answers import open_live
    from modelworks.cli.live import LiveRecipe, live_name
    from modelworks.cli.spec_flags import read_spec_file

    body, notes = read_merge(read_spec_file(recipe))
    for note in notes:
        session.say(f"note: {note}")
    name = live_name(body)
    answerer = stack.enter_context(open_live(session, name))
    live = LiveRecipe(session, answerer.source, name, body)
    live.make(body)
    return answerer, name, live.obey


def _converse(talk: Talk, obey: Obey | None) -> None:
    from modelworks.cli.conversation import ORDERS, Orders
    from modelworks.cli.line_editor import open_editor

    say = talk.session.say
    say(f"{' and '.join(talk.conversation.models)}: /help lists the orders, Ctrl-C stops an answer, Ctrl-D leaves")
    if obey is not None:
        from modelworks.cli.live import ORDERS as LIVE_ORDERS

        say(LIVE_ORDERS)
    orders = Orders(talk.session, talk.conversation, talk.answerer.names, talk.ask)
    read = open_editor(talk.session.settings.home / "chat_history", ORDERS)
    while True:
        try:
            asked = read().strip()
            if asked and not (obey and obey(asked)) and not orders.obey(asked):
                talk.ask(asked)
        except EOFError:
            return
        except KeyboardInterrupt:
            if talk.was_stopped:
                return
            talk.was_stopped = True
            say("Ctrl-C once more leaves, as Ctrl-D does")
