"""`generate`: answers to a file of prompts, as many at once as the engine takes, gone on with after a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from modelworks.cli import render
from modelworks.cli.options import Command, Session, pass_session
from modelworks.cli.sampling import DEFAULT_MAX_TOKENS, given, sampling_options
from modelworks.core.errors import Conflict, Invalid, ModelworksError, NotFound, Unsupported

if TYPE_CHECKING:
    from modelworks.cli.answers import Answer, Body

EXIT_BAD_ROWS = 1


@click.command(
    cls=Command, name="generate", short_help="Answer one prompt, or a file of them.",
    example=(
        "modelworks generate smollm2-135m --prompt 'Name three colours'",
        "modelworks generate smollm2-135m < prompts.jsonl > answers.jsonl",
        "modelworks generate --model mine/shell --prompts prompts.jsonl --out answers.jsonl",
    ),
)  # fmt: skip
@click.argument("model", required=False)
@click.option("--model", "named", metavar="MODEL", help="The same as the argument; rows of a batch may name their own.")
@click.option("--prompt", metavar="TEXT", help="One prompt; the answer is printed as text.")
@click.option(
    "--prompts", "--file", "prompts", metavar="FILE",
    help='JSON lines: "TEXT", {"prompt": ...}, {"messages": [...]}, or an OpenAI batch; - is stdin.',
)  # fmt: skip
@click.option("--out", metavar="FILE", help="Where the answers go; a run that was ended goes on from there.")
@click.option("--system", metavar="TEXT", help="What the model is told before each prompt.")
@click.option("--raw", is_flag=True, help="Go on from the prompt as it stands, without the chat template.")
@sampling_options(temperature=0.0, longest=str(DEFAULT_MAX_TOKENS))
@pass_session
def generate(
    session: Session, model: str | None, named: str | None, prompt: str | None, prompts: str | None, out: str | None,
    system: str | None, raw: bool, **sampling: Any,
) -> int:  # fmt: skip
    """Answer one prompt, or a file of them as JSON lines in the order asked, decoded together.

    Each line has the row's own keys, its index, and the answer, finish_reason and usage; or an error, where the row
    was none (exit code 1 at the end). Beside --out FILE stands FILE.inputs, which knows what was asked.
    """
    if prompt is not None and prompts is not None:
        raise Invalid("say either --prompt TEXT or --prompts FILE")
    if model and named and model != named:
        raise click.UsageError(f"MODEL is {model}, --model is {named}: name one")
    lines = [json.dumps(prompt).encode()] if prompt is not None else _read(prompts)
    same = {"max_tokens": DEFAULT_MAX_TOKENS} | given(sampling)
    asking = Asking(model or named, same, system, raw)
    if prompt is not None and out is None and not session.json:
        return _print_one(session, asking, lines[0])
    with open_out(out, asking, lines) as answers:
        _answer_all(session, asking, lines, answers)
    return EXIT_BAD_ROWS if answers.failed else 0


@dataclass(frozen=True)
class Asking:
    """What is the same for every row."""

    model: str | None
    sampling: Mapping[str, Any]
    system: str | None
    raw: bool

    def body(self, number: int, line: bytes) -> Body | Invalid:
        """The request that a line makes, or what is wrong with it."""
        try:
            row = _row(line)
            body = {**self.sampling, **self._asked(row)}
        except (ValueError, Invalid) as error:
            what = error.message if isinstance(error, Invalid) else f"is not JSON: {error}"
            return Invalid(f"row {number} {what}")
        if not body.get("model"):
            return Invalid(f"row {number} names no model, and there is no --model")
        return body

    def _asked(self, row: Mapping[str, Any]) -> dict[str, Any]:
        model = {"model": self.model} if self.model else {}
        if isinstance(row.get("body"), dict):
            if "messages" not in row["body"] and "prompt" not in row["body"]:
                raise Invalid("is neither a chat nor a completion")
            streaming = {"stream", "stream_options"}
            return {key: value for key, value in row["body"].items() if key not in streaming} | model
        messages, prompt = row.get("messages"), row.get("prompt")
        if self.raw and isinstance(prompt, str):
            return {"prompt": prompt, **model}
        if messages is None and isinstance(prompt, str):
            messages = [{"role": "user", "content": prompt}]
        if self.raw or not isinstance(messages, list):
            raise Invalid('is neither {"prompt": TEXT} nor {"messages": [...]}' if not self.raw else "has no prompt")
        before = [{"role": "system", "content": self.system}] if self.system else []
        return {"messages": before + messages, **model}


def _row(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    if isinstance(row, str):
        return {"prompt": row}
    if not isinstance(row, dict):
        raise Invalid("is neither an object nor a text")
    return row


def _read(prompts: str | None) -> list[bytes]:
    if prompts is None and sys.stdin.isatty():
        raise Invalid("there are no prompts: say --prompt TEXT or --prompts FILE, or send them on stdin")
    if prompts in (None, "-"):
        content = sys.stdin.buffer.read()
    elif prompts and Path(prompts).is_file():
        content = Path(prompts).read_bytes()
    else:
        raise NotFound(f"there is no file {prompts}")
    lines = [line for line in content.splitlines() if line.strip()]
    if not lines:
        raise Invalid(f"{prompts or 'stdin'} holds no prompts")
    return lines


def _print_one(session: Session, asking: Asking, line: bytes) -> int:
    from modelworks.cli.answers import open_answerer

    body = asking.body(0, line)
    if isinstance(body, Invalid):
        raise body
    with open_answerer(session, [body["model"]]) as answerer:
        answerer.ask(body, lambda text: click.echo(text, nl=False))
        click.echo()
    return 0


def _answer_all(session: Session, asking: Asking, lines: Sequence[bytes], answers: Answers) -> None:
    from modelworks.cli.answers import Answer, open_answerer

    begun, first, tokens = time.monotonic(), answers.count, 0
    if first == len(lines):
        session.say(f"all {first} rows are answered")
        return
    if first:
        session.say(f"going on behind {first} of {len(lines)} rows")
    bodies = (asking.body(number, line) for number, line in enumerate(lines[first:], start=first))
    with ExitStack() as stack:
        answerer = stack.enter_context(open_answerer(session, [asking.model] if asking.model else []))
        tell = stack.enter_context(_progress(session, len(lines)))
        for answer in answerer.ask_all(bodies):
            number = answers.count
            answers.write(answer_line(number, lines[number], asking.model, answer))
            answers.failed += not isinstance(answer, Answer)
            tokens += getattr(answer, "completion_tokens", None) or 0
            tell(answers.count, tokens / (time.monotonic() - begun))
    took = time.monotonic() - begun
    wrong = f", {answers.failed} of them with an error" if answers.failed else ""
    told = f"{len(lines) - first} rows in {render.duration(took)}{wrong}: {tokens} tokens, {tokens / took:.0f} a second"
    session.say(told)


def answer_line(number: int, line: bytes, model: str | None, answer: Answer | Invalid | Unsupported) -> bytes:
    """The row's own keys, and what came of it; an own key of one of our names is kept as `input_KEY`."""
    ours: dict[str, Any]
    if isinstance(answer, ModelworksError):
        ours = {"error": {"code": answer.code, "message": answer.message}}
    else:
        read, written = answer.prompt_tokens or 0, answer.completion_tokens or 0
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        ours = {"answer": answer.text, "finish_reason": answer.finish_reason, "usage": usage}
        if answer.tool_calls:
            ours["tool_calls"] = answer.tool_calls
    try:
        row = _row(line)
    except (ValueError, Invalid):
        row = {}
    if isinstance(row.get("body"), dict):
        model = model or row["body"].get("model")
        row = {key: value for key, value in row.items() if key not in {"body", "method", "url"}}
    ours = {"index": number, "model": model, **ours}
    own = {f"input_{key}" if key in ours else key: value for key, value in row.items()}
    return json.dumps({"index": number, **own, **ours}, ensure_ascii=False).encode() + b"\n"


@dataclass
class Answers:
    """Lines that were written, here and by runs before."""

    descriptor: int
    count: int = 0
    failed: int = 0

    def write(self, line: bytes) -> None:
        left = memoryview(line)
        while left:
            left = left[os.write(self.descriptor, left) :]
        self.count += 1


@contextmanager
def open_out(out: str | None, asking: Asking, lines: Sequence[bytes]) -> Iterator[Answers]:
    """Have a place for the answers to `lines`; a file keeps the whole lines it has.

    Raises:
        Conflict: the file is of another input, or another run writes to it.
    """
    if out in (None, "-"):
        yield Answers(sys.stdout.fileno())
        return
    path, inputs = Path(str(out)), Path(f"{out}.inputs")
    settings = json.dumps([asking.model, dict(asking.sampling), asking.system, asking.raw])
    digest = hashlib.sha256(b"\n".join([settings.encode(), *lines])).hexdigest()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Conflict(f"another run writes to {path}; wait for it, or choose another --out") from None
        content = path.read_bytes()
        if content and not (inputs.exists() and inputs.read_text().split() == [digest]):
            raise Conflict(
                f"{path} does not hold answers to this input, model and settings; give it another name with --out, "
                f"or remove it"
            )
        inputs.write_text(digest + "\n")
        end = content.rfind(b"\n") + 1
        os.ftruncate(descriptor, end)
        os.lseek(descriptor, end, os.SEEK_SET)
        written = content[:end].splitlines()
        yield Answers(descriptor, len(written), sum("error" in json.loads(line) for line in written))
    finally:
        os.close(descriptor)


@contextmanager
def _progress(session: Session, total: int) -> Iterator[Any]:
    """A bar on a terminal's stderr; call it with the rows done and the tokens a second."""
    if session.quiet or not sys.stderr.isatty():
        yield lambda _done, _rate: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[rate]:.0f} tokens/s"))
    with Progress(*columns, console=render.console(sys.stderr)) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        yield lambda done, rate: progress.update(task, completed=done, rate=rate)
