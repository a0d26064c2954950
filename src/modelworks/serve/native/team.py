"""Whether the engine computes by kernels of its own, which then use the threads that torch computes with."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch

from modelworks.core import kernels


def has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for what is computed there and so."""
    return device.type == "cpu" and dtype == torch.float32 and find_team()


@cache
def find_team() -> bool:
    """Tell the kernels of torch's threads; False if this processor has no kernels, or torch another OpenMP."""
    found = [*Path(torch.__path__[0], "lib").glob("libgomp*")]
    if not (found and kernels.has("multiply")):
        return False
    openmp = ctypes.CDLL(str(found[0]))
    functions = (openmp.GOMP_parallel, openmp.omp_get_thread_num, openmp.omp_get_num_threads)
    kernels.call("team", *(ctypes.cast(each, ctypes.c_void_p).value or 0 for each in functions))
    return True
