"""How an answer is drawn, as options of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import click

from modelworks.cli.options import keep

Decorated: TypeAlias = Callable[..., Any]
DEFAULT_MAX_TOKENS = 512


def sampling_options(temperature: float, longest: str) -> Callable[[Decorated], Decorated]:
    """Options that `given` makes fields of a request of; `longest` says what holds without --max-tokens."""
    options = (
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
        click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer."),
        click.option("--top-k", type=int, metavar="N", help="Choose among the N likeliest tokens."),
        click.option("--top-p", type=float, metavar="X", help="Choose among the likeliest tokens of this share."),
        click.option(
            "--temperature", type=float, default=temperature, show_default=True, metavar="X", help="0: the likeliest."
        ),
        click.option("--max-tokens", type=int, show_default=longest, metavar="N", help="Longest answer."),
        click.option(
            "--engine", metavar="NAME", expose_value=False, callback=keep,
            help="Where no server runs: auto, native, vllm, openvino or llama_server.  [default: auto]",
        ),
    )  # fmt: skip

    def add(command: Decorated) -> Decorated:
        for option in options:
            command = option(command)
        return command

    return add


def given(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sampling.items() if value not in (None, ())}
