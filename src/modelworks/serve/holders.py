"""Why a model could not be loaded, where the machine and not the model is to blame: no room, and who has it."""

from __future__ import annotations

import os
import subprocess

from modelworks.core.errors import OutOfMemory
from modelworks.core.generation import EngineFailed, Failed
from modelworks.serve.engine import EngineSpec

_ASKED = ("--query-compute-apps=process_name,pid,used_gpu_memory", "--format=csv,noheader")


def no_room(spec: EngineSpec, error: Exception) -> Failed | None:
    """What to tell of an error of torch while loading; None if it is another one."""
    import torch

    full = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
    if not full and not isinstance(error, torch.AcceleratorError):
        return None
    who = ", ".join(holders(spec.device)) or "nobody that can be seen from here"
    why = str(error).partition("\n")[0] or "out of memory"
    held = f"{spec.device} is held by {who}" if spec.device != "cpu" else "the memory of this machine is taken"
    remedy = "end that, unload a model, or choose another device"
    kind = OutOfMemory if full else EngineFailed
    return Failed(kind.code, f"{spec.model_name} cannot be loaded: {why}; {held}: {remedy}")


def holders(device: str) -> list[str]:
    """The other processes that compute on a GPU, as far as the driver tells."""
    import torch

    try:
        card = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
        said = subprocess.run(["nvidia-smi", card, *_ASKED], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, RuntimeError, ValueError, AssertionError, subprocess.SubprocessError):
        return []
    rows = [line.rsplit(", ", 2) for line in said.stdout.splitlines()]
    return [f"{row[0]} (process {row[1]}, {row[2]})" for row in rows if len(row) == 3 and row[1] != str(os.getpid())]
