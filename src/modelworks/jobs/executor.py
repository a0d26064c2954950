"""The protocol of an executor: it starts runners, tells whether they live, and stops them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from modelworks.jobs.folder import JobFolder


class Executor(Protocol):
    def start(self, folder: JobFolder) -> None:
        """Start the runner for the order in the folder. Returns at once; the runner holds the folder's lock."""

    def is_alive(self, folder: JobFolder) -> bool:
        """Whether the run in this folder goes on, whoever started it."""

    def exit_code(self, folder: JobFolder) -> int | None:
        """How the last run in this folder ended, negative for a signal; None where another server started it."""

    def ask_to_stop(self, folder: JobFolder, *, pause: bool) -> None:
        """Let the runner end by itself, in order; for a pause it may first write down what it has reached."""

    def kill(self, folder: JobFolder) -> None:
        """End every process of the run, now."""


@dataclass(frozen=True)
class ExecutorKind:
    """A plug-in. `make` takes the command line of a runner, to which the folder is added, and its environment."""

    name: str
    make: Callable[[tuple[str, ...], Mapping[str, str]], Executor]
