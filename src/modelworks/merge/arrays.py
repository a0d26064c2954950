"""Pieces as numpy's arrays: on a processor most methods need nothing that torch alone has, nor its second of importing.

What is done to such a piece is written so that it works on torch's tensors of a GPU as well, and gives the same bits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from modelworks.core import kernels
from modelworks.weights.reader import DTYPES

if TYPE_CHECKING:
    from modelworks.weights.reader import Checkpoint

# numpy's on a processor, torch's elsewhere.
Array: TypeAlias = Any

# A tensor of no more is read once, however often a method looks.
KEPT_ELEMENTS = 1 << 20

# How a dtype is held here, and what is infinite in it once it is rounded: the least such magnitude.
_HELD = {
    "BF16": ("uint16", 0.0), "F16": ("float16", 65520.0),
    "F32": ("float32", float("inf")), "F64": ("float64", float("inf")),
}  # fmt: skip


def library(array: Array) -> Any:
    """numpy or torch, whichever an array is of: they have many functions of one name in common."""
    return sys.modules[type(array).__module__]


def is_numpy(array: Array) -> bool:
    return type(array).__module__ == "numpy"


def bare(array: Array) -> Array:
    """A tensor in main memory as numpy's array of the same memory, which spends less on every operation."""
    return array.numpy() if not is_numpy(array) and array.is_cpu else array


def at_hand(array: Array) -> Array:
    """The same as numpy's array, wherever it is."""
    return array if is_numpy(array) else array.cpu().numpy()


def floats(values: float | Sequence[float], beside: Array) -> Array:
    """Float32 where an array is. (Dividing by a plain number, a GPU would multiply with its reciprocal.)"""
    lib = library(beside)
    return lib.asarray(values, dtype=lib.float32, device=beside.device)


def read_row(checkpoint: Checkpoint, name: str, start: int, row: Array) -> None:
    """Fill a float32 row with a tensor's elements from `start` on."""
    import numpy as np

    dtype = checkpoint.tensors[name].dtype
    stored = row if dtype == "F32" else np.empty(len(row), _HELD[dtype][0])
    if len(row):
        checkpoint.read_into(name, start, stored.data.cast("B"))
    if dtype == "BF16":
        kernels.call("widen", stored, row, len(row))
    elif dtype != "F32":
        np.copyto(row, stored, casting="same_kind")


def widened(bits: Array) -> Array:
    """What is stored as bfloat16, in float32."""
    import numpy as np

    made = np.empty(bits.shape, np.float32)
    kernels.call("widen", np.ascontiguousarray(bits), made, bits.size)
    return made


def rounded(values: Array, dtype: str) -> tuple[Array, bool]:
    """Float32 in one of safetensors' dtypes, to the nearest and of two such to the even one; bfloat16 as its bits.

    Returns:
        What it is then, and whether none of it is NaN or infinite.
    """
    import numpy as np

    if dtype == "BF16":
        made = np.empty(values.shape, np.uint16)
        return made, not kernels.call("narrow", values, made, values.size)
    held, limit = _HELD[dtype]
    finite = not len(values) or bool(values.max() < limit and values.min() > -limit)
    return values.astype(held, copy=False) if finite else values, finite


def as_tensor(array: Array, dtype: str) -> Array:
    """What `rounded` made, as torch's tensor."""
    import torch

    return torch.from_numpy(array).view(getattr(torch, DTYPES[dtype][0]))
