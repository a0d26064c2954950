"""How an answer is drawn, as options of a command."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from modelworks.cli.options import keep, options

DEFAULT_MAX_TOKENS = 512


def sampling_options(temperature: float, longest: str) -> Callable[..., Any]:
    """Options that `given` makes fields of a request of; `longest` says what holds without --max-tokens."""
    return options(
        click.option(
            "--engine", metavar="NAME", expose_value=False, callback=keep,
            help="Where no server runs: auto, native, vllm, openvino or llama_server.  [default: auto]",
        ),
        click.option(
            "--quantization", type=click.Choice(["none", "int8"]), expose_value=False, callback=keep,
            help="Where no server runs: keep weights in a byte each.  [default: none]",
        ),
        click.option("--max-tokens", type=int, show_default=longest, metavar="N", help="Longest answer."),
        click.option(
            "--temperature", type=float, default=temperature, show_default=True, metavar="X", help="0: the likeliest."
        ),
        click.option("--top-p", type=float, metavar="X", help="Choose among the likeliest tokens of this share."),
        click.option("--top-k", type=int, metavar="N", help="Choose among the N likeliest tokens."),
        click.option("--seed", type=int, metavar="N", help="The same seed gives the same answer."),
        click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text."),
    )  # fmt: skip


def given(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in sampling.items() if value not in (None, ())}
