"""How fast this machine multiplies matrices, measured for a moment in a process of its own: it loads torch."""

from __future__ import annotations

import subprocess
import sys
import time

_SECONDS = 0.2
# Tokens of a batch, and the width of a layer.
_ROWS, _WIDTH = 1024, 1024


def measured(dtype: str) -> float | None:
    """10^9 operations a second in fp32 or bf16; None where torch cannot be loaded."""
    command = [sys.executable, "-m", "modelworks.train.rate", dtype]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return float(ended.stdout) if ended.returncode == 0 else None


def main() -> None:
    import torch

    from modelworks.weights.loading import prepare_cpu

    prepare_cpu()
    dtype = torch.bfloat16 if sys.argv[1] == "bf16" else torch.float32
    left, right = torch.randn(_ROWS, _WIDTH).to(dtype), torch.randn(_WIDTH, _WIDTH).to(dtype)
    left @ right
    count, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < _SECONDS:
        left @ right
        count += 1
    print(round(2 * _ROWS * _WIDTH * _WIDTH * count / passed / 1e9, 1))  # noqa: T201 - the answer of this process


if __name__ == "__main__":
    main()
