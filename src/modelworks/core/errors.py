"""The one tree of errors: what was found, where, and what to do next.

Status codes and exit codes are chosen from these classes, once, in `server/errors.py` and `cli/main.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


class ModelworksError(Exception):
    """Anything a user can cause or cure. `code` is stable and documented; the message may change."""

    code = "error"

    def __init__(self, message: str, *, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Problem:
    """One of several things that are wrong at once, e.g. one row of a file or one tensor of a merge.

    `code`, where there is one, is stable and tells kinds of problems apart.
    """

    where: str
    what: str
    remedy: str = ""
    code: str = ""

    @property
    def body(self) -> dict[str, str]:
        """As JSON, for programs."""
        return {"where": self.where, "what": self.what, "remedy": self.remedy} | (
            {"code": self.code} if self.code else {}
        )

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f" ({self.remedy})" if self.remedy else "")


class Invalid(ModelworksError):
    """The request cannot be meant: a wrong value, an unknown key, inputs that do not fit together."""

    code = "invalid"


class NotFound(ModelworksError):
    """No such model, dataset, job or file."""

    code = "not_found"


class Conflict(ModelworksError):
    """It exists already, or its state does not allow this."""

    code = "conflict"


class Denied(ModelworksError):
    """Known, but not allowed: a path outside the roots, a missing key, a foreign origin."""

    code = "denied"


class Unavailable(ModelworksError):
    """Right, but not now: busy, starting, offline."""

    code = "unavailable"

    def __init__(self, message: str, *, retry_after_seconds: int = 5, problems: tuple[Problem, ...] = ()) -> None:
        super().__init__(message, problems=problems)
        self.retry_after_seconds = retry_after_seconds


class TooLarge(Invalid):
    """A body, a file or a prompt over its limit."""

    code = "too_large"


class DeadlinePassed(Unavailable):
    """The time the request had is over."""

    code = "deadline_passed"


class OutOfSpace(Unavailable):
    """The disk is full, or would be."""

    code = "out_of_space"


class DiskFull(OutOfSpace):
    """The disk became full under a run that can go on from where it is: its job is paused, not failed."""

    code = "disk_full"


class Unsupported(ModelworksError):
    """Right, but not by this build, this machine or this model."""

    code = "unsupported"


class OutOfMemory(Unsupported):
    """It takes more memory than there is."""

    code = "out_of_memory"


class UnsafeFormat(Invalid):
    """A file that could run code when loaded: a pickle, a Python file, an `auto_map`."""

    code = "unsafe_format"


class Cancelled(Exception):
    """Raised inside a run when its job is to stop; unwinds to the runner, which writes the outcome."""
