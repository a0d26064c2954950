"""`modelworks`: the list of commands, and how every end of one becomes an exit code."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

import click

import modelworks
from modelworks.cli import exporting, generating, host, jobs, merging, run, searching, serving, show, talk
from modelworks.cli.options import Group, Session
from modelworks.core import errors

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
EXIT_PIPE_CLOSED = 141
# The first that fits; anything else of the tree is a failure.
EXIT_CODES: tuple[tuple[type[errors.ModelworksError], int], ...] = (
    (errors.OutOfSpace, EXIT_FAILED),
    (errors.Invalid, EXIT_USAGE),
    (errors.Unavailable, 3),
    (errors.NotFound, 4),
    (errors.Conflict, 5),
)


@click.group(
    cls=Group,
    name="modelworks",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    example=("modelworks pull smollm2-135m", "modelworks chat smollm2-135m", "modelworks COMMAND --help"),
)
@click.version_option(modelworks.__version__, prog_name="modelworks")
def cli() -> None:
    """Fine-tune, merge, evaluate and serve small language models.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cannot bind or reach, 4 not found, 5 conflict, 130 Ctrl-C.
    """


for command in (
    host.serve, run.pull, show.upload, run.train, merging.merge, run.evaluate, talk.chat, generating.generate,
    exporting.export, jobs.jobs, show.models, show.datasets, host.doctor, host.config,
):  # fmt: skip
    cli.add_command(command)
for command in (serving.list_served, serving.load_model, serving.unload_model):
    show.models.add_command(command)
merging.merge.add_command(searching.search)


def run_command(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    session = Session()
    try:
        code = cli.main(list(arguments), prog_name="modelworks", standalone_mode=False, obj=session)
        sys.stdout.flush()
    except errors.ModelworksError as error:
        _complain(session, error.code, error.message, error.problems)
        return next((code for kind, code in EXIT_CODES if isinstance(error, kind)), EXIT_FAILED)
    except click.UsageError as error:
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        # click reads options in order: one that failed may stand before --json.
        session.json = session.json or "--json" in arguments
        _complain(session, "usage", error.format_message().rstrip(".") + where, ())
        return EXIT_USAGE
    except click.ClickException as error:
        _complain(session, "error", error.format_message(), ())
        return EXIT_FAILED
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Python flushes stdout once more at its end, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except OSError as error:
        # A file without rights, a disk that broke: nothing of ours to be traced.
        logging.getLogger(__name__).debug("failed", exc_info=True)
        _complain(session, "os_error", f"{error.filename or 'the system'}: {error.strerror or error}", ())
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _complain(session: Session, code: str, message: str, problems: tuple[errors.Problem, ...]) -> None:
    if session.json:
        body = {"error": {"code": code, "message": message, "problems": [each.body for each in problems]}}
        click.echo(json.dumps(body, ensure_ascii=False), err=True)
        return
    if problems and all(each.what in message for each in problems):
        # The message holds every problem in one line: one is said once, several are listed instead.
        message = message if len(problems) == 1 else _head(message, problems)
        problems = problems[1:] and problems
    click.echo(f"modelworks: {message}", err=True)
    for problem in problems:
        click.echo(f"  {problem}", err=True)


def _head(message: str, problems: tuple[errors.Problem, ...]) -> str:
    """What a message says before it lists its problems."""
    starts = [message.find(text) for text in (str(problems[0]), problems[0].what) if text in message]
    return message[: min(starts)].rstrip(": ") or f"{len(problems)} things are wrong"


def main() -> None:
    code = run_command(sys.argv[1:])
    if "torch" not in sys.modules:
        sys.exit(code)
    # Taking torch apart object by object takes longer than a small merge.
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
