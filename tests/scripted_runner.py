"""A runner that does what its spec says, through the real runner code: for tests that kill and restart things.

Spec: {"steps": n, "step_seconds": s, "die_at": step or null, "publish": name or null, "stubborn": bool,
"die_pausing": bool, "fill_disk": bool}. It keeps its step in a checkpoint, so that a second run goes on where the
first was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from modelworks.core.context import JobContext
from modelworks.core.errors import DiskFull, Invalid
from modelworks.core.nouns import ArtifactKind, Draft, JsonObject
from modelworks.jobs.folder import JobFolder, RunOrder
from modelworks.jobs.runner import run_job


def execute(order: RunOrder, job: JobContext) -> JsonObject:
    spec = order.spec
    if spec.get("stubborn"):
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
    mark = job.checkpoints / "step"
    first = int(mark.read_text()) + 1 if mark.exists() else 1
    for step in range(first, int(str(spec["steps"])) + 1):
        time.sleep(float(str(spec.get("step_seconds", 0.01))))
        if spec.get("die_pausing") and job.pausing:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            job.metric(step, loss=1.0 / step)
        finally:
            _replace(mark, str(step))
        if spec.get("die_at") == step:
            os.kill(os.getpid(), signal.SIGKILL)
    if spec.get("fill_disk") and first == 1:
        raise DiskFull("the disk is full: 9 bytes needed, 1 free")
    if spec.get("refuse"):
        raise Invalid("this spec asks to be refused")
    if spec.get("publish"):
        folder = job.stage("data")
        (folder / "train.jsonl").write_text('{"text": "a"}\n')
        facts: JsonObject = {"format": "text", "columns": ["text"], "train_rows": 1, "validation_rows": 0}
        job.publish(Draft(kind=ArtifactKind.DATASET, name=str(spec["publish"]), folder=folder, facts=facts))
    return {"first_step": first}


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: whoever kills this process may do so at any moment."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.rename(path)


if __name__ == "__main__":
    run_job(JobFolder(Path(sys.argv[1])), lambda _inputs: {}, execute)
