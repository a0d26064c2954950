"""What is computed at once: a batch in pieces that memory holds, finer ones once it did not."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelworks.store.files import write_atomically

# Tokens, rows times the longest, that are computed at once at first. More make a CPU slower, not faster.
FIRST_TOKENS = {"cpu": 896, "cuda": 32_768}
# A process that held so much of the machine when it vanished was ended for it.
NEARLY_ALL = 0.8
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "t allocate memory", "bad_alloc", "CUDNN_STATUS_ALLOC_FAILED")


@dataclass
class Budget:
    """How much fits, as far as is known; kept beside the checkpoints, so that no run learns it twice."""

    path: Path
    tokens: int
    checkpointing: bool = False
    # A run goes on, or was cut without a word.
    open: bool = False
    peak_bytes: int = 0
    kernel_kills: int = 0

    @classmethod
    def read(cls, path: Path, tokens: int) -> Budget:
        known: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {"tokens": tokens}
        return cls(path, **known)

    def begin(self) -> bool:
        """Note that a run begins; whether the one before was ended by the kernel for its memory."""
        kills = _kernel_kills()
        killed = self.open and (kills > self.kernel_kills or self.peak_bytes > NEARLY_ALL * memory_bytes())
        self.open, self.peak_bytes, self.kernel_kills = True, 0, kills
        self.save()
        return killed

    def end(self) -> None:
        self.open = False
        self.save()

    def watch(self) -> None:
        """Note how much memory the process holds, where that has grown."""
        import psutil

        held = psutil.Process().memory_info().rss
        if held > 1.1 * self.peak_bytes:
            self.peak_bytes = held
            self.save()

    def save(self) -> None:
        known = asdict(self)
        del known["path"]
        write_atomically(self.path, json.dumps(known).encode())


def split(inputs: Mapping[str, Any], tokens: int, *, paired: bool = False) -> list[tuple[dict[str, Any], float]]:
    """Divide a batch into pieces of at most `tokens`, rows of like length together, the longest first.

    Args:
        inputs: with `lengths`, one a row, where the rows are padded; else each row is as wide as the batch.
        paired: the second half of the rows belongs to the first, row by row, and stays with it.

    Returns:
        Each piece, and which share of the rows it holds. What is no row is in every piece.
    """
    rows, width = inputs["input_ids"].shape[:2]
    lengths = inputs.get("lengths") or [width] * rows
    units = rows // 2 if paired else rows
    longest = [max(lengths[unit], lengths[unit + units]) if paired else lengths[unit] for unit in range(units)]
    waiting = sorted(range(units), key=lambda unit: (-longest[unit], unit))
    pieces = []
    while waiting:
        wide = longest[waiting[0]]
        many = max(1, tokens // (wide * (2 if paired else 1)))
        chosen, waiting = waiting[:many], waiting[many:]
        if len(chosen) == units:
            return [(dict(inputs), 1.0)]
        at = [*chosen, *(unit + units for unit in chosen)] if paired else chosen
        pieces.append(({key: _cut(value, at, chosen, rows, wide) for key, value in inputs.items()}, len(at) / rows))
    return pieces


def cost(inputs: Mapping[str, Any]) -> int:
    """Tokens of a piece, with what fills it up."""
    rows, width = inputs["input_ids"].shape[:2]
    return int(rows * max(inputs.get("lengths") or [width]))


def ran_out_of_memory(error: BaseException) -> bool:
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def release() -> None:
    """Give back what a computation that failed had taken."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def memory_bytes() -> int:
    """What the machine, or the container around us, lets processes hold."""
    import psutil

    total = int(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _cut(value: Any, at: list[int], units: list[int], rows: int, width: int) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.ndim:
        kept = value[at] if len(value) == rows else value[units] if len(value) * 2 == rows else value
        return kept[:, :width] if kept.ndim > 1 else kept
    if isinstance(value, list) and len(value) in {rows, rows // 2}:
        return [value[row] for row in (at if len(value) == rows else units)]
    return value


def _kernel_kills() -> int:
    """How many processes the kernel has ended for want of memory since the machine started."""
    for path, key in ((Path("/sys/fs/cgroup/memory.events"), "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        if path.is_file():
            found = [line.split()[1] for line in path.read_text().splitlines() if line.split()[:1] == [key]]
            if found:
                return int(found[0])
    return 0
