"""Inner loops in C: one pass over memory where numpy's or torch's operations would take many.

`hatch_build.py` compiles them when Modelworks is installed. Every kernel works on numpy's arrays in place; what it does
is written above it in the C file.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelworks.core.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np

_LIBRARY = Path(__file__).with_name("library.so")


def call(name: str, *arguments: np.ndarray[Any, Any] | int) -> int:
    """Run a kernel: arrays are given by their address, numbers as int64.

    Raises:
        Unavailable: the kernels have not been compiled.
        ValueError: an array is not contiguous.
    """
    found: int = _kernel(name, len(arguments))(*map(_given, arguments))
    return found


def has(name: str) -> bool:
    """Whether there is a kernel of that name for this processor."""
    return bool(_levels(name))


def _given(argument: np.ndarray[Any, Any] | int) -> int:
    if isinstance(argument, int):
        return argument
    place = argument.__array_interface__
    if place["strides"] is not None:
        raise ValueError(f"a kernel takes contiguous arrays; this one has strides {place['strides']}")
    address: int = place["data"][0]
    return address


@cache
def _kernel(name: str, count: int) -> Any:
    kernel = _library()[f"{name}_{max(_levels(name))}"]
    kernel.restype, kernel.argtypes = ctypes.c_int64, (ctypes.c_int64,) * count
    return kernel


def _levels(name: str) -> list[int]:
    """The generations of processors up to this one that a kernel is compiled for."""
    return [level for level in range(1, _level() + 1) if hasattr(_library(), f"{name}_{level}")]


@cache
def _library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        raise Unavailable(f"the kernels are not compiled ({error}); install Modelworks again: pip install .") from None


@cache
def _level() -> int:
    return int(_library().level())
