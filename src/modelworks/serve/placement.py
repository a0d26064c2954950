"""Where a replica goes: a wished device, checked against those that this machine has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from modelworks.core.errors import Invalid, Unsupported

_CUDA = re.compile(r"cuda(?::(\d{1,3}))?")


def choose_device(wish: str, gpus: int, taken: Iterable[str]) -> str:
    """`cpu` or `cuda:N` for a wish of `cpu`, `cuda`, `cuda:N` or `auto`.

    `auto` is a GPU where there is one; `cuda` and `auto` take the GPU that holds the fewest of `taken`.

    Raises:
        Unsupported: this machine has no such device.
        Invalid: it is no device at all.
    """
    match = _CUDA.fullmatch(wish)
    if wish == "cpu" or (wish == "auto" and not gpus):
        return "cpu"
    if wish != "auto" and match is None:
        raise Invalid(f"{wish!r} is not a device; use cpu, cuda, cuda:N or auto")
    number = match.group(1) if match else None
    if not gpus or (number is not None and int(number) >= gpus):
        has = f"GPUs cuda:0 to cuda:{gpus - 1}" if gpus > 1 else "one GPU, cuda:0" if gpus else "no GPU"
        raise Unsupported(f"device {wish!r}: this machine has {has}; use {'one of those or ' if gpus else ''}cpu")
    if number is not None:
        return f"cuda:{int(number)}"
    load = Counter(taken)
    return min((f"cuda:{index}" for index in range(gpus)), key=lambda device: load[device])
