"""Whether this machine can hold what a merge needs in memory, known before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from modelworks.core.errors import Invalid, Problem
from modelworks.core.nouns import AnyArtifact
from modelworks.merge.estimate import Estimate, estimate
from modelworks.merge.plan import make_plan
from modelworks.merge.spec import MergeSpec

MEMORY = Path("/proc/meminfo")


def check(spec: MergeSpec, inputs: Mapping[str, AnyArtifact], notes: Sequence[str] = ()) -> Estimate:
    """Find everything wrong with a merge before any weight is read; say what it will take.

    Raises:
        Invalid: with one Problem for each thing that is wrong.
    """
    wanted = estimate(make_plan(spec, inputs), 0, spec.device, notes)
    check_memory(wanted, "MemTotal")
    return wanted


def check_memory(wanted: Estimate, of: str = "MemAvailable") -> None:
    """Refuse what cannot be held; what comes through a GPU is not looked at, and neither is a machine without Linux.

    Raises:
        Invalid: with the one problem.
    """
    lines = MEMORY.read_text().splitlines() if MEMORY.is_file() else []
    told = {key: int(value.split()[0]) * 1024 for key, _, value in (line.partition(":") for line in lines)}
    if wanted.device == "cuda" or wanted.memory_bytes <= told.get(of, wanted.memory_bytes):
        return
    problem = Problem(
        "memory",
        f"about {wanted.memory_bytes / 1e9:.1f} GB are needed by {wanted.workers} workers, "
        f"{told[of] / 1e9:.1f} GB {'are free' if of == 'MemAvailable' else 'are all there is'}",
        f"exclude the largest tensors, or choose a method that streams them: {wanted.method} may take them whole",
        "no_memory",
    )
    raise Invalid(str(problem), problems=(problem,))
