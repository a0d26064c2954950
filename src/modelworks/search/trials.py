"""What was tried: one line of a file each, so that a search that was killed goes on behind the last whole one."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from modelworks.core.nouns import JsonObject


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A point of the space, and what the merge there was measured to be. Number 0 is the recipe as it stands."""

    number: int
    point: JsonObject
    # By dataset and column; empty if it failed, then `problem` says why.
    measured: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: float
    problem: str = ""


class TrialLog:
    """Every trial that ended, in order. `digest` is of what is being searched: what belongs to another is dropped."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self.trials: list[Trial] = []
        first, *lines = path.read_text(encoding="utf-8").split("\n") if path.is_file() else [""]
        if first == digest:
            # A line without its end may be cut short.
            self.trials = [Trial(**json.loads(line)) for line in lines[:-1]]
        kept = [digest, *(_line(trial) for trial in self.trials)]
        fresh = path.with_suffix(".new")
        fresh.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        fresh.replace(path)

    def append(self, trial: Trial) -> None:
        """Note a trial; it is on the disk when this returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.trials.append(trial)


def _line(trial: Trial) -> str:
    return json.dumps(asdict(trial))
