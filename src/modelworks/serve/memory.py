"""Whether a model fits into the memory that is free, known from the headers of its files before anything starts."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import psutil

from modelworks.core.errors import OutOfMemory

# Room for what is read and written together at first; the cache grows into what is free, and is bounded by it.
CACHED_TOKENS = 4096
SPARE = 1.2
_BYTES = {"F64": 8, "F32": 4, "I32": 4, "I64": 8, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}
_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def check_memory(
    name: str, folder: Path, dtype: str | None, reserved: int, replicas: int = 1, quantization: str = "none"
) -> int:
    """The bytes that one engine of a model folder is expected to take, of which there are enough for `replicas`.

    Raises:
        OutOfMemory: with what is needed and what there is; `reserved` bytes belong to engines that are being loaded.
    """
    try:
        kept = dtype if quantization == "none" else quantization
        weights, cache = _weight_bytes(folder, kept), _cache_bytes(folder, dtype)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return 0  # the engine says what is wrong with its files
    need, free = int((weights + cache) * SPARE), available_bytes() - reserved
    if need * replicas > free:
        several = f" each for {replicas} engines" if replicas > 1 else ""
        raise OutOfMemory(
            f"{name} needs about {need / 1e9:.2f} GB{several} (weights {weights / 1e9:.2f}, cache {cache / 1e9:.2f}, a "
            f"fifth to spare) and {max(0, free) / 1e9:.2f} GB are free; unload a model, or take a smaller one"
        )
    return need


def available_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that can be had without swapping, on the machine and in the container around us."""
    free = int(psutil.virtual_memory().available)
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        text = (cgroup / limit).read_text().strip() if (cgroup / limit).is_file() else "max"
        if text.isdigit():
            lines = ((cgroup / used).parent / "memory.stat").read_text().splitlines()
            idle = next((int(line.split()[1]) for line in lines if line.split()[0] == cached), 0)
            free = min(free, int(text) - int((cgroup / used).read_text()) + idle)
    return free


def rss_bytes(pid: int | None) -> int:
    """What a process and all that it started hold."""
    try:
        own = int(psutil.Process(pid).memory_info().rss) if pid is not None else 0
        # psutil would look at every process of the machine to find them.
        told = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except (psutil.Error, OSError):
        return 0
    return own + sum(rss_bytes(int(child)) for children in told for child in children)


def _weight_bytes(folder: Path, dtype: str | None) -> int:
    """Of the tensors in the precision of the engine: None is bfloat16 on processors that compute with it."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            head = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        for name, tensor in head.items():
            if name != "__metadata__":
                width = (
                    _width(dtype)
                    if tensor["dtype"] in {"F64", "F32", "F16", "BF16"}
                    else _BYTES.get(tensor["dtype"], 1)
                )
                # looked up as they are
                width += 4 * (dtype == "int8" and "embed" in name)
                total += math.prod(tensor["shape"]) * width
    return total or sum(path.stat().st_size for path in folder.glob("*.gguf"))


def _cache_bytes(folder: Path, dtype: str | None) -> int:
    config = json.loads((folder / "config.json").read_bytes())
    config = config.get("text_config", config)
    heads = config.get("num_attention_heads") or 1
    size = config.get("head_dim") or config.get("hidden_size", 0) // heads
    tokens = min(CACHED_TOKENS, config.get("max_position_embeddings") or CACHED_TOKENS)
    layers, kv_heads = config.get("num_hidden_layers", 0), config.get("num_key_value_heads") or heads
    return int(2 * layers * kv_heads * size * _width(dtype) * tokens)


def _width(dtype: str | None) -> int:
    if dtype is not None:
        return _WIDTHS.get(dtype, 4)
    flags = Path("/proc/cpuinfo")
    text = flags.read_text() if flags.is_file() else ""
    return 2 if "avx512_bf16" in text or "amx_tile" in text else 4
